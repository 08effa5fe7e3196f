package credentials

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/steps"
)

// TypeLabel is the Secret label whose value is a steps.CredentialType.
const TypeLabel = "kargo.akuity.io/cred-type"

// Secret is a Kubernetes Secret.
type Secret struct {
	Name                string
	Labels, Annotations map[string]string
	// Data is decoded.
	Data map[string][]byte
}

// SecretOptions are settings of Kargo's controller.
type SecretOptions struct {
	// SharedNamespace is searched after the project's (Kargo's
	// SHARED_RESOURCES_NAMESPACE); empty for none.
	SharedNamespace string
	// AllowHTTP gives credentials to http:// URLs too (Kargo's
	// ALLOW_CREDENTIALS_OVER_HTTP).
	AllowHTTP bool
	// Client exchanges GitHub Apps' keys for tokens; nil is one with a timeout.
	Client *http.Client
}

// FromSecrets finds credentials in the Secrets that list returns for a
// namespace, the way Kargo does: the project's namespace before the shared
// one; in a namespace the first Secret by name whose repoURL matches, exactly
// or as a regular expression; no second choice if that one holds nothing
// usable. Nil is anonymous access.
//
// A GitHub App's key is exchanged for a token. A matching Secret for a cloud
// provider's token exchange, which this package does not do, is an error rather
// than anonymous access.
func FromSecrets(list func(ctx context.Context, namespace string) ([]Secret, error), o SecretOptions) steps.CredentialSource {
	if o.Client == nil {
		o.Client = &http.Client{Timeout: 30 * time.Second}
	}
	return &secrets{list: list, SecretOptions: o, apps: gitHubApps{client: o.Client}}
}

type secrets struct {
	SecretOptions
	list func(context.Context, string) ([]Secret, error)
	apps gitHubApps
}

func (s *secrets) Get(ctx context.Context, project string, typ steps.CredentialType, repoURL string) (*steps.Credentials, error) {
	if !s.AllowHTTP && strings.HasPrefix(strings.ToLower(repoURL), "http://") {
		return nil, nil
	}
	for _, namespace := range []string{project, s.SharedNamespace} {
		if namespace == "" {
			continue
		}
		found, err := s.list(ctx, namespace)
		if err != nil {
			return nil, fmt.Errorf("cannot list the credential Secrets of namespace %q: %w", namespace, err)
		}
		if secret := match(found, typ, repoURL); secret != nil {
			return s.use(ctx, project, namespace, secret, typ, repoURL)
		}
	}
	return nil, nil
}

// match returns the first Secret by name that is for repoURL. Exact and
// regular expression Secrets are mixed in that one order.
func match(all []Secret, typ steps.CredentialType, repoURL string) *Secret {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b Secret) int { return cmp.Compare(a.Name, b.Name) })
	normalised := normalise(typ, repoURL)
	for i, secret := range sorted {
		if secret.Labels[TypeLabel] != string(typ) {
			continue
		}
		url, ok := secret.Data["repoURL"]
		if !ok {
			continue
		}
		if string(secret.Data["repoURLIsRegex"]) == "true" {
			// Unanchored, and an invalid one matches nothing: as in Kargo.
			re, err := regexp.Compile(string(url))
			if err == nil && (re.MatchString(repoURL) || re.MatchString(normalised)) {
				return &sorted[i]
			}
			continue
		}
		if normalise(typ, string(url)) == normalised {
			return &sorted[i]
		}
	}
	return nil
}

func normalise(typ steps.CredentialType, url string) string {
	switch typ {
	case steps.CredentialsGit:
		return repourl.Git(url)
	case steps.CredentialsHelm:
		return repourl.Helm(url)
	}
	return repourl.Image(url)
}

// use reads a matching Secret's credentials in the order of Kargo's providers.
func (s *secrets) use(ctx context.Context, project, namespace string, secret *Secret, typ steps.CredentialType, repoURL string) (*steps.Credentials, error) {
	data := func(key string) string { return string(secret.Data[key]) }
	isHTTP := strings.HasPrefix(repoURL, "http://") || strings.HasPrefix(repoURL, "https://")
	switch {
	case data("username") != "" && data("password") != "":
		return &steps.Credentials{Username: data("username"), Password: data("password")}, nil
	case typ != steps.CredentialsGit && (data("awsAccessKeyID") != "" || data("gcpServiceAccountKey") != ""):
		return nil, fmt.Errorf("cannot use Secret %q in namespace %q: it asks for a cloud provider's token, which stepd does not exchange; give it a username and a password", secret.Name, namespace)
	case typ == steps.CredentialsGit && isHTTP && isGitHubApp(secret):
		found, err := s.apps.get(ctx, project, secret, repoURL)
		if err != nil {
			return nil, fmt.Errorf("cannot use the GitHub App in Secret %q in namespace %q: %w", secret.Name, namespace, err)
		}
		return found, nil
	case typ == steps.CredentialsGit && data("sshPrivateKey") != "":
		return &steps.Credentials{SSHPrivateKey: data("sshPrivateKey")}, nil
	}
	return nil, nil
}
