package builtin

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/stepd/stepd/internal/gitcli"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/steps"
)

type gitPushConfig struct {
	Path                 string `json:"path"`
	TargetBranch         string `json:"targetBranch"`
	GenerateTargetBranch bool   `json:"generateTargetBranch"`
	Tag                  string `json:"tag"`
	Force                bool   `json:"force"`
	MaxAttempts          int    `json:"maxAttempts"`
	Provider             string `json:"provider"`
}

// IntegrationPolicy says how git-push brings in what the remote branch has and
// the work tree does not (Kargo's GIT_PUSH_INTEGRATION_POLICY).
type IntegrationPolicy string

// The policies of Kargo v1.11.2. The zero value is AlwaysRebase.
const (
	AlwaysRebase IntegrationPolicy = "AlwaysRebase"
	AlwaysMerge  IntegrationPolicy = "AlwaysMerge"
	// RebaseOrMerge and RebaseOrFail rebase only where no signature is lost:
	// each local commit has a trusted signature and signing is configured, or
	// neither.
	RebaseOrMerge IntegrationPolicy = "RebaseOrMerge"
	RebaseOrFail  IntegrationPolicy = "RebaseOrFail"
)

var (
	errMergeConflict = errors.New("merge conflict")
	errUnsafeRebase  = errors.New("rebase is unsafe and policy prohibits merge fallback")
)

// GitPush is `git-push`: it pushes a work tree's commits, or a tag, to the
// repository it was cloned from, bringing in others' commits first. Pushes to
// one branch are serialised within the process. wait is used between attempts;
// nil waits for real.
func GitPush(remotes gitremote.Remotes, policy IntegrationPolicy, wait Wait) steps.Registration {
	locks := &keyedLocks{held: map[string]*keyedLock{}}
	return registration("git-push", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		p := pusher{access: gitAccess{remotes, caps}, policy: policy, wait: wait.orReal(), locks: locks}
		return p.run(ctx, sc)
	}), steps.AccessCredentials)
}

type pusher struct {
	access gitAccess
	policy IntegrationPolicy
	wait   Wait
	locks  *keyedLocks
}

func (p pusher) run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[gitPushConfig](sc)
	if err != nil {
		return failed(err)
	}
	tree, err := loadWorkTree(ctx, sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	defer stopAgent(ctx, sc, tree.env.Home)
	branch, err := targetBranch(ctx, sc, tree, cfg)
	if err != nil {
		return errored(err)
	}
	env, err := p.access.open(ctx, sc, tree.env, tree.url, false)
	if err != nil {
		return errored(err)
	}
	if cfg.Tag != "" {
		err = p.pushTag(ctx, sc, tree, env, cfg.Tag)
	} else {
		err = p.pushBranch(ctx, sc, tree, env, branch, cfg)
	}
	switch {
	case errors.Is(err, errMergeConflict), errors.Is(err, errUnsafeRebase):
		return failed(fmt.Errorf("error pushing commits to remote: %w", err))
	case err != nil:
		return errored(fmt.Errorf("error pushing commits to remote: %w", err))
	}
	id, err := tree.head(ctx)
	if err != nil {
		return errored(fmt.Errorf("error getting the last commit ID: %w", err))
	}
	output := map[string]any{"commit": id, "branch": branch}
	if page := repourl.Commit(cfg.Provider, tree.url, id); page != "" {
		output["commitURL"] = page
	}
	return succeeded(output)
}

func targetBranch(ctx context.Context, sc *steps.Context, tree *workTree, cfg gitPushConfig) (string, error) {
	switch {
	case cfg.TargetBranch != "":
		return cfg.TargetBranch, nil
	case cfg.GenerateTargetBranch:
		return "kargo/promotion/" + sc.Promotion, nil
	}
	branch, err := tree.branch(ctx)
	if err != nil {
		return "", fmt.Errorf("error getting the current branch: %w", err)
	}
	if branch == "" && cfg.Tag == "" {
		return "", fmt.Errorf("%s is on no branch (a commit or tag was checked out); set targetBranch or generateTargetBranch", cfg.Path)
	}
	return branch, nil
}

func (p pusher) pushTag(ctx context.Context, sc *steps.Context, tree *workTree, env gitcli.Env, tag string) error {
	id, err := env.Run(ctx, tree.dir, "rev-parse", "--verify", "refs/tags/"+tag)
	if err != nil {
		return fmt.Errorf("there is no tag %q: %w", tag, err)
	}
	if _, err := env.Run(ctx, tree.dir, "push", "origin", "tag", tag); err != nil {
		return err
	}
	return p.access.remotes.Pushed(ctx, gitremote.Push{
		RepoURL: tree.url, Tag: tag, New: strings.TrimSpace(id), Env: env, Dir: tree.dir, Step: sc.Alias,
	})
}

// rejected matches git's report of a push that lost a race. Kargo retries on
// nothing else.
var rejected = regexp.MustCompile(`(?m)^\s*!\s+\[(?:remote )?rejected].+\((?:non-fast-forward|fetch first|cannot lock ref.*|incorrect old value provided)\)\s*$`)

// pushBranch integrates and pushes until the push is through. Whether a failed
// push is tried again is first decided by the branch: it may have our commits
// although the answer was lost, or it has moved.
func (p pusher) pushBranch(ctx context.Context, sc *steps.Context, tree *workTree, env gitcli.Env, branch string, cfg gitPushConfig) error {
	unlock, err := p.locks.lock(ctx, repourl.Git(tree.url)+"\x00"+branch)
	if err != nil {
		return err
	}
	defer unlock()

	force := cfg.Force || cfg.GenerateTargetBranch
	attempts := cfg.MaxAttempts
	if attempts == 0 {
		attempts = 10
	}
	interval := &backoff.ExponentialBackOff{InitialInterval: time.Second, Multiplier: 1.5, RandomizationFactor: 0.5, MaxInterval: 30 * time.Second}
	interval.Reset()
	for attempt := 1; ; attempt++ {
		heads, err := remoteHeads(ctx, env, tree.dir, "origin")
		if err != nil {
			return err
		}
		if heads[branch] != "" && !force {
			if err := p.integrate(ctx, tree, env, branch); err != nil {
				return err
			}
		}
		head, err := tree.head(ctx)
		if err != nil {
			return err
		}
		p.fetchBase(ctx, tree, env, branch, heads)
		args := []string{"push", "origin", "HEAD:refs/heads/" + branch}
		if force {
			args = append(args, "--force")
		}
		_, err = env.Run(ctx, tree.dir, args...)
		if err != nil {
			after, lerr := remoteHeads(ctx, env, tree.dir, "origin")
			if lerr != nil {
				return errors.Join(err, lerr)
			}
			if after[branch] != head {
				moved := after[branch] != heads[branch]
				if attempt >= attempts || !moved && !raced(err) {
					return err
				}
				sc.Log.Info("the push lost a race and is tried again", "branch", branch, "attempt", attempt)
				if err := p.wait(ctx, interval.NextBackOff()); err != nil {
					return err
				}
				continue
			}
		}
		return p.access.remotes.Pushed(ctx, gitremote.Push{
			RepoURL: tree.url, Branch: branch, Old: heads[branch], New: head, Known: values(heads),
			Env: env, Dir: tree.dir, Step: sc.Alias,
		})
	}
}

func raced(err error) bool {
	var e *gitcli.Error
	return errors.As(err, &e) && rejected.MatchString(e.Output)
}

// fetchBase fetches the branch, or where it does not exist the one that is
// checked out, when it has moved since the clone and nothing was integrated:
// without it, the history that is there already looks as new as what is pushed. It
// only makes the report exact, so an error is left to the push.
func (p pusher) fetchBase(ctx context.Context, tree *workTree, env gitcli.Env, branch string, heads map[string]string) {
	if heads[branch] == "" {
		branch, _ = tree.branch(ctx)
	}
	if id := heads[branch]; id == "" || has(ctx, tree, id) {
		return
	}
	_, _ = env.Run(ctx, tree.dir, "fetch", "--quiet", "--no-tags", "origin", "refs/heads/"+branch)
}

// has tells whether the clone has a commit.
func has(ctx context.Context, tree *workTree, id string) bool {
	_, err := tree.env.Run(ctx, tree.dir, "cat-file", "-e", id+"^{commit}")
	return err == nil
}

// integrate brings the remote branch's commits into the work tree. After a
// conflict the work tree is left as git left it, as Kargo does.
func (p pusher) integrate(ctx context.Context, tree *workTree, env gitcli.Env, branch string) error {
	rebase := p.policy != AlwaysMerge
	if p.policy == RebaseOrMerge || p.policy == RebaseOrFail {
		if _, err := env.Run(ctx, tree.dir, "fetch", "--quiet", "origin", "refs/heads/"+branch); err != nil {
			return err
		}
		var err error
		if rebase, err = rebaseIsSafe(ctx, tree, env); err != nil {
			return err
		}
		if !rebase && p.policy == RebaseOrFail {
			return errUnsafeRebase
		}
	}
	var err error
	if rebase {
		_, err = env.Run(ctx, tree.dir, "pull", "--quiet", "--no-edit", "--rebase", "origin", "refs/heads/"+branch)
	} else {
		err = pullMerge(ctx, tree, env, branch)
	}
	if err == nil {
		return nil
	}
	unmerged, lerr := env.Run(ctx, tree.dir, "ls-files", "--unmerged")
	if lerr == nil && unmerged != "" {
		return fmt.Errorf("%w: %w", errMergeConflict, err)
	}
	return err
}

// pullMerge is `git pull --no-rebase`, but for the message of the merge: it names
// the repository, wherever its URL leads to.
func pullMerge(ctx context.Context, tree *workTree, env gitcli.Env, branch string) error {
	if _, err := env.Run(ctx, tree.dir, "fetch", "--quiet", "origin", "refs/heads/"+branch); err != nil {
		return err
	}
	id, err := env.Run(ctx, tree.dir, "rev-parse", "FETCH_HEAD")
	if err != nil {
		return err
	}
	// The line that git fetch writes for a URL (builtin/fetch.c).
	fetched := fmt.Sprintf("%s\t\tbranch '%s' of %s\n", strings.TrimSpace(id), branch, strings.TrimSuffix(strings.TrimRight(tree.url, "/"), ".git"))
	message, err := env.RunInput(ctx, tree.dir, []byte(fetched), "fmt-merge-msg")
	if err != nil {
		return err
	}
	_, err = env.Run(ctx, tree.dir, "merge", "--quiet", "-m", message, "FETCH_HEAD")
	return err
}

// rebaseIsSafe tells whether replaying the local commits keeps the meaning of
// their signatures. FETCH_HEAD is the remote branch.
func rebaseIsSafe(ctx context.Context, tree *workTree, env gitcli.Env) (bool, error) {
	out, err := env.Run(ctx, tree.dir, "log", "--format=%G?", "FETCH_HEAD..HEAD")
	if err != nil {
		return false, err
	}
	sign, err := env.Run(ctx, tree.dir, "config", "--default", "false", "--type", "bool", "commit.gpgSign")
	if err != nil {
		return false, err
	}
	wanted := "N"
	if strings.TrimSpace(sign) == "true" {
		wanted = "G"
	}
	for _, signature := range strings.Fields(out) {
		if signature != wanted {
			return false, nil
		}
	}
	return true, nil
}

// Wait pauses for d or until ctx is done, whose error it then returns.
type Wait func(ctx context.Context, d time.Duration) error

func (w Wait) orReal() Wait {
	if w != nil {
		return w
	}
	return func(ctx context.Context, d time.Duration) error {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
			return nil
		}
	}
}

// keyedLocks are mutexes by name that a context can stop waiting for.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]*keyedLock
}

type keyedLock struct {
	gate  chan struct{}
	users int
}

func (k *keyedLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	l, ok := k.held[key]
	if !ok {
		l = &keyedLock{gate: make(chan struct{}, 1)}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
	}
	select {
	case l.gate <- struct{}{}:
		return func() { <-l.gate; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
