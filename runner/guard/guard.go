// Package guard is what surrounds an attempt of a step wherever it runs, in an
// engine, in a server and in a plugin: its config is held against the schema,
// its time is limited, its panics are errors and its secrets are masked.
//
// Every plugin program has this package in it, so it knows nothing of
// promotions or of any transport.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/steps"
)

// The wrappers are applied in this order, the first outermost: Redacted,
// Recovered, Limited, Validated.

// Validated refuses a config that violates the schema the way every Kargo step
// does: Failed, with a terminal *ConfigError. A nil schema accepts anything.
func Validated(r steps.Runner, kind string, schema *configschema.Schema) steps.Runner {
	if schema == nil {
		return r
	}
	return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		var config any // an absent config is null, not a nil map
		if sc.Config != nil {
			config = sc.Config
		}
		if vs := schema.Validate(config); len(vs) > 0 {
			return steps.Result{Status: steps.Failed}, steps.Terminal(&ConfigError{Kind: kind, Violations: vs})
		}
		return r.Run(ctx, sc)
	})
}

// ConfigError says how a step's evaluated config violates its schema.
type ConfigError struct {
	Kind       string
	Violations []configschema.Violation
}

// Error implements error in Kargo's words, with a hint after each violation
// where there is one.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		lines[i] = v.Message
		if v.Hint != "" {
			lines[i] += "; " + v.Hint
		}
	}
	return fmt.Sprintf("invalid %s config: %s", e.Kind, strings.Join(lines, "\n"))
}

// Unwrap makes the error a steps.ErrConfig.
func (e *ConfigError) Unwrap() error { return steps.ErrConfig }

// ErrTimeout is what Limited cancels an attempt with when its time is up.
var ErrTimeout = errors.New("the step's timeout has elapsed")

// Limited cancels an attempt after limit; zero is no limit. An attempt that
// ends with an error because of that returns ErrTimeout.
func Limited(r steps.Runner, limit time.Duration) steps.Runner {
	if limit <= 0 {
		return r
	}
	return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
		defer cancel()
		res, err := r.Run(ctx, sc)
		if err != nil && errors.Is(context.Cause(ctx), ErrTimeout) {
			err = fmt.Errorf("%w: %w", ErrTimeout, err)
		}
		return res, err
	})
}

// Recovered turns a panic of a step into a terminal error.
func Recovered(r steps.Runner, log *slog.Logger) steps.Runner {
	return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (res steps.Result, err error) {
		defer func() {
			if p := recover(); p != nil {
				log.ErrorContext(ctx, "step panicked", "step", sc.Alias, "panic", p, "stack", string(debug.Stack()))
				res = steps.Result{Status: steps.Errored}
				err = steps.Terminal(fmt.Errorf("step panicked: %v", p))
			}
		}()
		return r.Run(ctx, sc)
	})
}

// Redactor masks secrets in text; see redact.Redactor.
type Redactor interface {
	String(s string) string
	Error(err error) error
}

// Redacted removes secrets from a step's message and error. Outputs are data
// that later steps compute with, and pass as they are.
func Redacted(r steps.Runner, redactor Redactor) steps.Runner {
	if redactor == nil {
		return r
	}
	return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		res, err := r.Run(ctx, sc)
		res.Message = redactor.String(res.Message)
		if err != nil {
			err = redactor.Error(err)
		}
		return res, err
	})
}
