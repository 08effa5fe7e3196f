package builtin

import (
	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/steps"
)

// Edges are the ways by which steps reach the world outside their work dir.
// Whoever fills them in decides whether steps act or only record.
type Edges struct {
	// Git is where git steps clone from and push to. Required.
	Git gitremote.Remotes
	// GitPolicy is how git-push brings in others' commits; AlwaysRebase if
	// empty.
	GitPolicy IntegrationPolicy
	// ArgoCD has the Applications. Required.
	ArgoCD argocd.Applications
	// ArgoCDNamespace is where Applications are unless a step says otherwise
	// (Kargo's ARGOCD_NAMESPACE); "argocd" if empty.
	ArgoCDNamespace string
	// Registries is where OCI registries are reached through; nil is a pool of
	// its own.
	Registries *ociart.Transports
	// Wait pauses between a step's own attempts; nil waits for real.
	Wait Wait
}

// Registrations lists every built-in step on the given edges.
func Registrations(e Edges) []steps.Registration {
	if e.ArgoCDNamespace == "" {
		e.ArgoCDNamespace = "argocd"
	}
	return []steps.Registration{
		ArgoCDUpdate(e.ArgoCD, e.ArgoCDNamespace),
		ComposeOutput(),
		Copy(),
		Fail(),
		GitClone(e.Git),
		GitCommit(),
		GitPush(e.Git, e.GitPolicy, e.Wait),
		OCIDownload(e.Registries),
		JSONParse(),
		JSONUpdate(),
		TOMLParse(),
		TOMLUpdate(),
		YAMLParse(),
		YAMLUpdate(),
	}
}
