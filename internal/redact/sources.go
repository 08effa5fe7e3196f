package redact

import (
	"context"

	"github.com/stepd/stepd/steps"
)

// Credentials returns a source that makes every credential known before handing
// it out.
func (r *Redactor) Credentials(next steps.CredentialSource) steps.CredentialSource {
	return credentials{r, next}
}

type credentials struct {
	r    *Redactor
	next steps.CredentialSource
}

func (c credentials) Get(ctx context.Context, project string, typ steps.CredentialType, repoURL string) (*steps.Credentials, error) {
	creds, err := c.next.Get(ctx, project, typ, repoURL)
	if creds != nil {
		c.r.Add(creds.Password, creds.SSHPrivateKey)
	}
	return creds, c.r.Error(err)
}

// GitUser returns a source that makes the signing key known before handing it
// out.
func (r *Redactor) GitUser(next steps.GitUserSource) steps.GitUserSource { return gitUser{r, next} }

type gitUser struct {
	r    *Redactor
	next steps.GitUserSource
}

func (g gitUser) GitUser(ctx context.Context) (steps.GitUser, error) {
	u, err := g.next.GitUser(ctx)
	g.r.Add(u.SigningKey)
	return u, g.r.Error(err)
}

// Secrets returns a source that makes every value of a Secret known before
// handing it out.
func (r *Redactor) Secrets(next steps.SecretSource) steps.SecretSource { return secrets{r, next} }

type secrets struct {
	r    *Redactor
	next steps.SecretSource
}

func (s secrets) Secret(ctx context.Context, project, name string) (map[string][]byte, error) {
	data, err := s.next.Secret(ctx, project, name)
	for _, v := range data {
		s.r.Add(string(v))
	}
	return data, s.r.Error(err)
}
