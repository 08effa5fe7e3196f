package expr_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// resources is what the functions of these tests read.
const resources = `
apiVersion: kargo.akuity.io/v1alpha1
kind: Warehouse
metadata: {name: goods, namespace: demo}
spec:
  subscriptions:
  - git: {repoURL: https://git.io/A/b.git}
  - image: {repoURL: reg.io/app}
  - image: {repoURL: nginx}
  - chart: {repoURL: oci://reg.io/charts/c}
  - chart: {repoURL: https://charts.io, name: gate}
  - settings: {name: cfg}
  - settings: {name: bare}
---
apiVersion: kargo.akuity.io/v1alpha1
kind: Warehouse
metadata: {name: twin, namespace: demo}
spec: {subscriptions: [{image: {repoURL: reg.io/app}}, {image: {repoURL: reg.io/twice}}, {image: {repoURL: reg.io/twice}}]}
---
apiVersion: kargo.akuity.io/v1alpha1
kind: Freight
metadata: {name: f, namespace: demo}
origin: {kind: Warehouse, name: goods}
status: {metadata: {a: {b: 1}}}
---
apiVersion: kargo.akuity.io/v1alpha1
kind: Stage
metadata: {name: prod, namespace: demo}
spec: {requestedFreight: [{origin: {kind: Warehouse, name: goods}, sources: {direct: true}}]}
status: {metadata: {count: 4}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m, namespace: demo}
data: {k: from-configmap}
---
apiVersion: v1
kind: Secret
metadata: {name: m, namespace: demo}
stringData: {k: from-secret}
---
apiVersion: v1
kind: Secret
metadata: {name: plain, namespace: demo}
stringData: {k: v}
---
apiVersion: v1
kind: Secret
metadata: {name: gen, namespace: kargo-shared-resources, labels: {kargo.akuity.io/cred-type: generic}}
stringData: {k: shared}
---
apiVersion: v1
kind: Secret
metadata: {name: unlabelled, namespace: kargo-shared-resources}
stringData: {k: hidden}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m, namespace: kargo-shared-resources}
data: {k: shared}
`

func evaluator(t *testing.T) *expr.Evaluator {
	t.Helper()
	set, err := load.Bytes("resources", []byte(resources))
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return time.Date(2026, 11, 22, 3, 4, 5, 0, time.UTC) }
	return expr.NewEvaluator(runner.NewDocumentData(set, "demo", ""), now)
}

// scope is a step "a" of a promotion with Freight from the Warehouse goods.
func scope(change ...func(*expr.Scope)) *expr.Scope {
	goods := steps.FreightOrigin{Kind: "Warehouse", Name: "goods"}
	ref := steps.FreightReference{
		Name: "f", Origin: goods,
		Commits: []steps.GitCommit{{RepoURL: "https://git.io/A/b.git", ID: "c0ffee", Tag: "rel-1"}},
		Images:  []steps.Image{{RepoURL: "reg.io/app", Tag: "v3"}, {RepoURL: "nginx", Tag: "1.27"}},
		Charts:  []steps.Chart{{RepoURL: "oci://reg.io/charts/c", Version: "0.1.0"}, {RepoURL: "https://charts.io", Name: "gate", Version: "4.5.6"}},
		Artifacts: []steps.ArtifactReference{
			{ArtifactType: "settings", SubscriptionName: "cfg", Version: "7", Metadata: json.RawMessage(`{"x":1}`)},
			{ArtifactType: "settings", SubscriptionName: "bare", Version: "8"},
		},
	}
	s := &expr.Scope{
		UIBaseURL: "https://ui", Project: "demo", Stage: "prod", Promotion: "p-1", Actor: "ada", Rollback: true, Alias: "a",
		TargetFreight: ref, TargetFreightAlias: "brave-otter",
		FreightRequests: []kargoapi.FreightRequest{{Origin: goods}},
		Freight:         steps.FreightCollection{Freight: map[string]steps.FreightReference{goods.String(): ref}},
		Outputs:         map[string]any{}, StepMetadata: []kargoapi.StepExecutionMetadata{{Alias: "a"}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func requests(names ...string) func(*expr.Scope) {
	return func(s *expr.Scope) {
		s.FreightRequests = nil
		for _, n := range names {
			s.FreightRequests = append(s.FreightRequests, kargoapi.FreightRequest{Origin: steps.FreightOrigin{Kind: "Warehouse", Name: n}})
		}
	}
}

func vars(list ...string) []kargoapi.Variable {
	var out []kargoapi.Variable
	for i := 0; i+1 < len(list); i += 2 {
		out = append(out, kargoapi.Variable{Name: list[i], Value: list[i+1]})
	}
	return out
}

// testCase evaluates one config value. A want of type wantError is a part of
// the expected error.
type testCase struct {
	id, reason string
	in         string
	scope      *expr.Scope
	want       any
}

type wantError string

func runCases(t *testing.T, cases []testCase) {
	for _, tc := range cases {
		t.Run(tc.id, func(t *testing.T) {
			if tc.scope == nil {
				tc.scope = scope()
			}
			config, err := json.Marshal(map[string]any{"v": tc.in})
			if err != nil {
				t.Fatal(err)
			}
			got, err := evaluator(t).Config(t.Context(), tc.scope, config)
			if want, ok := tc.want.(wantError); ok {
				if err == nil || !strings.Contains(err.Error(), string(want)) {
					t.Errorf("%s: got %#v, %v, want an error with %q", tc.reason, got, err, want)
				}
				return
			}
			if err != nil {
				t.Fatalf("%s: %v", tc.reason, err)
			}
			if d := cmp.Diff(tc.want, got["v"]); d != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, d)
			}
		})
	}
}

func TestScan(t *testing.T) {
	for _, tc := range []struct {
		reason, in string
		want       []expr.Piece
	}{
		{"no expression", "a", []expr.Piece{{Text: "a"}}},
		{"nothing", "", nil},
		{"both kinds", "a${{ b }}c${% d %}", []expr.Piece{
			{Text: "a"}, {Text: " b ", Code: true, Offset: 4}, {Text: "c", Offset: 9}, {Text: " d ", Code: true, Offset: 13}}},
		{"the first closing delimiter counts", "${{ '}}' }}", []expr.Piece{{Text: " '", Code: true, Offset: 3}, {Text: "' }}", Offset: 7}}},
		{"only the matching one", "${% '}}' %}", []expr.Piece{{Text: " '}}' ", Code: true, Offset: 3}}},
		{"an empty expression ends the scan", "a${{}}b${{ c }}", []expr.Piece{{Text: "a"}, {Text: "b${{ c }}", Offset: 6}}},
	} {
		got, err := expr.Scan(tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, d)
		}
	}
}

func TestClock(t *testing.T) {
	runCases(t, []testCase{
		{"now", "now() is the engine's clock", "${{ now().Year() }}-${{ now().Minute() }}", nil, "2026-4"},
		{"zone", "now() takes a timezone", "${{ now(timezone('Asia/Tokyo')).Hour() }}", nil, 12},
	})
}

func TestUnreadableConfig(t *testing.T) {
	for _, config := range []string{`{"v":"a\u007fb"}`, `{"v":"\u0081"}`, `{"` + strings.Repeat("k", 1025) + `":1}`} {
		got, err := evaluator(t).Config(t.Context(), scope(), json.RawMessage(config))
		if _, ok := err.(*expr.UnreadableConfigError); !ok || got != nil { //nolint:errorlint // returned unwrapped
			t.Errorf("%.20s…: got %v, %v", config, got, err)
		}
	}
}

func TestReadsAreCopies(t *testing.T) {
	e := evaluator(t)
	s := scope()
	for range 2 {
		got, err := e.Config(t.Context(), s, json.RawMessage(`{"a":"${{ configMap('m') }}","b":"${{ configMap('m').k }}"}`))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(map[string]any{"a": map[string]any{"k": "from-configmap"}, "b": "from-configmap"}, got); d != "" {
			t.Error(d)
		}
	}
}

func TestType(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want any
	}{
		{`"`, `"`}, {`""`, ""}, {`"a`, `"a`}, {"\"a\"\n", "a\n"}, {"1\n", 1.0}, {"x\n\n", "x\n\n"}, {"", ""}, {"\n", "\n"},
		{" 1", 1.0}, {`{"a":1}`, map[string]any{"a": 1.0}}, {"t", true}, {"Inf", math.Inf(1)}, {"tRUE", "tRUE"},
	} {
		if d := cmp.Diff(tc.want, expr.Type(tc.in)); d != "" {
			t.Errorf("Type(%q): %s", tc.in, d)
		}
	}
}

// FuzzTemplate checks that no template crashes the evaluator, and that the
// pieces of a template are parts of it, in order.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{
		"", "a${{ 1 }}", "${% '}}' %}", "${{}}x", "${{ imageFrom('reg.io/app').Tag }}", "${{ quote(1", "\"${{ 'a' }}\"\n", "${{ $env }}",
		"${{ map(1..9, # * 2) | sum() }}", "${{ outputs['x']?.y ?? 'z' }}", "${{ let a = 1; a }}", "${{ repeat('x', 99999999) }}",
	} {
		f.Add(s)
	}
	set, err := load.Bytes("resources", []byte(resources))
	if err != nil {
		f.Fatal(err)
	}
	e := expr.NewEvaluator(runner.NewDocumentData(set, "demo", ""), time.Now)
	f.Fuzz(func(t *testing.T, template string) {
		if pieces, err := expr.Scan(template); err == nil {
			end := 0
			for _, p := range pieces {
				if p.Offset < end || template[p.Offset:p.Offset+len(p.Text)] != p.Text {
					t.Fatalf("piece %+v is not at its place in %q", p, template)
				}
				end = p.Offset + len(p.Text)
			}
		}
		v, err := e.Template(t.Context(), scope(), template, map[string]any{"vars": map[string]any{"x": "1"}})
		if err == nil && !expr.HasCode(template) && v != template {
			t.Fatalf("%q without an expression became %v", template, v)
		}
	})
}

func BenchmarkConfig(b *testing.B) {
	set, err := load.Bytes("resources", []byte(resources))
	if err != nil {
		b.Fatal(err)
	}
	e := expr.NewEvaluator(runner.NewDocumentData(set, "demo", ""), nil)
	s := scope()
	s.PromotionVars = vars("a", "1", "b", "${{ vars.a }}-${{ ctx.stage }}")
	config := json.RawMessage(`{"path":"x/${{ vars.b }}","tag":"${{ quote(imageFrom('reg.io/app').Tag) }}"}`)
	for b.Loop() {
		if _, err := e.Config(b.Context(), s, config); err != nil {
			b.Fatal(err)
		}
	}
}
