// Package gitremote is the edge between git steps and the servers they clone
// from and push to. Live, that is the server itself; Scratch puts a bare
// mirror of it in its place, made when the repository is first used, so that
// cloning, rebasing and pushing happen for real and later steps see what
// earlier ones pushed, while the server is only read.
//
// Both write every pushed commit to the effects log. Running git belongs in
// internal/gitcli.
package gitremote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitcli"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/repourl"
)

// Remotes is given to git steps.
type Remotes interface {
	// Open makes repo ready to be used and returns the git settings under
	// which its own URL reaches it.
	Open(ctx context.Context, repo Repository) ([]gitcli.Setting, error)
	// Pushed tells of a push that git reported as done.
	Pushed(ctx context.Context, push Push) error
}

// Repository is one repository on a server.
type Repository struct {
	// URL is without user info.
	URL  string
	Auth *gitcli.Auth
	// Settings are needed to reach the server, such as http.sslVerify.
	Settings []gitcli.Setting
}

// Push is a push of one branch or tag.
type Push struct {
	RepoURL string
	// Branch is set for a push of commits, Tag for one of a tag.
	Branch, Tag string
	// Old is the remote branch's tip before the push; empty if there was none.
	Old string
	// New is the commit, or tag, that was pushed.
	New string
	// Known are remote tips at the time of the push: commits reachable from
	// them are not new.
	Known []string
	// Env and Dir are a repository that has the commits.
	Env gitcli.Env
	Dir string
	// Step is the alias of the step that pushed.
	Step string
}

// Live returns the edge to the real servers.
func Live(log *effects.Log) Remotes { return live{recorder{log: log, pushed: true}} }

type live struct{ recorder }

func (live) Open(_ context.Context, repo Repository) ([]gitcli.Setting, error) {
	return repo.Settings, nil
}

// Kept is another edge that keeps pushes to itself: gitrepo.Recording. What it
// keeps of a repository by its URL is in the mirrors, too, and it is told of what
// is pushed to them.
type Kept interface {
	Kept(url string) (heads map[string]gitrepo.Hash, objects []gitrepo.Object)
	Keep(url string, push gitrepo.Elsewhere) error
}

// Scratch is an edge that keeps every push in mirrors below a directory of its
// own. It must be closed.
type Scratch struct {
	recorder
	kept    Kept
	mu      sync.Mutex
	dir     string
	mirrors map[string]*mirror
}

type mirror struct {
	once sync.Once
	dir  string
	err  error

	mu sync.Mutex
	// taken is how many of the kept objects the mirror has.
	taken int
}

// NewScratch returns a Scratch that logs to log. kept may be nil.
func NewScratch(log *effects.Log, kept Kept) *Scratch {
	return &Scratch{recorder: recorder{log: log}, kept: kept, mirrors: map[string]*mirror{}}
}

// Close removes the mirrors.
func (s *Scratch) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := s.dir
	s.dir, s.mirrors = "", map[string]*mirror{}
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}

// Open implements Remotes. The mirror has all branches and tags.
func (s *Scratch) Open(ctx context.Context, repo Repository) ([]gitcli.Setting, error) {
	m, err := s.mirror(repo.URL)
	if err != nil {
		return nil, err
	}
	m.once.Do(func() { m.err = clone(ctx, m.dir, repo) })
	if m.err != nil {
		s.mu.Lock()
		delete(s.mirrors, repourl.Git(repo.URL)) // the next use tries again
		s.mu.Unlock()
		return nil, fmt.Errorf("cannot mirror %s: %w", repo.URL, m.err)
	}
	if s.kept != nil {
		if err := m.take(ctx, repo, s.kept); err != nil {
			return nil, fmt.Errorf("cannot mirror what was recorded of %s: %w", repo.URL, err)
		}
	}
	return append(slices.Clone(repo.Settings), gitcli.Setting{
		Key: "url." + m.dir + ".insteadOf", Value: repo.URL,
	}), nil
}

func (s *Scratch) mirror(url string) (*mirror, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "stepd-mirrors-")
		if err != nil {
			return nil, fmt.Errorf("cannot make a directory for mirrors: %w", err)
		}
		s.dir = dir
	}
	key := repourl.Git(url)
	m, ok := s.mirrors[key]
	if !ok {
		dir, err := os.MkdirTemp(s.dir, "repo-")
		if err != nil {
			return nil, fmt.Errorf("cannot make a directory for a mirror: %w", err)
		}
		m = &mirror{dir: filepath.Join(dir, "mirror.git")}
		s.mirrors[key] = m
	}
	return m, nil
}

func clone(ctx context.Context, dir string, repo Repository) error {
	env := gitcli.Env{Auth: repo.Auth, Settings: repo.Settings}
	if _, err := env.Run(ctx, filepath.Dir(dir), "clone", "--bare", "--quiet", "--", repo.URL, dir); err != nil {
		return err
	}
	// What steps may ask of a hosting provider's server.
	for _, setting := range [][2]string{{"uploadpack.allowFilter", "true"}, {"uploadpack.allowAnySHA1InWant", "true"}} {
		if _, err := env.Run(ctx, dir, "config", setting[0], setting[1]); err != nil {
			return err
		}
	}
	return nil
}

// take brings the branches that recorded pushes moved, here or on the other
// edge, to where that edge has them.
func (m *mirror) take(ctx context.Context, repo Repository, kept Kept) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var env gitcli.Env
	heads, objects := kept.Kept(repo.URL)
	for _, o := range objects[m.taken:] {
		id, err := env.RunInput(ctx, m.dir, o.Data, "hash-object", "-w", "--stdin", "-t", o.Type.String())
		if err != nil {
			return err
		}
		if id = strings.TrimSpace(id); id != o.ID.String() {
			return fmt.Errorf("object %s was recorded as %s", id, o.ID)
		}
	}
	m.taken = len(objects)
	for branch, id := range heads {
		if err := m.complete(ctx, repo, id); err != nil {
			return fmt.Errorf("branch %s: %w", branch, err)
		}
		if _, err := env.Run(ctx, m.dir, "update-ref", "refs/heads/"+branch, id.String()); err != nil {
			return err
		}
	}
	return nil
}

// complete makes sure that all of a commit is in the mirror. The other edge may
// have built it on what came to the server after the mirror was made.
func (m *mirror) complete(ctx context.Context, repo Repository, id gitrepo.Hash) error {
	var env gitcli.Env
	check := func() error {
		_, err := env.Run(ctx, m.dir, "rev-list", "--objects", "--quiet", id.String(), "--not", "--all")
		return err
	}
	if check() == nil {
		return nil
	}
	server := gitcli.Env{Auth: repo.Auth, Settings: repo.Settings}
	if _, err := server.Run(ctx, m.dir, "fetch", "--quiet", "--no-tags", "--", repo.URL, "+refs/heads/*:refs/server/*"); err != nil {
		return err
	}
	if err := check(); err != nil {
		return fmt.Errorf("the server no longer has what was committed on: %w", err)
	}
	return nil
}

// Pushed implements Remotes.
func (s *Scratch) Pushed(ctx context.Context, p Push) error {
	if err := s.recorder.Pushed(ctx, p); err != nil {
		return err
	}
	if s.kept == nil || p.Branch == "" {
		return nil
	}
	m, err := s.mirror(p.RepoURL)
	if err != nil {
		return err
	}
	p.Env, p.Dir = gitcli.Env{}, m.dir // has all tips
	ids, err := newCommits(ctx, p, -1)
	if err != nil {
		return fmt.Errorf("cannot list the pushed commits: %w", err)
	}
	commits, err := m.read(ctx, hashes(ids))
	if err != nil {
		return err
	}
	return s.kept.Keep(p.RepoURL, gitrepo.Elsewhere{Branch: p.Branch, New: plumbing.NewHash(p.New), Commits: commits, Read: m.read})
}

func hashes(ids []string) []gitrepo.Hash {
	out := make([]gitrepo.Hash, len(ids))
	for i, id := range ids {
		out[i] = plumbing.NewHash(id)
	}
	return out
}

// maxObject bounds an object that is read from a mirror, in bytes.
const maxObject = 64 << 20

// read returns those of the objects that the mirror has and that are not too
// large to be shown.
func (m *mirror) read(ctx context.Context, ids []gitrepo.Hash) ([]gitrepo.Object, error) {
	// A storage does not see the packs that come after it was opened.
	storage := filesystem.NewStorage(osfs.New(m.dir, osfs.WithBoundOS()), cache.NewObjectLRU(cache.MiByte))
	var objects []gitrepo.Object
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		size, err := storage.EncodedObjectSize(id)
		if errors.Is(err, plumbing.ErrObjectNotFound) || err == nil && size > maxObject {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read object %s: %w", id, err)
		}
		o, err := readObject(storage, id)
		if err != nil {
			return nil, fmt.Errorf("cannot read object %s: %w", id, err)
		}
		objects = append(objects, o)
	}
	return objects, nil
}

func readObject(storage *filesystem.Storage, id gitrepo.Hash) (gitrepo.Object, error) {
	encoded, err := storage.EncodedObject(plumbing.AnyObject, id)
	if err != nil {
		return gitrepo.Object{}, err
	}
	r, err := encoded.Reader()
	if err != nil {
		return gitrepo.Object{}, err
	}
	data, err := io.ReadAll(io.LimitReader(r, maxObject))
	return gitrepo.Object{ID: id, Type: encoded.Type(), Data: data}, errors.Join(err, r.Close())
}

const (
	// maxCommits bounds how many commits of one push are logged.
	maxCommits = 100
	// maxDiff bounds a logged diff, in bytes.
	maxDiff = 1 << 20
)

type recorder struct {
	log    *effects.Log
	pushed bool
}

// Pushed implements Remotes: one effects.Commit per new commit, oldest first.
func (r recorder) Pushed(ctx context.Context, p Push) error {
	if p.Tag != "" {
		r.log.Request(effects.Request{
			Kind: "git-tag", Target: p.RepoURL, Done: r.pushed, Step: p.Step,
			Detail: map[string]any{"tag": p.Tag, "object": p.New},
		})
		return nil
	}
	commits, err := newCommits(ctx, p, maxCommits)
	if err != nil {
		return fmt.Errorf("cannot list the pushed commits: %w", err)
	}
	for _, id := range commits {
		c, err := describe(ctx, p, id)
		if err != nil {
			return fmt.Errorf("cannot describe pushed commit %s: %w", id, err)
		}
		c.Pushed = r.pushed
		r.log.Commit(c)
	}
	return nil
}

// newCommits lists the commits that a push made reachable, the last ones when
// there are more than most; -1 is no bound.
func newCommits(ctx context.Context, p Push, most int) ([]string, error) {
	var tips strings.Builder
	for _, id := range append([]string{p.Old}, p.Known...) {
		if id != "" {
			tips.WriteString(id + "\n")
		}
	}
	listing, err := p.Env.RunInput(ctx, p.Dir, []byte(tips.String()), "cat-file", "--batch-check=%(objectname) %(objecttype)")
	if err != nil {
		return nil, err
	}
	var known strings.Builder
	for line := range strings.Lines(listing) {
		// A tip that was not fetched cannot be an ancestor of what was pushed.
		if id, typ, _ := strings.Cut(strings.TrimSpace(line), " "); typ == "commit" {
			known.WriteString("^" + id + "\n")
		}
	}
	out, err := p.Env.RunInput(ctx, p.Dir, []byte(known.String()),
		"rev-list", "--reverse", "--topo-order", fmt.Sprintf("--max-count=%d", most), p.New, "--stdin")
	return strings.Fields(out), err
}

func describe(ctx context.Context, p Push, id string) (effects.Commit, error) {
	c := effects.Commit{RepoURL: p.RepoURL, Branch: p.Branch, Commit: id, Step: p.Step}
	message, err := p.Env.Run(ctx, p.Dir, "log", "-1", "--format=%B", id)
	if err != nil {
		return c, err
	}
	c.Message = strings.TrimRight(message, "\n") + "\n"
	names, err := p.Env.Run(ctx, p.Dir, "diff-tree", "--root", "--no-commit-id", "--name-only", "--no-renames", "-r", "-m", "--first-parent", "-z", id)
	if err != nil {
		return c, err
	}
	c.Paths = []string{}
	for name := range strings.SplitSeq(names, "\x00") {
		if name != "" {
			c.Paths = append(c.Paths, name)
		}
	}
	slices.Sort(c.Paths)
	diff, err := p.Env.Run(ctx, p.Dir, "diff-tree", "--root", "--no-commit-id", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", "-m", "--first-parent", id)
	if err != nil {
		return c, err
	}
	if len(diff) > maxDiff {
		diff = diff[:strings.LastIndexByte(diff[:maxDiff], '\n')+1] + "(diff cut after 1 MiB)\n"
	}
	c.Diff = diff
	return c, nil
}
