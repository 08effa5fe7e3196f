package builtin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/steps"
)

type argocdUpdateConfig struct {
	Apps []argocdAppUpdate `json:"apps"`
}

type argocdAppUpdate struct {
	argocdAppRef
	Sources []argocdSourceUpdate `json:"sources"`
}

type argocdAppRef struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Selector  argocd.Selector `json:"selector"`
}

type argocdSourceUpdate struct {
	RepoURL              string `json:"repoURL"`
	Chart                string `json:"chart"`
	DesiredRevision      string `json:"desiredRevision"`
	UpdateTargetRevision bool   `json:"updateTargetRevision"`
	Kustomize            struct {
		Images []struct {
			RepoURL string `json:"repoURL"`
			Tag     string `json:"tag"`
			Digest  string `json:"digest"`
			NewName string `json:"newName"`
		} `json:"images"`
	} `json:"kustomize"`
	Helm struct {
		Images []struct {
			Key   string `json:"key"`
			Value string `json:"value"`
		} `json:"images"`
	} `json:"helm"`
}

// argocdTimeout is Kargo's default for both argocd steps.
const argocdTimeout = 5 * time.Minute

// ArgoCDUpdate is `argocd-update`: it updates Applications' sources, starts a
// sync and is Running until that is over. Success means that the sync
// succeeded, not that the Application is healthy: that is for the health check
// it returns. namespace is used where an app names none.
func ArgoCDUpdate(apps argocd.Applications, namespace string) steps.Registration {
	r := registration("argocd-update", func(steps.Capabilities) steps.Runner {
		return argocdUpdater{apps, namespace}
	}, steps.AccessArgoCD)
	r.DefaultTimeout = argocdTimeout
	return r
}

type argocdUpdater struct {
	apps      argocd.Applications
	namespace string
}

// Run implements steps.Runner.
func (u argocdUpdater) Run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[argocdUpdateConfig](sc)
	if err != nil {
		return failed(err)
	}
	var phases []argocd.Phase
	var failures []error
	healthApps := []any{}
	for _, update := range cfg.Apps {
		apps, err := u.authorized(ctx, sc, update)
		if err != nil {
			return errored(err)
		}
		if len(apps) > 1 {
			for _, app := range apps {
				if _, err := updatedSources(app, update.Sources); err != nil {
					return errored(err)
				}
			}
		}
		for _, app := range apps {
			desired := desiredRevisions(app, update.Sources)
			phase, err := u.update(ctx, sc, app, update, desired)
			if err != nil {
				failures = append(failures, err)
			}
			phases = append(phases, phase)
			healthApps = append(healthApps, map[string]any{
				"name": app.Metadata.Name, "namespace": app.Metadata.Namespace, "desiredRevisions": anyStrings(desired),
			})
		}
	}
	if len(failures) > 0 {
		return errored(errors.Join(failures...))
	}
	if slices.ContainsFunc(phases, func(p argocd.Phase) bool { return !p.Completed() }) {
		return steps.Result{Status: steps.Running}, nil
	}
	return steps.Result{
		Status:      steps.Succeeded,
		HealthCheck: &steps.HealthCheck{Kind: "argocd-update", Input: map[string]any{"apps": healthApps}},
	}, nil
}

// authorized finds the Applications of an entry that let this Stage change
// them.
func (u argocdUpdater) authorized(ctx context.Context, sc *steps.Context, update argocdAppUpdate) ([]*argocd.Application, error) {
	stage := sc.Project + ":" + sc.Stage
	query := update.query(u.namespace)
	query.Stage = stage
	for _, s := range update.Sources {
		query.Expected = append(query.Expected, argocd.ExpectedSource{RepoURL: s.RepoURL, Chart: s.Chart, Revision: s.DesiredRevision})
	}
	found, err := update.find(ctx, u.apps, query)
	if err != nil {
		return nil, err
	}
	var apps []*argocd.Application
	var refusal error
	for _, app := range found {
		if refusal = checkAuthorized(app, sc.Project, sc.Stage); refusal == nil {
			apps = append(apps, app)
		}
	}
	switch {
	case len(apps) > 0:
		return apps, nil
	case update.Name != "":
		return nil, refusal
	}
	return nil, fmt.Errorf("no Argo CD Application in namespace %q matches selector %q and permits changes by Stage %q", query.Namespace, query.Selector, stage)
}

// query is what find is asked with.
func (r argocdAppRef) query(defaultNamespace string) argocd.Query {
	namespace := r.Namespace
	if namespace == "" {
		namespace = defaultNamespace
	}
	return argocd.Query{Namespace: namespace, Name: r.Name, Selector: r.Selector}
}

func (r argocdAppRef) find(ctx context.Context, apps argocd.Applications, query argocd.Query) ([]*argocd.Application, error) {
	found, err := apps.Find(ctx, query)
	switch {
	case errors.Is(err, argocd.ErrNotFound) && r.Name != "":
		return nil, fmt.Errorf("unable to find Argo CD Application %q in namespace %q: %w", r.Name, query.Namespace, err)
	case errors.Is(err, argocd.ErrNoCluster):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("error finding Argo CD Applications in namespace %q: %w", query.Namespace, err)
	}
	return found, nil
}

// checkAuthorized reads the authorized-stage annotation. One malformed entry,
// or a pattern, spoils it.
func checkAuthorized(app *argocd.Application, project, stage string) error {
	refuse := func(why string) error {
		return fmt.Errorf("Argo CD Application %q in namespace %q does not permit changes by Stage %q of project %q: %s", //nolint:staticcheck // starts with a name
			app.Metadata.Name, app.Metadata.Namespace, stage, project, why)
	}
	annotation, ok := app.Metadata.Annotations[argocd.AuthorizedStageAnnotation]
	if !ok {
		return refuse("it has no annotation " + argocd.AuthorizedStageAnnotation)
	}
	authorized := false
	for entry := range strings.SplitSeq(annotation, ",") {
		p, s, ok := strings.Cut(strings.TrimSpace(entry), ":")
		p, s = strings.TrimSpace(p), strings.TrimSpace(s)
		if !ok || p == "" || s == "" || strings.Contains(s, ":") || strings.Contains(entry, "*") {
			return refuse(fmt.Sprintf("annotation %s is malformed at %q", argocd.AuthorizedStageAnnotation, entry))
		}
		authorized = authorized || p == project && s == stage
	}
	if !authorized {
		return refuse("annotation " + argocd.AuthorizedStageAnnotation + " does not list it")
	}
	return nil
}

// desiredRevisions returns what each source should be synced to, "" where
// nothing is asked for. Repository and chart are compared exactly.
func desiredRevisions(app *argocd.Application, updates []argocdSourceUpdate) []string {
	sources := app.Sources()
	revisions := make([]string, len(sources))
	for i, source := range sources {
		for _, update := range updates {
			if update.RepoURL == source.RepoURL() && update.Chart == source.Chart() {
				revisions[i] = update.DesiredRevision
				break
			}
		}
	}
	return revisions
}

// update starts a sync unless this promotion's is under way or done.
func (u argocdUpdater) update(ctx context.Context, sc *steps.Context, app *argocd.Application, update argocdAppUpdate, desired []string) (argocd.Phase, error) {
	if app.Operation.Promotion() == sc.Promotion && sc.Promotion != "" {
		return argocd.Running, nil // asked for, not yet started
	}
	if state := app.Status.OperationState; state != nil {
		switch {
		case !state.Phase.Completed():
			return state.Phase, nil
		case isDone(state, sc.Promotion, desired):
			return state.Phase, syncFailure(app)
		}
	}
	sources, err := updatedSources(app, update.Sources)
	if err != nil {
		return argocd.Error, err
	}
	after, err := u.apps.Apply(ctx, app, argocd.Change{
		Sources: sources, Operation: syncOperation(app, sc), Revisions: desired, Step: sc.Alias,
	})
	if err != nil {
		return argocd.Error, fmt.Errorf("error updating Argo CD Application %q in namespace %q: %w", app.Metadata.Name, app.Metadata.Namespace, err)
	}
	if state := after.Status.OperationState; state != nil && isDone(state, sc.Promotion, desired) {
		return state.Phase, syncFailure(after)
	}
	return argocd.Running, nil
}

// isDone tells whether a completed operation is the one this promotion wants.
func isDone(state *argocd.OperationState, promotion string, desired []string) bool {
	if !state.Phase.Completed() || state.Operation.Promotion() != promotion {
		return false
	}
	got := state.Revisions()
	if got == nil {
		return false
	}
	for i, revision := range desired {
		if revision != "" && (i >= len(got) || got[i] != revision) {
			return false
		}
	}
	return true
}

func syncFailure(app *argocd.Application) error {
	state := app.Status.OperationState
	if state.Phase == argocd.Succeeded {
		return nil
	}
	return fmt.Errorf("Argo CD Application %q in namespace %q failed with: %s", app.Metadata.Name, app.Metadata.Namespace, state.Message) //nolint:staticcheck // starts with a name
}

func syncOperation(app *argocd.Application, sc *steps.Context) map[string]any {
	initiator := map[string]any{"username": sc.PromotionActor}
	if sc.PromotionActor == "" {
		initiator = map[string]any{"username": "kargo-controller", "automated": true}
	}
	sync := map[string]any{"revisions": []any{}}
	operation := map[string]any{
		"initiatedBy": initiator,
		"info": []any{
			map[string]any{"name": "Reason", "value": "Promotion triggered a sync of this Application resource."},
			map[string]any{"name": argocd.PromotionInfo, "value": sc.Promotion},
		},
		"sync": sync,
	}
	if policy := app.Spec.SyncPolicy; policy != nil {
		if policy.Retry != nil {
			operation["retry"] = policy.Retry
		}
		if policy.SyncOptions != nil {
			sync["syncOptions"] = anyStrings(policy.SyncOptions)
		}
	}
	return operation
}

// updatedSources returns the Application's sources with updates applied; nil
// if that changes nothing. Every update has to match a source.
func updatedSources(app *argocd.Application, updates []argocdSourceUpdate) ([]argocd.Source, error) {
	sources := slices.Clone(app.Sources())
	for _, update := range updates {
		matched := false
		for i, source := range sources {
			if update.matches(source) {
				sources[i] = update.apply(source)
				matched = true
			}
		}
		if !matched {
			return nil, fmt.Errorf("no source of Argo CD Application %q in namespace %q has repoURL %q and chart %q",
				app.Metadata.Name, app.Metadata.Namespace, update.RepoURL, update.Chart)
		}
	}
	if reflect.DeepEqual(sources, app.Sources()) {
		return nil, nil
	}
	return sources, nil
}

// matches compares git repositories normalised, unlike desiredRevisions: both
// are Kargo's ways.
func (u argocdSourceUpdate) matches(source argocd.Source) bool {
	if u.Chart != "" || source.Chart() != "" {
		return u.Chart == source.Chart() && u.RepoURL == source.RepoURL()
	}
	return repourl.Git(u.RepoURL) == repourl.Git(source.RepoURL())
}

func (u argocdSourceUpdate) apply(source argocd.Source) argocd.Source {
	source = maps.Clone(source)
	if u.UpdateTargetRevision && u.DesiredRevision != "" {
		source["targetRevision"] = u.DesiredRevision
	}
	if len(u.Kustomize.Images) > 0 {
		images := make([]any, len(u.Kustomize.Images))
		for i, image := range u.Kustomize.Images {
			text := image.RepoURL
			if image.NewName != "" {
				text += "=" + image.NewName
			}
			switch {
			case image.Digest != "":
				text += "@" + image.Digest
			case image.Tag != "":
				text += ":" + image.Tag
			}
			images[i] = text
		}
		source["kustomize"] = with(source["kustomize"], "images", images)
	}
	if len(u.Helm.Images) > 0 {
		helm, _ := source["helm"].(map[string]any)
		parameters, _ := helm["parameters"].([]any)
		parameters = slices.Clone(parameters)
		for _, image := range u.Helm.Images {
			i := slices.IndexFunc(parameters, func(p any) bool {
				m, _ := p.(map[string]any)
				return m["name"] == image.Key
			})
			if i < 0 {
				parameters = append(parameters, map[string]any{"name": image.Key, "value": image.Value})
			} else {
				parameters[i] = with(parameters[i], "value", image.Value)
			}
		}
		source["helm"] = with(source["helm"], "parameters", parameters)
	}
	return source
}

// with returns a copy of an object with one property set.
func with(object any, key string, value any) map[string]any {
	m, _ := object.(map[string]any)
	m = maps.Clone(m)
	if m == nil {
		m = map[string]any{}
	}
	m[key] = value
	return m
}

func anyStrings(in []string) []any {
	out := make([]any, len(in))
	for i, s := range in {
		out[i] = s
	}
	return out
}
