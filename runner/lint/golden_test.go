package lint_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/lint"
	"github.com/stepd/stepd/runner/load"
)

// TestNoFalseErrors holds findings against what real Kargo answered: a step that
// Succeeded there has a config and expressions without errors. Values that are
// null (rules unknown-… and always-null) are no failure in Kargo, so they are
// left out.
func TestNoFalseErrors(t *testing.T) {
	dir := sharedata.Path(t, "kargo", "golden")
	cases, err := filepath.Glob(filepath.Join(dir, "cases", "*.yaml"))
	if err != nil || len(cases) == 0 {
		t.Fatalf("no golden cases: %v", err)
	}
	registry := kinds(t)
	for _, file := range cases {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(dir, "golden", name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var golden struct {
				InflationError string
				WebhookErrors  []string
				Steps          []struct{ Alias, Status string }
			}
			if err := json.Unmarshal(text, &golden); err != nil {
				t.Fatal(err)
			}
			if golden.InflationError != "" || len(golden.WebhookErrors) > 0 {
				t.Skip("Kargo refuses the Stage")
			}
			status := map[string]string{}
			for _, s := range golden.Steps {
				status[s.Alias] = s.Status
			}
			set, err := load.Documents(t.Context(), []string{file}, nil)
			findings, lintErr := lint.Run(t.Context(), set, load.AsErrors(err), lint.Options{Registry: registry})
			if lintErr != nil {
				t.Fatal(lintErr)
			}
			for _, f := range findings {
				if f.Severity != lint.Error || strings.HasPrefix(f.Rule, "unknown-") || f.Rule == "always-null" || f.Rule == "variable-order" {
					continue
				}
				if alias, ok := stageStep(set, f.Pointer); !ok || status[alias] == "Succeeded" {
					t.Errorf("step %q is %s in Kargo: %s", alias, status[alias], f)
				}
			}
		})
	}
}

// stageStep returns the alias of the Stage's step that a pointer is in.
func stageStep(set *load.Set, pointer string) (string, bool) {
	var i int
	if _, err := fmt.Sscanf(pointer, "/spec/promotionTemplate/spec/steps/%d", &i); err != nil {
		return "", false
	}
	for _, d := range load.Of[*kargoapi.Stage](set) {
		stage, _ := load.As[*kargoapi.Stage](d)
		return stage.Spec.PromotionTemplate.Spec.Steps[i].Alias(i), true
	}
	return "", false
}

// thousandTasks are 1,000 tasks of seven steps, no two alike.
func thousandTasks(tb testing.TB) string {
	tb.Helper()
	article, err := os.ReadFile(sharedata.Path(tb, "inputs", "article-promotiontask.yaml"))
	if err != nil {
		tb.Fatal(err)
	}
	var b strings.Builder
	for i := range 1000 {
		text := strings.ReplaceAll(string(article), "vars.service", fmt.Sprintf("vars.service%d", i))
		text = strings.ReplaceAll(text, "name: service", fmt.Sprintf("name: service%d", i))
		b.WriteString(strings.Replace(text, "name: promote-prd-region", fmt.Sprintf("name: promote-%d", i), 1))
		b.WriteString("\n---\n")
	}
	return b.String()
}

func TestLintsManyTasks(t *testing.T) {
	set, err := load.Bytes("many.yaml", []byte(thousandTasks(t)))
	if err != nil {
		t.Fatal(err)
	}
	findings, err := lint.Run(t.Context(), set, nil, lint.Options{Registry: kinds(t)})
	if err != nil {
		t.Fatal(err)
	}
	perTask := map[string]int{}
	for _, f := range findings {
		if f.Severity == lint.Error {
			perTask[f.Document]++
		}
	}
	if len(perTask) != 1000 {
		t.Errorf("%d tasks have errors, want each of the 1000 to have its desiredCommit reported", len(perTask))
	}
}

// BenchmarkThousandTasks loads and checks 1,000 tasks; the target is under two
// seconds.
func BenchmarkThousandTasks(b *testing.B) {
	text := []byte(thousandTasks(b))
	registry := kinds(b)
	for b.Loop() {
		set, err := load.Bytes("many.yaml", text)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := lint.Run(b.Context(), set, nil, lint.Options{Registry: registry}); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzRun(f *testing.F) {
	f.Add("${{ vars.a.b }} ${% quote('x') %}", "outputs['a'].b")
	f.Add("${{ outputs.a-b.c - 1 }}", "${{}}")
	f.Add("${{ let x = 1; x?.y ?? status('z') }}", "a::b")
	f.Fuzz(func(t *testing.T, value, alias string) {
		doc := map[string]any{
			"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "PromotionTask", "metadata": map[string]any{"name": "t"},
			"spec": map[string]any{
				"vars": []any{map[string]any{"name": "a", "value": value}},
				"steps": []any{
					map[string]any{"uses": "compose-output", "as": alias, "if": value, "config": map[string]any{value: value, "b": []any{value}}},
					map[string]any{"uses": alias, "config": map[string]any{"a": "${{" + value + "}}"}},
				},
			},
		}
		text, err := json.Marshal(doc)
		if err != nil {
			t.Skip()
		}
		set, err := load.Bytes("f.yaml", text)
		findings, lintErr := lint.Run(t.Context(), set, load.AsErrors(err), lint.Options{Registry: mustRegistry})
		if lintErr != nil {
			t.Fatal(lintErr)
		}
		for _, f := range findings {
			if _, ok := lint.Rules()[f.Rule]; !ok || f.Message == "" {
				t.Errorf("finding without a rule or a message: %+v", f)
			}
		}
	})
}

var mustRegistry = func() *runner.Registry {
	r, err := runner.NewRegistry()
	if err != nil {
		panic(err)
	}
	return r
}()
