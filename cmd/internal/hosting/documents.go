package hosting

import (
	"context"
	"fmt"
	"os"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/credentials"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// ReadSecrets reads the documents that credentials come from and makes their
// values known to the redactor. No path is no documents.
func ReadSecrets(ctx context.Context, a *cli.App, paths []string) (*load.Set, error) {
	if len(paths) == 0 {
		return &load.Set{}, nil
	}
	set, err := load.Documents(ctx, paths, a.In)
	if err != nil {
		return nil, fmt.Errorf("cannot read secrets: %w", err)
	}
	MaskSecrets(set, a.Redactor, a.Redactor)
	return set, nil
}

// credentialTypeLabel marks Secrets that hold credentials of repositories.
const credentialTypeLabel = "kargo.akuity.io/cred-type"

// MaskSecrets makes the values of all Secrets known to all. Those of
// credentials, which no promotion has a reason to output, also to ofCredentials.
func MaskSecrets(set *load.Set, all, ofCredentials *redact.Redactor) {
	var values, credentialValues []string
	for _, d := range load.Of[*kargoapi.Secret](set) {
		secret, _ := load.As[*kargoapi.Secret](d)
		typ := secret.Labels[credentialTypeLabel]
		isCredential := typ != "" && typ != "generic"
		for key, value := range secret.Values() {
			switch key {
			case "repoURL", "repoURLIsRegex", "username":
				if isCredential {
					continue
				}
			}
			values = append(values, string(value))
			if isCredential {
				credentialValues = append(credentialValues, string(value))
			}
		}
	}
	all.Add(values...)
	ofCredentials.Add(credentialValues...)
}

// DocumentCapabilities are what an operator's Kargo documents and this
// machine's own settings allow steps to use. Clusters can only be read unless
// live; what is asked of them goes to log, if not nil.
func DocumentCapabilities(a *cli.App, set *load.Set, clusters ClusterFlags, live bool, log *effects.Log) (steps.Capabilities, error) {
	caps := steps.Capabilities{
		Credentials: a.Redactor.Credentials(credentials.Chain(
			credentials.FromSecrets(credentialSecrets(set), credentials.SecretOptions{
				SharedNamespace: SharedNamespace(), AllowHTTP: os.Getenv("ALLOW_CREDENTIALS_OVER_HTTP") == "true",
			}),
			credentials.Local(credentials.LocalOptions{}),
		)),
		GitUser: a.Redactor.GitUser(DocumentGitUser(set)),
	}
	return caps, clusters.sources(&caps, live, log)
}

// SharedNamespace is where Kargo has shared Secrets and ConfigMaps.
func SharedNamespace() string { return os.Getenv("SHARED_RESOURCES_NAMESPACE") }

// credentialSecrets lists the Secrets among the documents by namespace; one
// without a namespace is in all of them.
func credentialSecrets(set *load.Set) func(context.Context, string) ([]credentials.Secret, error) {
	return func(_ context.Context, namespace string) ([]credentials.Secret, error) {
		var out []credentials.Secret
		for _, d := range load.Of[*kargoapi.Secret](set) {
			if d.Namespace != "" && d.Namespace != namespace {
				continue
			}
			s, _ := load.As[*kargoapi.Secret](d)
			out = append(out, credentials.Secret{Name: s.Name, Labels: s.Labels, Annotations: s.Annotations, Data: s.Values()})
		}
		return out, nil
	}
}

// DocumentSecrets serves secretRef from the Secrets among the documents.
type DocumentSecrets struct{ Set *load.Set }

// Secret implements steps.SecretSource.
func (d DocumentSecrets) Secret(_ context.Context, project, name string) (map[string][]byte, error) {
	for _, doc := range load.Of[*kargoapi.Secret](d.Set) {
		if doc.Name == name && (doc.Namespace == "" || doc.Namespace == project) {
			s, _ := load.As[*kargoapi.Secret](doc)
			return s.Values(), nil
		}
	}
	return nil, fmt.Errorf("no Secret %q of project %q among the documents; load it with -f", name, project)
}
