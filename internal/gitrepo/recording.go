package gitrepo

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/repourl"
)

// Recording is a Dialer whose remotes read through another's and keep pushes to
// themselves: what was "pushed" is what later reads see, and the log says what
// it would have been. It is what makes a dry run.
type Recording struct {
	inner Dialer
	log   *effects.Log

	mu      sync.Mutex
	heads   map[string]map[string]Hash // normalised URL → branch → tip
	commits map[Hash]*Commit
	trees   map[Hash]*tree
	blobs   map[Hash][]byte
	objects map[string][]Object    // normalised URL → what was pushed, oldest first
	readers map[string]ReadObjects // normalised URL → where the objects of other pushes are
}

// NewRecording wraps inner.
func NewRecording(inner Dialer, log *effects.Log) *Recording {
	return &Recording{
		inner: inner, log: log,
		heads: map[string]map[string]Hash{}, commits: map[Hash]*Commit{}, trees: map[Hash]*tree{}, blobs: map[Hash][]byte{},
		objects: map[string][]Object{}, readers: map[string]ReadObjects{},
	}
}

// Kept returns the tips of the branches of a repository that recorded pushes
// moved, and all objects that those to this edge brought, oldest push first. The
// data are not copied.
func (d *Recording) Kept(url string) (heads map[string]Hash, objects []Object) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := repourl.Git(url)
	return maps.Clone(d.heads[key]), slices.Clone(d.objects[key])
}

// Elsewhere is a push that another recording edge kept to itself.
type Elsewhere struct {
	Branch string
	// New is the branch's tip. The push may have been forced.
	New Hash
	// Commits are the commit objects that it made reachable, in any order.
	Commits []Object
	// Read reads from what the other edge has of the repository.
	Read ReadObjects
}

// ReadObjects returns those of the objects that there are.
type ReadObjects func(ctx context.Context, ids []Hash) ([]Object, error)

// Keep makes remotes of the repository see a push to another edge, which logs it.
func (d *Recording) Keep(url string, p Elsewhere) error {
	parsed := make([]*Commit, len(p.Commits))
	for i, o := range p.Commits {
		var err error
		if parsed[i], err = parseCommit(o.ID, o.Data); err != nil {
			return fmt.Errorf("cannot keep a push to branch %s: %w", p.Branch, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range parsed {
		d.commits[c.ID] = c
	}
	key := repourl.Git(url)
	d.readers[key] = p.Read
	d.move(key, p.Branch, p.New)
	return nil
}

func (d *Recording) move(key, branch string, tip Hash) {
	if d.heads[key] == nil {
		d.heads[key] = map[string]Hash{}
	}
	d.heads[key][branch] = tip
}

// Dial implements Dialer.
func (d *Recording) Dial(ctx context.Context, t Target) (Remote, error) {
	r, err := d.inner.Dial(ctx, t)
	if err != nil {
		return nil, err
	}
	return &recordingRemote{Remote: r, d: d}, nil
}

type recordingRemote struct {
	Remote
	d *Recording
}

func (r *recordingRemote) Refs(ctx context.Context, branches ...string) (Refs, error) {
	refs, err := r.Remote.Refs(ctx, branches...)
	if err != nil {
		return refs, err
	}
	refs.Heads = maps.Clone(refs.Heads)
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	ours := r.d.heads[repourl.Git(r.URL())]
	for _, b := range branches {
		if id, ok := ours[b]; ok {
			refs.Heads[b] = id
		}
	}
	refs.Empty = refs.Empty && len(ours) == 0
	return refs, nil
}

func (r *recordingRemote) recorded(id Hash) (*Commit, bool) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	c, ok := r.d.commits[id]
	return c, ok
}

func (r *recordingRemote) Commit(ctx context.Context, id Hash) (*Commit, error) {
	if c, ok := r.recorded(id); ok {
		return c, nil
	}
	return r.Remote.Commit(ctx, id)
}

// History puts the recorded commits before those of the real history that they
// are built on, in the order in which a server's would come.
func (r *recordingRemote) History(ctx context.Context, q HistoryQuery) (History, error) {
	if _, ok := r.recorded(q.Tip); !ok || q.Tip == q.Until {
		return r.Remote.History(ctx, q)
	}
	// One walk over all that is known decides, the same as over a wire.
	known := &remote{store: newObjects(0)}
	seen := map[Hash]bool{q.Until: true}
	complete := true
	for queue := []Hash{q.Tip}; len(queue) > 0; queue = queue[1:] {
		id := queue[0]
		if seen[id] {
			continue
		}
		seen[id] = true
		if c, ok := r.recorded(id); ok {
			known.store.commits[id] = c
			queue = append(queue, c.Parents...)
			continue
		}
		if q.Max > 0 && len(known.store.commits) >= q.Max {
			complete = false
			continue
		}
		h, err := r.Remote.History(ctx, HistoryQuery{Tip: id, Until: r.realBase(q.Until), Since: q.Since, Max: q.Max})
		if err != nil {
			return History{}, err
		}
		complete = complete && h.Complete
		for _, c := range h.Commits {
			known.store.commits[c.ID] = c
		}
	}
	h, frontier := known.walk(q)
	if !frontier.IsZero() { // it is where the server's answers ended
		h.Complete = complete
	}
	return h, nil
}

// realBase is the commit itself when it is on the server, else the one that the
// recorded commits from it down are built on; zero when they begin with nothing.
func (r *recordingRemote) realBase(id Hash) Hash {
	for {
		c, ok := r.recorded(id)
		switch {
		case !ok:
			return id
		case len(c.Parents) == 0:
			return ZeroHash
		}
		id = c.Parents[0]
	}
}

func (r *recordingRemote) Trees(ctx context.Context, commit Hash, paths []string, hint Hash) (*Trees, error) {
	c, ok := r.recorded(commit)
	if !ok {
		if _, recorded := r.recorded(hint); recorded {
			hint = ZeroHash
		}
		return r.Remote.Trees(ctx, commit, paths, hint)
	}
	t := &Trees{commit: c, dirs: map[string]*tree{}}
	find := r.finder(c, paths)
	for level := map[string]Hash{"": c.Tree}; len(level) > 0; {
		found, err := find(ctx, slices.Collect(maps.Values(level)))
		if err != nil {
			return nil, err
		}
		below := map[string]Hash{}
		for dir, id := range level {
			t.dirs[dir] = found[id]
			for _, p := range paths {
				rest, ok := p, true
				if dir != "" {
					rest, ok = strings.CutPrefix(p, dir+"/")
				}
				name, _, more := strings.Cut(rest, "/")
				if e, there := found[id].find(name); ok && more && there && e.Mode == ModeTree {
					below[path.Join(dir, name)] = e.ID
				}
			}
		}
		level = below
	}
	return t, nil
}

// finder returns a function that finds trees of a recorded commit. A push to
// this edge brought only those that it changed, to the real ones on its paths; for
// one elsewhere they are read there.
func (r *recordingRemote) finder(c *Commit, paths []string) func(context.Context, []Hash) (map[Hash]*tree, error) {
	var real map[Hash]*tree
	return func(ctx context.Context, ids []Hash) (map[Hash]*tree, error) {
		found := map[Hash]*tree{}
		objects, missing, err := r.read(ctx, ids, func(id Hash) bool {
			found[id] = r.d.trees[id]
			return found[id] != nil
		})
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			t, err := parseTree(o)
			if err != nil || o.Type != treeObject {
				return nil, malformed("tree %s", o.ID)
			}
			found[o.ID] = t
			r.d.mu.Lock()
			r.d.trees[o.ID] = t
			r.d.mu.Unlock()
		}
		if len(missing) > 0 && real == nil {
			real = map[Hash]*tree{}
			if base := r.realBase(c.ID); !base.IsZero() {
				under, err := r.Remote.Trees(ctx, base, paths, ZeroHash)
				if err != nil {
					return nil, err
				}
				for _, d := range under.dirs {
					real[d.object.ID] = d
				}
			}
		}
		for _, id := range missing {
			switch {
			case real[id] != nil:
				found[id] = real[id]
			case id == emptyTree.ID: // git stores none
				found[id] = &tree{object: emptyTree}
			default:
				return nil, fmt.Errorf("cannot read recorded commit %s: %w", c.ID, &MissingError{ID: id})
			}
		}
		return found, nil
	}
}

var emptyTree = newObject(treeObject, nil)

// read reads objects that pushes elsewhere may have brought, but for those that
// have tells of, which is called under the lock.
func (r *recordingRemote) read(ctx context.Context, ids []Hash, have func(Hash) bool) (objects []Object, missing []Hash, err error) {
	r.d.mu.Lock()
	for _, id := range ids {
		if !have(id) {
			missing = append(missing, id)
		}
	}
	reader := r.d.readers[repourl.Git(r.URL())]
	r.d.mu.Unlock()
	if reader == nil || len(missing) == 0 {
		return nil, missing, nil
	}
	if objects, err = reader(ctx, missing); err != nil {
		return nil, nil, fmt.Errorf("cannot read what was recorded of %s: %w", r.URL(), err)
	}
	read := map[Hash]bool{}
	for _, o := range objects {
		read[o.ID] = true
	}
	return objects, slices.DeleteFunc(missing, func(id Hash) bool { return read[id] }), nil
}

func (r *recordingRemote) Blobs(ctx context.Context, ids []Hash) (map[Hash][]byte, error) {
	out := map[Hash][]byte{}
	objects, missing, err := r.read(ctx, ids, func(id Hash) bool {
		b, ok := r.d.blobs[id]
		if ok {
			out[id] = b
		}
		return ok
	})
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if o.Type == blobObject {
			out[o.ID] = o.Data
		}
	}
	more, err := r.Remote.Blobs(ctx, missing)
	maps.Copy(out, more)
	return out, err
}

// Push keeps the commits and logs them. It checks the expected tip as a server
// would.
func (r *recordingRemote) Push(ctx context.Context, p Push) error {
	refs, err := r.Refs(ctx, p.Branch)
	if err != nil {
		return err
	}
	if refs.Heads[p.Branch] != p.Old {
		return &RejectedError{Reason: fmt.Sprintf("is at %s but expected %s", refs.Heads[p.Branch], p.Old)}
	}
	texts := diffAll(ctx, r, p)
	r.keep(p)
	record(r.d.log, r.URL(), p, texts, false)
	return nil
}

func (r *recordingRemote) keep(p Push) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	key := repourl.Git(r.URL())
	for _, c := range p.Commits {
		r.d.commits[c.Commit.ID] = c.Commit
		r.d.objects[key] = append(r.d.objects[key], c.Objects...)
		for _, o := range c.Objects {
			if t, err := parseTree(o); err == nil && o.Type == treeObject {
				r.d.trees[o.ID] = t
			}
			if o.Type == blobObject {
				r.d.blobs[o.ID] = o.Data
			}
		}
	}
	r.d.move(key, p.Branch, p.New)
}
