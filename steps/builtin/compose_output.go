package builtin

import (
	"context"

	"github.com/stepd/stepd/steps"
)

// ComposeOutput is `compose-output`: its config is its output, and inside a
// task also the task's.
func ComposeOutput() steps.Registration {
	run := func(_ context.Context, sc *steps.Context) (steps.Result, error) {
		return succeeded(sc.Config)
	}
	return registration("compose-output",
		func(steps.Capabilities) steps.Runner { return steps.RunnerFunc(run) },
		steps.TaskOutputPropagation)
}
