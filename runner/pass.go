package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// pass is one pass of the engine over a promotion.
type pass struct {
	*Engine
	p     *Promotion
	eval  *expr.Evaluator
	log   *slog.Logger
	state map[string]any
	metas []kargoapi.StepExecutionMetadata
	// errs holds the last error of each step, by alias.
	errs   map[string]error
	checks []steps.HealthCheck
}

func (r *pass) run(ctx context.Context) (Outcome, error) {
	for i := r.p.StartFrom; i < len(r.p.Steps); i++ {
		step := &r.p.Steps[i]
		m := r.metadata(step)
		if err := ctx.Err(); err != nil {
			return r.canceled(ctx, i, m), nil
		}
		done, retry, err := r.step(ctx, i, step, m)
		if !done {
			return r.running(i, *m, retry, err), err
		}
		if r.Observer != nil {
			r.Observer.StepFinished(i, step, r.outcomeOf(step, *m))
		}
	}
	out := r.outcome(max(len(r.p.Steps)-1, 0))
	out.Phase, out.Message = finalPhase(r.metas)
	return out, nil
}

// metadata returns the entry of a step, which it appends where there is none.
// The pointer is good until the next call.
func (r *pass) metadata(step *Step) *kargoapi.StepExecutionMetadata {
	for i := range r.metas {
		if r.metas[i].Alias == step.As {
			return &r.metas[i]
		}
	}
	r.metas = append(r.metas, kargoapi.StepExecutionMetadata{Alias: step.As, ContinueOnError: step.Continues()})
	return &r.metas[len(r.metas)-1]
}

// step brings one step as far as it goes in this pass. If it is not done, err
// is that of an attempt to be repeated, or retry says when a running one wants
// to be called again.
func (r *pass) step(ctx context.Context, i int, step *Step, m *kargoapi.StepExecutionMetadata) (
	done bool, retry *time.Duration, err error,
) {
	// Only before the first attempt: a retry does not ask again.
	if m.StartedAt == nil {
		skip, err := r.skips(ctx, step)
		switch {
		case err != nil:
			r.end(m, steps.Errored, fmt.Errorf("error checking if step %q should be skipped: %w", step.As, err))
			return true, nil, nil
		case skip:
			m.Status = steps.Skipped
			return true, nil, nil
		}
	}
	reg, ok := r.Registry.byKind[step.Uses]
	if !ok {
		r.end(m, steps.Errored, &UnknownKindError{Kind: step.Uses, Near: r.Registry.Near(step.Uses)})
		return true, nil, nil
	}
	now := r.Clock.Now()
	if m.StartedAt == nil {
		m.StartedAt, m.ErrorCount = &now, 0
	}
	if r.Observer != nil {
		r.Observer.StepStarted(i, step)
	}
	sc, err := r.context(ctx, step)
	if err != nil {
		r.end(m, steps.Errored, fmt.Errorf("failed to build step context: %w", err))
		return true, nil, nil
	}
	timeout, threshold := limits(step, reg)
	res, runErr := r.attempt(ctx, step, reg, sc, timeout, *m)
	r.store(step, reg, &res)
	if !res.Status.Valid() {
		r.finish(m, steps.Errored, fmt.Errorf("step %q returned an invalid status: %s", step.As, res.Status))
		return true, nil, nil
	}
	done, err = r.settle(step, m, res, runErr, timeout, threshold)
	if done && m.Status == steps.Succeeded && res.HealthCheck != nil {
		r.checks = append(r.checks, *res.HealthCheck)
	}
	return done, res.RetryAfter, err
}

// skips decides whether a step runs. A condition of its own replaces the
// implicit one, which is that nothing failed before.
func (r *pass) skips(ctx context.Context, step *Step) (bool, error) {
	if step.If == "" {
		return expr.HasFailures(r.metas), nil
	}
	runs, err := r.eval.If(ctx, r.scope(step), step.If)
	return !runs, err
}

func (r *pass) scope(step *Step) *expr.Scope {
	return &expr.Scope{
		UIBaseURL: r.p.UIBaseURL, Project: r.p.Project, Stage: r.p.Stage, Promotion: r.p.Name,
		Actor: r.p.Actor, Rollback: r.p.Rollback, Alias: step.As,
		TargetFreight: r.p.TargetFreight, TargetFreightAlias: r.p.TargetFreightAlias,
		FreightRequests: r.p.FreightRequests, Freight: r.p.Freight,
		PromotionVars: r.p.Vars, StepVars: step.Vars,
		Outputs: r.state, StepMetadata: r.metas,
	}
}

func (r *pass) context(ctx context.Context, step *Step) (*steps.Context, error) {
	config, err := r.eval.Config(ctx, r.scope(step), step.Config)
	var unreadable *expr.UnreadableConfigError
	switch {
	case errors.As(err, &unreadable):
		r.log.WarnContext(ctx, unreadable.Error(), "step", step.As)
	case err != nil:
		return nil, fmt.Errorf("failed to get step config: %w", err)
	}
	requests := make([]steps.FreightRequest, len(r.p.FreightRequests))
	for i, q := range r.p.FreightRequests {
		sources, err := json.Marshal(q.Sources)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the sources of requested Freight: %w", err)
		}
		requests[i] = steps.FreightRequest{Origin: q.Origin, Sources: sources}
	}
	sc := &steps.Context{
		UIBaseURL: r.p.UIBaseURL, WorkDir: r.p.WorkDir,
		SharedState: deepCopy(r.state).(map[string]any), Alias: step.As, Config: config,
		Project: r.p.Project, Stage: r.p.Stage, Promotion: r.p.Name, PromotionActor: r.p.Actor,
		Rollback: r.p.Rollback, FreightRequests: requests, Freight: cloneCollection(r.p.Freight),
		TargetFreightRef: cloneReference(r.p.TargetFreight), TargetFreightAlias: r.p.TargetFreightAlias,
		Log: r.log.With("step", step.As, "uses", step.Uses),
	}
	if step.Document != nil && step.Document.File != "-" {
		if sc.ConfigFile, err = filepath.Abs(step.Document.File); err != nil {
			return nil, fmt.Errorf("cannot locate the step's file: %w", err)
		}
	}
	return sc, nil
}

func (r *pass) finishedNow(m *kargoapi.StepExecutionMetadata) {
	now := r.Clock.Now()
	m.FinishedAt = &now
}

// end gives a step its last status without saying when, as Kargo does for a
// step that could not be run.
func (r *pass) end(m *kargoapi.StepExecutionMetadata, status steps.Status, err error) {
	if r.Redactor != nil {
		err = r.Redactor.Error(err)
	}
	m.Status, m.Message = status, err.Error()
	r.errs[m.Alias] = err
}

func (r *pass) finish(m *kargoapi.StepExecutionMetadata, status steps.Status, err error) {
	r.end(m, status, err)
	r.finishedNow(m)
}

// canceled ends the promotion because ctx is done.
func (r *pass) canceled(ctx context.Context, i int, m *kargoapi.StepExecutionMetadata) Outcome {
	err := fmt.Errorf("execution canceled: %w", context.Cause(ctx))
	if m.StartedAt != nil && m.FinishedAt == nil {
		r.finish(m, steps.Errored, err)
		if r.Observer != nil {
			step := &r.p.Steps[i]
			r.Observer.StepFinished(i, step, r.outcomeOf(step, *m))
		}
	}
	out := r.outcome(i)
	out.Phase, out.Message = kargoapi.PromotionErrored, err.Error()
	return out
}

func (r *pass) running(i int, m kargoapi.StepExecutionMetadata, retry *time.Duration, err error) Outcome {
	out := r.outcome(i)
	out.Phase, out.Message, out.RetryAfter = kargoapi.PromotionRunning, m.Message, retry
	if err != nil {
		out.Message = err.Error()
	}
	return out
}

func (r *pass) outcome(current int) Outcome {
	out := Outcome{
		State: r.state, StepMetadata: r.metas, HealthChecks: r.checks, CurrentStep: current, errs: r.errs,
	}
	byAlias := make(map[string]*Step, len(r.p.Steps))
	for i := range r.p.Steps {
		byAlias[r.p.Steps[i].As] = &r.p.Steps[i]
	}
	for _, m := range r.metas {
		if step := byAlias[m.Alias]; step != nil {
			out.Steps = append(out.Steps, r.outcomeOf(step, m))
		}
	}
	return out
}

func (r *pass) outcomeOf(step *Step, m kargoapi.StepExecutionMetadata) StepOutcome {
	output, _ := r.state[m.Alias].(map[string]any)
	return StepOutcome{
		Alias: m.Alias, Uses: step.Uses, Status: m.Status, Message: m.Message,
		StartedAt: m.StartedAt, FinishedAt: m.FinishedAt, ErrorCount: m.ErrorCount,
		Output: output, Err: r.errs[m.Alias], Hints: hints(step, r.errs[m.Alias]),
	}
}

// UnknownKindError says that no step of a kind is registered.
type UnknownKindError struct {
	Kind string
	// Near are kinds that may have been meant, best first.
	Near []string
}

// Error implements error in Kargo's words.
func (e *UnknownKindError) Error() string {
	return fmt.Sprintf("step kind %q is not registered; verify the kind is correct; "+
		"if you are a Kargo Enterprise user, you may need to enable the promotion controller", e.Kind)
}
