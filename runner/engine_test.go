package runner_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// Steps for tests: each kind is one way a step can end.
func testKinds() []steps.Registration {
	kind := func(name string, run steps.RunnerFunc) steps.Registration {
		return steps.Registration{Name: name, New: func(steps.Capabilities) steps.Runner { return run }}
	}
	result := func(res steps.Result, err error) steps.RunnerFunc {
		return func(context.Context, *steps.Context) (steps.Result, error) { return res, err }
	}
	boom := errors.New("boom")
	compose := kind("compose", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
		return steps.Result{Status: steps.Succeeded, Output: sc.Config}, nil
	})
	compose.RequiredCapabilities = []steps.Capability{steps.TaskOutputPropagation}
	limited := kind("limited", func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
		<-ctx.Done()
		return steps.Result{Status: steps.Errored}, ctx.Err()
	})
	limited.DefaultTimeout = time.Millisecond
	patient := kind("patient", result(steps.Result{Status: steps.Errored}, boom))
	patient.DefaultErrorThreshold = 3
	return []steps.Registration{
		compose, limited, patient,
		kind("ok", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Succeeded, Output: map[string]any{"ran": sc.Alias}}, nil
		}),
		kind("err", result(steps.Result{Status: steps.Errored}, boom)),
		kind("term", result(steps.Result{Status: steps.Errored}, steps.Terminal(boom))),
		kind("fail-term", result(steps.Result{Status: steps.Failed}, steps.Terminal(boom))),
		kind("fail", result(steps.Result{Status: steps.Failed}, boom)),
		kind("fail-nil", result(steps.Result{Status: steps.Failed, Message: "no"}, nil)),
		kind("err-nil", result(steps.Result{Status: steps.Errored}, nil)),
		kind("ok-err", result(steps.Result{Status: steps.Succeeded}, boom)),
		kind("run", result(steps.Result{Status: steps.Running}, nil)),
		kind("run-after", result(steps.Result{Status: steps.Running, RetryAfter: new(7 * time.Second)}, nil)),
		kind("skip", result(steps.Result{Status: steps.Skipped, Message: "nothing to do", HealthCheck: &steps.HealthCheck{Kind: "h"}}, nil)),
		kind("abort", result(steps.Result{Status: steps.Aborted, Message: "aborted"}, nil)),
		kind("odd", result(steps.Result{Status: "Odd"}, nil)),
		kind("refuse", result(steps.Result{Status: steps.Failed}, steps.Terminal(fmt.Errorf("unsigned: %w", steps.ErrRefused)))),
		kind("health", result(steps.Result{Status: steps.Succeeded, HealthCheck: &steps.HealthCheck{Kind: "h", Input: map[string]any{"a": 1}}}, nil)),
		kind("panic", func(context.Context, *steps.Context) (steps.Result, error) { panic("gone wrong") }),
		kind("int", result(steps.Result{Status: steps.Succeeded, Output: map[string]any{
			"int": 5, "list": []string{"a"}, "i64": int64(7), "deep": map[string]any{"u": uint8(1)},
		}}, nil)),
		kind("unprintable", result(steps.Result{Status: steps.Succeeded, Output: map[string]any{"f": func() {}}}, nil)),
		kind("mutate", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			for _, v := range sc.SharedState {
				if m, ok := v.(map[string]any); ok {
					m["ran"] = "changed"
				}
			}
			for _, ref := range sc.Freight.Freight {
				ref.Images[0].Annotations["k"], ref.Commits[0].ID = "changed", "changed"
			}
			return steps.Result{Status: steps.Succeeded}, nil
		}),
	}
}

func engine(t *testing.T, extra ...steps.Registration) *runner.Engine {
	t.Helper()
	reg, err := runner.NewRegistry(append(testKinds(), extra...)...)
	if err != nil {
		t.Fatal(err)
	}
	return &runner.Engine{
		Registry: reg,
		Data:     runner.NewDocumentData(&load.Set{}, "demo", ""),
		Clock:    &fakeClock{now: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)},
	}
}

// promotion reads steps from YAML and gives them aliases.
func promotion(t *testing.T, list string) runner.Promotion {
	t.Helper()
	text := "apiVersion: kargo.akuity.io/v1alpha1\nkind: PromotionTask\nmetadata: {name: t}\nspec:\n  steps:\n" + list
	set, err := load.Bytes("steps.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	task, _ := load.As[*kargoapi.PromotionTask](set.Documents[0])
	template := make([]runner.Step, len(task.Spec.Steps))
	for i, s := range task.Spec.Steps {
		template[i] = runner.Step{PromotionStep: s, Document: set.Documents[0], Pointer: load.Pointer("spec", "steps", i)}
	}
	inflated, err := runner.Inflate(template, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return runner.Promotion{Project: "demo", Stage: "prod", Name: "p-1", WorkDir: t.TempDir(), Steps: inflated}
}

// statuses is "alias=Status alias=Status".
func statuses(out runner.Outcome) string {
	list := make([]string, len(out.Steps))
	for i, s := range out.Steps {
		list[i] = s.Alias + "=" + string(s.Status)
	}
	return strings.Join(list, " ")
}

func stateKeys(out runner.Outcome) string {
	var list []string
	for _, s := range out.Steps {
		if v, ok := out.State[s.Alias]; ok {
			list = append(list, fmt.Sprintf("%s:%t", s.Alias, v.(map[string]any) != nil))
		}
	}
	return strings.Join(list, " ")
}

func run(t *testing.T, list string) runner.Outcome {
	t.Helper()
	out, err := engine(t).Run(t.Context(), promotion(t, list))
	if err != nil && out.Phase != kargoapi.PromotionRunning {
		t.Fatal(err)
	}
	return out
}
