package builtin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/steps"
)

// applications is a Kubernetes API server that has Applications only.
type applications struct {
	t       *testing.T
	objects map[string]map[string]any
	patches []string
}

// serve returns the edge to a server with these Applications, given as JSON
// by name.
func serve(t *testing.T, p *promotion, objects map[string]string) (*applications, argocd.Applications) {
	t.Helper()
	a := &applications{t: t, objects: map[string]map[string]any{}}
	for name, text := range objects {
		var object map[string]any
		if err := json.Unmarshal([]byte(text), &object); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		merge(object, map[string]any{"metadata": map[string]any{"name": name, "namespace": "argocd"}})
		a.objects[name] = object
	}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return a, argocd.NewCluster(server.Client(), server.URL, p.log)
}

func (a *applications) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const collection = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications"
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, collection), "/")
	object, ok := a.objects[name]
	var answer any = object
	switch {
	case r.URL.Path == collection && r.Method == http.MethodGet:
		items := []any{}
		for _, o := range a.objects {
			labels, _ := o["metadata"].(map[string]any)["labels"].(map[string]any)
			if fmt.Sprint("service=", labels["service"]) == r.URL.Query().Get("labelSelector") {
				items = append(items, o)
			}
		}
		answer = map[string]any{"items": items}
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		answer = map[string]any{"kind": "Status", "message": "no such Application"}
	case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/merge-patch+json":
		text, err := io.ReadAll(r.Body)
		if err != nil {
			a.t.Error(err)
		}
		var patch map[string]any
		if err := json.Unmarshal(text, &patch); err != nil {
			a.t.Error(err)
		}
		a.patches = append(a.patches, string(text))
		merge(object, patch)
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		a.t.Error(err)
	}
}

// merge is RFC 7386.
func merge(object, patch map[string]any) {
	for k, v := range patch {
		inner, isObject := v.(map[string]any)
		switch old, _ := object[k].(map[string]any); {
		case v == nil:
			delete(object, k)
		case isObject && old != nil:
			merge(old, inner)
		default:
			object[k] = v
		}
	}
}

const (
	ours       = "prod.01arz3ndektsv4rrffq69g5fav.3b1f0c9"
	authorized = `"metadata":{"annotations":{"kargo.akuity.io/authorized-stage":"demo:dev, demo:prod"},"labels":{"service":"checkout"}}`
	oneSource  = `"spec":{"source":{"repoURL":"https://git.example.com/a.git","path":"x","helm":{"parameters":[{"name":"a","value":"1","forceString":true}]}},"syncPolicy":{"syncOptions":["CreateNamespace=true"],"retry":{"limit":2}}}`
)

func operation(promotion, phase, revision string) string {
	return fmt.Sprintf(`"status":{"operationState":{"phase":%q,"message":"because","operation":{"info":[{"name":"kargo.akuity.io/promotion","value":%q}]},"syncResult":{"revision":%q}}}`, phase, promotion, revision)
}

func desire(revision string) config {
	return config{"apps": []any{config{"name": "app", "sources": []any{config{"repoURL": "https://git.example.com/a.git", "desiredRevision": revision}}}}}
}

func TestArgoCDUpdateDecides(t *testing.T) {
	for _, tc := range []struct {
		reason string
		app    string
		config config
		want   outcome
		synced bool
	}{
		{"no operation yet", `{` + authorized + `,` + oneSource + `}`, desire("abc"), outcome{status: steps.Running}, true},
		{"somebody's sync is running", `{` + authorized + `,` + oneSource + `,` + operation("", "Running", "") + `}`, desire("abc"), outcome{status: steps.Running}, false},
		{"somebody's sync is over", `{` + authorized + `,` + oneSource + `,` + operation("", "Succeeded", "abc") + `}`, desire("abc"), outcome{status: steps.Running}, true},
		{"another promotion's sync is over", `{` + authorized + `,` + oneSource + `,` + operation("other", "Succeeded", "abc") + `}`, desire("abc"), outcome{status: steps.Running}, true},
		{"ours is running", `{` + authorized + `,` + oneSource + `,` + operation(ours, "Running", "") + `}`, desire("abc"), outcome{status: steps.Running}, false},
		{"ours is over", `{` + authorized + `,` + oneSource + `,` + operation(ours, "Succeeded", "abc") + `}`, desire("abc"), outcome{status: steps.Succeeded}, false},
		{"G34 ours is over, with another revision", `{` + authorized + `,` + oneSource + `,` + operation(ours, "Succeeded", "old") + `}`, desire("abc"), outcome{status: steps.Running}, true},
		{"ours is over, nothing was desired", `{` + authorized + `,` + oneSource + `,` + operation(ours, "Succeeded", "old") + `}`, config{"apps": []any{config{"name": "app"}}}, outcome{status: steps.Succeeded}, false},
		{"ours failed", `{` + authorized + `,` + oneSource + `,` + operation(ours, "Failed", "abc") + `}`, desire("abc"), outcome{steps.Errored, false, "failed with: because"}, false},
		{"not authorised", `{` + oneSource + `}`, desire("abc"), outcome{steps.Errored, false, "does not permit"}, false},
		{"a pattern spoils the annotation", `{"metadata":{"annotations":{"kargo.akuity.io/authorized-stage":"demo:prod,demo:*"}},` + oneSource + `}`, desire("abc"), outcome{steps.Errored, false, "malformed"}, false},
		{"no such source", `{` + authorized + `,"spec":{"source":{"repoURL":"https://git.example.com/b"}}}`, desire("abc"), outcome{steps.Errored, false, "no source of Argo CD Application"}, false},
		{"no such Application", `{}`, config{"apps": []any{config{"name": "nope"}}}, outcome{steps.Errored, false, `unable to find Argo CD Application "nope" in namespace "argocd"`}, false},
	} {
		p := newPromotion(t)
		server, edge := serve(t, p, map[string]string{"app": tc.app})
		r, err := p.run(ArgoCDUpdate(edge, "argocd"), tc.config)
		tc.want.check(t, tc.reason, r, err)
		if synced := len(server.patches) > 0; synced != tc.synced {
			t.Errorf("%s: synced is %v, want %v: %v", tc.reason, synced, tc.synced, server.patches)
		}
		if done := r.Status == steps.Succeeded; done != (r.HealthCheck != nil) {
			t.Errorf("%s: health check %+v", tc.reason, r.HealthCheck)
		}
	}
}

// Conformance G31 and the other configs that are refused.
func TestArgoCDUpdateConfig(t *testing.T) {
	source := func(s config) config {
		s["repoURL"] = "https://git.example.com/a.git"
		return config{"apps": []any{config{"name": "app", "sources": []any{s}}}}
	}
	for _, tc := range []struct {
		reason string
		config config
		text   string
	}{
		{"G31 updateTargetRevision alone", source(config{"updateTargetRevision": true}), "oneOf"},
		{"name and selector", config{"apps": []any{config{"name": "a", "selector": config{"matchLabels": config{"a": "b"}}}}}, "oneOf"},
		{"an empty selector", config{"apps": []any{config{"selector": config{}}}}, ""},
		{"tag and digest", source(config{"kustomize": config{"images": []any{config{"repoURL": "x", "tag": "1", "digest": "2"}}}}), "oneOf"},
	} {
		p := newPromotion(t)
		r, err := p.run(ArgoCDUpdate(argocd.NewRecorder(p.log, false), "argocd"), tc.config)
		if r.Status != steps.Failed || !steps.IsTerminal(err) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %s, %v", tc.reason, r.Status, err)
		}
	}
}

func TestArgoCDUpdatePatch(t *testing.T) {
	p := newPromotion(t)
	server, edge := serve(t, p, map[string]string{"app": `{` + authorized + `,` + oneSource + `,` + operation("other", "Succeeded", "old") + `}`})
	cfg := config{"apps": []any{config{"name": "app", "sources": []any{config{
		"repoURL": "https://git.example.com/a", "desiredRevision": "abc", "updateTargetRevision": true,
		"kustomize": config{"images": []any{config{"repoURL": "r/a", "newName": "m/a", "digest": "sha256:1"}, config{"repoURL": "r/b", "tag": "v1"}}},
		"helm":      config{"images": []any{config{"key": "a", "value": "2"}, config{"key": "b", "value": "3"}}},
	}}}}}
	r, err := p.run(ArgoCDUpdate(edge, "argocd"), cfg)
	outcome{status: steps.Running}.check(t, "sync", r, err)
	var got, want any
	if err := json.Unmarshal([]byte(strings.Join(server.patches, "")), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{
		"metadata": {"annotations": {"argocd.argoproj.io/refresh": "hard"}},
		"spec": {"source": {"repoURL": "https://git.example.com/a.git", "path": "x", "targetRevision": "abc",
			"kustomize": {"images": ["r/a=m/a@sha256:1", "r/b:v1"]},
			"helm": {"parameters": [{"name": "a", "value": "2", "forceString": true}, {"name": "b", "value": "3"}]}}},
		"operation": {"initiatedBy": {"username": "admin"},
			"info": [{"name": "Reason", "value": "Promotion triggered a sync of this Application resource."}, {"name": "kargo.akuity.io/promotion", "value": "`+ours+`"}],
			"sync": {"revisions": [], "syncOptions": ["CreateNamespace=true"]}, "retry": {"limit": 2}},
		"status": {"operationState": null}}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("patch (-want +got):\n%s", diff)
	}
	// Asked for and not started yet: not asked for again.
	r, err = p.run(ArgoCDUpdate(edge, "argocd"), cfg)
	outcome{status: steps.Running}.check(t, "pending", r, err)
	if len(server.patches) != 1 {
		t.Errorf("%d patches, want 1", len(server.patches))
	}
}

// A sync alone leaves the Application's spec to others.
func TestArgoCDUpdateLeavesSources(t *testing.T) {
	p := newPromotion(t)
	server, edge := serve(t, p, map[string]string{"app": `{` + authorized + `,` + oneSource + `}`})
	r, err := p.run(ArgoCDUpdate(edge, "argocd"), desire("abc"))
	outcome{status: steps.Running}.check(t, "sync", r, err)
	if len(server.patches) != 1 || strings.Contains(server.patches[0], `"spec"`) {
		t.Errorf("patches %v", server.patches)
	}
}

func TestArgoCDUpdateSelector(t *testing.T) {
	p := newPromotion(t)
	server, edge := serve(t, p, map[string]string{
		"b":        `{` + authorized + `,` + oneSource + `}`,
		"a":        `{` + authorized + `,` + oneSource + `}`,
		"stranger": `{"metadata":{"labels":{"service":"checkout"}},` + oneSource + `}`,
	})
	cfg := config{"apps": []any{config{"selector": config{"matchLabels": config{"service": "checkout"}}}}}
	r, err := p.run(ArgoCDUpdate(edge, "argocd"), cfg)
	outcome{status: steps.Running}.check(t, "two of three", r, err)
	want := []effects.Sync{
		{Namespace: "argocd", Name: "a", Done: true, Step: "argocd-update"},
		{Namespace: "argocd", Name: "b", Done: true, Step: "argocd-update"},
	}
	if diff := cmp.Diff(want, p.log.Syncs()); diff != "" {
		t.Errorf("syncs (-want +got):\n%s", diff)
	}
	server.patches = nil
	cfg["apps"].([]any)[0].(config)["sources"] = []any{config{"repoURL": "https://git.example.com/other"}}
	if r, err = p.run(ArgoCDUpdate(edge, "argocd"), cfg); r.Status != steps.Errored || len(server.patches) != 0 {
		t.Errorf("incompatible sources: %s, %v, patches %v", r.Status, err, server.patches)
	}
}

func TestArgoCDUpdateRecorded(t *testing.T) {
	p := newPromotion(t)
	r, err := p.run(ArgoCDUpdate(argocd.NewRecorder(p.log, true), "argocd"), desire("abc"))
	outcome{status: steps.Succeeded}.check(t, "recorded", r, err)
	want := []effects.Sync{{Namespace: "argocd", Name: "app", Revisions: []string{"abc"}, Step: "argocd-update"}}
	if diff := cmp.Diff(want, p.log.Syncs()); diff != "" {
		t.Errorf("syncs (-want +got):\n%s", diff)
	}
	if got := p.log.Requests(); len(got) != 0 {
		t.Errorf("the sources were not to change, but logged is %+v", got)
	}
	// Golden case 324: without Argo CD there is nothing to say about this one.
	open := config{"apps": []any{config{"name": "x"}}}
	r, err = p.run(ArgoCDUpdate(argocd.NewRecorder(p.log, true), "argocd"), open)
	outcome{steps.Errored, false, "Argo CD integration is disabled"}.check(t, "live, no revision, no cluster", r, err)
	r, err = p.run(ArgoCDUpdate(argocd.NewRecorder(p.log, false), "argocd"), open)
	outcome{status: steps.Succeeded}.check(t, "preview", r, err)
}
