package runner

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/steps"
)

// Engine runs promotions the way Kargo v1.11.2's local orchestrator does
// (pkg/promotion/local_orchestrator.go). The zero value of an optional field
// leaves the feature out.
type Engine struct {
	// Registry knows the kinds of step. Required.
	Registry *Registry
	// Data is what expression functions read. Required.
	Data expr.Data
	// Capabilities are what steps that declare them are granted.
	Capabilities steps.Capabilities
	// Clock tells the time and waits; nil is the system's.
	Clock Clock
	// Observer is told about progress. Optional.
	Observer Observer
	// Log receives what steps log; nil discards it.
	Log *slog.Logger
	// Redactor removes secrets from messages, errors and outputs. Optional.
	Redactor Redactor
}

// Redactor removes what it was told is secret. *redact.Redactor is one.
type Redactor interface {
	Add(secret string)
	String(s string) string
	Error(err error) error
	Value(v any) any
}

// Clock is the engine's only source of time.
type Clock interface {
	Now() time.Time
	// Sleep waits for d, or until ctx is done, whose error it then returns.
	Sleep(ctx context.Context, d time.Duration) error
}

// SystemClock is the machine's clock.
type SystemClock struct{}

// Now implements Clock.
func (SystemClock) Now() time.Time { return time.Now() }

// Sleep implements Clock.
func (SystemClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Run makes one pass over a promotion: from its StartFrom to the first step
// that is not finished, or to the end. In phase Running the error, if any, is
// that of an attempt that will be repeated. An error together with any other
// phase does not occur.
func (e *Engine) Run(ctx context.Context, p Promotion) (Outcome, error) {
	return Outcome{}, errors.ErrUnsupported
}

// RunToCompletion makes passes over a promotion until its phase is terminal
// or ctx is done, waiting between them as Kargo's controller would, only less
// long. The error is ctx's, or that of a promotion that cannot be run at all;
// a promotion that failed is an Outcome, not an error.
func (e *Engine) RunToCompletion(ctx context.Context, p Promotion) (Outcome, error) {
	return Outcome{}, errors.ErrUnsupported
}
