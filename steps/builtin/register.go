package builtin

import (
	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/helmrun"
	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/ocipush"
	"github.com/stepd/stepd/internal/pullrequest"
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
	// PullRequests has the hosting providers' pull requests. Required.
	PullRequests pullrequest.Hosts
	// OCIPush is where oci-push writes to. Required.
	OCIPush ocipush.Destinations
	// MaxPushSize bounds copies by oci-push (Kargo's
	// MAX_OCI_PUSH_ARTIFACT_SIZE); nil is DefaultMaxPush.
	MaxPushSize *int64
	// Helm renders charts and fetches their dependencies; the zero value is the
	// stepd-helm beside the running executable.
	Helm helmrun.Command
	// HTTP sends the requests of `http`, and Downloads those of
	// `http-download`, which only reads. Required.
	HTTP, Downloads httpedge.Edge
	// Resources has the project's Stages, Freight and Warehouses. Required.
	Resources Resources
	// Wait pauses between a step's own attempts; nil waits for real.
	Wait Wait
}

// Registrations lists every built-in step on the given edges.
func Registrations(e Edges) []steps.Registration {
	if e.ArgoCDNamespace == "" {
		e.ArgoCDNamespace = "argocd"
	}
	maxPush := int64(DefaultMaxPush)
	if e.MaxPushSize != nil {
		maxPush = *e.MaxPushSize
	}
	return []steps.Registration{
		ArgoCDUpdate(e.ArgoCD, e.ArgoCDNamespace),
		ArgoCDWait(e.ArgoCD, e.ArgoCDNamespace),
		ComposeOutput(),
		Copy(),
		Delete(),
		Fail(),
		FileWrite(),
		GitClear(),
		GitClone(e.Git),
		GitCommit(),
		GitMergePR(e.PullRequests),
		GitOpenPR(e.Git, e.PullRequests),
		GitPush(e.Git, e.GitPolicy, e.Wait),
		GitTag(),
		GitWaitForPR(e.PullRequests),
		HelmTemplate(e.Helm),
		HelmUpdateChart(e.Helm),
		HTTP(e.HTTP),
		HTTPDownload(e.Downloads),
		JSONParse(),
		JSONUpdate(),
		KustomizeBuild(),
		KustomizeSetImage(e.Resources),
		OCIDownload(e.Registries),
		OCIPush(e.OCIPush, maxPush),
		SetFreightAlias(e.Resources),
		SetMetadata(e.Resources),
		TOMLParse(),
		TOMLUpdate(),
		Untar(),
		YAMLMerge(),
		YAMLParse(),
		YAMLUpdate(),
	}
}
