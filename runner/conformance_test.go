package runner_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// The cases of the conformance list, by their numbers, that follow from tests
// of Kargo v1.11.2. Those that follow from its code only are in
// conformance_code_test.go.

// D: inflation and admission.

// inflated resolves documents and lists what the steps became.
func inflated(t *testing.T, docs string) ([]runner.Step, error) {
	t.Helper()
	set, err := load.Bytes("docs.yaml", []byte(docs))
	if err != nil {
		t.Fatal(err)
	}
	r, err := runner.Resolve(set, runner.Options{PromotionName: "p-1"})
	if err != nil {
		return nil, err
	}
	return r.Promotion.Steps, nil
}

func stage(vars, steps string) string {
	return `
---
apiVersion: kargo.akuity.io/v1alpha1
kind: Stage
metadata: {name: prod, namespace: demo}
spec:
  requestedFreight: [{origin: {kind: Warehouse, name: goods}, sources: {direct: true}}]
  promotionTemplate:
    spec:
      vars: ` + vars + `
      steps: ` + steps
}

func taskDoc(kind, meta, spec string) string {
	return "\n---\napiVersion: kargo.akuity.io/v1alpha1\nkind: " + kind + "\nmetadata: " + meta + "\nspec: " + spec
}

const anyTask = "{name: t, namespace: demo}"

func TestConformanceInflation(t *testing.T) {
	for _, tc := range []struct {
		id, reason, docs string
		aliases          string
		vars             []kargoapi.Variable // of the first step
		err              string
	}{
		{
			"D1", "default aliases count template positions",
			taskDoc("PromotionTask", anyTask, "{steps: [{uses: x}, {uses: x2}]}") + stage("[]", "[{uses: a}, {task: {name: t}}, {uses: b}]"),
			"step-1 task-2::step-1 task-2::step-2 step-3", nil, "",
		},
		{
			"D2", "an alias of the reference and of the task's step",
			taskDoc("PromotionTask", anyTask, "{steps: [{uses: x, as: push}]}") + stage("[]", "[{task: {name: t}, as: dep}, {uses: b, as: z}]"),
			"dep::push z", nil, "",
		},
		{
			"D4", "a required variable that nobody gives",
			taskDoc("PromotionTask", anyTask, "{vars: [{name: v}], steps: [{uses: x}]}") + stage("[]", "[{task: {name: t}}]"),
			"", nil, `missing value for variable "v"`,
		},
		{
			"D6", "the reference's value follows the default",
			taskDoc("PromotionTask", anyTask, "{vars: [{name: v, value: a}], steps: [{uses: x}]}") +
				stage("[]", "[{task: {name: t}, vars: [{name: v, value: b}]}]"),
			"task-1::step-1", []kargoapi.Variable{{Name: "v", Value: "a"}, {Name: "v", Value: "b"}}, "",
		},
		{
			"D7", "a promotion's variable hides the default",
			taskDoc("PromotionTask", anyTask, "{vars: [{name: v, value: a}], steps: [{uses: x}]}") +
				stage("[{name: v, value: c}]", "[{task: {name: t}}]"),
			"task-1::step-1", nil, "",
		},
		{
			"D11", "a cluster task is looked up without a namespace",
			taskDoc("ClusterPromotionTask", "{name: t}", "{steps: [{uses: x}]}") +
				stage("[]", "[{task: {name: t, kind: ClusterPromotionTask}}]"),
			"task-1::step-1", nil, "",
		},
		{
			"D12", "a task that does not exist",
			stage("[]", "[{task: {name: ghost}, as: g}]"), "", nil,
			`failed to inflate Promotion steps: inflate task steps for task "ghost" ("g"): promotiontasks.kargo.akuity.io "ghost" not found`,
		},
		{
			"D14", "tasks do not nest",
			taskDoc("PromotionTask", anyTask, "{steps: [{task: {name: u}}]}") + stage("[]", "[{task: {name: t}}]"),
			"", nil, "must have uses set and must not reference another task",
		},
		{"D16", "one alias twice", stage("[]", "[{uses: a, as: x}, {uses: b, as: ' x '}]"), "", nil, "duplicates that of"},
		{"D17a", "a reserved alias", stage("[]", "[{uses: a, as: step-3}]"), "", nil, "is reserved"},
		{"D17b", "another", stage("[]", "[{uses: a, as: task-12}]"), "", nil, "is reserved"},
		{
			"aliases in tasks", "the same rules hold there",
			taskDoc("PromotionTask", anyTask, "{steps: [{uses: x, as: a}, {uses: x2, as: a}]}") + stage("[]", "[{task: {name: t}}]"),
			"", nil, "duplicates that of",
		},
		{
			"namespace", "a task of another project is none",
			taskDoc("PromotionTask", "{name: t, namespace: other}", "{steps: [{uses: x}]}") + stage("[]", "[{task: {name: t}}]"),
			"", nil, `"t" not found`,
		},
		{
			"empty is missing", "a required variable set to nothing",
			taskDoc("PromotionTask", anyTask, "{vars: [{name: v}], steps: [{uses: x}]}") +
				stage("[{name: v, value: ''}]", "[{task: {name: t}, vars: [{name: v, value: ''}]}]"),
			"", nil, `missing value for variable "v"`,
		},
		{
			"promotion gives", "a required variable that the promotion has",
			taskDoc("PromotionTask", anyTask, "{vars: [{name: v}], steps: [{uses: x, vars: [{name: own, value: o}]}]}") +
				stage("[{name: v, value: c}]", "[{task: {name: t}, vars: [{name: e, value: ''}]}]"),
			"task-1::step-1", []kargoapi.Variable{{Name: "e"}, {Name: "own", Value: "o"}}, "",
		},
	} {
		t.Run(tc.id, func(t *testing.T) {
			got, err := inflated(t, tc.docs)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%s: got %v, want an error with %q", tc.reason, err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatalf("%s: %v", tc.reason, err)
			}
			var aliases []string
			for _, s := range got {
				aliases = append(aliases, s.As)
			}
			if d := cmp.Diff(tc.aliases, strings.Join(aliases, " ")); d != "" {
				t.Errorf("%s: %s", tc.reason, d)
			}
			if d := cmp.Diff(tc.vars, got[0].Vars); tc.vars != nil && d != "" {
				t.Errorf("%s: %s", tc.reason, d)
			}
		})
	}
}

func TestAdmitFreight(t *testing.T) {
	for _, tc := range []struct{ reason, doc, err string }{
		{"Freight", goodsFreight, ""},
		{"Freight from nowhere", strings.ReplaceAll(goodsFreight, "origin: {kind: Warehouse, name: goods}", ""), "origin.kind must be"},
	} {
		set, err := load.Bytes("f", []byte(tc.doc))
		if err != nil {
			t.Fatal(err)
		}
		errs := runner.Admit(set.Documents[0])
		if tc.err == "" && len(errs) > 0 || tc.err != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error(), tc.err)) {
			t.Errorf("%s: %v, want %q", tc.reason, errs, tc.err)
		}
	}
}

func TestConformanceAdmission(t *testing.T) {
	task := taskDoc("PromotionTask", anyTask, "{steps: [{uses: x}]}")
	for _, tc := range []struct{ reason, docs, at, err string }{
		{"uses and task", task + stage("[]", "[{uses: a, task: {name: t}}]"), "", "exactly one of uses or task"},
		{"neither", stage("[]", "[{as: a}]"), "", "exactly one of uses or task"},
		{"continueOnError false is still there", task + stage("[]", "[{task: {name: t}, continueOnError: false}]"), "", "cannot set continueOnError"},
		{"retry on a reference", task + stage("[]", "[{task: {name: t}, retry: {errorThreshold: 2}}]"), "", "cannot set retry"},
		{"if on a reference", task + stage("[]", "[{task: {name: t}, if: '${{ true }}'}]"), "", "cannot set if"},
		{"config on a reference", task + stage("[]", "[{task: {name: t}, config: {a: 1}}]"), "", "cannot set config"},
		{"a variable's name", stage("[{name: a-b, value: x}]", "[{uses: a}]"), "docs.yaml:10:15", "not a variable name"},
		{"a step variable's name", stage("[]", "[{uses: a, vars: [{name: 1a}]}]"), "", "not a variable name"},
		{"a task's name", stage("[]", "[{task: {name: Bad_Name}}]"), "", "not a resource name"},
		{"a task's kind", stage("[]", "[{task: {name: t, kind: Job}}]"), "", "task.kind must be"},
		{"no steps", stage("[]", "[]"), "", "defines no promotion steps"},
		{"an origin twice", strings.ReplaceAll(stage("[]", "[{uses: a}]"), "sources: {direct: true}}]",
			"sources: {direct: true}}, {origin: {kind: Warehouse, name: goods}, sources: {}}]"), "", "requested multiple times"},
		{"no requested Freight", strings.ReplaceAll(stage("[]", "[{uses: a}]"), "[{origin: {kind: Warehouse, name: goods}, sources: {direct: true}}]", "[]"),
			"", "request Freight from at least one origin"},
		{"an origin's kind", strings.ReplaceAll(stage("[]", "[{uses: a}]"), "kind: Warehouse", "kind: Shop"), "", "origin.kind must be"},
		{"a task without steps", taskDoc("PromotionTask", anyTask, "{steps: []}") + stage("[]", "[{task: {name: t}}]"), "", "at least one step"},
	} {
		_, err := inflated(t, tc.docs)
		errs := load.AsErrors(err)
		if len(errs) == 0 || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: got %v, want an error with %q", tc.reason, err, tc.err)
			continue
		}
		if errs[0].Line == 0 || tc.at != "" && errs[0].String() != tc.at {
			t.Errorf("%s: at %s, want %s", tc.reason, errs[0].Position, tc.at)
		}
	}
}

// E: engine.

func TestConformanceEngine(t *testing.T) {
	for _, tc := range []struct {
		id, reason, steps string
		phase             kargoapi.PromotionPhase
		message, statuses string
		state             string
		current           int
	}{
		{"E1", "all succeed", "  - {uses: ok}\n  - {uses: ok}\n", kargoapi.PromotionSucceeded, "",
			"step-1=Succeeded step-2=Succeeded", "step-1:true step-2:true", 1},
		{"E2", "an unknown kind", "  - {uses: nope}\n", kargoapi.PromotionErrored, `step kind "nope" is not registered`, "step-1=Errored", "", 0},
		{"E4", "a condition decides", "  - {uses: ok}\n  - {uses: err, if: '${{ false }}'}\n  - {uses: ok, if: '${{ true }}'}\n",
			kargoapi.PromotionSucceeded, "", "step-1=Succeeded step-2=Skipped step-3=Succeeded", "step-1:true step-3:true", 2},
		{"E7", "a terminal error", "  - {uses: ok}\n  - {uses: term}\n", kargoapi.PromotionErrored,
			`an unrecoverable error occurred: error running step "step-2": boom`, "step-1=Succeeded step-2=Errored", "step-1:true step-2:false", 1},
		{"E9", "an error that meets the threshold", "  - {uses: ok}\n  - {uses: err}\n", kargoapi.PromotionErrored,
			`step "step-2" met error threshold of 1: error running step "step-2": boom`, "step-1=Succeeded step-2=Errored", "step-1:true step-2:false", 1},
		{"E19", "a panic is a terminal error", "  - {uses: ok}\n  - {uses: panic}\n  - {uses: ok}\n", kargoapi.PromotionErrored,
			`an unrecoverable error occurred: error running step "step-2": step panicked: gone wrong`,
			"step-1=Succeeded step-2=Errored step-3=Skipped", "step-1:true step-2:false", 2},
		{"E21", "continueOnError keeps a failure out of the phase", "  - {uses: err, continueOnError: true}\n  - {uses: ok}\n",
			kargoapi.PromotionSucceeded, "", "step-1=Errored step-2=Succeeded", "step-1:false step-2:true", 1},
		{"E24", "a condition that is none", "  - {uses: ok, if: yes please}\n  - {uses: ok}\n", kargoapi.PromotionErrored,
			`error checking if step "step-1" should be skipped: expression must evaluate to a boolean`, "step-1=Errored step-2=Skipped", "", 1},
		{"E26", "a config that cannot be evaluated", "  - {uses: ok, retry: {errorThreshold: 5}, config: {a: '${{ x.y }}'}}\n", kargoapi.PromotionErrored,
			"failed to build step context: failed to get step config: cannot fetch y from <nil>", "step-1=Errored", "", 0},
		{"failed terminal", "a refusal keeps its text", "  - {uses: fail-term}\n", kargoapi.PromotionFailed, `step "step-1": boom`,
			"step-1=Failed", "step-1:false", 0},
		{"failed plain", "a failure that meets the threshold stays Failed", "  - {uses: fail}\n", kargoapi.PromotionFailed,
			`step "step-1" met error threshold of 1: step "step-1": boom`, "step-1=Failed", "step-1:false", 0},
		{"errored nil", "an error is made up for Errored without one", "  - {uses: err-nil}\n", kargoapi.PromotionErrored,
			`step "step-1" met error threshold of 1: step "step-1" errored: no details provided`, "step-1=Errored", "step-1:false", 0},
		{"ok with error", "an error outweighs Succeeded", "  - {uses: ok-err}\n", kargoapi.PromotionErrored,
			`step "step-1" met error threshold of 1: step "step-1": boom`, "step-1=Errored", "step-1:false", 0},
		{"odd status", "a status that is none", "  - {uses: odd}\n", kargoapi.PromotionErrored, `step "step-1" returned an invalid status: Odd`,
			"step-1=Errored", "step-1:false", 0},
		{"skip message", "a step may skip itself and say why", "  - {uses: skip}\n  - {uses: ok}\n", kargoapi.PromotionSucceeded, "nothing to do",
			"step-1=Skipped step-2=Succeeded", "step-1:false step-2:true", 1},
		{"unknown, skipped", "an unknown kind that is skipped does no harm", "  - {uses: nope, if: '${{ false }}'}\n",
			kargoapi.PromotionSucceeded, "", "step-1=Skipped", "", 0},
	} {
		t.Run(tc.id, func(t *testing.T) {
			out := run(t, tc.steps)
			if out.Phase != tc.phase || !strings.HasPrefix(out.Message, tc.message) || tc.message == "" && out.Message != "" {
				t.Errorf("%s: %s %q, want %s %q", tc.reason, out.Phase, out.Message, tc.phase, tc.message)
			}
			if got := statuses(out); got != tc.statuses {
				t.Errorf("%s: %s, want %s", tc.reason, got, tc.statuses)
			}
			if got := stateKeys(out); got != tc.state {
				t.Errorf("%s: state %s, want %s", tc.reason, got, tc.state)
			}
			if out.CurrentStep != tc.current {
				t.Errorf("%s: current step %d, want %d", tc.reason, out.CurrentStep, tc.current)
			}
		})
	}
}

// E2, E4, E19: what never ran has no times; what ran has both.
func TestConformanceTimes(t *testing.T) {
	out := run(t, "  - {uses: ok}\n  - {uses: nope}\n  - {uses: ok}\n  - {uses: ok, if: '${{ x.y }}'}\n  - {uses: ok, if: '${{ true }}', config: {a: '${{ x.y }}'}}\n")
	want := []struct{ started, finished bool }{{true, true}, {false, false}, {false, false}, {false, false}, {true, false}}
	for i, w := range want {
		if s := out.Steps[i]; (s.StartedAt != nil) != w.started || (s.FinishedAt != nil) != w.finished {
			t.Errorf("step %d (%s): started %v, finished %v", i+1, s.Status, s.StartedAt, s.FinishedAt)
		}
	}
}

func TestConformanceStartFrom(t *testing.T) { // E6
	p := promotion(t, "  - {uses: err}\n  - {uses: compose, config: {seen: '${{ outputs[\"step-1\"].x }}'}}\n")
	now := time.Now()
	p.StartFrom = 1
	p.StepMetadata = []kargoapi.StepExecutionMetadata{{Alias: "step-1", Status: steps.Succeeded, StartedAt: &now, FinishedAt: &now}}
	p.State = map[string]any{"step-1": map[string]any{"x": "kept"}}
	out, err := engine(t).Run(t.Context(), p)
	if err != nil || out.Phase != kargoapi.PromotionSucceeded {
		t.Fatalf("%s %q, %v", out.Phase, out.Message, err)
	}
	if d := cmp.Diff(map[string]any{"seen": "kept"}, out.State["step-2"]); d != "" {
		t.Error(d)
	}
}

func TestConformanceRetry(t *testing.T) { // E11
	e := engine(t)
	p := promotion(t, "  - {uses: ok}\n  - {uses: err, retry: {errorThreshold: 3}}\n  - {uses: ok}\n")
	out, err := e.Run(t.Context(), p)
	s := out.Steps[1]
	if err == nil || out.Phase != kargoapi.PromotionRunning || out.CurrentStep != 1 || len(out.Steps) != 2 {
		t.Fatalf("%s at step %d with error %v, want Running at 1 with one", out.Phase, out.CurrentStep, err)
	}
	if s.ErrorCount != 1 || s.FinishedAt != nil || !strings.HasSuffix(s.Message, "; step will be retried") {
		t.Errorf("%d errors, finished %v, message %q", s.ErrorCount, s.FinishedAt, s.Message)
	}
	if strings.Contains(out.Message, "retried") {
		t.Errorf("the promotion's message says so too: %q", out.Message)
	}
	final, err := e.RunToCompletion(t.Context(), p)
	if err != nil || final.Phase != kargoapi.PromotionErrored || statuses(final) != "step-1=Succeeded step-2=Errored step-3=Skipped" {
		t.Errorf("%s %s, %v", final.Phase, statuses(final), err)
	}
	if s := final.Steps[1]; s.ErrorCount != 3 || !strings.HasPrefix(s.Message, `step "step-2" met error threshold of 3: `) {
		t.Errorf("%d errors, %q", s.ErrorCount, s.Message)
	}
	if waits := e.Clock.(*fakeClock).slept; len(waits) != 2 || waits[1] <= waits[0] {
		t.Errorf("waited %v, want two growing waits", waits)
	}
}

func TestConformanceTimeouts(t *testing.T) {
	ago := func(d time.Duration) func(*runner.Promotion) {
		return func(p *runner.Promotion) {
			started := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC).Add(-d)
			p.StepMetadata = []kargoapi.StepExecutionMetadata{{Alias: "step-1", Status: steps.Running, StartedAt: &started}}
		}
	}
	for _, tc := range []struct {
		id, reason, steps string
		change            func(*runner.Promotion)
		phase             kargoapi.PromotionPhase
		message           string
	}{
		{"E12", "an error after the time is up", "  - {uses: err, retry: {errorThreshold: 3, timeout: 1h}}\n", ago(time.Hour + time.Second),
			kargoapi.PromotionErrored, `step "step-1" timed out after 1h0m0s`},
		{"E14", "a step that runs on", "  - {uses: run}\n", ago(0), kargoapi.PromotionRunning, ""},
		{"E14b", "in time", "  - {uses: run, retry: {timeout: 1h}}\n", ago(time.Minute), kargoapi.PromotionRunning, ""},
		{"E14c", "and no longer", "  - {uses: run, retry: {timeout: 1h}}\n", ago(2 * time.Hour), kargoapi.PromotionErrored, "timed out after 1h0m0s"},
		{"late success", "an attempt may run past the limit and succeed", "  - {uses: ok, retry: {timeout: 1h}}\n", ago(2 * time.Hour), kargoapi.PromotionSucceeded, ""},
		{"failed, late", "a timeout turns Failed into Errored", "  - {uses: fail, retry: {errorThreshold: 9, timeout: 1h}}\n", ago(2 * time.Hour),
			kargoapi.PromotionErrored, "timed out after 1h0m0s"},
		{"no timeout", "zero is none", "  - {uses: run, retry: {timeout: 0s}}\n", ago(1000 * time.Hour), kargoapi.PromotionRunning, ""},
		{"cut off", "an attempt that hangs is stopped", "  - {uses: limited}\n", func(*runner.Promotion) {}, kargoapi.PromotionErrored,
			`step "step-1" timed out after 1ms`},
	} {
		p := promotion(t, tc.steps)
		tc.change(&p)
		out, _ := engine(t).Run(t.Context(), p)
		if out.Phase != tc.phase || !strings.Contains(out.Message, tc.message) {
			t.Errorf("%s %s: %s %q, want %s %q", tc.id, tc.reason, out.Phase, out.Message, tc.phase, tc.message)
		}
	}
}

func TestConformanceTaskOutputs(t *testing.T) { // E16, E17
	out := run(t, "  - {uses: compose, as: 't::o', config: {a: 1}}\n  - {uses: compose, as: 't::p', config: {b: 2}}\n"+
		"  - {uses: compose, as: o, config: {c: 3}}\n  - {uses: ok, as: 't::q'}\n")
	want := map[string]any{
		"t::o": map[string]any{"a": 1.0}, "t::p": map[string]any{"b": 2.0}, "t": map[string]any{"a": 1.0, "b": 2.0},
		"o": map[string]any{"c": 3.0}, "t::q": map[string]any{"ran": "t::q"},
	}
	if d := cmp.Diff(want, out.State); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestConformancePhases(t *testing.T) { // E22
	done := []steps.Status{steps.Succeeded, steps.Skipped, steps.Aborted, steps.Failed, steps.Errored}
	for n, want := range map[int]kargoapi.PromotionPhase{
		5: kargoapi.PromotionErrored, 4: kargoapi.PromotionFailed, 3: kargoapi.PromotionAborted, 2: kargoapi.PromotionSucceeded, 1: kargoapi.PromotionSucceeded,
	} {
		p := promotion(t, strings.Repeat("  - {uses: ok}\n", n))
		p.StartFrom = n
		for i, s := range done[:n] {
			p.StepMetadata = append(p.StepMetadata, kargoapi.StepExecutionMetadata{Alias: p.Steps[i].As, Status: s, Message: string(s)})
		}
		out, err := engine(t).Run(t.Context(), p)
		if err != nil || out.Phase != want {
			t.Errorf("%v: %s, %v, want %s", done[:n], out.Phase, err, want)
		}
		if want != kargoapi.PromotionSucceeded && out.Message != string(want) {
			t.Errorf("%v: message %q", done[:n], out.Message)
		}
	}
}

func TestErrorChain(t *testing.T) {
	out := run(t, "  - {uses: refuse, as: get}\n")
	if err := out.Steps[0].Err; !errors.Is(err, steps.ErrRefused) || !steps.IsTerminal(err) {
		t.Errorf("%v does not say that verification refused", err)
	}
}
