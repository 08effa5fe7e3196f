package runner

import (
	"context"
	"fmt"
	"time"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// limits returns a step's own retry policy, filled up from its registration.
func limits(step *Step, reg *registered) (timeout time.Duration, threshold uint32) {
	timeout, threshold = reg.DefaultTimeout, reg.DefaultErrorThreshold
	if step.Retry != nil {
		if step.Retry.Timeout != nil {
			timeout = step.Retry.Timeout.Duration
		}
		if step.Retry.ErrorThreshold > 0 {
			threshold = step.Retry.ErrorThreshold
		}
	}
	return timeout, threshold
}

// attempt runs a step once, wrapped, and words its error as Kargo's executor
// does (pkg/promotion/local_step_executor.go).
func (r *pass) attempt(
	ctx context.Context, step *Step, reg *registered, sc *steps.Context,
	timeout time.Duration, m kargoapi.StepExecutionMetadata,
) (steps.Result, error) {
	schema, err := reg.schema()
	if err != nil {
		return steps.Result{Status: steps.Errored}, steps.Terminal(err)
	}
	// Kargo lets an attempt run as long as it likes and looks at the clock
	// afterwards. Here it is stopped when time is up; one that starts late, as
	// a last retry may, has the full time once more.
	limit := timeout
	if left := timeout - r.Clock.Now().Sub(*m.StartedAt); left > 0 {
		limit = left
	}
	runner := steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		return reg.New(r.Capabilities.Only(reg.RequiredCapabilities)).Run(ctx, sc)
	})
	guarded := guard.Recovered(guard.Limited(guard.Validated(runner, reg.Name, schema), limit), r.log)
	res, err := guard.Redacted(guarded, r.Redactor).Run(ctx, sc)
	switch {
	case err == nil:
	case res.Status == steps.Errored:
		err = fmt.Errorf("error running step %q: %w", step.As, err)
	default:
		err = fmt.Errorf("step %q: %w", step.As, err)
	}
	return res, err
}

// store puts a step's output into the state, whatever became of the step: an
// attempt that fails replaces the output of an earlier one.
func (r *pass) store(step *Step, reg *registered, res *steps.Result) {
	shaped, err := shape(res.Output)
	if err != nil {
		*res = steps.Result{Status: res.Status, Message: res.Message, HealthCheck: res.HealthCheck, RetryAfter: res.RetryAfter}
		r.log.Warn("the step's output is dropped: it cannot be stored as JSON", "step", step.As, "error", err)
	}
	output, _ := shaped.(map[string]any)
	r.state[step.As] = output
	ns, inTask := expr.TaskNamespace(step.As)
	if !inTask || len(output) == 0 {
		return
	}
	for _, c := range reg.RequiredCapabilities {
		if c != steps.TaskOutputPropagation {
			continue
		}
		shared, _ := r.state[ns].(map[string]any)
		merged := make(map[string]any, len(shared)+len(output))
		for k, v := range shared {
			merged[k] = v
		}
		for k, v := range output {
			merged[k] = deepCopy(v)
		}
		r.state[ns] = merged
	}
}
