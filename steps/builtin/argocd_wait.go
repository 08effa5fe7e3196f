package builtin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/steps"
)

type argocdWaitConfig struct {
	Apps []struct {
		argocdAppRef
		WaitFor []string `json:"waitFor"`
	} `json:"apps"`
}

// ArgoCDWait is `argocd-wait`: it is Running until every Application has one
// of the wanted health states (health, suspended, degraded) and everything
// else that is wanted (sync, operation). Health is not believed during an
// operation, nor before Argo CD has looked at the Application again after it.
// namespace is used where an app names none.
func ArgoCDWait(apps argocd.Applications, namespace string) steps.Registration {
	r := registration("argocd-wait", func(steps.Capabilities) steps.Runner {
		return argocdWaiter{apps, namespace}
	}, steps.AccessArgoCD)
	r.DefaultTimeout = argocdTimeout
	return r
}

type argocdWaiter struct {
	apps      argocd.Applications
	namespace string
}

// Run implements steps.Runner.
func (w argocdWaiter) Run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[argocdWaitConfig](sc)
	if err != nil {
		return failed(err)
	}
	before := healthBefore(sc)
	health := map[string]any{}
	result := func(status steps.Status, message string) steps.Result {
		return steps.Result{Status: status, Message: message, Output: map[string]any{"healthStatus": health}}
	}
	var pending []string
	for _, c := range cfg.Apps {
		query := c.query(w.namespace)
		query.Stage = sc.Project + ":" + sc.Stage
		found, err := c.find(ctx, w.apps, query)
		if errors.Is(err, argocd.ErrNoCluster) {
			return errored(err)
		}
		if err != nil {
			return result(steps.Errored, ""), err
		}
		if len(found) == 0 {
			return result(steps.Errored, ""), fmt.Errorf("no Argo CD Application in namespace %q matches selector %q", query.Namespace, query.Selector)
		}
		want := c.WaitFor
		if len(want) == 0 {
			want = []string{"health", "sync", "operation"}
		}
		for _, app := range found {
			key := app.Metadata.Namespace + "/" + app.Metadata.Name
			health[key] = app.Status.Health.Status
			why, err := w.look(ctx, sc, app, want, before[key])
			if err != nil {
				return result(steps.Errored, ""), err
			}
			if why != "" {
				pending = append(pending, key+": "+why)
			}
		}
	}
	if len(pending) > 0 {
		return result(steps.Running, "waiting for "+strings.Join(pending, "; ")), nil
	}
	return result(steps.Succeeded, ""), nil
}

// healthBefore is the output of the previous attempt.
func healthBefore(sc *steps.Context) map[string]string {
	output, _ := sc.SharedState[sc.Alias].(map[string]any)
	statuses, _ := output["healthStatus"].(map[string]any)
	before := map[string]string{}
	for key, status := range statuses {
		before[key], _ = status.(string)
	}
	return before
}

// look returns what an Application is still to be waited for; empty when
// nothing is. An error is what no waiting mends.
func (w argocdWaiter) look(ctx context.Context, sc *steps.Context, app *argocd.Application, want []string, before string) (string, error) {
	for _, c := range app.Status.Conditions {
		if c.Type == "ComparisonError" || c.Type == "InvalidSpecError" {
			return "", steps.Terminal(fmt.Errorf("Argo CD Application %q in namespace %q has condition %s: %s", //nolint:staticcheck // starts with a name
				app.Metadata.Name, app.Metadata.Namespace, c.Type, c.Message))
		}
	}
	wants := func(kind string) bool { return slices.Contains(want, kind) }
	wantsHealth := wants("health") || wants("suspended") || wants("degraded")
	state := app.Status.OperationState
	if app.Operation != nil || state != nil && !state.Phase.Completed() {
		if wants("operation") || wantsHealth {
			return "its operation to be over", nil
		}
	}
	health := app.Status.Health.Status
	if wantsHealth {
		if state != nil && isBefore(app.Status.ReconciledAt, state.FinishedAt) {
			return "Argo CD to look at it again", w.refresh(ctx, sc, app)
		}
		if health == "Degraded" && wants("health") && !wants("degraded") && before != "" && before != "Degraded" && before != "Unknown" {
			return "", steps.Terminal(fmt.Errorf("Argo CD Application %q in namespace %q has become Degraded; it was %s", //nolint:staticcheck // starts with a name
				app.Metadata.Name, app.Metadata.Namespace, before))
		}
		satisfied := wants("health") && health == "Healthy" ||
			wants("suspended") && health == "Suspended" || wants("degraded") && health == "Degraded"
		if !satisfied {
			return fmt.Sprintf("its health, which is %q", health), nil
		}
	}
	if wants("sync") && app.Status.Sync.Status != "Synced" {
		return fmt.Sprintf("its sync status, which is %q", app.Status.Sync.Status), nil
	}
	return "", nil
}

// refresh asks for a hard refresh, unless one is asked for already.
func (w argocdWaiter) refresh(ctx context.Context, sc *steps.Context, app *argocd.Application) error {
	if app.RefreshRequested() {
		return nil
	}
	if _, err := w.apps.Apply(ctx, app, argocd.Change{Step: sc.Alias}); err != nil {
		return fmt.Errorf("error refreshing Argo CD Application %q in namespace %q: %w", app.Metadata.Name, app.Metadata.Namespace, err)
	}
	return nil
}

// isBefore compares RFC 3339 times; an absent or unreadable a is before any b.
func isBefore(a, b string) bool {
	end, err := time.Parse(time.RFC3339, b)
	if err != nil {
		return false
	}
	start, err := time.Parse(time.RFC3339, a)
	return err != nil || start.Before(end)
}
