// Package argocd is the edge to Argo CD: it finds Applications and asks for
// syncs and refreshes of them, through the Kubernetes API (Cluster) or, where
// there is no cluster, by recording what was asked (Recorder).
//
// Which Application is to be synced to what, and when that is done, is decided
// by the steps argocd-update and argocd-wait and does not belong here.
package argocd

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
)

// Names that Argo CD and Kargo give meaning to.
const (
	// AuthorizedStageAnnotation on an Application lists the "project:stage"
	// pairs that may change it.
	AuthorizedStageAnnotation = "kargo.akuity.io/authorized-stage"
	// PromotionInfo names the info item of an operation that tells which
	// promotion asked for it.
	PromotionInfo = "kargo.akuity.io/promotion"

	refreshAnnotation = "argocd.argoproj.io/refresh"
)

// ErrNotFound says that there is no Application of that name.
var ErrNotFound = errors.New("not found")

// Applications is given to the argocd steps.
type Applications interface {
	// Find returns the Applications that q selects, sorted by name. It is
	// ErrNotFound if q names one that does not exist.
	Find(ctx context.Context, q Query) ([]*Application, error)
	// Apply makes a change and returns the Application as it is then.
	Apply(ctx context.Context, app *Application, c Change) (*Application, error)
}

// Query selects Applications by name or, if that is empty, by labels.
type Query struct {
	Namespace string
	Name      string
	Selector  Selector
	// Stage is the asking "project:stage".
	Stage string
	// Expected are the sources that the caller wants to see at a revision. An
	// edge without a cluster has nothing else to model an Application on.
	Expected []ExpectedSource
}

// ExpectedSource identifies a source of an Application.
type ExpectedSource struct{ RepoURL, Chart, Revision string }

// Selector is a Kubernetes label selector.
type Selector struct {
	MatchLabels      map[string]string `json:"matchLabels"`
	MatchExpressions []struct {
		Key      string   `json:"key"`
		Operator string   `json:"operator"`
		Values   []string `json:"values"`
	} `json:"matchExpressions"`
}

// String returns s in the form of the labelSelector query parameter.
func (s Selector) String() string {
	var terms []string
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		terms = append(terms, k+"="+s.MatchLabels[k])
	}
	for _, e := range s.MatchExpressions {
		switch e.Operator {
		case "In":
			terms = append(terms, e.Key+" in ("+strings.Join(e.Values, ",")+")")
		case "NotIn":
			terms = append(terms, e.Key+" notin ("+strings.Join(e.Values, ",")+")")
		case "Exists":
			terms = append(terms, e.Key)
		case "DoesNotExist":
			terms = append(terms, "!"+e.Key)
		}
	}
	return strings.Join(terms, ",")
}

// Change is what to do to an Application.
type Change struct {
	// Sources replace the Application's sources; nil leaves them.
	Sources []Source
	// Operation is the operation to start, in the API's form; nil only asks
	// for a hard refresh.
	Operation map[string]any
	// Revisions are what the operation is expected to sync to, by source.
	Revisions []string
	// Step is the alias of the step that asks.
	Step string
}

// Application is the part of Argo CD's Application (argoproj.io/v1alpha1) that
// promotions look at.
type Application struct {
	Metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		// Source is the only source if Sources is empty.
		Source     Source      `json:"source"`
		Sources    []Source    `json:"sources"`
		SyncPolicy *SyncPolicy `json:"syncPolicy"`
	} `json:"spec"`
	// Operation is the operation that waits to be started.
	Operation *Operation `json:"operation"`
	Status    struct {
		Conditions []struct {
			Type    string `json:"type"`
			Message string `json:"message"`
		} `json:"conditions"`
		Health struct {
			Status string `json:"status"`
		} `json:"health"`
		Sync struct {
			Status string `json:"status"`
		} `json:"sync"`
		// ReconciledAt is an RFC 3339 time, empty if never.
		ReconciledAt   string          `json:"reconciledAt"`
		OperationState *OperationState `json:"operationState"`
	} `json:"status"`
}

// Source is a source of an Application, with everything the API has of it.
type Source map[string]any

// RepoURL returns the source's repository.
func (s Source) RepoURL() string { v, _ := s["repoURL"].(string); return v }

// Chart returns the name of the source's Helm chart; empty for git.
func (s Source) Chart() string { v, _ := s["chart"].(string); return v }

// Sources returns the Application's one or several sources.
func (a *Application) Sources() []Source {
	if len(a.Spec.Sources) > 0 {
		return a.Spec.Sources
	}
	if a.Spec.Source != nil {
		return []Source{a.Spec.Source}
	}
	return nil
}

// RefreshRequested tells whether Argo CD has yet to carry out a refresh.
func (a *Application) RefreshRequested() bool {
	_, ok := a.Metadata.Annotations[refreshAnnotation]
	return ok
}

// SyncPolicy is what operations inherit from an Application.
type SyncPolicy struct {
	Retry       map[string]any `json:"retry"`
	SyncOptions []string       `json:"syncOptions"`
}

// Operation is an operation that is to be, is or was carried out.
type Operation struct {
	Info []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"info"`
}

// Promotion returns the promotion that asked for the operation; empty if it
// was none.
func (o *Operation) Promotion() string {
	if o != nil {
		for _, i := range o.Info {
			if i.Name == PromotionInfo {
				return i.Value
			}
		}
	}
	return ""
}

// OperationState is the last operation's.
type OperationState struct {
	Phase      Phase     `json:"phase"`
	Message    string    `json:"message"`
	Operation  Operation `json:"operation"`
	FinishedAt string    `json:"finishedAt"`
	SyncResult *struct {
		Revision  string   `json:"revision"`
		Revisions []string `json:"revisions"`
	} `json:"syncResult"`
}

// Revisions returns what the operation synced to, by source; nil if it has no
// result.
func (s *OperationState) Revisions() []string {
	switch {
	case s.SyncResult == nil:
		return nil
	case len(s.SyncResult.Revisions) > 0:
		return s.SyncResult.Revisions
	}
	return []string{s.SyncResult.Revision}
}

// Phase is the phase of an operation.
type Phase string

// Argo CD's phases.
const (
	Running     Phase = "Running"
	Terminating Phase = "Terminating"
	Failed      Phase = "Failed"
	Error       Phase = "Error"
	Succeeded   Phase = "Succeeded"
)

// Completed tells whether the operation is over.
func (p Phase) Completed() bool { return p == Failed || p == Error || p == Succeeded }
