package argocd

import (
	"context"
	"errors"
	"maps"
	"sync"

	"github.com/stepd/stepd/internal/effects"
)

// ErrNoCluster is what a Recorder answers to what only a cluster can tell.
var ErrNoCluster = errors.New("Argo CD integration is disabled on this controller; cannot update Argo CD Application resources; name a cluster with --kubeconfig") //nolint:staticcheck // starts with a name; all but the advice are Kargo's words

// Recorder stands in for Argo CD where there is no cluster. Every Application
// exists, authorises the asking Stage and has exactly the expected sources; a
// sync is written to the effects log and succeeds.
type Recorder struct {
	log *effects.Log
	// strict refuses what names no revision.
	strict bool

	mu   sync.Mutex
	apps map[string]*Application
}

// NewRecorder returns a Recorder. In a preview every sync can be shown. A run
// that is otherwise live passes strict: a sync to a named revision is still
// recorded, for somebody to carry out; one to whatever the Application points
// at would be an empty promise and is ErrNoCluster.
func NewRecorder(log *effects.Log, strict bool) *Recorder {
	return &Recorder{log: log, strict: strict, apps: map[string]*Application{}}
}

// Find implements Applications.
func (r *Recorder) Find(_ context.Context, q Query) ([]*Application, error) {
	name := q.Name
	if name == "" {
		name = q.Selector.String()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	app, known := r.apps[q.Namespace+"/"+name]
	if r.strict && !known && !namesRevision(q.Expected) {
		return nil, ErrNoCluster
	}
	if !known {
		app = &Application{}
		app.Metadata.Name, app.Metadata.Namespace = name, q.Namespace
		app.Status.Health.Status, app.Status.Sync.Status = "Healthy", "Synced"
	}
	found := *app
	found.Metadata.Annotations = map[string]string{AuthorizedStageAnnotation: q.Stage}
	if len(q.Expected) > 0 {
		found.Spec.Sources = nil
		for _, e := range q.Expected {
			s := Source{"repoURL": e.RepoURL}
			if e.Chart != "" {
				s["chart"] = e.Chart
			}
			found.Spec.Sources = append(found.Spec.Sources, s)
		}
	}
	return []*Application{&found}, nil
}

func namesRevision(expected []ExpectedSource) bool {
	for _, e := range expected {
		if e.Revision != "" {
			return true
		}
	}
	return false
}

// Apply implements Applications.
func (r *Recorder) Apply(_ context.Context, app *Application, c Change) (*Application, error) {
	logChange(r.log, app, c, false)
	after := *app
	if c.Sources != nil {
		after.Spec.Sources = c.Sources
	}
	if c.Operation != nil {
		state, err := succeededState(c)
		if err != nil {
			return nil, err
		}
		after.Status.OperationState = state
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apps[app.Metadata.Namespace+"/"+app.Metadata.Name] = &after
	return &after, nil
}

func succeededState(c Change) (*OperationState, error) {
	var state OperationState
	err := convert(map[string]any{
		"phase": string(Succeeded), "operation": c.Operation,
		"syncResult": map[string]any{"revisions": c.Revisions},
	}, &state)
	return &state, err
}

func logChange(log *effects.Log, app *Application, c Change, done bool) {
	if c.Operation == nil {
		log.Request(effects.Request{
			Kind: "argocd-refresh", Target: app.Metadata.Namespace + "/" + app.Metadata.Name, Done: done, Step: c.Step,
		})
		return
	}
	var revisions []string
	for _, revision := range c.Revisions {
		if revision != "" {
			revisions = append(revisions, revision)
		}
	}
	log.Sync(effects.Sync{
		Namespace: app.Metadata.Namespace, Name: app.Metadata.Name,
		Revisions: revisions, Done: done, Step: c.Step,
	})
	if c.Sources != nil {
		sources := make([]any, len(c.Sources))
		for i, s := range c.Sources {
			sources[i] = maps.Clone(s)
		}
		log.Request(effects.Request{
			Kind: "argocd-sources", Target: app.Metadata.Namespace + "/" + app.Metadata.Name, Done: done, Step: c.Step,
			Detail: map[string]any{"sources": sources},
		})
	}
}
