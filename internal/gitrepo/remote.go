package gitrepo

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// firstWindow is how many commits, the tip included, come with its trees: enough
// for a look-back over the last few minutes of most repositories, at about
// 200 bytes each.
const firstWindow = 8

// refreshDepth is how many generations of commits, with the trees they changed,
// come when a remembered tip has moved.
const refreshDepth = 64

// remote is a Remote over a wire. How it fetches depends on the server, in
// steps from cheap to possible:
//
//  1. filters, any object by id: the commit and its root tree, then the trees
//     on the paths, level by level. The commits before it come with the second
//     request: in the first, the server would send their root trees as well
//  2. filters only: all trees of the tip, no blobs, depth 1
//  3. no filters: depth 1, blobs read past and dropped
//  4. not even depth: everything, read past and dropped
type remote struct {
	url     string
	wire    wire
	store   *objects
	timeout time.Duration
	learned *profiles
	key     string

	mu sync.Mutex
	// complete are tips all of whose trees are in the store (steps 2 to 4).
	complete map[Hash]bool
}

// profiles remembers what servers can do, by repository.
type profiles struct {
	mu sync.Mutex
	m  map[string]profile
}

func (p *profiles) get(key string) profile {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m[key]
}

func (p *profiles) set(key string, pr profile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[string]profile{}
	}
	p.m[key] = pr
}

func (r *remote) URL() string { return r.url }

// bound gives one request its own deadline, within ctx's.
func (r *remote) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.timeout)
}

// discover asks the server what it can do.
func (r *remote) discover(ctx context.Context) (*advertisement, error) {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	body, err := r.wire.advertise(ctx, uploadPack, true)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	a, err := readAdvertisement(body)
	if err != nil {
		return nil, err
	}
	r.learned.set(r.key, a.profile)
	return a, nil
}

// with runs an operation under the server's profile. When the profile is only
// assumed and the server does not understand the request, it is asked, and the
// operation runs once more.
func (r *remote) with(ctx context.Context, op func(context.Context, profile) error) error {
	pr := r.learned.get(r.key)
	if !pr.known {
		if !r.wire.assumeV2() {
			a, err := r.discover(ctx)
			if err != nil {
				return err
			}
			pr = a.profile
		} else {
			pr = assumed
		}
	}
	run := func(pr profile) error {
		ctx, cancel := r.bound(ctx)
		defer cancel()
		return op(ctx, pr)
	}
	err := run(pr)
	if err == nil || pr.known || ctx.Err() != nil || !misunderstood(err) {
		return err
	}
	a, derr := r.discover(ctx)
	if derr != nil {
		return derr
	}
	return run(a.profile)
}

// misunderstood tells whether err may come from a server that cannot do what
// was asked, as against one that cannot be reached or refuses access.
func misunderstood(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		return !Permanent(err) && status.Code != http.StatusTooManyRequests || status.Code == http.StatusForbidden || status.Code == http.StatusNotFound
	}
	var protocol *ProtocolError
	return refused(err) || errors.As(err, &protocol) || errors.Is(err, io.ErrUnexpectedEOF)
}

// lasting tells whether err, where another request did not fail, says what the
// server cannot do, as against a gateway's trouble or an answer that was cut off.
func lasting(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Code < http.StatusBadGateway
	}
	var cut *packError
	return !errors.As(err, &cut) || refused(err)
}

// refused tells whether err is the server's own word within the protocol.
func refused(err error) bool {
	var server *ServerError
	return errors.As(err, &server)
}

// orElse makes the second request where a server whose profile is known does not
// understand the first. When that helps, learn notes what the server cannot do.
func (r *remote) orElse(pr profile, first, second func() error, learn func(*profile)) error {
	refusal := first()
	if refusal == nil || !pr.known || !misunderstood(refusal) {
		return refusal
	}
	err := second()
	if err == nil && lasting(refusal) {
		learn(&pr)
		r.learned.set(r.key, pr)
	}
	return err
}

// Refs implements Remote.
func (r *remote) Refs(ctx context.Context, branches ...string) (Refs, error) {
	r.store.trim()
	out := Refs{Heads: map[string]Hash{}}
	pick := func(refs map[string]Hash, head string) {
		for _, b := range branches {
			if id, ok := refs["refs/heads/"+b]; ok {
				out.Heads[b] = id
			}
		}
		out.Default = head
	}
	var errV0 = errors.New("the server has no protocol v2")
	err := r.with(ctx, func(ctx context.Context, pr profile) error {
		if !pr.v2 {
			return errV0
		}
		prefixes := []string{"HEAD"}
		for _, b := range branches {
			prefixes = append(prefixes, "refs/heads/"+b)
		}
		refs, head, err := lsRefs(ctx, r.wire, prefixes)
		if err != nil {
			return err
		}
		pick(refs, head)
		if len(refs) == 0 { // HEAD may point at a branch that is not there
			refs, _, err = lsRefs(ctx, r.wire, []string{"refs/heads/"})
			if err != nil {
				return err
			}
			out.Empty = len(refs) == 0
		}
		return nil
	})
	if errors.Is(err, errV0) {
		a, err := r.discover(ctx)
		if err != nil {
			return Refs{}, fmt.Errorf("cannot list the references of %s: %w", r.url, err)
		}
		if a.v2 { // it has learned v2 meanwhile
			return r.Refs(ctx, branches...)
		}
		pick(a.refs, a.head)
		out.Empty = a.noRefs
		return out, nil
	}
	if err != nil {
		return Refs{}, fmt.Errorf("cannot list the references of %s: %w", r.url, err)
	}
	return out, nil
}

// fetch runs one fetch into the store.
func (r *remote) fetch(ctx context.Context, pr profile, q fetchQuery, blobs bool) error {
	if q.max == 0 {
		q.max = maxFilteredPack
	}
	return fetch(ctx, r.wire, pr, q, packSink{
		add: r.store.add,
		base: func(id Hash) (Object, bool) {
			if t, ok := r.store.tree(id); ok {
				return t.object, true
			}
			return Object{}, false
		},
		blobs:  blobs,
		budget: packMemory,
	})
}

// Commit implements Remote.
func (r *remote) Commit(ctx context.Context, id Hash) (*Commit, error) {
	return r.commit(ctx, id, false)
}

// commit makes sure a commit is in the store. When it was not, its root tree and
// firstWindow-1 of its ancestors come with it; or, where trees are fetched next,
// and can bring them, no ancestors.
func (r *remote) commit(ctx context.Context, id Hash, treesNext bool) (*Commit, error) {
	if c, ok := r.store.commit(id); ok {
		return c, nil
	}
	err := r.with(ctx, func(ctx context.Context, pr profile) error {
		if !pr.filter {
			return r.fetchAll(ctx, pr, id, firstWindow)
		}
		q := fetchQuery{wants: []Hash{id}, filter: "tree:0"}
		if pr.shallow {
			q.depth = firstWindow
			if treesNext && pr.bringsAncestors() {
				q.depth = 1
			}
		}
		alone := func() error { return r.fetch(ctx, pr, q, false) } // Azure DevOps is said to know tree:0 only
		if !pr.byID || pr.noTreeDepth {
			return alone()
		}
		withRoot := q
		withRoot.filter = "tree:1" // the root tree is wanted next
		return r.orElse(pr, func() error { return r.fetch(ctx, pr, withRoot, false) }, alone,
			func(learned *profile) { learned.noTreeDepth = true })
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read commit %s of %s: %w", id, r.url, err)
	}
	if c, ok := r.store.commit(id); ok {
		return c, nil
	}
	return nil, fmt.Errorf("cannot read commit %s of %s: %w", id, r.url, &MissingError{ID: id})
}

// fetchAll is the way of servers without filters: commits and all trees come
// along, blobs are read past.
func (r *remote) fetchAll(ctx context.Context, pr profile, tip Hash, window int) error {
	q := fetchQuery{wants: []Hash{tip}, max: maxFullPack}
	if pr.shallow {
		q.depth = window
	}
	if err := r.fetch(ctx, pr, q, false); err != nil {
		return err
	}
	r.markComplete(tip)
	return nil
}

func (r *remote) markComplete(tip Hash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complete[tip] = true
}

// refresh brings what q wants beyond what it has.
func (r *remote) refresh(ctx context.Context, q fetchQuery) error {
	return r.with(ctx, func(ctx context.Context, pr profile) error {
		q := q
		if !pr.filter {
			q.filter, q.max = "", maxFullPack
		}
		if !pr.shallow {
			return r.fetchAll(ctx, pr, q.wants[0], 0)
		}
		return r.fetch(ctx, pr, q, false)
	})
}

// Trees implements Remote.
func (r *remote) Trees(ctx context.Context, commit Hash, paths []string, hint Hash) (*Trees, error) {
	if _, ok := r.store.commit(commit); !ok && !hint.IsZero() && hint != commit {
		// The commits since, and the trees they changed. It is only for speed: what
		// does not arrive is fetched by id. With a depth, which also bounds what
		// comes when the hint is not of this branch, git makes deltas against the
		// hint's trees where it otherwise would use its bitmaps.
		q := fetchQuery{wants: []Hash{commit}, have: hint, thin: true, depth: refreshDepth, filter: "blob:none"}
		if err := r.refresh(ctx, q); err != nil && (Permanent(err) || ctx.Err() != nil) {
			return nil, fmt.Errorf("cannot read %s: %w", r.url, err)
		}
	}
	level := parentDirs(paths)
	c, err := r.commit(ctx, commit, len(level) > 0)
	if err != nil {
		return nil, err
	}
	t := &Trees{commit: c, dirs: map[string]*tree{}}
	if err := r.loadTrees(ctx, commit, []Hash{c.Tree}); err != nil {
		return nil, err
	}
	root, ok := r.store.tree(c.Tree)
	if !ok {
		return nil, fmt.Errorf("cannot read %s: %w", r.url, &MissingError{ID: c.Tree})
	}
	t.dirs[""] = root
	for len(level) > 0 {
		next := map[string]Hash{} // path of a directory → its tree
		var ids []Hash
		for dir := range level {
			parent, name := splitPath(dir)
			if e, ok := t.dirs[parent].find(name); ok && e.Mode == ModeTree {
				next[dir] = e.ID
				ids = append(ids, e.ID)
			}
		}
		if err := r.loadTrees(ctx, commit, ids); err != nil {
			return nil, err
		}
		deeper := map[string]bool{}
		for dir, id := range next {
			sub, ok := r.store.tree(id)
			if !ok {
				return nil, fmt.Errorf("cannot read %s: %w", r.url, &MissingError{ID: id})
			}
			t.dirs[dir] = sub
			for _, p := range paths {
				if rest, ok := strings.CutPrefix(p, dir+"/"); ok {
					if name, _, more := strings.Cut(rest, "/"); more {
						deeper[dir+"/"+name] = true
					}
				}
			}
		}
		level = deeper
	}
	return t, nil
}

// loadTrees makes sure that trees, which belong to commit, are in the store. If
// a fetch is needed, and nothing is known of what came before commit, that comes
// along.
func (r *remote) loadTrees(ctx context.Context, commit Hash, ids []Hash) error {
	missing := r.unknownTrees(ids)
	if len(missing) == 0 {
		return nil
	}
	err := r.with(ctx, func(ctx context.Context, pr profile) error {
		if !pr.filter || !pr.byID {
			return r.allTrees(ctx, pr, commit)
		}
		refusal := r.treesByID(ctx, pr, commit, missing)
		if !pr.known || !refused(refusal) {
			return refusal
		}
		pr.byID = false // JGit gives commits only
		if err := r.allTrees(ctx, pr, commit); err != nil || len(r.unknownTrees(missing)) > 0 {
			return refusal
		}
		r.learned.set(r.key, pr)
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot read the trees of %s at %s: %w", r.url, commit, err)
	}
	return nil
}

// treesByID fetches trees, and what came before commit if nothing is known of it.
func (r *remote) treesByID(ctx context.Context, pr profile, commit Hash, missing []Hash) error {
	alone := func() error { return r.fetch(ctx, pr, fetchQuery{wants: missing, filter: "tree:0"}, false) }
	older := r.unknownParents(commit)
	if len(older) == 0 || !pr.bringsAncestors() {
		return alone()
	}
	together := func() error {
		q := fetchQuery{wants: append(older, missing...), depth: firstWindow - 1, filter: "tree:0"}
		err := r.fetch(ctx, pr, q, false)
		if err == nil && len(r.unknownTrees(missing)) > 0 {
			return malformed("trees and history in one answer, and not all of the trees")
		}
		return err
	}
	return r.orElse(pr, together, alone, func(learned *profile) { learned.treesAlone = len(r.unknownTrees(missing)) == 0 })
}

// allTrees fetches every tree of a commit.
func (r *remote) allTrees(ctx context.Context, pr profile, commit Hash) error {
	if !pr.filter {
		return r.fetchAll(ctx, pr, commit, 1)
	}
	q := fetchQuery{wants: []Hash{commit}, filter: "blob:none"}
	if pr.shallow {
		q.depth = 1
	}
	if err := r.fetch(ctx, pr, q, false); err != nil {
		return err
	}
	r.markComplete(commit)
	return nil
}

// unknownTrees are those of the trees that are not in the store.
func (r *remote) unknownTrees(ids []Hash) []Hash {
	var unknown []Hash
	for _, id := range ids {
		if _, ok := r.store.tree(id); !ok {
			unknown = append(unknown, id)
		}
	}
	return unknown
}

// unknownParents are the parents of a commit if none of them is known.
func (r *remote) unknownParents(id Hash) []Hash {
	c, ok := r.store.commit(id)
	if !ok {
		return nil
	}
	for _, p := range c.Parents {
		if _, ok := r.store.commit(p); ok {
			return nil
		}
	}
	return slices.Clone(c.Parents)
}

// Blobs implements Remote.
func (r *remote) Blobs(ctx context.Context, ids []Hash) (map[Hash][]byte, error) {
	out := map[Hash][]byte{}
	var missing []Hash
	for _, id := range ids {
		if b, ok := r.store.blob(id); ok {
			out[id] = b
		} else {
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return out, nil
	}
	err := r.with(ctx, func(ctx context.Context, pr profile) error {
		if !pr.byID {
			return nil
		}
		return r.fetch(ctx, pr, fetchQuery{wants: missing}, true)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read blobs of %s: %w", r.url, err)
	}
	for _, id := range missing {
		if b, ok := r.store.blob(id); ok {
			out[id] = b
		}
	}
	return out, nil
}

// oldInARow is how many commits older than HistoryQuery.Since end a walk: one
// alone may come from a machine whose clock is wrong.
const oldInARow = 3

// History implements Remote.
func (r *remote) History(ctx context.Context, q HistoryQuery) (History, error) {
	if q.Tip.IsZero() || q.Tip == q.Until {
		return History{Complete: true}, nil
	}
	refreshed := false
	for {
		h, frontier := r.walk(q)
		switch {
		case frontier.IsZero(), q.Max > 0 && len(h.Commits) >= q.Max:
			return h, nil
		case !q.Until.IsZero():
			if refreshed { // the server sent tip ^until, as far as Max: what is missing is older than until
				h.Complete = true
				return h, nil
			}
			refreshed = true
			// Not thin: no commit must be dropped.
			since := fetchQuery{wants: []Hash{q.Tip}, have: q.Until, depth: q.Max, filter: "tree:0"}
			if err := r.refresh(ctx, since); err != nil {
				return h, fmt.Errorf("cannot read the history of %s: %w", r.url, err)
			}
			if _, ok := r.store.commit(q.Tip); !ok {
				return h, fmt.Errorf("cannot read the history of %s: %w", r.url, &MissingError{ID: q.Tip})
			}
		default:
			seen := len(h.Commits)
			window := max(firstWindow, 8*seen)
			if q.Max > 0 {
				window = min(window, q.Max-seen)
			}
			if err := r.deepen(ctx, q.Tip, frontier, window, seen); err != nil {
				return h, fmt.Errorf("cannot read the history of %s: %w", r.url, err)
			}
			if _, ok := r.store.commit(frontier); !ok {
				h, _ = r.walk(q)
				return h, nil // not Complete: the server gives no more
			}
		}
	}
}

// deepen brings window more commits, from the frontier down. A server that does
// not give the frontier by its id, or does not have it, gives what it has from
// the tip down.
func (r *remote) deepen(ctx context.Context, tip, frontier Hash, window, seen int) error {
	return r.with(ctx, func(ctx context.Context, pr profile) error {
		q := fetchQuery{wants: []Hash{frontier}, depth: window, filter: "tree:0"}
		if !pr.filter {
			q.filter, q.max = "", maxFullPack
		}
		fromTip := q
		fromTip.wants, fromTip.depth = []Hash{tip}, seen+window
		if !pr.byID {
			q = fromTip
		}
		if !pr.shallow {
			q.depth = 0
		}
		err := r.fetch(ctx, pr, q, false)
		if pr.known && pr.byID && pr.shallow && refused(err) {
			err = r.fetch(ctx, pr, fromTip, false)
		}
		return err
	})
}

// walk goes through the known history, newest first, and returns the first
// commit it needs and does not know. As that may be newer than what comes after
// it, commits that are old do not end the walk then.
func (r *remote) walk(q HistoryQuery) (h History, frontier Hash) {
	seen := map[Hash]bool{}
	for older := []Hash{q.Until}; len(older) > 0; older = older[1:] {
		id := older[0]
		if c, ok := r.store.commit(id); ok && !seen[id] {
			older = append(older, c.Parents...)
		}
		seen[id] = true
	}
	var queue commitQueue
	push := func(id Hash) {
		if seen[id] {
			return
		}
		seen[id] = true
		c, ok := r.store.commit(id)
		if !ok {
			if frontier.IsZero() {
				frontier = id
			}
			return
		}
		heap.Push(&queue, c)
	}
	push(q.Tip)
	old := 0
	for queue.Len() > 0 {
		if q.Max > 0 && len(h.Commits) >= q.Max {
			return h, ZeroHash
		}
		c, _ := heap.Pop(&queue).(*Commit)
		h.Commits = append(h.Commits, c)
		if !q.Since.IsZero() && c.When.Before(q.Since) {
			if old++; old >= oldInARow && frontier.IsZero() {
				h.Complete = true
				return h, ZeroHash
			}
		} else {
			old = 0
		}
		for _, p := range c.Parents {
			push(p)
		}
	}
	h.Complete = frontier.IsZero()
	return h, frontier
}

// commitQueue is a heap, newest first.
type commitQueue []*Commit

func (q commitQueue) Len() int           { return len(q) }
func (q commitQueue) Less(i, j int) bool { return q[i].When.After(q[j].When) }
func (q commitQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *commitQueue) Push(x any) {
	c, _ := x.(*Commit)
	*q = append(*q, c)
}

func (q *commitQueue) Pop() any {
	old := *q
	c := old[len(old)-1]
	*q = old[:len(old)-1]
	return c
}

// Push implements Remote.
func (r *remote) Push(ctx context.Context, p Push) error {
	var objects []Object
	sent := map[Hash]bool{}
	for _, c := range p.Commits {
		for _, o := range c.Objects {
			if !sent[o.ID] {
				sent[o.ID] = true
				objects = append(objects, o)
			}
		}
	}
	bounded, cancel := r.bound(ctx)
	defer cancel()
	if err := push(bounded, r.wire, "refs/heads/"+p.Branch, p.Old, p.New, objects); err != nil {
		return fmt.Errorf("cannot push to branch %s of %s: %w", p.Branch, r.url, err)
	}
	r.remember(p)
	return nil
}

// remember keeps what was pushed, so that the next commit on top needs no
// fetch.
func (r *remote) remember(p Push) {
	for _, c := range p.Commits {
		for _, o := range c.Objects {
			if o.Type != plumbing.BlobObject {
				_ = r.store.add(o) // our own objects parse
			}
		}
	}
}
