package builtin

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/steps"
)

func TestArgoCDWait(t *testing.T) {
	status := func(health, sync, rest string) string {
		return `{"status":{"health":{"status":"` + health + `"},"sync":{"status":"` + sync + `"},"reconciledAt":"2026-11-22T10:00:05Z"` + rest + `}}`
	}
	operation := func(phase, finished string) string {
		return `,"operationState":{"phase":"` + phase + `","finishedAt":"` + finished + `"}`
	}
	for _, tc := range []struct {
		reason    string
		app       string
		waitFor   []any
		before    string
		want      outcome
		refreshed bool
	}{
		{"all is well", status("Healthy", "Synced", operation("Succeeded", "2026-11-22T10:00:05Z")), nil, "", outcome{status: steps.Succeeded}, false},
		{"not healthy yet", status("Progressing", "Synced", ""), nil, "", outcome{status: steps.Running}, false},
		{"not synced yet", status("Healthy", "OutOfSync", ""), nil, "", outcome{status: steps.Running}, false},
		{"an operation is running", status("Healthy", "Synced", operation("Running", "")), nil, "", outcome{status: steps.Running}, false},
		{"health is not believed during an operation", status("Healthy", "Synced", operation("Running", "")), []any{"health"}, "", outcome{status: steps.Running}, false},
		{"an operation does not matter for sync", status("Healthy", "Synced", operation("Running", "")), []any{"sync"}, "", outcome{status: steps.Succeeded}, false},
		{"health is from before the operation's end", status("Healthy", "Synced", operation("Succeeded", "2026-11-22T10:00:06Z")), nil, "", outcome{status: steps.Running}, true},
		{"which matters for health only", status("Healthy", "Synced", operation("Succeeded", "2026-11-22T10:00:06Z")), []any{"sync", "operation"}, "", outcome{status: steps.Succeeded}, false},
		{"G36 it became degraded", status("Degraded", "Synced", ""), nil, "Healthy", outcome{steps.Errored, true, "has become Degraded; it was Healthy"}, false},
		{"G36 it was degraded from the start", status("Degraded", "Synced", ""), nil, "Degraded", outcome{status: steps.Running}, false},
		{"G36 it was unknown", status("Degraded", "Synced", ""), nil, "Unknown", outcome{status: steps.Running}, false},
		{"G36 the first look", status("Degraded", "Synced", ""), nil, "", outcome{status: steps.Running}, false},
		{"degraded is what is wanted", status("Degraded", "OutOfSync", ""), []any{"health", "degraded"}, "Healthy", outcome{status: steps.Succeeded}, false},
		{"suspended or healthy", status("Suspended", "OutOfSync", ""), []any{"health", "suspended"}, "", outcome{status: steps.Succeeded}, false},
		{"G37 sync alone", status("Degraded", "Synced", ""), []any{"sync"}, "Healthy", outcome{status: steps.Succeeded}, false},
		{"an invalid spec", status("Healthy", "Synced", `,"conditions":[{"type":"InvalidSpecError","message":"no repo"}]`), nil, "", outcome{steps.Errored, true, "InvalidSpecError: no repo"}, false},
	} {
		p := newPromotion(t)
		server, edge := serve(t, p, map[string]string{"app": tc.app})
		if tc.before != "" {
			p.state["argocd-wait"] = map[string]any{"healthStatus": map[string]any{"argocd/app": tc.before}}
		}
		app := config{"name": "app"}
		if tc.waitFor != nil {
			app["waitFor"] = tc.waitFor
		}
		cfg := config{"apps": []any{app}}
		r, err := p.run(ArgoCDWait(edge, "argocd"), cfg)
		tc.want.check(t, tc.reason, r, err)
		health := strings.Split(tc.app, `"`)[7]
		if diff := cmp.Diff(map[string]any{"healthStatus": map[string]any{"argocd/app": health}}, r.Output); diff != "" {
			t.Errorf("%s: output (-want +got):\n%s", tc.reason, diff)
		}
		if got := len(server.patches) == 1; got != tc.refreshed {
			t.Errorf("%s: patches %v", tc.reason, server.patches)
		}
		if tc.refreshed { // and only once
			if r, err = p.run(ArgoCDWait(edge, "argocd"), cfg); r.Status != steps.Running || len(server.patches) != 1 {
				t.Errorf("%s: again: %s, %v, patches %v", tc.reason, r.Status, err, server.patches)
			}
		}
	}
}

func TestArgoCDWaitRecorded(t *testing.T) {
	p := newPromotion(t)
	edge := argocd.NewRecorder(p.log, true)
	wait := config{"apps": []any{config{"name": "app"}}}
	r, err := p.run(ArgoCDWait(edge, "argocd"), wait)
	outcome{steps.Errored, false, "Argo CD integration is disabled"}.check(t, "nothing is known of it", r, err)
	p.must(ArgoCDUpdate(edge, "argocd"), desire("abc"))
	p.must(ArgoCDWait(edge, "argocd"), wait) // its recorded sync is over
	r, err = p.run(ArgoCDWait(argocd.NewRecorder(p.log, false), "argocd"), wait)
	outcome{status: steps.Succeeded}.check(t, "a preview", r, err)
}

// TestArgoCDWaitWithoutCluster: as in Kargo there is no output either.
func TestArgoCDWaitWithoutCluster(t *testing.T) {
	p := newPromotion(t)
	r, err := p.run(ArgoCDWait(argocd.NewRecorder(p.log, true), "argocd"), config{"apps": []any{config{"name": "a"}}})
	outcome{steps.Errored, false, "Argo CD integration is disabled on this controller; cannot update Argo CD Application resources; name a cluster"}.check(t, "no cluster", r, err)
	if r.Output != nil {
		t.Errorf("output %v, want none", r.Output)
	}
}
