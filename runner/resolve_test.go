package runner_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

const (
	goodsWarehouse = `
---
apiVersion: kargo.akuity.io/v1alpha1
kind: Warehouse
metadata: {name: goods, namespace: demo}
spec: {subscriptions: [{image: {repoURL: reg.io/app}}]}
`
	goodsFreight = `
---
apiVersion: kargo.akuity.io/v1alpha1
kind: Freight
metadata: {name: 3b1f0c9a77d2e4, namespace: demo, labels: {kargo.akuity.io/alias: brave-otter}}
alias: brave-otter
origin: {kind: Warehouse, name: goods}
images: [{repoURL: reg.io/app, tag: v1}]
`
	otherFreight = `
---
apiVersion: kargo.akuity.io/v1alpha1
kind: Freight
metadata: {name: aaaa, namespace: demo}
alias: calm-fox
origin: {kind: Warehouse, name: goods}
images: [{repoURL: reg.io/app, tag: v2}]
`
	bareTask = `
---
apiVersion: kargo.akuity.io/v1alpha1
kind: PromotionTask
metadata: {name: ship, namespace: demo}
spec:
  vars: [{name: who}, {name: greet, value: 'hello ${{ vars.who }}'}]
  steps:
  - {uses: compose, as: one, config: {greet: '${{ vars.greet }}', tag: "${{ imageFrom('reg.io/app')?.Tag ?? 'none' }}"}}
  - {uses: compose, as: two, config: {again: '${{ task.outputs.one.greet }}', from: '${{ ctx.targetFreight.origin.name }}'}}
`
)

func oneStep(config string) string {
	return stage("[]", "[{uses: compose, as: c, config: "+config+"}]")
}

func resolve(t *testing.T, docs string, o runner.Options) (*runner.Resolved, error) {
	t.Helper()
	set, err := load.Bytes("docs.yaml", []byte(docs))
	if err != nil {
		t.Fatal(err)
	}
	return runner.Resolve(set, o)
}

// runResolved runs a promotion and returns its state.
func runResolved(t *testing.T, r *runner.Resolved) map[string]any {
	t.Helper()
	e := engine(t)
	e.Data = r.Data
	p := r.Promotion
	p.WorkDir = t.TempDir()
	out, err := e.Run(t.Context(), p)
	if err != nil || out.Phase != kargoapi.PromotionSucceeded {
		t.Fatalf("%s %q, %v", out.Phase, out.Message, err)
	}
	return out.State
}

func TestBareTask(t *testing.T) {
	who := []kargoapi.Variable{{Name: "who", Value: "ada"}}
	for _, tc := range []struct {
		reason, docs string
		o            runner.Options
		tag, from    string
		stage        string
		warnings     int
	}{
		{"no Freight at all", bareTask, runner.Options{Task: "ship"}, "none", "", "local", 0},
		{"Freight from a document, its Warehouse made up", bareTask + goodsFreight, runner.Options{StageName: "prd"}, "v1", "goods", "prd", 0},
		{"Freight made of flags", bareTask, runner.Options{Images: []steps.Image{{RepoURL: "reg.io/app", Tag: "v9"}}}, "v9", "local", "local", 0},
		{"a flag laid over a document's Freight", bareTask + goodsFreight, runner.Options{Images: []steps.Image{{RepoURL: "reg.io/app", Tag: "v9"}}},
			"v9", "goods", "local", 0},
	} {
		tc.o.Vars = who
		r, err := resolve(t, tc.docs, tc.o)
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		state := runResolved(t, r)
		want := map[string]any{"greet": "hello ada", "tag": tc.tag, "again": "hello ada", "from": tc.from}
		if d := cmp.Diff(want, state["task-1"]); d != "" {
			t.Errorf("%s: %s", tc.reason, d)
		}
		if r.Promotion.Stage != tc.stage || r.Promotion.Project != "demo" || r.Document.Name != "ship" {
			t.Errorf("%s: stage %s, project %s, document %s", tc.reason, r.Promotion.Stage, r.Promotion.Project, r.Document.Name)
		}
		if pos := r.Promotion.Steps[1].Position("/config/again"); pos.String() != "docs.yaml:10:39" {
			t.Errorf("%s: a step of the task is at %s", tc.reason, pos)
		}
	}
	if _, err := resolve(t, bareTask, runner.Options{}); err == nil || !strings.HasSuffix(err.Error(), `missing value for variable "who"; give --var who=…`) {
		t.Errorf("a required variable is missing: %v", err)
	}
}

func TestSelection(t *testing.T) {
	second := strings.ReplaceAll(oneStep("{a: 1}"), "name: prod", "name: dev")
	cluster := taskDoc("ClusterPromotionTask", "{name: everywhere}", "{steps: [{uses: ok}]}")
	named := "\n---\napiVersion: kargo.akuity.io/v1alpha1\nkind: Promotion\nmetadata: {name: chosen, namespace: demo}\nspec: {stage: dev, freight: aaaa}\n"
	vars := []kargoapi.Variable{{Name: "who", Value: "x"}}
	elsewhere := strings.ReplaceAll(strings.ReplaceAll(second, "name: dev", "name: prod"), "namespace: demo", "namespace: other")
	inDemo := strings.ReplaceAll(named, "stage: dev", "stage: prod")
	for _, tc := range []struct {
		reason, docs string
		o            runner.Options
		want, err    string
	}{
		{"a name in two projects", oneStep("{a: 1}") + elsewhere, runner.Options{Stage: "prod"}, "", `a Stage "prod" in each of the projects demo, other; select one with --project`},
		{"no name, and one in two projects", oneStep("{a: 1}") + elsewhere, runner.Options{}, "", "select one with --project"},
		{"one of two projects", oneStep("{a: 1}") + elsewhere, runner.Options{Stage: "prod", Project: "other"}, "Stage/prod", ""},
		{"a Promotion says in which project", oneStep("{a: 1}") + elsewhere + goodsFreight + otherFreight + inDemo, runner.Options{}, "Stage/prod", ""},
		{"a Promotion of another project", elsewhere + otherFreight + inDemo, runner.Options{}, "", `no Stage "prod" among the documents of project "demo"`},
		{"a Promotion that Kargo refuses", oneStep("{a: 1}") + strings.ReplaceAll(inDemo, "freight: aaaa", "freight: aaaa, origin: {kind: Warehouse, name: goods}"), runner.Options{}, "", "exactly one of freight or origin"},
		{"the only Stage, though there is a task", oneStep("{a: 1}") + bareTask, runner.Options{}, "Stage/prod", ""},
		{"a Stage by name", oneStep("{a: 1}") + second, runner.Options{Stage: "dev"}, "Stage/dev", ""},
		{"two Stages", oneStep("{a: 1}") + second, runner.Options{}, "", "select one with --stage: prod, dev"},
		{"a Promotion says which", oneStep("{a: 1}") + second + goodsFreight + otherFreight + named, runner.Options{}, "Stage/dev", ""},
		{"a task by name", oneStep("{a: 1}") + bareTask, runner.Options{Task: "ship", Vars: vars}, "PromotionTask/ship", ""},
		{"a cluster task by name", bareTask + cluster, runner.Options{Task: "everywhere"}, "ClusterPromotionTask/everywhere", ""},
		{"two tasks", bareTask + cluster, runner.Options{}, "", "select one with --task"},
		{"one task twice", bareTask + bareTask, runner.Options{}, "", "keep one, or give --task ship"},
		{"a task that is not there", bareTask + stage("[]", "[{task: {name: shipp}}]"), runner.Options{}, "", `load it with -f, or did you mean "ship"?`},
		{"a task of the other kind", bareTask + stage("[]", "[{task: {name: ship, kind: ClusterPromotionTask}}]"), runner.Options{}, "", "is a PromotionTask: write kind: PromotionTask"},
		{"a name that is nearly right", oneStep("{a: 1}"), runner.Options{Stage: "prd"}, "", `did you mean "prod"?`},
		{"a name that is not", bareTask, runner.Options{Task: "zzzzzzzz"}, "", "there is ship"},
		{"a Stage and a task", bareTask, runner.Options{Task: "ship", Stage: "x"}, "", "cannot run both"},
		{"nothing", goodsFreight, runner.Options{}, "", "neither a Stage nor a PromotionTask"},
		{"another project's", oneStep("{a: 1}"), runner.Options{Project: "other"}, "", "neither a Stage nor"},
	} {
		r, err := resolve(t, tc.docs, tc.o)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: got %v, want %q", tc.reason, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
		} else if got := r.Document.Kind + "/" + r.Document.Name; got != tc.want {
			t.Errorf("%s: %s, want %s", tc.reason, got, tc.want)
		} else if ns := r.Document.Namespace; ns != "" && (tc.o.Project == "" && ns != "demo" || tc.o.Project != "" && ns != tc.o.Project) {
			t.Errorf("%s: of project %q", tc.reason, ns)
		}
	}
}

func TestFreightSelection(t *testing.T) {
	docs := goodsWarehouse + oneStep("{tag: \"${{ imageFrom('reg.io/app')?.Tag ?? 'none' }}\", name: '${{ ctx.targetFreight.name }}', alias: '${{ ctx.targetFreight.alias }}'}")
	byOrigin := "\n---\napiVersion: kargo.akuity.io/v1alpha1\nkind: Promotion\nmetadata: {name: p, namespace: demo}\n" +
		"spec: {stage: prod, origin: {kind: Warehouse, name: goods}}\n"
	dated := strings.ReplaceAll(goodsFreight, "{name: 3b", "{creationTimestamp: '2026-02-01T00:00:00Z', name: 3b") +
		strings.ReplaceAll(otherFreight, "{name: aaaa", "{creationTimestamp: '2026-01-01T00:00:00Z', name: aaaa")
	for _, tc := range []struct {
		reason, docs string
		o            runner.Options
		want         map[string]any
		err          string
	}{
		{"the only one", docs + goodsFreight, runner.Options{}, map[string]any{"tag": "v1", "name": "3b1f0c9a77d2e4", "alias": "brave-otter"}, ""},
		{"two", docs + goodsFreight + otherFreight, runner.Options{}, nil, "select one with --freight: 3b1f0c9a77d2e4, aaaa"},
		{"by name", docs + goodsFreight + otherFreight, runner.Options{Freight: "aaaa"}, map[string]any{"tag": "v2", "name": "aaaa", "alias": "calm-fox"}, ""},
		{"by alias", docs + goodsFreight + otherFreight, runner.Options{Freight: "brave-otter"},
			map[string]any{"tag": "v1", "name": "3b1f0c9a77d2e4", "alias": "brave-otter"}, ""},
		{"by a name that is none", docs + goodsFreight, runner.Options{Freight: "bbbb"}, nil, `no Freight "bbbb" among the documents`},
		{"the newest of an origin", docs + dated + byOrigin, runner.Options{}, map[string]any{"tag": "v1", "name": "3b1f0c9a77d2e4", "alias": "brave-otter"}, ""},
		{"an origin without any", docs + byOrigin, runner.Options{}, nil, "no Freight from Warehouse/goods"},
		{"of an origin the Stage does not request", docs + strings.ReplaceAll(goodsFreight, "name: goods", "name: bads"), runner.Options{}, nil, "does not request"},
		{"of another project", docs + strings.ReplaceAll(goodsFreight, "namespace: demo", "namespace: other"), runner.Options{},
			map[string]any{"tag": "none", "name": "", "alias": ""}, ""},
	} {
		r, err := resolve(t, tc.docs, tc.o)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: got %v, want %q", tc.reason, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		if d := cmp.Diff(tc.want, runResolved(t, r)["c"]); d != "" {
			t.Errorf("%s: %s", tc.reason, d)
		}
	}
}

func TestWarehousesOfStages(t *testing.T) {
	docs := oneStep("{tag: \"${{ imageFrom('reg.io/app')?.Tag ?? 'none' }}\"}")
	image := []steps.Image{{RepoURL: "reg.io/app", Tag: "v9"}}
	r, err := resolve(t, docs, runner.Options{Images: image, Commits: []steps.GitCommit{{RepoURL: "https://git.io/a", ID: "c0ffee"}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := runResolved(t, r)["c"]; !cmp.Equal(got, map[string]any{"tag": "v9"}) {
		t.Errorf("Freight made of flags: %v", got)
	}
	// A Warehouse that is there decides what is found.
	r, err = resolve(t, docs+goodsWarehouse, runner.Options{Images: append(image, steps.Image{RepoURL: "reg.io/other", Tag: "v1"})})
	if err != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0].Message, "does not subscribe to image reg.io/other") {
		t.Errorf("%v, %v", r, err)
	}
	// A Freight document without its Warehouse fails as in Kargo.
	r, err = resolve(t, docs+goodsFreight, runner.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	r.Data.Missing = func(kind, namespace, name string) { missing = append(missing, kind+" "+namespace+"/"+name) }
	e := engine(t)
	e.Data = r.Data
	p := r.Promotion
	p.WorkDir = t.TempDir()
	out, err := e.Run(t.Context(), p)
	if err != nil || !strings.Contains(out.Message, `Warehouse "goods" not found in namespace "demo"`) {
		t.Errorf("%q, %v", out.Message, err)
	}
	if d := cmp.Diff([]string{"Warehouse demo/goods"}, missing); d != "" {
		t.Error(d)
	}
}

func TestPromotionMetadata(t *testing.T) {
	doc := func(name, actor, rollback string) string {
		return "\n---\napiVersion: kargo.akuity.io/v1alpha1\nkind: Promotion\nmetadata:\n  name: " + name + "\n  annotations: {kargo.akuity.io/create-actor: '" +
			actor + "', kargo.akuity.io/rollback: '" + rollback + "'}\nspec: {stage: prod, freight: 3b1f0c9a77d2e4, steps: [{uses: fail}]}\n"
	}
	for _, tc := range []struct {
		reason, docs string
		o            runner.Options
		name, actor  string
		rollback     bool
		warnings     int
	}{
		{"two parts: the second", doc("p-2", "email:ada@example.com", "true"), runner.Options{}, "p-2", "ada@example.com", true, 1},
		{"three: all of it", doc("p-2", "oidc:sub:1", "false"), runner.Options{}, "p-2", "oidc:sub:1", false, 1},
		{"nobody", doc("p-2", "unknown actor", "yes"), runner.Options{}, "p-2", "", false, 1},
		{"options win", doc("p-2", "email:a", "no"), runner.Options{PromotionName: "p-3", Actor: "bob", Rollback: true}, "p-3", "bob", true, 1},
		{"a made-up name", "", runner.Options{Now: time.UnixMilli(1)}, "prod.0000000001", "", false, 0},
		{"one of several, by name", doc("p-2", "a", "") + doc("p-4", "b", ""), runner.Options{PromotionName: "p-4"}, "p-4", "b", false, 1},
	} {
		r, err := resolve(t, oneStep("{a: 1}")+goodsFreight+tc.docs, tc.o)
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		p := r.Promotion
		if !strings.HasPrefix(p.Name, tc.name) || p.Actor != tc.actor || p.Rollback != tc.rollback || len(r.Warnings) != tc.warnings {
			t.Errorf("%s: name %s, actor %q, rollback %t, warnings %v", tc.reason, p.Name, p.Actor, p.Rollback, r.Warnings)
		}
		if p.Steps[0].Uses != "compose" {
			t.Errorf("%s: the Promotion's own steps are used", tc.reason)
		}
	}
}

func TestPromotionName(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	if got := runner.PromotionName("Prod", "3b1f0c9a77d2e4", now); !regexp.MustCompile(`^prod\.[0-9a-z]{26}\.3b1f0c9$`).MatchString(got) {
		t.Errorf("got %s", got)
	}
	if got := runner.PromotionName("prod", "", now); !regexp.MustCompile(`^prod\.[0-9a-z]{26}$`).MatchString(got) {
		t.Errorf("without Freight: %s", got)
	}
	if got := runner.PromotionName(strings.Repeat("a", 217)+".-"+strings.Repeat("b", 100), "3b1f0c9a77d2e4", now); len(got) > 253 || strings.Contains(got, ".-") {
		t.Errorf("too long: %d %s", len(got), got)
	}
	if a, b := runner.PromotionName("s", "f", now), runner.PromotionName("s", "f", now.Add(time.Millisecond)); a >= b {
		t.Errorf("%s does not sort before %s", a, b)
	}
}

func TestInheritedFreight(t *testing.T) {
	two := strings.ReplaceAll(oneStep("{a: 1}"), "sources: {direct: true}}]", "sources: {direct: true}}, {origin: {kind: Warehouse, name: extra}, sources: {direct: true}}]")
	history := "\nstatus:\n  lastPromotion:\n    name: old\n    status:\n      freightCollection:\n        id: x\n        items:\n" +
		"          Warehouse/goods: {name: oldgoods, origin: {kind: Warehouse, name: goods}}\n" +
		"          Warehouse/extra: {name: oldextra, origin: {kind: Warehouse, name: extra}}\n" +
		"          Warehouse/gone: {name: oldgone, origin: {kind: Warehouse, name: gone}}\n"
	for _, tc := range []struct{ reason, docs, want string }{
		{"one request: only the target", oneStep("{a: 1}") + history, "3b1f0c9a77d2e4"},
		{"two: what is still requested is inherited, the target replaces its own", two + history, "oldextra 3b1f0c9a77d2e4"},
		{"no history", two, "3b1f0c9a77d2e4"},
	} {
		r, err := resolve(t, tc.docs+goodsFreight, runner.Options{})
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		var names []string
		for _, ref := range r.Promotion.Freight.References() {
			names = append(names, ref.Name)
		}
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.reason, got, tc.want)
		}
		if len(r.Promotion.Freight.ID) != 40 {
			t.Errorf("%s: id %q", tc.reason, r.Promotion.Freight.ID)
		}
	}
}

func TestMetadataOverlay(t *testing.T) {
	docs := strings.TrimSuffix(oneStep("{a: 1}"), "\n") + "\nstatus: {metadata: {count: 4, keep: yes}}\n" + goodsFreight + otherFreight
	r, err := resolve(t, docs, runner.Options{Freight: "aaaa"})
	if err != nil {
		t.Fatal(err)
	}
	raw := func(s string) map[string]json.RawMessage {
		return map[string]json.RawMessage{"count": json.RawMessage(s)}
	}
	for _, tc := range []struct {
		reason string
		set    func() error
		ok     bool
	}{
		{"a Stage", func() error { return r.Data.SetStageMetadata(t.Context(), "demo", "prod", raw("5")) }, true},
		{"a Freight", func() error { return r.Data.SetFreightMetadata(t.Context(), "demo", "3b1f0c9a77d2e4", raw("6")) }, true},
		{"no Stage", func() error { return r.Data.SetStageMetadata(t.Context(), "demo", "dev", raw("5")) }, false},
		{"no Freight", func() error { return r.Data.SetFreightMetadata(t.Context(), "demo", "f", raw("5")) }, false},
	} {
		if err := tc.set(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.reason, err)
		}
	}
	if err := r.Data.SetFreightAlias(t.Context(), "demo", "3b1f0c9a77d2e4", "brave-otter"); err != nil {
		t.Errorf("the alias it has: %v", err)
	}
	if err := r.Data.SetFreightAlias(t.Context(), "demo", "aaaa", "brave-otter"); err == nil {
		t.Error("another's alias is accepted")
	}
	if err := r.Data.SetFreightAlias(t.Context(), "demo", "3b1f0c9a77d2e4", "new-name"); err != nil {
		t.Errorf("a new alias: %v", err)
	}
	if err := r.Data.SetFreightAlias(t.Context(), "demo", "aaaa", "brave-otter"); err != nil {
		t.Errorf("an alias that was given up: %v", err)
	}
	if err := r.Data.SetFreightAlias(t.Context(), "demo", "none", "x"); err == nil || err.Error() != `freight.kargo.akuity.io "none" not found` {
		t.Errorf("of Freight that does not exist: %v", err)
	}
	stage, _ := r.Data.StageMetadata(t.Context(), "demo", "prod")
	freight, _ := r.Data.FreightMetadata(t.Context(), "demo", "3b1f0c9a77d2e4")
	if string(stage["count"])+string(stage["keep"])+string(freight["count"]) != "5true6" {
		t.Errorf("got %s and %s", stage, freight)
	}
}
