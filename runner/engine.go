package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Engine runs promotions the way Kargo v1.11.2's local orchestrator does
// (pkg/promotion/local_orchestrator.go). The zero value of an optional field
// leaves the feature out. One Engine may run several promotions at once, if its
// Data, Clock, Observer and Redactor allow it.
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

// Redactor masks what it was told is secret. *redact.Redactor is one.
type Redactor interface {
	Add(secrets ...string)
	String(s string) string
	Error(err error) error
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
// that of an attempt that will be repeated. With any other phase the error is
// nil: a promotion that failed is an Outcome. An error without a phase says
// that the promotion cannot be run at all.
func (e *Engine) Run(ctx context.Context, p Promotion) (Outcome, error) {
	r, err := e.pass(&p, nil)
	if err != nil {
		return Outcome{}, err
	}
	return r.run(ctx)
}

// Waits between passes. Kargo's controller polls a running step every five
// minutes unless told otherwise and backs off from errors exponentially; a
// person at a terminal waits for less.
const (
	defaultPoll  = time.Second
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 30 * time.Second
)

// RunToCompletion makes passes over a promotion until its phase is terminal,
// waiting between them for what the step asks, a second, or after an error
// exponentially longer. A step that polls for ever is ended by its timeout or
// by ctx; ctx being done makes the phase Errored. The error is that of a
// promotion that cannot be run at all.
func (e *Engine) RunToCompletion(ctx context.Context, p Promotion) (Outcome, error) {
	var eval *expr.Evaluator
	backoff := firstBackoff
	for {
		if err := p.ensureWorkDir(); err != nil {
			return Outcome{}, err
		}
		r, err := e.pass(&p, eval)
		if err != nil {
			return Outcome{}, err
		}
		eval = r.eval
		out, err := r.run(ctx)
		if out.Phase != kargoapi.PromotionRunning {
			return out, nil
		}
		if out.CurrentStep != p.StartFrom {
			backoff = firstBackoff
		}
		wait := defaultPoll
		switch {
		case err != nil:
			wait = backoff
			backoff = min(2*backoff, maxBackoff)
		case out.RetryAfter != nil:
			wait = max(*out.RetryAfter, 0)
		}
		step := &p.Steps[out.CurrentStep]
		if reg, ok := r.Registry.byKind[step.Uses]; ok {
			wait = r.untilTimeout(wait, step, reg, out)
		}
		if e.Observer != nil {
			e.Observer.StepWaiting(out.CurrentStep, step, r.outcomeOf(step, *r.metadata(step)), wait)
		}
		// A wait that is cut short is noticed by the next pass.
		_ = r.Clock.Sleep(ctx, wait)
		p.StartFrom, p.State, p.StepMetadata = out.CurrentStep, out.State, out.StepMetadata
		p.HealthChecks, p.errs = out.HealthChecks, out.errs
	}
}

// untilTimeout shortens a wait so that a step's timeout is noticed in time.
func (r *pass) untilTimeout(wait time.Duration, step *Step, reg *registered, out Outcome) time.Duration {
	timeout, _ := limits(step, reg)
	if timeout <= 0 {
		return wait
	}
	for _, m := range out.StepMetadata {
		if m.Alias == step.As && m.StartedAt != nil {
			left := timeout - r.Clock.Now().Sub(*m.StartedAt)
			return max(min(wait, left+time.Millisecond), 0)
		}
	}
	return wait
}

// pass prepares a pass; an evaluator of an earlier pass keeps what it compiled.
func (e *Engine) pass(p *Promotion, eval *expr.Evaluator) (*pass, error) {
	if err := e.check(p); err != nil {
		return nil, err
	}
	engine := *e
	var now func() time.Time
	if engine.Clock == nil {
		engine.Clock = SystemClock{}
	} else {
		now = engine.Clock.Now
	}
	r := &pass{
		Engine: &engine, p: p, eval: eval, log: engine.Log,
		metas:  append([]kargoapi.StepExecutionMetadata(nil), p.StepMetadata...),
		checks: append([]steps.HealthCheck(nil), p.HealthChecks...),
		errs:   maps.Clone(p.errs),
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.errs == nil {
		r.errs = map[string]error{}
	}
	if r.eval == nil {
		data := e.Data
		if e.Redactor != nil {
			data = secretsKnown{data, e.Redactor}
		}
		r.eval = expr.NewEvaluator(data, now)
	}
	var err error
	r.state, err = loadState(p.State)
	return r, err
}

func (e *Engine) check(p *Promotion) error {
	switch {
	case e.Registry == nil || e.Data == nil:
		return errors.New("cannot run a promotion: the engine has no registry or no data")
	case p.StartFrom < 0 || p.StartFrom > len(p.Steps):
		return fmt.Errorf("cannot run promotion %q: it has no step %d", p.Name, p.StartFrom)
	case !filepath.IsAbs(p.WorkDir):
		return fmt.Errorf("cannot run promotion %q: work dir %q is not an absolute path", p.Name, p.WorkDir)
	}
	for i := range p.Steps {
		if p.Steps[i].As == "" || p.Steps[i].Task != nil {
			return fmt.Errorf("cannot run promotion %q: step %d is not inflated", p.Name, i+1)
		}
	}
	return nil
}

// ensureWorkDir makes the work dir if it is missing. A promotion that has
// already begun then starts again: with its state, but without any record of
// steps, since their files are gone (pkg/controller/promotions/promotions.go).
func (p *Promotion) ensureWorkDir() error {
	if p.WorkDir == "" {
		return nil // reported by check
	}
	switch _, err := os.Stat(p.WorkDir); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot use the work dir: %w", err)
	}
	if err := os.MkdirAll(p.WorkDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the work dir: %w", err)
	}
	p.StartFrom, p.StepMetadata, p.HealthChecks = 0, nil, nil
	return nil
}

// secretsKnown tells the redactor what secret() and sharedSecret() hand out.
type secretsKnown struct {
	expr.Data
	redactor Redactor
}

func (d secretsKnown) Secret(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	m, err := d.Data.Secret(ctx, namespace, name)
	return d.known(m), err
}

func (d secretsKnown) SharedSecret(ctx context.Context, name string) (map[string][]byte, error) {
	m, err := d.Data.SharedSecret(ctx, name)
	return d.known(m), err
}

func (d secretsKnown) known(m map[string][]byte) map[string][]byte {
	for _, v := range m {
		d.redactor.Add(string(v))
	}
	return m
}
