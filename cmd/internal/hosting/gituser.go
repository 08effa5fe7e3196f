package hosting

import (
	"context"
	"fmt"
	"os"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// DocumentGitUser resolves the system's git identity as Kargo's controller does
// (compat.md 6.5): the ClusterConfig among the documents, else the environment,
// else Kargo's defaults.
func DocumentGitUser(set *load.Set) steps.GitUserSource { return systemGitUser{set} }

type systemGitUser struct{ set *load.Set }

// GitUser implements steps.GitUserSource.
func (g systemGitUser) GitUser(context.Context) (steps.GitUser, error) {
	u, err := EnvironmentGitUser()
	if err != nil {
		return steps.GitUser{}, err
	}
	for _, d := range load.Of[*kargoapi.ClusterConfig](g.set) {
		config, _ := load.As[*kargoapi.ClusterConfig](d)
		if u, err = WithClusterConfig(u, config, g.secret); err != nil {
			return steps.GitUser{}, err
		}
	}
	return u, nil
}

// secret finds a Secret of the system namespace; locally that is any Secret of
// the name.
func (g systemGitUser) secret(name string) (*kargoapi.Secret, error) {
	for _, d := range load.Of[*kargoapi.Secret](g.set) {
		if d.Name == name {
			s, _ := load.As[*kargoapi.Secret](d)
			return s, nil
		}
	}
	return nil, fmt.Errorf("no Secret %q, which the ClusterConfig names, is among the documents", name)
}

// EnvironmentGitUser is the identity that the environment says, or Kargo's own.
func EnvironmentGitUser() (steps.GitUser, error) {
	u := steps.GitUser{Name: os.Getenv("GITCLIENT_NAME"), Email: os.Getenv("GITCLIENT_EMAIL")}
	if u.Name == "" {
		u.Name = "Kargo"
	}
	if u.Email == "" {
		u.Email = "no-reply@kargo.io"
	}
	if path := os.Getenv("GITCLIENT_SIGNING_KEY_PATH"); path != "" {
		key, err := os.ReadFile(path)
		if err != nil {
			return steps.GitUser{}, fmt.Errorf("cannot read the git signing key of GITCLIENT_SIGNING_KEY_PATH: %w", err)
		}
		u.SigningKey, u.SigningKeyType = string(key), keyType(os.Getenv("GITCLIENT_SIGNING_KEY_TYPE"))
	}
	return u, nil
}

// WithClusterConfig lays what a ClusterConfig says, if there is one, over an
// identity. Secret reads a Secret of the system namespace.
func WithClusterConfig(u steps.GitUser, config *kargoapi.ClusterConfig, secret func(name string) (*kargoapi.Secret, error)) (steps.GitUser, error) {
	if config == nil || config.Spec.GitClient == nil {
		return u, nil
	}
	client := config.Spec.GitClient
	u.Name, u.Email = client.Name, client.Email
	if client.SigningKeySecret == nil {
		return u, nil
	}
	s, err := secret(client.SigningKeySecret.Name)
	if err != nil {
		return steps.GitUser{}, fmt.Errorf("cannot find the git signing key: %w", err)
	}
	u.SigningKey, u.SigningKeyType = string(s.Values()["signingKey"]), keyType("")
	return u, nil
}

func keyType(s string) string {
	if s == "" {
		return "gpg"
	}
	return s
}
