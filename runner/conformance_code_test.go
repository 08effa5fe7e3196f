package runner_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Cases that follow from Kargo's code only (C).

func TestConformanceUndeclaredVariable(t *testing.T) { // D9
	got, err := inflated(t, taskDoc("PromotionTask", anyTask, "{steps: [{uses: a}, {uses: b}]}")+
		stage("[]", "[{task: {name: t}, vars: [{name: x, value: '1'}]}]"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range got {
		if d := cmp.Diff([]kargoapi.Variable{{Name: "x", Value: "1"}}, s.Vars); d != "" {
			t.Errorf("%s: %s", s.As, d)
		}
	}
}

// D19: in Kargo the second step's variable overwrites the first's.
func TestConformanceOwnVariables(t *testing.T) {
	got, err := inflated(t, taskDoc("PromotionTask", anyTask, "{vars: [{name: d1, value: a}, {name: d2, value: b}, {name: d3, value: c}], "+
		"steps: [{uses: a, vars: [{name: own, value: first}]}, {uses: b, vars: [{name: own, value: second}]}]}")+stage("[]", "[{task: {name: t}}]"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"first", "second"} {
		if own := got[i].Vars[len(got[i].Vars)-1]; own.Value != want {
			t.Errorf("step %d has %v, want %s", i+1, own, want)
		}
	}
}

func TestConformanceNoRetryOfContext(t *testing.T) { // E26
	e := engine(t)
	out, err := e.RunToCompletion(t.Context(), promotion(t, "  - {uses: ok, retry: {errorThreshold: 5}, config: {a: '${{ x.y }}'}}\n"))
	if err != nil || out.Phase != kargoapi.PromotionErrored || out.Steps[0].ErrorCount != 0 || len(e.Clock.(*fakeClock).slept) != 0 {
		t.Errorf("%s with %d errors and waits %v, %v", out.Phase, out.Steps[0].ErrorCount, e.Clock.(*fakeClock).slept, err)
	}
}

// E27: Failed without an error is polled, and only a timeout or the caller
// ends it.
func TestConformanceFailedWithoutError(t *testing.T) {
	e := engine(t)
	out, err := e.Run(t.Context(), promotion(t, "  - {uses: fail-nil}\n"))
	if err != nil || out.Phase != kargoapi.PromotionRunning || out.Steps[0].ErrorCount != 0 || out.Steps[0].Status != steps.Failed {
		t.Errorf("%s, %+v, %v", out.Phase, out.Steps[0], err)
	}
	out, err = e.RunToCompletion(t.Context(), promotion(t, "  - {uses: fail-nil, retry: {timeout: 1m}}\n"))
	if err != nil || out.Phase != kargoapi.PromotionErrored || out.Message != `step "step-1" timed out after 1m0s` {
		t.Errorf("%s %q, %v", out.Phase, out.Message, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	e.Clock = &cancelingClock{fakeClock{now: time.Now()}, 3, cancel}
	out, err = e.RunToCompletion(ctx, promotion(t, "  - {uses: ok}\n  - {uses: fail-nil}\n  - {uses: ok, if: '${{ always() }}'}\n"))
	if err != nil || out.Phase != kargoapi.PromotionErrored || out.Message != "execution canceled: context canceled" {
		t.Errorf("%s %q, %v", out.Phase, out.Message, err)
	}
	if got := statuses(out); got != "step-1=Succeeded step-2=Errored" {
		t.Errorf("%s, want the rest not to run", got)
	}
}

// cancelingClock cancels a context at the nth wait.
type cancelingClock struct {
	fakeClock
	n      int
	cancel func()
}

func (c *cancelingClock) Sleep(ctx context.Context, d time.Duration) error {
	if c.n--; c.n == 0 {
		c.cancel()
	}
	return c.fakeClock.Sleep(ctx, d)
}

// E29: with its work dir lost a promotion starts over, its state kept.
func TestConformanceLostWorkDir(t *testing.T) {
	p := promotion(t, "  - {uses: compose, config: {seen: '${{ outputs.a.x }}', metas: '${{ keys(stepMetas) }}'}}\n  - {uses: ok}\n  - {uses: ok}\n")
	p.WorkDir = filepath.Join(p.WorkDir, "lost")
	p.StartFrom = 2
	p.State = map[string]any{"a": map[string]any{"x": 1}}
	p.StepMetadata = []kargoapi.StepExecutionMetadata{{Alias: "step-1", Status: steps.Failed}, {Alias: "step-2", Status: steps.Failed}}
	p.HealthChecks = []steps.HealthCheck{{Kind: "old"}}
	out, err := engine(t).RunToCompletion(t.Context(), p)
	if err != nil || out.Phase != kargoapi.PromotionSucceeded || len(out.Steps) != 3 || len(out.HealthChecks) != 0 {
		t.Fatalf("%s %q, %d steps, %v", out.Phase, out.Message, len(out.Steps), err)
	}
	if d := cmp.Diff(map[string]any{"seen": 1.0, "metas": []any{"step-1"}}, out.State["step-1"]); d != "" {
		t.Error(d)
	}
	if info, err := os.Stat(p.WorkDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("work dir: %v, %v", info, err)
	}
}

// 4.2: errors apart add up; 4.1: a retry does not ask the condition again.
func TestRetriesAddUp(t *testing.T) {
	n := 0
	flaky := steps.Registration{Name: "flaky", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(context.Context, *steps.Context) (steps.Result, error) {
			n++
			if n%2 == 0 {
				return steps.Result{Status: steps.Running}, nil
			}
			return steps.Result{Status: steps.Errored}, os.ErrDeadlineExceeded
		})
	}}
	e := engine(t, flaky)
	out, err := e.RunToCompletion(t.Context(),
		promotion(t, "  - {uses: flaky, if: \"${{ status('step-1') == '' }}\", retry: {errorThreshold: 3}}\n"))
	if err != nil || out.Phase != kargoapi.PromotionErrored || out.Steps[0].ErrorCount != 3 || n != 5 {
		t.Errorf("%s after %d attempts with %d errors, %v", out.Phase, n, out.Steps[0].ErrorCount, err)
	}
}

func TestRetryAfter(t *testing.T) {
	e := engine(t)
	out, err := e.Run(t.Context(), promotion(t, "  - {uses: run-after}\n"))
	if err != nil || out.RetryAfter == nil || *out.RetryAfter != 7*time.Second {
		t.Errorf("%v, %v", out.RetryAfter, err)
	}
	if _, err = e.RunToCompletion(t.Context(), promotion(t, "  - {uses: run-after, retry: {timeout: 20s}}\n")); err != nil {
		t.Fatal(err)
	}
	// The last wait is shortened so that the timeout is noticed in time.
	want := []time.Duration{7 * time.Second, 7 * time.Second, 6*time.Second + time.Millisecond}
	if d := cmp.Diff(want, e.Clock.(*fakeClock).slept); d != "" {
		t.Error(d)
	}
}

func TestStateIsJSON(t *testing.T) {
	out := run(t, "  - {uses: int, as: i}\n  - {uses: mutate}\n  - {uses: unprintable, as: u}\n"+
		"  - {uses: compose, as: v, config: {t: '${{ type(outputs.i.i64) }}', half: '${{ outputs.i.int % 2 }}'}, continueOnError: true}\n"+
		"  - {uses: compose, as: w, config: {sum: '${{ outputs.i.int + outputs.i.i64 }}', none: '${{ outputs.u.f }}', l: '${{ outputs.i.list[0] }}'}}\n")
	if out.Phase != kargoapi.PromotionSucceeded {
		t.Fatalf("%s %q", out.Phase, out.Message)
	}
	want := map[string]any{"int": 5.0, "list": []any{"a"}, "i64": int64(7), "deep": map[string]any{"u": 1.0}}
	if d := cmp.Diff(want, out.State["i"]); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]any{"sum": 12.0, "none": nil, "l": "a"}, out.State["w"]); d != "" {
		t.Error(d)
	}
}

// A step owns what it is given: changing it changes nothing else.
func TestStepsCannotReachEachOther(t *testing.T) {
	ref := func() steps.FreightReference {
		return steps.FreightReference{
			Name: "f", Images: []steps.Image{{Annotations: map[string]string{"k": "v"}}}, Commits: []steps.GitCommit{{ID: "c"}},
		}
	}
	p := promotion(t, "  - {uses: ok, as: a}\n  - {uses: mutate}\n")
	p.Freight = steps.FreightCollection{Freight: map[string]steps.FreightReference{"Warehouse/w": ref()}}
	out, err := engine(t).Run(t.Context(), p)
	if err != nil || out.Phase != kargoapi.PromotionSucceeded {
		t.Fatalf("%s %q, %v", out.Phase, out.Message, err)
	}
	if d := cmp.Diff(map[string]any{"ran": "a"}, out.State["a"]); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(ref(), p.Freight.Freight["Warehouse/w"]); d != "" {
		t.Error(d)
	}
}

func TestHealthChecks(t *testing.T) {
	out := run(t, "  - {uses: health}\n  - {uses: skip}\n  - {uses: health}\n")
	if len(out.HealthChecks) != 2 {
		t.Errorf("%v, want those of the steps that succeeded", out.HealthChecks)
	}
}

func TestPromotionsAtOnce(t *testing.T) {
	r, err := resolve(t, goodsWarehouse+goodsFreight+oneStep("{tag: \"${{ imageFrom('reg.io/app').Tag }}\"}"), runner.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := engine(t)
	e.Data, e.Clock = r.Data, nil
	var wg sync.WaitGroup
	for range 8 {
		p := r.Promotion
		p.WorkDir = t.TempDir()
		wg.Go(func() {
			out, err := e.RunToCompletion(t.Context(), p)
			if err != nil || !cmp.Equal(out.State["c"], map[string]any{"tag": "v1"}) {
				t.Errorf("%s %v, %v", out.Phase, out.State, err)
			}
		})
	}
	wg.Wait()
}

func TestSystemClock(t *testing.T) {
	var clock runner.SystemClock
	if err := clock.Sleep(t.Context(), time.Microsecond); err != nil || clock.Now().IsZero() {
		t.Errorf("%v, %v", err, clock.Now())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := clock.Sleep(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that is cut short gives %v", err)
	}
}

func TestCanceledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out, err := engine(t).Run(ctx, promotion(t, "  - {uses: ok}\n  - {uses: ok}\n"))
	if err != nil || out.Phase != kargoapi.PromotionErrored || len(out.State) != 0 || len(out.Steps) != 1 {
		t.Errorf("%s, %d steps, %v", out.Phase, len(out.Steps), err)
	}
	if out.Steps[0].Status != "" {
		t.Errorf("status %q of a step that never started", out.Steps[0].Status)
	}
}
