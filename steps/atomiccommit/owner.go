package atomiccommit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/steps"
)

// job is one change on its way to the branch. The fields below the line belong
// to the owner.
type job struct {
	change       *change
	overlay      bool
	base         *base // of a work tree
	message      string
	identity     identity
	createBranch bool
	baseBranch   string
	maxAttempts  int
	alias        string
	log          *slog.Logger

	// ctx ends when the caller gives up; nothing is pushed for it after that.
	ctx       context.Context
	submitted time.Time
	result    chan result

	// intent is what was or will be recorded before the first push. It is
	// loaded once; nil means that there is none yet.
	intent       *intent
	intentLoaded bool
	intentSaved  bool

	attempts   int          // pushes it was part of
	failures   int          // tries that ended before a push, and pushes of unknown outcome
	rejections int          // refused pushes of this job alone on an unchanged tip
	rejectedOn gitrepo.Hash // that tip
	notBefore  time.Time    // backoff
	maxBatch   int          // halves when a batch is refused; 0 is no bound
	lastErr    error        // why it is still waiting
	finished   bool
}

type result struct {
	out *outcome
	err error
}

// again is the job as new, for another owner.
func (j *job) again() *job {
	return &job{
		change: j.change, overlay: j.overlay, base: j.base, message: j.message, identity: j.identity,
		createBranch: j.createBranch, baseBranch: j.baseBranch, maxAttempts: j.maxAttempts, alias: j.alias, log: j.log,
	}
}

func (j *job) finish(out *outcome, err error) {
	j.finished = true
	if out != nil {
		out.attempts = j.attempts
		out.branch = j.change.branch
	}
	j.result <- result{out, err} // buffered; the owner finishes a job once
}

// owners has one owner per repository, branch and credential identity.
type owners struct {
	Options
	intents intents

	mu     sync.Mutex
	m      map[string]*owner
	pruned time.Time
}

func newOwners(opts Options) *owners {
	return &owners{Options: opts, intents: intents{dir: opts.IntentDir, fs: opts.FS}, m: map[string]*owner{}}
}

// maxIdleOwners bounds how many branches are remembered.
const maxIdleOwners = 256

// submit waits for the job's outcome, at most as long as ctx allows.
func (s *owners) submit(ctx context.Context, target gitrepo.Target, j *job) (*outcome, error) {
	s.prune(s.Clock())
	remote, err := s.Dialer.Dial(ctx, target)
	if err != nil {
		var bad *gitrepo.URLError
		if errors.As(err, &bad) {
			return nil, configErrorf("repoURL: %w", err)
		}
		return nil, err
	}
	j.ctx, j.submitted, j.result = ctx, time.Now(), make(chan result, 1)
	o := s.owner(target.Key() + "\x00" + j.change.branch)
	o.add(remote, j) //nolint:contextcheck // a batch outlives any one of its callers; it has the contexts of all
	select {
	case r := <-j.result:
		return r.out, r.err
	case <-ctx.Done():
	}
	if last := o.abandon(j); last != nil {
		return nil, fmt.Errorf("gave up (%w) after %d pushes; the last obstacle: %w", context.Cause(ctx), j.attempts, last)
	}
	return nil, fmt.Errorf("gave up (%w); a push may still be on its way, and a retry will find its commit", context.Cause(ctx))
}

// pruneEvery is how often, at most, old intents are looked for.
const pruneEvery = 24 * time.Hour

func (s *owners) prune(now time.Time) {
	s.mu.Lock()
	due := now.Sub(s.pruned) >= pruneEvery
	if due {
		s.pruned = now
	}
	s.mu.Unlock()
	if due {
		s.intents.prune(now)
	}
}

func (s *owners) owner(key string) *owner {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.m[key]; ok {
		return o
	}
	if len(s.m) >= maxIdleOwners {
		for k, o := range s.m {
			if o.idle() {
				delete(s.m, k)
				break
			}
		}
	}
	o := &owner{owners: s, wake: make(chan struct{}, 1)}
	s.m[key] = o
	return o
}

// owner serialises the pushes to one branch as one identity. While it works,
// new jobs gather; it takes all of them at once, one commit each, chained, with
// one fetch and one push for all. Its goroutine lives while there are jobs, and
// every job has a deadline.
type owner struct {
	*owners
	wake chan struct{}

	mu      sync.Mutex
	dialed  gitrepo.Remote
	queue   []*job
	running bool

	// Only the running goroutine uses what follows.

	remote gitrepo.Remote
	// tip is what the branch was known to be at readAt; hint is a tip whose
	// trees are likely to be remembered.
	tip      branchState
	readAt   time.Time
	hint     gitrepo.Hash
	lastPush time.Time
	// found are the newest promotions that found a path as they wanted it.
	found map[settledKey]string
}

func (o *owner) idle() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.running
}

func (o *owner) add(remote gitrepo.Remote, j *job) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dialed = remote
	o.queue = append(o.queue, j)
	if !o.running {
		o.running = true
		go o.run()
		return
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// abandon takes a job out of the queue and returns why it was waiting; nil when
// it is being worked on.
func (o *owner) abandon(j *job) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, q := range o.queue {
		if q == j {
			o.queue = append(o.queue[:i], o.queue[i+1:]...)
			if j.lastErr != nil {
				return j.lastErr
			}
			return errors.New("other writers were ahead")
		}
	}
	return nil
}

func (o *owner) run() {
	for {
		batch, wait, done := o.next(time.Now())
		if done {
			return
		}
		if len(batch) == 0 {
			t := time.NewTimer(wait)
			select {
			case <-o.wake:
			case <-t.C:
			}
			t.Stop()
			continue
		}
		o.processSafely(batch)
	}
}

// processSafely keeps a panic, which hostile data could provoke in a parser,
// from ending the process: this goroutine is not the callers'.
func (o *owner) processSafely(batch []*job) {
	defer func() {
		if r := recover(); r != nil {
			o.tip, o.readAt, o.hint = branchState{}, time.Time{}, gitrepo.ZeroHash
			for _, j := range o.unqueued(batch) {
				j.finish(nil, fmt.Errorf("internal error: %v", r))
			}
		}
	}()
	o.process(batch)
}

// unqueued are the jobs of a batch that have neither a result nor a place in
// the queue.
func (o *owner) unqueued(batch []*job) []*job {
	o.mu.Lock()
	defer o.mu.Unlock()
	queued := map[*job]bool{}
	for _, j := range o.queue {
		queued[j] = true
	}
	var rest []*job
	for _, j := range open(batch) {
		if !queued[j] {
			rest = append(rest, j)
		}
	}
	return rest
}

// next takes the jobs that can go together: those that are due, in order of
// arrival, whose paths do not overlap. An overlapping job waits for the next
// round, where it sees the other's commit as any later comer would.
func (o *owner) next(now time.Time) (batch []*job, wait time.Duration, done bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		o.running = false
		return nil, 0, true
	}
	if spaced := o.lastPush.Add(o.PushSpacing); now.Before(spaced) {
		return nil, spaced.Sub(now), false
	}
	wait = time.Hour
	taken := map[string]bool{}
	limit := len(o.queue)
	rest := o.queue[:0:0]
	for _, j := range o.queue {
		due := !now.Before(j.notBefore)
		if !due {
			wait = min(wait, j.notBefore.Sub(now))
		}
		narrow := limit
		if j.maxBatch > 0 {
			narrow = min(narrow, j.maxBatch)
		}
		if !due || len(batch)+1 > narrow || overlaps(taken, j.change) {
			rest = append(rest, j)
			continue
		}
		limit = narrow
		for _, p := range j.change.paths() {
			taken[p] = true
		}
		batch = append(batch, j)
	}
	o.queue, o.remote = rest, o.dialed
	return batch, wait, false
}

func overlaps(taken map[string]bool, c *change) bool {
	for _, p := range c.paths() {
		if taken[p] {
			return true
		}
	}
	return false
}

// retry puts jobs back, to be tried after a pause. What the branch is by then
// has to be read again: a push on an old tip would only lose another race.
func (o *owner) retry(jobs []*job, pause time.Duration, err error) {
	o.readAt = time.Time{}
	o.mu.Lock()
	defer o.mu.Unlock()
	at := time.Now().Add(pause)
	for _, j := range jobs {
		j.lastErr, j.notBefore = err, at
	}
	o.queue = append(jobs, o.queue...)
}

// putBack puts jobs back to be tried next.
func (o *owner) putBack(jobs []*job) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = append(jobs, o.queue...)
}

// process makes one try at a batch: read the tip, judge, build, push, and look
// at what became of it.
func (o *owner) process(batch []*job) {
	batch = o.present(batch)
	ctx, cancel := batchContext(batch)
	defer cancel()

	began := time.Now()
	plan, err := o.plan(ctx, batch)
	plan.began = began
	if err != nil {
		o.failed(open(batch), err)
		return
	}
	if len(plan.jobs) == 0 {
		return
	}
	for _, j := range plan.jobs {
		o.setAttempt(j)
	}
	defer o.putBack(plan.again)
	o.lastPush = time.Now()
	err = o.remote.Push(ctx, plan.push)
	if err == nil {
		o.tip, o.readAt, o.hint = branchState{old: plan.push.New, start: plan.push.New}, o.lastPush, plan.push.New
		for i, j := range plan.jobs {
			j.finish(&outcome{commit: plan.commits[i], changed: plan.changed(i), paths: plan.paths[i]}, nil)
		}
		return
	}
	o.afterPush(ctx, plan, err)
}

func (o *owner) setAttempt(j *job) {
	o.mu.Lock()
	defer o.mu.Unlock()
	j.attempts++
}

// afterPush decides by state what a failed push came to. The error only says
// whether trying again can help.
func (o *owner) afterPush(ctx context.Context, p *plan, pushErr error) {
	if gitrepo.Permanent(pushErr) {
		o.failed(p.jobs, pushErr)
		return
	}
	before := p.push.Old
	if err := o.readTip(ctx, p.jobs); err != nil {
		if gitrepo.Permanent(err) {
			o.failed(p.jobs, err)
			return
		}
		o.failed(p.jobs, pushErr)
		return
	}
	if o.tip.old == p.push.New && len(p.push.Commits) > 0 {
		for i, j := range p.jobs {
			j.finish(&outcome{commit: p.commits[i], changed: true, paths: p.paths[i]}, nil)
		}
		return
	}
	moved := o.tip.old != before
	var rejected *gitrepo.RejectedError
	if !moved && errors.As(pushErr, &rejected) {
		o.rejected(p.jobs, before, pushErr)
		return
	}
	if !moved {
		o.failed(p.jobs, pushErr)
		return
	}
	// Somebody was faster. Everything is judged again on the new tip, where
	// the look-back also finds commits that arrived after all.
	o.retry(o.tired(p.jobs, fmt.Errorf("the branch moved with every push: %w", pushErr)), contention(maxAttempts(p.jobs), time.Since(p.began)), pushErr)
}

// maxRejections is how often a push may be refused on an unchanged tip: lock
// contention looks like that, and so does a hook that will never agree.
const maxRejections = 5

// rejected deals with a push that the server refused although the branch did
// not move. In a batch, one change may be to blame: halves find it.
func (o *owner) rejected(jobs []*job, tip gitrepo.Hash, err error) {
	if len(jobs) > 1 {
		for _, j := range jobs {
			j.maxBatch = max(1, len(jobs)/2)
		}
		o.retry(o.tired(jobs, err), contention(1, 0), err)
		return
	}
	j := jobs[0]
	if j.rejectedOn != tip {
		j.rejectedOn, j.rejections = tip, 0
	}
	if j.rejections++; j.rejections >= maxRejections {
		j.finish(nil, fmt.Errorf("%w; if the branch is protected, commit to a branch of the promotion's own (createBranch, baseBranch) and open a pull request with git-open-pr", err))
		return
	}
	o.retry(o.tired(jobs, err), contention(j.rejections, 0), err)
}

// failed ends jobs that cannot succeed and retries the others: a server that
// cannot be reached may be back within the deadline.
func (o *owner) failed(jobs []*job, err error) {
	if len(jobs) == 0 {
		return
	}
	if gitrepo.Permanent(err) || errors.Is(err, steps.ErrConfig) {
		for _, j := range jobs {
			j.finish(nil, err)
		}
		return
	}
	var again []*job
	most := 0
	for _, j := range jobs {
		j.failures++
		if gitrepo.Nonsense(err) && j.failures > 3 {
			j.finish(nil, err)
			continue
		}
		most = max(most, j.failures)
		again = append(again, j)
	}
	pause := jittered(200*time.Millisecond, 10*time.Second, most)
	var status *gitrepo.StatusError
	if errors.As(err, &status) {
		pause = max(pause, status.RetryAfter)
	}
	o.retry(o.tired(again, err), pause, err)
}

// tired ends the jobs that have no attempts left and returns the others.
func (o *owner) tired(jobs []*job, err error) []*job {
	var rest []*job
	for _, j := range jobs {
		if j.attempts >= j.maxAttempts {
			j.finish(nil, fmt.Errorf("no success after %d pushes (maxAttempts): %w", j.attempts, err))
			continue
		}
		rest = append(rest, j)
	}
	return rest
}

// present drops the jobs whose callers have given up.
func (o *owner) present(jobs []*job) []*job {
	var rest []*job
	for _, j := range jobs {
		if j.ctx.Err() == nil {
			rest = append(rest, j)
		}
	}
	return rest
}

// batchContext ends when the last of the jobs is given up.
func batchContext(jobs []*job) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	left := len(jobs)
	stops := make([]func() bool, len(jobs))
	for i, j := range jobs {
		stops[i] = context.AfterFunc(j.ctx, func() {
			mu.Lock()
			defer mu.Unlock()
			if left--; left == 0 {
				cancel()
			}
		})
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}

func maxAttempts(jobs []*job) int {
	most := 0
	for _, j := range jobs {
		most = max(most, j.attempts)
	}
	return most
}

// contention is the pause after losing a race for the n-th time. A try took
// that long: writers that are spread over less meet again. Those that have lost
// often wait less again, so that newcomers do not overtake them for ever.
func contention(n int, took time.Duration) time.Duration {
	pause := jittered(min(max(50*time.Millisecond, took), 500*time.Millisecond), 2*time.Second, n)
	if n > 5 {
		pause /= time.Duration(n - 4)
	}
	return pause
}

// jittered is full jitter over a doubling bound.
func jittered(base, most time.Duration, n int) time.Duration {
	bound := most
	if n < 16 {
		bound = min(most, base<<max(0, n-1))
	}
	return rand.N(bound) //nolint:gosec // spreads load, guards nothing
}
