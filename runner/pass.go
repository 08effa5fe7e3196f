package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
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
		return reg.New(r.grant(reg.RequiredCapabilities)).Run(ctx, sc)
	})
	res, err := Redacted(Recovered(Limited(Validated(runner, reg.Name, schema), limit), r.log), r.Redactor).Run(ctx, sc)
	switch {
	case err == nil:
	case res.Status == steps.Errored:
		err = fmt.Errorf("error running step %q: %w", step.As, err)
	default:
		err = fmt.Errorf("step %q: %w", step.As, err)
	}
	return res, err
}

// grant returns the objects behind declared capabilities, and nothing else.
func (r *pass) grant(declared []steps.Capability) steps.Capabilities {
	var caps steps.Capabilities
	for _, c := range declared {
		switch c {
		case steps.AccessCredentials:
			caps.Credentials = r.Capabilities.Credentials
		case steps.AccessGitUser:
			caps.GitUser = r.Capabilities.GitUser
		}
	}
	return caps
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

// settle reconciles an attempt's result and error and decides whether the step
// is done. If it is not, the error is that of an attempt to be repeated.
func (r *pass) settle(
	step *Step, m *kargoapi.StepExecutionMetadata, res steps.Result, err error,
	timeout time.Duration, threshold uint32,
) (done bool, retryErr error) {
	m.Status, m.Message = res.Status, res.Message
	if err == nil && res.Status == steps.Errored {
		details := res.Message
		if details == "" {
			details = "no details provided"
		}
		err = fmt.Errorf("step %q errored: %s", step.As, details)
	}
	if err != nil {
		if m.Status != steps.Failed {
			m.Status = steps.Errored
		}
		m.Message = err.Error()
	}
	r.errs[step.As] = err
	timedOut := timeout > 0 && r.Clock.Now().Sub(*m.StartedAt) > timeout
	cutOff := errors.Is(err, errAttemptTimeout)
	switch {
	case err == nil && (m.Status == steps.Succeeded || m.Status == steps.Skipped):
		r.finishedNow(m)
		return true, nil
	case err != nil && steps.IsTerminal(err):
		if m.Status == steps.Failed {
			r.finishedNow(m)
			return true, nil
		}
		r.finish(m, steps.Errored, fmt.Errorf("an unrecoverable error occurred: %w", err))
		return true, nil
	case err != nil && !cutOff:
		m.ErrorCount++
		if m.ErrorCount >= threshold {
			r.finish(m, m.Status, fmt.Errorf("step %q met error threshold of %d: %w", step.As, threshold, err))
			return true, nil
		}
	}
	switch {
	case timedOut || cutOff:
		msg := fmt.Errorf("step %q timed out after %s", step.As, timeout)
		r.finish(m, steps.Errored, msg)
		if err != nil {
			r.errs[step.As] = &timeoutError{msg.Error(), err}
		}
		return true, nil
	case err != nil:
		m.Message += "; step will be retried"
		return false, err
	}
	return false, nil // Running, or Failed or Aborted without an error: polled
}

// timeoutError has Kargo's words and the chain of the last attempt's error.
type timeoutError struct {
	text string
	err  error
}

func (e *timeoutError) Error() string { return e.text }
func (e *timeoutError) Unwrap() error { return e.err }

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

// hints says what Kargo's wording of an error leaves out.
func hints(step *Step, err error) []string {
	if err == nil {
		return nil
	}
	var out []string
	add := func(at load.Position, parts ...string) {
		if at.Line > 0 {
			parts = append([]string{at.String()}, parts...)
		}
		out = append(out, strings.Join(parts, ": "))
	}
	if e, ok := errors.AsType[*ConfigError](err); ok {
		for _, v := range e.Violations {
			pointer := v.Pointer
			if v.Property != "" {
				pointer += load.Pointer(v.Property)
			}
			parts := []string{v.Message}
			if v.Hint != "" {
				parts = append(parts, v.Hint)
			}
			add(step.Position("/config"+pointer), parts...)
		}
	}
	if e, ok := errors.AsType[*UnknownKindError](err); ok && len(e.Near) > 0 {
		add(step.Position("/uses"), "did you mean "+strings.Join(e.Near, ", ")+"?")
	}
	if e, ok := errors.AsType[*expr.HintedError](err); ok {
		add(step.Position(""), e.Hint)
	}
	if e, ok := errors.AsType[*expr.UnreadableConfigError](err); ok {
		add(step.Position("/config"), e.Error())
	}
	return out
}

// severity orders statuses from harmless to bad (pkg/promotion/orchestrator.go).
func severity(s steps.Status) int {
	switch s {
	case steps.Succeeded:
		return 0
	case steps.Skipped:
		return 1
	case steps.Running:
		return 2
	case steps.Aborted:
		return 3
	case steps.Failed:
		return 4
	}
	return 5
}

// finalPhase is made of the worst status among steps that do not continue on
// error, and the message of the first step that has it.
func finalPhase(metas []kargoapi.StepExecutionMetadata) (kargoapi.PromotionPhase, string) {
	worst, message := steps.Succeeded, ""
	for _, m := range metas {
		if !m.ContinueOnError && severity(m.Status) > severity(worst) {
			worst, message = m.Status, m.Message
		}
	}
	switch worst {
	case steps.Succeeded, steps.Skipped:
		return kargoapi.PromotionSucceeded, message
	case steps.Aborted:
		return kargoapi.PromotionAborted, message
	case steps.Failed:
		return kargoapi.PromotionFailed, message
	}
	return kargoapi.PromotionErrored, message
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
