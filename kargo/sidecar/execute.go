package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Pauses between the attempts of a step that ended in an error, as the engine
// has them in a local run.
const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 30 * time.Second
	// defaultPoll is the pause of a step that is running and does not say when
	// to come again.
	defaultPoll = 10 * time.Second
)

// outcome brings an operation to its end and returns its answer.
func (s *Server) outcome(op *operation) (answer wire.Answer) {
	defer func() {
		if p := recover(); p != nil {
			op.log.Error("panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			answer = wire.Answer{Status: steps.Failed, Message: "the sidecar met a defect of its own; its log has the details"}
		}
	}()
	s.running.Go(func() { s.watch(op) })
	settled, output, err := s.perform(op)
	if err != nil {
		op.log.Info("operation ended early", "because", err)
		if errors.Is(err, errDraining) || errors.Is(err, errAbandoned) || errors.Is(err, errAborting) {
			return wire.Answer{Status: steps.Running, Message: err.Error()}
		}
		return wire.Answer{Status: steps.Failed, Message: op.redactor.String(err.Error())}
	}
	answer = wire.Answer{Status: settled.Status, Message: op.redactor.String(settled.Message), Output: output}
	if answer.Status == steps.Skipped {
		answer.Status = steps.Succeeded
	}
	if answer.Output != nil {
		answer.Output, _ = op.redactor.Value(answer.Output).(map[string]any)
	}
	op.log.Info("operation ended", "status", answer.Status, "message", answer.Message, "errors", settled.ErrorCount)
	s.metrics.ended(op, answer.Status)
	s.keep(op, &answer, settled.ErrorCount)
	s.report(op, answer, settled.Err)
	return answer
}

// keep stores what is known of an operation. Without it a step runs again,
// which every step bears.
func (s *Server) keep(op *operation, answer *wire.Answer, failed uint32) {
	s.mu.Lock()
	lost := op.lost
	s.mu.Unlock()
	r := &result{
		Namespace: op.claims.Namespace, Promotion: op.claims.Promotion, UID: op.key.uid, Alias: op.key.alias,
		StartedAt: op.startedAt, Lost: lost, Errors: failed, WorkDir: op.dir.id, Answer: answer,
	}
	if answer != nil {
		if !op.dir.isSame(s.WorkRoot, op.key.uid) {
			op.log.Warn("the work dir was replaced while the step ran")
			return
		}
		var err error
		if r.Files, err = hashFiles(op.dir.path, *answer); err != nil {
			op.log.Warn("cannot hash what the step wrote; its answer is not kept", "error", err)
			return
		}
	}
	if err := s.results.store(op.key, r); err != nil {
		op.log.Warn("cannot keep an answer", "error", err)
	}
}

// perform makes attempts until the step is done. The error is why it stopped
// before: Kargo has given up, or the sidecar stops.
func (s *Server) perform(op *operation) (runner.Settlement, map[string]any, error) {
	errored := func(message string) (runner.Settlement, map[string]any, error) {
		return runner.Settlement{Done: true, Status: steps.Errored, Message: message, ErrorCount: op.errors}, nil, nil
	}
	threshold := op.claims.Retry.ErrorThreshold
	if threshold == 0 {
		threshold = op.kind.DefaultErrorThreshold
	}
	caps := steps.Capabilities{}
	for _, c := range op.kind.RequiredCapabilities {
		switch c {
		case steps.AccessCredentials:
			if s.Capabilities.Credentials != nil {
				caps.Credentials = op.redactor.Credentials(s.Capabilities.Credentials)
			}
		case steps.AccessGitUser:
			if s.Capabilities.GitUser != nil {
				caps.GitUser = op.redactor.GitUser(s.Capabilities.GitUser)
			}
		}
	}
	ctx := context.WithValue(op.ctx, operationKey{}, op)
	step := steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		return op.kind.New(caps).Run(ctx, sc)
	})
	for backoff := firstBackoff; ; {
		var settled runner.Settlement
		var result steps.Result
		done, err := s.turn(op)
		if err != nil {
			if op.ctx.Err() != nil {
				return runner.Settlement{}, nil, err
			}
			return errored(err.Error())
		}
		func() {
			defer done()
			settled, result, err = s.attempt(ctx, op, step, threshold)
		}()
		if err != nil {
			return runner.Settlement{}, nil, err
		}
		if settled.Done {
			return settled, result.Output, nil
		}
		if op.ctx.Err() != nil {
			return runner.Settlement{}, nil, op.given()
		}
		wait := defaultPoll
		switch {
		case settled.Err != nil:
			wait = backoff
			backoff = min(2*backoff, maxBackoff)
			op.errors = settled.ErrorCount
			s.keep(op, nil, settled.ErrorCount)
			op.log.Info("the step will be retried", "error", settled.Err, "errors", settled.ErrorCount, "wait", wait)
		case result.RetryAfter != nil:
			wait = max(*result.RetryAfter, firstBackoff)
		}
		s.say(op, "%s", settled.Message)
		select {
		case <-op.ctx.Done():
			return runner.Settlement{}, nil, op.given()
		case <-time.After(wait):
		}
	}
}

// attempt runs the step once. The error is why the operation is over.
func (s *Server) attempt(ctx context.Context, op *operation, step steps.Runner, threshold uint32) (runner.Settlement, steps.Result, error) {
	timedOut := runner.Settlement{Done: true, Status: steps.Errored, Message: fmt.Sprintf("step %q timed out after %s", op.claims.Alias, op.timeout), ErrorCount: op.errors}
	left := time.Until(op.deadline)
	if left <= 0 {
		return timedOut, steps.Result{}, nil
	}
	// It may have waited long for its turn.
	why, unknown := s.stillWanted(ctx, op)
	if why != nil {
		return runner.Settlement{}, steps.Result{}, why
	}
	var result steps.Result
	var sc *steps.Context
	err := unknown
	if err == nil {
		sc, err = s.context(ctx, op)
	}
	switch {
	case op.ctx.Err() != nil:
		return runner.Settlement{}, steps.Result{}, op.given()
	case errors.As(err, new(*wire.ConfigError)):
		// Native Kargo ends the step at once, without counting an error.
		return runner.Settlement{Done: true, Status: steps.Errored, Err: err, ErrorCount: op.errors,
			Message: "failed to build step context: failed to get step config: " + errors.Unwrap(err).Error()}, steps.Result{}, nil
	case errors.Is(err, cluster.ErrForbidden), errors.Is(err, errUnreadable):
		return runner.Settlement{Done: true, Status: steps.Errored, Message: err.Error(), Err: err, ErrorCount: op.errors}, steps.Result{}, nil
	case err != nil:
		// The API server, not the step: no error of the step's is counted.
		return runner.Settlement{Status: steps.Running, Message: "the sidecar cannot ask the API server yet: " + err.Error(), ErrorCount: op.errors},
			steps.Result{RetryAfter: new(time.Second)}, nil
	}
	s.say(op, "the step runs")
	begin := time.Now()
	wrapped := guard.Redacted(guard.Recovered(guard.Limited(
		guard.Validated(step, op.kind.Name, op.kind.schema), left), op.log), op.redactor)
	result, err = wrapped.Run(ctx, sc)
	s.metrics.attempted(op, result.Status, err, time.Since(begin))
	if err != nil && op.ctx.Err() != nil {
		return runner.Settlement{}, steps.Result{}, op.given()
	}
	if !result.Status.Valid() && err == nil {
		return runner.Settlement{Done: true, Status: steps.Errored, ErrorCount: op.errors,
			Message: fmt.Sprintf("step %q returned an invalid status: %s", op.claims.Alias, result.Status)}, steps.Result{}, nil
	}
	settled := runner.Settle(runner.Attempted{
		Alias: op.claims.Alias, StartedAt: op.startedAt, Now: time.Now(), Timeout: op.timeout,
		ErrorThreshold: threshold, ErrorCount: op.errors, Result: result, Err: err,
	})
	return settled, result, nil
}

// errUnreadable says that asking again would give the same.
var errUnreadable = errors.New("the Promotion cannot be understood")

// context is what the step is told. All but its config is the API server's.
func (s *Server) context(ctx context.Context, op *operation) (*steps.Context, error) {
	p := op.promotion
	config, _, err := wire.DecodeConfig(op.config)
	var unreadable *expr.UnreadableConfigError
	switch {
	case errors.As(err, &unreadable):
		op.log.Warn(unreadable.Error())
	case err != nil:
		return nil, err
	}
	sc := &steps.Context{
		UIBaseURL: s.UIBaseURL, WorkDir: op.dir.path, SharedState: map[string]any{}, Alias: op.claims.Alias, Config: config,
		Project: p.Namespace, Stage: p.Spec.Stage, Promotion: p.Name, PromotionActor: p.Actor(), Rollback: p.IsRollback(),
		Freight: p.Status.FreightCollection.Steps(), Log: op.log,
	}
	if len(p.Status.State) > 0 {
		if err := json.Unmarshal(p.Status.State, &sc.SharedState); err != nil {
			return nil, fmt.Errorf("%w: its state: %w", errUnreadable, err)
		}
	}
	stage, err := s.Cluster.Stage(ctx, p.Namespace, p.Spec.Stage)
	switch {
	case err == nil:
		if sc.FreightRequests, err = requests(stage); err != nil {
			return nil, err
		}
	case !isGone(err):
		return nil, err
	}
	if p.Spec.Freight != "" {
		freight, err := s.Cluster.Freight(ctx, p.Namespace, p.Spec.Freight)
		switch {
		case err == nil:
			sc.TargetFreightRef, sc.TargetFreightAlias = freight.Reference(), freight.Alias
		case !isGone(err):
			return nil, err
		}
	}
	if p.Status.Freight != nil {
		sc.TargetFreightRef = *p.Status.Freight
	}
	return sc, nil
}

func requests(stage *kargoapi.Stage) ([]steps.FreightRequest, error) {
	out := make([]steps.FreightRequest, len(stage.Spec.RequestedFreight))
	for i, q := range stage.Spec.RequestedFreight {
		sources, err := json.Marshal(q.Sources)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the sources of requested Freight: %w", err)
		}
		out[i] = steps.FreightRequest{Origin: q.Origin, Sources: sources}
	}
	return out, nil
}

func isGone(err error) bool { return errors.Is(err, cluster.ErrNotFound) }

// operationKey is how a step's context leads to its operation.
type operationKey struct{}

// projectSecrets serves secretRef. What it hands out is masked in all that the
// operation says.
type projectSecrets struct{ cluster Cluster }

// Secret implements steps.SecretSource. It reads Secrets of the project whose
// Promotion the step belongs to, and of no other.
func (p projectSecrets) Secret(ctx context.Context, project, name string) (map[string][]byte, error) {
	op, ok := ctx.Value(operationKey{}).(*operation)
	if !ok || op.claims.Namespace != project {
		return nil, fmt.Errorf("cannot read Secret %q: it is of another project than the step", name)
	}
	secret, err := p.cluster.Secret(ctx, project, name)
	if err != nil {
		return nil, err
	}
	data := secret.Values()
	for _, v := range data {
		op.redactor.Add(string(v))
	}
	return data, nil
}
