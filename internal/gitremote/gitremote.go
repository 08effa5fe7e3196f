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
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

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
// keeps of a repository by its URL is in the mirrors, too.
type Kept interface {
	Kept(url string) (heads map[string]gitrepo.Hash, objects []gitrepo.Object)
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
		if err := m.take(ctx, repo.URL, s.kept); err != nil {
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

// take adds what another edge keeps of the repository. A branch of the mirror that
// was pushed to since, or moved on the server, stays as it is.
func (m *mirror) take(ctx context.Context, url string, kept Kept) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var env gitcli.Env
	heads, objects := kept.Kept(url)
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
		ref := "refs/heads/" + branch
		if old, err := env.Run(ctx, m.dir, "rev-parse", "--verify", "--quiet", ref); err == nil {
			if _, err := env.Run(ctx, m.dir, "merge-base", "--is-ancestor", strings.TrimSpace(old), id.String()); err != nil {
				continue
			}
		}
		if _, err := env.Run(ctx, m.dir, "update-ref", ref, id.String()); err != nil {
			return err
		}
	}
	return nil
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
	commits, err := newCommits(ctx, p)
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

func newCommits(ctx context.Context, p Push) ([]string, error) {
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
		"rev-list", "--reverse", "--topo-order", fmt.Sprintf("--max-count=%d", maxCommits), p.New, "--stdin")
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
