package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/schemas"
)

func compileDocumentSchema(t *testing.T, kind string) *configschema.Schema {
	t.Helper()
	doc, err := documentSchema(kind)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := configschema.Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDocumentSchema(t *testing.T) {
	task := func(steps string) string {
		return "{apiVersion: kargo.akuity.io/v1alpha1, kind: PromotionTask, metadata: {name: t}, spec: {steps: " + steps + "}}"
	}
	cases := map[string]struct {
		reason string
		doc    string
		valid  bool
	}{
		"Literal":          {reason: "a plain step", doc: task(`[{uses: copy, config: {inPath: a, outPath: b}}]`), valid: true},
		"Template":         {reason: "an expression may stand for a number", doc: task(`[{uses: git-push, config: {path: a, maxAttempts: "${{ vars.n }}"}}]`), valid: true},
		"TextForNumber":    {reason: "other text may not", doc: task(`[{uses: git-push, config: {path: a, maxAttempts: "many"}}]`)},
		"UnknownField":     {reason: "the config of a known step is closed", doc: task(`[{uses: copy, config: {inPath: a, outPaht: b}}]`)},
		"UnknownKind":      {reason: "plugins bring steps of their own", doc: task(`[{uses: my-step, config: {a: 1}}]`), valid: true},
		"ReservedAlias":    {reason: "Kargo refuses it", doc: task(`[{uses: copy, as: step-1, config: {inPath: a, outPath: b}}]`)},
		"TaskInTask":       {reason: "tasks do not nest", doc: task(`[{task: {name: x}}]`)},
		"NumericVariable":  {reason: "values of variables are text", doc: task(`[{uses: copy, vars: [{name: a, value: 1}], config: {inPath: a, outPath: b}}]`)},
		"NoSteps":          {reason: "a task has steps", doc: task(`[]`)},
		"UnknownStepField": {reason: "a misspelt key of a step", doc: task(`[{uses: copy, confg: {}}]`)},
	}
	s := compileDocumentSchema(t, "PromotionTask")
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var v any
			if err := yaml.Unmarshal([]byte(tc.doc), &v); err != nil {
				t.Fatal(err)
			}
			if vs := s.Validate(v); (len(vs) == 0) != tc.valid {
				t.Errorf("%s: %v", tc.reason, vs)
			}
		})
	}
}

func TestStageSchemaAcceptsTaskReferences(t *testing.T) {
	var v any
	doc := `{apiVersion: kargo.akuity.io/v1alpha1, kind: Stage, metadata: {name: s}, spec: {requestedFreight: [{origin: {kind: Warehouse, name: w}}],
		promotionTemplate: {spec: {steps: [{task: {name: t}, as: x, vars: [{name: a, value: b}]}, {uses: fail, config: {message: stop}}]}}}}`
	if err := yaml.Unmarshal([]byte(doc), &v); err != nil {
		t.Fatal(err)
	}
	if vs := compileDocumentSchema(t, "Stage").Validate(v); len(vs) > 0 {
		t.Error(vs)
	}
}

func TestArticleTaskHasOneSchemaError(t *testing.T) {
	text, err := os.ReadFile(sharedata.Path(t, "inputs", "article-promotiontask.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	vs := compileDocumentSchema(t, "PromotionTask").Validate(v)
	for _, x := range vs {
		if x.Property == "desiredCommit" {
			return
		}
	}
	t.Errorf("desiredCommit was not refused: %v", vs)
}

// TestExamplesSatisfyTheDocumentSchemas holds what editors are given against the
// documents people copy.
func TestExamplesSatisfyTheDocumentSchemas(t *testing.T) {
	set, err := load.Documents(t.Context(), []string{filepath.Join("..", "..", "examples", "promotiontasks")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, d := range set.Documents {
		if !slices.Contains(documentKinds(), d.Kind) {
			continue
		}
		checked++
		var v any
		if err := json.Unmarshal(d.JSON, &v); err != nil {
			t.Fatal(err)
		}
		for _, x := range compileDocumentSchema(t, d.Kind).Validate(v) {
			t.Errorf("%s %s: %s %s", d.File, d.Name, x.Pointer, x.Message)
		}
	}
	if checked < 8 {
		t.Errorf("only %d documents were checked", checked)
	}
}

// TestGoldenStagesSatisfyTheDocumentSchema: what Kargo accepts around the configs
// of steps, the schema for editors accepts too.
func TestGoldenStagesSatisfyTheDocumentSchema(t *testing.T) {
	set, err := load.Documents(t.Context(), []string{sharedata.Path(t, "kargo", "golden", "cases")}, nil)
	if err != nil && set == nil {
		t.Fatal(err)
	}
	schema := compileDocumentSchema(t, "Stage")
	checked := 0
	for _, d := range load.Of[*kargoapi.Stage](set) {
		stage, _ := load.As[*kargoapi.Stage](d)
		// An empty list of steps is refused by the CRD, which the cases bypass.
		if len(runner.Admit(d)) > 0 || stage.Spec.PromotionTemplate == nil || len(stage.Spec.PromotionTemplate.Spec.Steps) == 0 {
			continue
		}
		var v map[string]any
		if err := json.Unmarshal(d.JSON, &v); err != nil {
			t.Fatal(err)
		}
		checked++
		for _, x := range schema.Validate(v) {
			// Cases are there to have bad configs; the envelope has to pass.
			if !strings.Contains(x.Pointer, "/config") && !x.Combination {
				t.Errorf("%s: %s %s", d.File, x.Pointer, x.Message)
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d Stages were checked", checked)
	}
}

// TestEveryStepHasASchema: what lint and editors know is what run can run.
func TestEveryStepHasASchema(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	a := &cli.App{Stdio: cli.Stdio{Out: io.Discard, Err: io.Discard}, Redactor: redact.New()}
	set := &load.Set{}
	e, err := newEdges(t.Context(), a, edgeFlags{}, true, set, runner.NewDocumentData(set, "p", ""), redact.NewLiteral())
	if err != nil {
		t.Fatal(err)
	}
	defer e.close(a)
	if diff := cmp.Diff(schemas.Kinds(), e.registry.Kinds()); diff != "" {
		t.Errorf("kinds with a schema and kinds that run differ (-schemas +registry):\n%s", diff)
	}
}
