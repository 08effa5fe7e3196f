// Package credentials finds which credentials belong to a repository: in Kargo
// Secrets, by Kargo's rules (compat.md §6), and on a laptop where git and
// Docker keep theirs. Its sources are steps.CredentialSources.
//
// How URLs are compared is in internal/repourl. Nothing here logs, and errors
// name Secrets and hosts, never values.
package credentials

import (
	"context"

	"github.com/stepd/stepd/steps"
)

// Chain asks sources in order; the first answer that is not nil, or an error,
// wins. Nil sources are left out.
func Chain(sources ...steps.CredentialSource) steps.CredentialSource { return chain(sources) }

type chain []steps.CredentialSource

func (c chain) Get(ctx context.Context, project string, typ steps.CredentialType, repoURL string) (*steps.Credentials, error) {
	for _, source := range c {
		if source == nil {
			continue
		}
		if found, err := source.Get(ctx, project, typ, repoURL); found != nil || err != nil {
			return found, err
		}
	}
	return nil, nil
}
