package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// operation is one attempt of Kargo's at a step, from its first request until
// the step is done or Kargo has given up. Requests of the same attempt join it.
//
// It is identified by the Promotion's UID, the step's alias, when Kargo first
// started the step, and the work dir. The config is not part of that: it is
// evaluated for every request, and may differ between them.
type operation struct {
	key       stepKey
	claims    wire.Claims
	kind      *kind
	token     string
	promotion *kargoapi.Promotion
	startedAt time.Time
	began     time.Time
	deadline  time.Time
	timeout   time.Duration
	config    json.RawMessage
	dir       workDir
	redactor  *redact.Redactor
	log       *slog.Logger

	ctx    context.Context //nolint:containedctx // the operation outlives the requests it is for
	cancel context.CancelCauseFunc
	// done is closed when answer is there.
	done   chan struct{}
	answer wire.Answer

	// errors counts the errors of the step. Only its goroutine looks at it.
	errors uint32

	// What follows is guarded by Server.mu.

	// lost counts the answers that Kargo did not get: the attempt's errorCount.
	lost    uint32
	waiters int
	idle    *time.Timer
	// doing says what the operation is at, for an answer Running.
	doing string
}

// Why operations are cancelled.
var (
	errSuperseded = errors.New("the step, or one before it, was started anew")
	errAbandoned  = fmt.Errorf("nobody has asked for the step for %s", abandonAfter)
	errDraining   = errors.New("the sidecar is stopping")
)

// attach returns the operation that a request is for, which it starts if need
// be, or the answer of one that has ended. The caller must call leave on an
// operation.
func (s *Server) attach(ctx context.Context, c *call) (*operation, *wire.Answer, error) {
	for {
		op, kept, before, err := s.attachOnce(ctx, c)
		if before == nil {
			return op, kept, err
		}
		// Two of one step must not run at the same time.
		select {
		case <-before.done:
		case <-ctx.Done():
			return nil, nil, notNow("an earlier attempt of the step has not ended yet")
		}
	}
}

// attachOnce does so unless an operation has to end before.
func (s *Server) attachOnce(ctx context.Context, c *call) (op *operation, kept *wire.Answer, before *operation, err error) {
	lock := s.attaching.of(c.promotion.UID)
	lock.Lock()
	defer lock.Unlock()
	switch op, how := s.join(c); how {
	case sameAttempt:
		return op, nil, nil, nil
	case staleAttempt:
		return nil, nil, nil, refuseStale(c.attempt)
	case newerAttempt:
		return nil, nil, op, nil
	}
	stored, err := s.results.load(c.key())
	if err != nil {
		c.logger(s).Warn("cannot read a stored answer; the step runs again", "error", err)
		stored = nil
	}
	var failed uint32
	if stored != nil {
		switch judge(c.attempt, c.dir, stored.StartedAt, stored.Lost, stored.WorkDir) {
		case staleAttempt:
			return nil, nil, nil, refuseStale(c.attempt)
		case sameAttempt:
			if stored.Answer != nil && stored.holds(c.dir.path) {
				return nil, stored.Answer, nil, nil
			}
			failed = stored.Errors
		}
	}
	if ctx.Err() != nil {
		// Kargo has left. Beginning now, when it may be at another step, could
		// undo what that one did.
		return nil, nil, nil, notNow("the request has come to its end")
	}
	if other := s.giveUpOthers(c); other != nil {
		return nil, nil, other, nil
	}
	op, err = s.begin(c, failed) //nolint:contextcheck // an operation outlives the request that began it
	return op, nil, nil, err
}

// giveUpOthers cancels an operation of another step of the Promotion, and
// returns it. Kargo runs one step at a time: it has gone back, as it does when a
// work dir is lost, and will come to that step again.
func (s *Server) giveUpOthers(c *call) *operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, op := range s.ops {
		if key.uid == c.promotion.UID && key.alias != c.claims.Alias {
			op.cancel(errSuperseded)
			return op
		}
	}
	return nil
}

func refuseStale(a wire.Attempt) error {
	return refuse(http.StatusConflict, "the request is of an attempt that is over (started %s, %d answers lost)", a.StartedAt.Format(time.RFC3339), a.ErrorCount)
}

// relation is how a request's attempt is related to one that is known.
type relation int

const (
	noAttempt relation = iota
	sameAttempt
	newerAttempt
	staleAttempt
)

// judge compares attempts. A greater error count with the same start is the
// same attempt: Kargo did not get an answer. The same start in another work dir
// is a newer one: Kargo says when it started in whole seconds.
func judge(a wire.Attempt, dir workDir, startedAt time.Time, lost uint32, id dirID) relation {
	switch {
	case a.StartedAt.After(startedAt):
		return newerAttempt
	case a.StartedAt.Before(startedAt):
		return staleAttempt
	case dir.id != id:
		return newerAttempt
	case a.ErrorCount < lost:
		return staleAttempt
	}
	return sameAttempt
}

// join looks for the running operation of a call's step. If it is of the same
// attempt, the call joins it; if it is of an older one, it is cancelled.
func (s *Server) join(c *call) (*operation, relation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op, ok := s.ops[c.key()]
	if !ok {
		return nil, noAttempt
	}
	how := judge(c.attempt, c.dir, op.startedAt, op.lost, op.dir.id)
	switch how {
	case sameAttempt:
		op.lost = c.attempt.ErrorCount
		op.enter()
	case newerAttempt:
		op.cancel(errSuperseded)
	}
	return op, how
}

// begin starts an operation, which had some errors before.
func (s *Server) begin(c *call, failed uint32) (*operation, error) {
	// What is not needed of a Promotion can be large, and many may wait.
	promotion := *c.promotion
	promotion.Spec.Steps, promotion.Spec.Vars, promotion.Status.StepExecutionMetadata = nil, nil, nil
	op := &operation{
		key: c.key(), claims: c.claims, kind: c.kind, token: c.token, promotion: &promotion,
		startedAt: c.attempt.StartedAt, began: time.Now(),
		timeout: c.claims.Retry.Timeout, config: c.config, dir: c.dir, redactor: redact.New(),
		done: make(chan struct{}), lost: c.attempt.ErrorCount, errors: failed, doing: "waiting for a turn",
	}
	if op.timeout <= 0 {
		op.timeout = c.kind.DefaultTimeout
	}
	if op.timeout <= 0 {
		op.timeout = wire.DefaultTimeout
	}
	op.deadline = op.startedAt.Add(op.timeout)
	op.redactor.Add(c.secrets...)
	op.log = slog.New(op.redactor.Handler(c.logger(s).Handler()))
	// The request's context is not this one's parent: it ends sooner.
	op.ctx, op.cancel = context.WithCancelCause(context.Background())

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drained {
		op.cancel(errDraining)
		return nil, notNow("%v", errDraining)
	}
	if len(s.ops) >= s.MaxOperations {
		op.cancel(nil)
		return nil, notNow("waiting for a turn: %d steps run or wait already", len(s.ops))
	}
	s.ops[op.key] = op
	op.enter()
	s.running.Go(func() { s.run(op) })
	return op, nil
}

func (c *call) logger(s *Server) *slog.Logger {
	return s.Log.With("namespace", c.claims.Namespace, "promotion", c.claims.Promotion, "step", c.claims.Alias, "uses", c.claims.Kind)
}

// given is the reason that the operation was cancelled with.
func (o *operation) given() error { return context.Cause(o.ctx) }

// enter notes that a request waits; Server.mu is held.
func (o *operation) enter() {
	o.waiters++
	if o.idle != nil {
		o.idle.Stop()
	}
}

// leave is called when a request no longer waits.
func (s *Server) leave(op *operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op.waiters--; op.waiters > 0 || op.ctx.Err() != nil {
		return
	}
	if op.idle == nil {
		op.idle = time.AfterFunc(abandonAfter, func() { s.abandon(op) })
		return
	}
	op.idle.Reset(abandonAfter)
}

func (s *Server) abandon(op *operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op.waiters == 0 {
		op.cancel(errAbandoned)
	}
}

// await waits for an operation's answer as long as a request may.
func (s *Server) await(ctx context.Context, op *operation) wire.Answer {
	select {
	case <-op.done:
		return op.answer
	case <-ctx.Done():
	case <-s.draining:
	}
	select {
	case <-op.done: // just so
		return op.answer
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return wire.Answer{Status: steps.Running, Message: op.redactor.String(op.doing)}
}

// run is the operation's goroutine.
func (s *Server) run(op *operation) {
	answer := s.outcome(op)
	s.mu.Lock()
	defer s.mu.Unlock()
	if op.idle != nil {
		op.idle.Stop()
	}
	op.cancel(nil)
	delete(s.ops, op.key)
	op.answer = answer
	close(op.done)
}

// say tells what an operation is at.
func (s *Server) say(op *operation, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op.doing = fmt.Sprintf(format, args...)
}

// turn waits for one of the places to run. The caller calls done.
func (s *Server) turn(op *operation) (done func(), err error) {
	deadline := time.NewTimer(time.Until(op.deadline))
	defer deadline.Stop()
	select {
	case s.turns <- struct{}{}:
		return func() { <-s.turns }, nil
	case <-op.ctx.Done():
		return nil, op.given()
	case <-deadline.C:
		return nil, fmt.Errorf("step %q timed out after %s: there was no turn for it", op.claims.Alias, op.timeout)
	}
}

// stillWanted reads the Promotion and says why the operation has to end; nil if
// it goes on. An API server that does not answer is unknown.
func (s *Server) stillWanted(ctx context.Context, op *operation) (why, unknown error) {
	if !op.dir.isSame(s.WorkRoot, op.key.uid) {
		return errors.New("the Promotion's work dir was lost, so Kargo starts it again"), nil
	}
	p, err := s.Cluster.Promotion(ctx, op.claims.Namespace, op.claims.Promotion)
	switch {
	case isGone(err):
		return errors.New("the Promotion was deleted"), nil
	case err != nil:
		return nil, err
	}
	if why := stopped(p, op.key.uid); why != nil {
		return why, nil
	}
	// As when a poll was refused: the Promotion may go on without the step. What
	// ended before the operation began is of an earlier start.
	for _, m := range p.Status.StepExecutionMetadata {
		if m.Alias == op.claims.Alias && m.FinishedAt != nil && m.FinishedAt.After(op.began) {
			return errors.New("the step is over for Kargo"), nil
		}
	}
	return nil, nil
}

// watch cancels an operation when Kargo has given up on it.
func (s *Server) watch(op *operation) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for told := false; ; {
		select {
		case <-op.ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(op.ctx, 10*time.Second)
		why, unknown := s.stillWanted(ctx, op)
		cancel()
		switch {
		case why != nil:
			op.cancel(why)
			return
		case unknown != nil && op.ctx.Err() == nil && !told:
			op.log.Warn("cannot see whether the Promotion still runs; nothing is pushed until that is known", "error", unknown)
		}
		told = unknown != nil
	}
}

// checkPush is asked right before anything is pushed for a step: the operation
// has to be going on, and so has its Promotion, as the API server says now.
func (s *Server) checkPush(ctx context.Context, p gitrepo.Pusher) error {
	found := s.find(p)
	if len(found) == 0 {
		return fmt.Errorf("step %q of Promotion %q does not run here any more", p.Alias, p.Promotion)
	}
	for _, op := range found {
		if err := s.checkOperation(ctx, op); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) checkOperation(ctx context.Context, op *operation) error {
	for until := time.Now().Add(checkFor); ; {
		if op.ctx.Err() != nil {
			return op.given()
		}
		if time.Now().After(op.deadline) {
			return fmt.Errorf("step %q timed out after %s", op.claims.Alias, op.timeout)
		}
		why, unknown := s.stillWanted(ctx, op)
		if why == nil && unknown == nil {
			why, unknown = s.stillTrusted(op)
		}
		switch {
		case why != nil:
			op.cancel(why)
			return why
		case unknown == nil:
			return nil
		case time.Now().After(until):
			return fmt.Errorf("cannot see whether the Promotion still runs: %w", unknown)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-op.ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// stillTrusted says whether the key of the operation's token was thrown away
// since: the next poll will be refused.
func (s *Server) stillTrusted(op *operation) (why, unknown error) {
	keys, err := s.Keys()
	if err != nil {
		return nil, err
	}
	_, err = wire.Verify(keys, op.token)
	return err, nil
}

// find returns the operations of a step: one, or several where the Promotion was
// replaced by another of its name and the old operation has not ended yet.
func (s *Server) find(p gitrepo.Pusher) []*operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*operation
	for _, op := range s.ops {
		if op.claims.Namespace == p.Project && op.claims.Promotion == p.Promotion && op.claims.Alias == p.Alias {
			found = append(found, op)
		}
	}
	return found
}

// depth is how many operations there are, and how many attempts run.
func (s *Server) depth() (operations, running int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ops), len(s.turns)
}
