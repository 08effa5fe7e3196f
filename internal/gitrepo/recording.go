package gitrepo

import (
	"context"
	"fmt"
	"maps"
	"slices"
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
	objects map[string][]Object // normalised URL → what was pushed, oldest first
}

// NewRecording wraps inner.
func NewRecording(inner Dialer, log *effects.Log) *Recording {
	return &Recording{
		inner: inner, log: log,
		heads: map[string]map[string]Hash{}, commits: map[Hash]*Commit{}, trees: map[Hash]*tree{}, blobs: map[Hash][]byte{},
		objects: map[string][]Object{},
	}
}

// Kept returns the tips of the branches of a repository that pushes to it moved,
// and all objects they brought, oldest push first. The data are not copied.
func (d *Recording) Kept(url string) (heads map[string]Hash, objects []Object) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := repourl.Git(url)
	return maps.Clone(d.heads[key]), slices.Clone(d.objects[key])
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

// History goes through recorded commits, which are linear, to the real one
// they are built on.
func (r *recordingRemote) History(ctx context.Context, q HistoryQuery) (History, error) {
	var ours []*Commit
	for {
		c, ok := r.recorded(q.Tip)
		if !ok || q.Tip == q.Until {
			break
		}
		ours = append(ours, c)
		q.Tip = ZeroHash
		if len(c.Parents) > 0 {
			q.Tip = c.Parents[0]
		}
		if q.Max > 0 && len(ours) >= q.Max {
			return History{Commits: ours}, nil
		}
	}
	if q.Max > 0 {
		q.Max -= len(ours)
	}
	h, err := r.Remote.History(ctx, q)
	h.Commits = append(ours, h.Commits...)
	return h, err
}

func (r *recordingRemote) Trees(ctx context.Context, commit Hash, paths []string, hint Hash) (*Trees, error) {
	c, ok := r.recorded(commit)
	if !ok {
		if _, recorded := r.recorded(hint); recorded {
			hint = ZeroHash
		}
		return r.Remote.Trees(ctx, commit, paths, hint)
	}
	// Recorded trees differ from the real ones below only in directories that
	// a recorded commit wrote.
	real := c
	for ok {
		if len(real.Parents) == 0 {
			break
		}
		var next *Commit
		if next, ok = r.recorded(real.Parents[0]); ok {
			real = next
		}
	}
	under := EmptyTrees()
	if len(real.Parents) > 0 {
		var err error
		if under, err = r.Remote.Trees(ctx, real.Parents[0], paths, ZeroHash); err != nil {
			return nil, err
		}
	}
	return r.overlay(c, under, paths)
}

func (r *recordingRemote) overlay(c *Commit, under *Trees, paths []string) (*Trees, error) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	t := &Trees{commit: c, dirs: map[string]*tree{}}
	byID := map[Hash]*tree{}
	for _, d := range under.dirs {
		byID[d.object.ID] = d
	}
	find := func(id Hash) (*tree, error) {
		if d, ok := r.d.trees[id]; ok {
			return d, nil
		}
		if d, ok := byID[id]; ok {
			return d, nil
		}
		return nil, fmt.Errorf("cannot read recorded commit %s: %w", c.ID, &MissingError{ID: id})
	}
	root, err := find(c.Tree)
	if err != nil {
		return nil, err
	}
	t.dirs[""] = root
	for _, p := range paths {
		for i := range p {
			if p[i] != '/' {
				continue
			}
			dir := p[:i]
			parent, name := splitPath(dir)
			e, _ := t.dirs[parent].find(name)
			if _, done := t.dirs[dir]; done || e.Mode != ModeTree {
				continue
			}
			if t.dirs[dir], err = find(e.ID); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

func (r *recordingRemote) Blobs(ctx context.Context, ids []Hash) (map[Hash][]byte, error) {
	out := map[Hash][]byte{}
	var missing []Hash
	r.d.mu.Lock()
	for _, id := range ids {
		if b, ok := r.d.blobs[id]; ok {
			out[id] = b
		} else {
			missing = append(missing, id)
		}
	}
	r.d.mu.Unlock()
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
	if r.d.heads[key] == nil {
		r.d.heads[key] = map[string]Hash{}
	}
	r.d.heads[key][p.Branch] = p.New
}
