package atomiccommit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/steps"
)

// branchState is what the branch was when it was last read.
type branchState struct {
	// old is the tip, the expected value of a push; zero when the branch does
	// not exist.
	old gitrepo.Hash
	// start is the commit to build on: old, or where a new branch begins; zero
	// in an empty repository.
	start gitrepo.Hash
}

// plan is a push and the jobs it is for.
type plan struct {
	began   time.Time
	push    gitrepo.Push
	jobs    []*job
	commits []gitrepo.Hash
	paths   [][]string
	// again are jobs for the round after this one.
	again []*job
}

func (p *plan) changed(i int) bool { return len(p.paths[i]) > 0 }

// open are the jobs of a batch that have no result yet.
func open(batch []*job) []*job {
	var rest []*job
	for _, j := range batch {
		if !j.finished {
			rest = append(rest, j)
		}
	}
	return rest
}

// plan judges every job against the branch and builds the chain of commits for
// those that are to be pushed. Jobs that need no push get their result.
//
// The tip may be remembered from an earlier push; a verdict other than "push"
// is given only on a tip that was read after the job came, and a push on an old
// one fails harmlessly.
func (o *owner) plan(ctx context.Context, batch []*job) (*plan, error) {
	p := &plan{}
	for _, j := range batch {
		if err := o.loadIntent(j); err != nil {
			j.finish(nil, err)
		}
	}
	if o.readAt.IsZero() {
		if err := o.readTip(ctx, open(batch)); err != nil {
			return p, err
		}
	}
	for {
		stale, err := o.tryPlan(ctx, p, batch)
		if err != nil || !stale {
			return p, err
		}
		if err := o.readTip(ctx, open(batch)); err != nil {
			return p, err
		}
	}
}

func (o *owner) loadIntent(j *job) error {
	if j.intentLoaded {
		return nil
	}
	in, err := o.intents.load(j.change)
	if err != nil {
		return err
	}
	j.intent, j.intentLoaded, j.intentSaved = in, true, in != nil
	return nil
}

// readTip asks the server for the branch.
func (o *owner) readTip(ctx context.Context, jobs []*job) error {
	branch := ""
	names := map[string]bool{}
	for _, j := range jobs {
		branch = j.change.branch
		if j.createBranch && j.baseBranch != "" {
			names[j.baseBranch] = true
		}
	}
	if branch == "" {
		return nil // nobody is left to ask for
	}
	ask := []string{branch}
	for n := range names {
		ask = append(ask, n)
	}
	at := time.Now()
	refs, err := o.remote.Refs(ctx, ask...)
	if err != nil {
		return err
	}
	st := branchState{old: refs.Heads[branch], start: refs.Heads[branch]}
	if st.old.IsZero() && !refs.Empty {
		if st.start, err = o.startPoint(ctx, jobs, refs); err != nil {
			return err
		}
		if st.start.IsZero() {
			o.readAt = time.Time{}
			return nil // nobody wants to create the branch
		}
	}
	o.tip, o.readAt = st, at
	return nil
}

// startPoint is where a branch that does not exist begins: zero when no job can
// create it. Jobs that cannot get their error here. Once the first that can has
// created the branch, it exists for the others.
func (o *owner) startPoint(ctx context.Context, jobs []*job, refs gitrepo.Refs) (gitrepo.Hash, error) {
	for _, j := range jobs {
		name := j.baseBranch
		if name == "" {
			name = refs.Default
		}
		switch {
		case !j.createBranch:
			j.finish(nil, configErrorf("branch %q does not exist in %s; set createBranch: true to create it", j.change.branch, o.remote.URL()))
			continue
		case name == "":
			j.finish(nil, configErrorf("branch %q does not exist in %s, which names no default branch; set baseBranch", j.change.branch, o.remote.URL()))
			continue
		}
		tip, ok := refs.Heads[name]
		if !ok {
			more, err := o.remote.Refs(ctx, name)
			if err != nil {
				return gitrepo.ZeroHash, err
			}
			tip, ok = more.Heads[name]
		}
		if ok {
			return tip, nil
		}
		j.finish(nil, configErrorf("baseBranch %q does not exist in %s", name, o.remote.URL()))
	}
	return gitrepo.ZeroHash, nil
}

// tryPlan fills p on the known tip. It reports stale when a verdict needs a tip
// that is read anew.
func (o *owner) tryPlan(ctx context.Context, p *plan, batch []*job) (stale bool, err error) {
	*p = plan{}
	waiting := o.present(open(batch))
	if len(waiting) == 0 {
		return false, nil
	}
	trees, histories, err := o.read(ctx, waiting)
	if err != nil {
		return false, err
	}
	var ready []*job
	for i, j := range waiting {
		v, err := o.judge(ctx, j, trees, histories[i])
		switch {
		case err != nil:
			return false, err
		case v.push:
			ready = append(ready, j)
		case !o.readAt.After(j.submitted) && !v.certain:
			return true, nil
		default:
			if v.out != nil {
				o.settled(j)
			}
			if v.out != nil && !v.out.found {
				// Run again, it must not undo what others did since.
				j.startFrom(o, trees)
				if err := o.saveIntent(j); err != nil {
					j.log.Warn("nothing was to change, but that cannot be recorded", "error", err)
				}
			}
			j.finish(v.out, v.err)
		}
	}
	p.push = gitrepo.Push{Branch: waiting[0].change.branch, Old: o.tip.old, New: o.tip.start}
	for _, j := range ready {
		c, next, paths, err := o.build(ctx, j, trees)
		var unread *readError
		switch {
		case err == nil:
		case errors.As(err, &unread):
			return false, err
		case !o.readAt.After(j.submitted):
			return true, nil
		case len(p.push.Commits) > 0: // others' commits may be in the way, and may never land
			p.again = append(p.again, j)
			continue
		default:
			j.finish(nil, err)
			continue
		}
		if len(paths) > 0 {
			trees = next
			p.push.Commits = append(p.push.Commits, c)
			p.push.New = c.Commit.ID
		}
		p.push.For = append(p.push.For, gitrepo.Pusher{Project: j.change.project, Promotion: j.change.promotion, Alias: j.alias})
		p.jobs = append(p.jobs, j)
		p.commits = append(p.commits, p.push.New)
		p.paths = append(p.paths, paths)
	}
	return false, o.saveIntents(ctx, p)
}

// read reads the trees of the tip along the paths of all jobs, and the part of
// the branch that each job looks back on; in most cases that has come with the
// trees.
func (o *owner) read(ctx context.Context, jobs []*job) (*gitrepo.Trees, []gitrepo.History, error) {
	trees, err := o.trees(ctx, jobs)
	if err != nil {
		return nil, nil, err
	}
	histories := make([]gitrepo.History, len(jobs))
	for i, j := range jobs {
		if histories[i], err = o.history(ctx, j); err != nil {
			return nil, nil, err
		}
	}
	return trees, histories, nil
}

// trees are those of the tip along the paths of all jobs.
func (o *owner) trees(ctx context.Context, jobs []*job) (*gitrepo.Trees, error) {
	if o.tip.start.IsZero() {
		return gitrepo.EmptyTrees(), nil
	}
	var paths []string
	for _, j := range jobs {
		paths = append(paths, j.change.paths()...)
	}
	t, err := o.remote.Trees(ctx, o.tip.start, paths, o.hint)
	if err == nil {
		o.hint = o.tip.start
	}
	return t, err
}

// build makes the job's commit on trees. A change that is in place already
// gives no paths and no commit.
func (o *owner) build(ctx context.Context, j *job, trees *gitrepo.Trees) (gitrepo.NewCommit, *gitrepo.Trees, []string, error) {
	none := gitrepo.NewCommit{}
	var changes []gitrepo.Change
	var paths []string
	if err := checkCase(trees, j.change.files); err != nil {
		return none, nil, nil, err
	}
	if err := checkRemovals(trees, j.change.files); err != nil {
		return none, nil, nil, err
	}
	for _, f := range j.change.files {
		if err := trees.Check(f); err != nil {
			return none, nil, nil, configErrorf("%w", err)
		}
		e := trees.Entry(f.Path)
		if j.holds(e, f) {
			continue
		}
		if j.overlay && e.Mode == gitrepo.ModeExecutable && f.Mode == gitrepo.ModeFile {
			f.Mode = gitrepo.ModeExecutable
		}
		changes = append(changes, f)
		paths = append(paths, f.Path)
	}
	if len(changes) == 0 {
		return none, trees, nil, nil
	}
	if j.overlay {
		err := checkAttributes(ctx, o.remote, trees, changes)
		if err != nil && !errors.Is(err, steps.ErrConfig) && !gitrepo.Nonsense(err) {
			err = &readError{err}
		}
		if err != nil {
			return none, nil, nil, err
		}
	}
	when := j.intent.when
	c, next, err := gitrepo.NewCommitOn(trees, changes, gitrepo.CommitSpec{
		Author:    gitrepo.Signature{Name: j.identity.author.Name, Email: j.identity.author.Email, When: when},
		Committer: gitrepo.Signature{Name: j.identity.committer.Name, Email: j.identity.committer.Email, When: when},
		Message:   j.message,
		Signer:    j.identity.signer,
	})
	c.Step = j.alias
	return c, next, paths, err
}

// checkRemovals refuses removals that cannot be, and patterns: these are the
// names of no files, and nothing would be removed without a word.
func checkRemovals(trees *gitrepo.Trees, files []gitrepo.Change) error {
	for _, f := range files {
		if f.Mode != gitrepo.ModeAbsent {
			continue
		}
		if err := trees.Check(f); err != nil {
			return configErrorf("%w", err)
		}
		if strings.Contains(f.Path, "*") && trees.Entry(f.Path).Mode == gitrepo.ModeAbsent {
			return configErrorf("remove: there is no file %q in the repository; patterns are not supported, name each file", f.Path)
		}
	}
	return nil
}

// checkCase refuses names of one change that differ in upper and lower case
// only, unless the repository has both already.
func checkCase(trees *gitrepo.Trees, files []gitrepo.Change) error {
	names := map[string]string{}
	for _, f := range files {
		if f.Mode == gitrepo.ModeAbsent {
			continue
		}
		for _, p := range append(ancestors(f.Path), f.Path) {
			folded := strings.ToLower(strings.ToUpper(p))
			other, ok := names[folded]
			if ok && other != p && (trees.Entry(p).Mode == gitrepo.ModeAbsent || trees.Entry(other).Mode == gitrepo.ModeAbsent) {
				return configErrorf("%q and %q are the same but for upper and lower case, which a checkout on Windows or macOS could not hold", other, p)
			}
			names[folded] = p
		}
	}
	return nil
}

// readError says that the server could not be read: no fault of the job's.
type readError struct{ err error }

// Error implements error.
func (e *readError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *readError) Unwrap() error { return e.err }

// saveIntents makes the intents of a plan durable before anything is pushed.
// A job whose intent cannot be saved makes the whole plan fail; with others'
// commits chained on its own there is no leaving it out.
func (o *owner) saveIntents(ctx context.Context, p *plan) error {
	g, _ := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, j := range p.jobs {
		g.Go(func() error { return o.saveIntent(j) })
	}
	return g.Wait()
}

func (o *owner) saveIntent(j *job) error {
	if j.intentSaved {
		return nil
	}
	err := o.intents.save(j.change, *j.intent)
	j.intentSaved = err == nil
	return err
}

// verdict is what is to become of a job on a tip.
type verdict struct {
	push bool
	out  *outcome
	err  error
	// certain verdicts hold whatever the branch has become since.
	certain bool
}

const (
	// maxLookBack bounds the commits that are looked at.
	maxLookBack = 2000
	// clockSkew is how much earlier than the promotion's own time its commit
	// may claim to be.
	clockSkew = 5 * time.Minute
)

// judge decides by state, in this order: our own commit is on the branch; the
// work tree has commits that were never pushed; nothing is to change; a newer
// promotion has superseded this one; somebody else changed the same path; push.
func (o *owner) judge(ctx context.Context, j *job, trees *gitrepo.Trees, h gitrepo.History) (verdict, error) {
	if out, err := o.findOwn(ctx, j, h, trees); out != nil || err != nil {
		return verdict{out: out, certain: true}, err
	}
	if refusal, err := o.unpushed(ctx, j, h); refusal != nil || err != nil {
		return verdict{err: refusal}, err
	}
	if j.in(trees) {
		if err := checkRemovals(trees, j.change.files); err != nil {
			return verdict{err: err}, nil
		}
		switch {
		case o.tip.start.IsZero():
			return verdict{err: configErrorf("the repository is empty, and there is nothing to commit")}, nil
		case !o.tip.old.IsZero():
			return verdict{out: &outcome{commit: o.tip.start}}, nil
		}
		j.prepare(o, trees)
		return verdict{push: true}, nil // the branch itself is missing
	}
	if by, err := o.supersededBy(ctx, j, h); by != nil || err != nil {
		return verdict{err: j.superseded(by)}, err
	}
	if err := o.supersededHere(j); err != nil {
		return verdict{err: err}, nil
	}
	if j.intent == nil && !h.Complete {
		if refusal, err := o.exhausted(ctx, j, h, trees); refusal != nil || err != nil {
			return verdict{err: refusal}, err
		}
	}
	if j.intent == nil || h.Complete { // else an own commit may be out of sight: judge by the old base
		j.prepare(o, trees)
	}
	b, err := o.baseOf(ctx, j)
	if gitrepo.Nonsense(err) { // the server does not tell: never overwrite
		return verdict{err: &ConflictError{Commit: o.tip.start.String(), reason: fmt.Sprintf(
			"the server does not give the commit %s any more, on which promotion %q began, so what was changed since is not known; promote again to overwrite it",
			j.intent.base.commit, j.change.promotion)}}, nil
	}
	if err != nil {
		return verdict{}, err
	}
	for _, f := range j.change.files {
		now := trees.Entry(f.Path)
		was := b.entries[f.Path]
		if now.Mode == was.Mode && now.ID == was.ID || j.holds(now, f) {
			continue
		}
		own, err := o.ownEarlierStep(ctx, j, h, f.Path, now)
		if err != nil {
			return verdict{}, err
		}
		if !own {
			return verdict{err: o.conflict(ctx, j, h, f.Path)}, nil
		}
	}
	return verdict{push: true}, nil
}

// unpushed refuses a work tree whose HEAD the server does not have. The change
// is how the work tree differs from HEAD, so what was committed in it and never
// pushed would be lost without a word.
func (o *owner) unpushed(ctx context.Context, j *job, h gitrepo.History) (refusal, err error) {
	if j.base == nil || j.base.commit.IsZero() || j.base.commit == o.tip.start || leadsTo(h, j.base.commit) {
		return nil, nil
	}
	_, err = o.remote.Commit(ctx, j.base.commit)
	if !gitrepo.Nonsense(err) {
		return nil, err
	}
	// A server may give nothing but tips: then it is found on the way from one.
	h, err = o.remote.History(ctx, gitrepo.HistoryQuery{Tip: o.tip.start, Max: maxLookBack})
	switch {
	case err != nil && !gitrepo.Nonsense(err):
		return nil, err
	case leadsTo(h, j.base.commit):
		return nil, nil
	}
	return configErrorf("the work tree's HEAD, %s, is not on the server, and what was committed there would be lost: atomic-commit takes the place of git-commit and git-push, so leave those out", j.base.commit), nil
}

// leadsTo tells whether a history holds a commit or ends at it.
func leadsTo(h gitrepo.History, id gitrepo.Hash) bool {
	return slices.ContainsFunc(h.Commits, func(c *gitrepo.Commit) bool {
		return c.ID == id || slices.Contains(c.Parents, id)
	})
}

// ownEarlierStep tells whether what is at a path was put there by another step
// of the same promotion: a work tree does not follow what its steps commit.
func (o *owner) ownEarlierStep(ctx context.Context, j *job, h gitrepo.History, path string, now gitrepo.Entry) (bool, error) {
	for _, c := range h.Commits {
		if !readClaim(c.Message).ofPromotion(j.change) {
			continue
		}
		t, err := o.remote.Trees(ctx, c.ID, []string{path}, gitrepo.ZeroHash)
		if err != nil {
			if gitrepo.Nonsense(err) {
				continue // a server that does not tell: a conflict, then
			}
			return false, err
		}
		if e := t.Entry(path); e.Mode == now.Mode && e.ID == now.ID {
			return true, nil
		}
	}
	return false, nil
}

// exhausted refuses a promotion that may have committed before where nobody can
// see it: there is no intent, the look-back ended before the promotion was made,
// and what it did see has changed one of the paths.
func (o *owner) exhausted(ctx context.Context, j *job, h gitrepo.History, tip *gitrepo.Trees) (refusal, err error) {
	if _, ok := o.madeBefore(j); !ok || len(h.Commits) == 0 {
		return nil, nil // when it was made is not known, so no look-back is ever long enough
	}
	oldest := h.Commits[len(h.Commits)-1]
	before, err := o.remote.Trees(ctx, oldest.ID, j.change.paths(), gitrepo.ZeroHash)
	if err != nil && !gitrepo.Nonsense(err) {
		return nil, err
	}
	for _, f := range j.change.files {
		now := tip.Entry(f.Path)
		if err == nil { // else the server does not tell: never overwrite
			if was := before.Entry(f.Path); was.Mode == now.Mode && was.ID == now.ID {
				continue
			}
		}
		return &ConflictError{Path: f.Path, Commit: o.tip.start.String(), reason: fmt.Sprintf(
			"%q was changed on branch %s since promotion %q was made, and the last %d commits do not tell whether by an earlier attempt of its own, of which no record is here; promote again to overwrite it",
			f.Path, j.change.branch, j.change.promotion, len(h.Commits))}, nil
	}
	return nil, nil
}

// settledKey names a path as a stage sees it.
type settledKey struct{ project, stage, path string }

// maxSettled bounds what an owner remembers of settled promotions.
const maxSettled = 4096

// settled remembers that a promotion found its files in place. It leaves no
// commit that an older one, still being retried here, could see.
func (o *owner) settled(j *job) {
	if _, ok := promotionULID(j.change.promotion); !ok {
		return
	}
	if o.found == nil || len(o.found) > maxSettled {
		o.found = map[settledKey]string{}
	}
	for _, p := range j.change.paths() {
		k := settledKey{j.change.project, j.change.stage, p}
		if !newer(o.found[k], j.change.promotion) {
			o.found[k] = j.change.promotion
		}
	}
}

// newer tells whether promotion a is newer than b, both by name.
func newer(a, b string) bool {
	ida, oka := promotionULID(a)
	idb, okb := promotionULID(b)
	return oka && okb && ida.Compare(idb) > 0
}

// supersededHere refuses a promotion when a newer one of its stage has found one
// of its paths as it wanted it.
func (o *owner) supersededHere(j *job) error {
	for _, p := range j.change.paths() {
		by := o.found[settledKey{j.change.project, j.change.stage, p}]
		if newer(by, j.change.promotion) {
			return &ConflictError{Commit: o.tip.start.String(), Superseded: true, reason: fmt.Sprintf(
				"promotion %q is superseded: promotion %q, a newer one of the same stage, has found %q on branch %s as it wants it; promote again if this is what you want",
				j.change.promotion, by, p, j.change.branch)}
		}
	}
	return nil
}

// history is the part of the branch that may hold the job's own commit or a
// newer promotion's: since the base when there is an intent, else back to when
// the promotion was made.
func (o *owner) history(ctx context.Context, j *job) (gitrepo.History, error) {
	q := gitrepo.HistoryQuery{Tip: o.tip.start, Max: maxLookBack}
	if j.intent != nil {
		q.Until = j.intent.base.commit
	} else if made, ok := o.madeBefore(j); ok {
		q.Since = made.Add(-clockSkew)
	}
	return o.remote.History(ctx, q)
}

// madeBefore is when the job's promotion was made, as far as its name tells; a
// time in the future says nothing.
func (o *owner) madeBefore(j *job) (time.Time, bool) {
	id, ok := promotionULID(j.change.promotion)
	made := time.UnixMilli(int64(id.Time())) //nolint:gosec // 48 bits
	return made, ok && made.Before(o.Clock())
}

// prepare gives a job the intent it will be pushed under. The base is the tip
// at first contact: while the tip is only remembered from before the job came,
// it is taken anew whenever the branch turns out to have moved.
func (j *job) prepare(o *owner, trees *gitrepo.Trees) {
	firstContact := o.readAt.After(j.submitted)
	if j.intent == nil || j.intent.provisional && firstContact {
		j.startFrom(o, trees)
	}
}

// startFrom gives a job an intent whose base is the known tip.
func (j *job) startFrom(o *owner, trees *gitrepo.Trees) {
	in := &intent{
		when: o.Clock().UTC().Truncate(time.Second), provisional: !o.readAt.After(j.submitted), change: j.change,
		base: base{commit: o.tip.start, entries: map[string]gitrepo.Entry{}},
	}
	if j.intent != nil {
		in.when = j.intent.when
	}
	for _, p := range j.change.paths() {
		if e := trees.Entry(p); e.Mode != gitrepo.ModeAbsent {
			in.base.entries[p] = e
		}
	}
	j.intent, j.intentSaved = in, false
}

// baseOf is the state that conflicts are judged against.
func (o *owner) baseOf(ctx context.Context, j *job) (base, error) {
	if j.base != nil {
		return *j.base, nil
	}
	b := j.intent.base
	if b.entries != nil || b.commit.IsZero() {
		return b, nil
	}
	// The files differ from those of the earlier attempt: read what was there.
	t, err := o.remote.Trees(ctx, b.commit, j.change.paths(), gitrepo.ZeroHash)
	if err != nil {
		return b, err
	}
	b.entries = map[string]gitrepo.Entry{}
	for _, p := range j.change.paths() {
		if e := t.Entry(p); e.Mode != gitrepo.ModeAbsent {
			b.entries[p] = e
		}
	}
	return b, nil
}

// findOwn looks for the job's own commit. Anybody can write the trailer, so a
// commit counts only if its tree holds the change. Of several the oldest is
// ours: copies come later.
func (o *owner) findOwn(ctx context.Context, j *job, h gitrepo.History, tip *gitrepo.Trees) (*outcome, error) {
	want := []*change{j.change}
	if j.intent != nil && j.intent.change != nil && j.intent.change.id != j.change.id && j.intent.change.includes(j.change) {
		// A new work tree that has our commit already: what others changed since,
		// if anything, is all that differs.
		want = append(want, j.intent.change)
	}
	for i := len(h.Commits) - 1; i >= 0; i-- {
		c := h.Commits[i]
		claimed := readClaim(c.Message)
		k := slices.IndexFunc(want, func(w *change) bool { return claimed.is(w.id) })
		if k < 0 {
			continue
		}
		t := tip
		if c.ID != o.tip.start || k > 0 {
			var err error
			if t, err = o.remote.Trees(ctx, c.ID, want[k].paths(), gitrepo.ZeroHash); err != nil {
				if !gitrepo.Nonsense(err) {
					return nil, err
				}
				t = tip // a server that does not give old trees: what is there now must do
			}
		}
		if j.holdsAll(t, want[k]) {
			return &outcome{commit: c.ID, changed: true, paths: o.changedPaths(ctx, c, want[k]), found: true}, nil
		}
	}
	return nil, nil
}

// changedPaths are the paths of a change that its commit really changed.
func (o *owner) changedPaths(ctx context.Context, c *gitrepo.Commit, want *change) []string {
	paths, err := o.touched(ctx, c, want.paths())
	if err != nil {
		return want.paths() // of those, some; which, the server does not tell
	}
	return paths
}

// supersededBy returns the commit of a newer promotion of the same stage that
// changed one of the job's paths. "Newer" is the greater ULID; where there is
// none, what came to the branch after this promotion's base.
func (o *owner) supersededBy(ctx context.Context, j *job, h gitrepo.History) (*gitrepo.Commit, error) {
	mine, ok := promotionULID(j.change.promotion)
	for _, c := range h.Commits {
		cl := readClaim(c.Message)
		if !cl.otherOfStage(j.change) {
			continue
		}
		other, otherOK := promotionULID(cl.promotion)
		supersedes := other.Compare(mine) > 0
		if !ok || !otherOK {
			supersedes = j.intent != nil
		}
		if !supersedes {
			continue
		}
		touched, err := o.touched(ctx, c, j.change.paths())
		if err != nil && !gitrepo.Nonsense(err) {
			return nil, err
		}
		if len(touched) > 0 || err != nil { // a server that does not tell: never overwrite
			return c, nil
		}
	}
	return nil, nil
}

// touched returns those of the paths that a commit changed.
func (o *owner) touched(ctx context.Context, c *gitrepo.Commit, paths []string) ([]string, error) {
	before := gitrepo.EmptyTrees()
	after, err := o.remote.Trees(ctx, c.ID, paths, gitrepo.ZeroHash)
	if err == nil && len(c.Parents) > 0 {
		before, err = o.remote.Trees(ctx, c.Parents[0], paths, gitrepo.ZeroHash)
	}
	if err != nil {
		return nil, err
	}
	var changed []string
	for _, p := range paths {
		if a, b := after.Entry(p), before.Entry(p); a.ID != b.ID || a.Mode != b.Mode {
			changed = append(changed, p)
		}
	}
	return changed, nil
}

func (j *job) superseded(by *gitrepo.Commit) error {
	return &ConflictError{
		Commit: by.ID.String(), Superseded: true,
		reason: fmt.Sprintf("promotion %q is superseded: commit %s on branch %s is of promotion %q, a newer one of the same stage; promote again if this is what you want",
			j.change.promotion, by.ID, j.change.branch, oneLine(readClaim(by.Message).promotion)),
	}
}

// maxNaming is how many commits are compared to name the one in the way.
const maxNaming = 50

func (o *owner) conflict(ctx context.Context, j *job, h gitrepo.History, path string) error {
	e := &ConflictError{Path: path}
	for i, c := range h.Commits {
		if i == maxNaming {
			break
		}
		if touched, err := o.touched(ctx, c, []string{path}); err == nil && len(touched) > 0 {
			e.Commit = c.ID.String()
			e.reason = fmt.Sprintf("%q was changed on branch %s by commit %s (%s) since this promotion began; promote again to overwrite it",
				path, j.change.branch, c.ID, oneLine(c.Author))
			return e
		}
	}
	e.Commit = o.tip.start.String()
	e.reason = fmt.Sprintf("%q was changed on branch %s, which is now at %s, since this promotion began; promote again to overwrite it", path, j.change.branch, o.tip.start)
	if !h.Complete {
		e.reason += fmt.Sprintf(" (looked at %d commits)", len(h.Commits))
	}
	return e
}

// ConflictError says that somebody else's change stands in the way, or that a
// newer promotion does. It is steps.ErrConflict.
type ConflictError struct {
	// Path is the path in conflict; empty when superseded.
	Path string
	// Commit is the commit in the way, or the tip when it could not be found.
	Commit     string
	Superseded bool
	reason     string
}

// Error explains what is in the way and what to do.
func (e *ConflictError) Error() string { return e.reason }

// Unwrap makes it a steps.ErrConflict.
func (e *ConflictError) Unwrap() error { return steps.ErrConflict }

// Detail implements steps.Detailer.
func (e *ConflictError) Detail() map[string]any {
	d := map[string]any{"commit": e.Commit, "superseded": e.Superseded}
	if e.Path != "" {
		d["path"] = e.Path
	}
	return d
}

func (j *job) in(t *gitrepo.Trees) bool { return j.holdsAll(t, j.change) }

func (j *job) holdsAll(t *gitrepo.Trees, c *change) bool {
	for _, f := range c.files {
		if !j.holds(t.Entry(f.Path), f) {
			return false
		}
	}
	return true
}

// holds tells whether an entry is what a file is to become. A file of an overlay
// that is not executable keeps the mode it has in the repository.
func (j *job) holds(e gitrepo.Entry, f gitrepo.Change) bool {
	if f.Mode == gitrepo.ModeAbsent {
		return e.Mode == gitrepo.ModeAbsent
	}
	if e.ID != f.ID || !e.Mode.IsFile() {
		return false
	}
	exec := e.Mode == gitrepo.ModeExecutable
	return exec == (f.Mode == gitrepo.ModeExecutable) || j.overlay && exec
}
