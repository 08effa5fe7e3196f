// Package atomiccommit is the step atomic-commit: exactly one commit with
// everything that changed, pushed by compare-and-swap.
//
// commit = f(remote tip, the files). The step reads what is to be written
// (files.go, worktree.go), and hands it to the one owner of the repository's
// branch in this process (owner.go), which builds the commit on the remote tip
// and pushes it, deciding what happened by state and never by error text
// (decide.go). What makes it exactly once: the change's identity in a trailer
// (change.go), an intent on disk before the first push (intent.go), and a
// look-back over the branch (decide.go).
//
// Speaking Git belongs in internal/gitrepo.
package atomiccommit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
)

// Kind is the step's name.
const Kind = "atomic-commit"

// Options are the step's edges.
type Options struct {
	// Dialer opens the remote: gitrepo.NewLive, or gitrepo.NewRecording around
	// it for a dry run. It writes the effects log. Required.
	Dialer gitrepo.Dialer
	// IntentDir is a directory outside every work dir that survives a restart
	// of the process; made if absent. A dry run uses one of its own. Required.
	IntentDir string
	// Ledger has the verifications that the setting `verified` names; nil means
	// none.
	Ledger verification.Ledger
	// Secrets reads signing keys; nil means that signing.secretRef is refused.
	Secrets steps.SecretSource
	// Credentials is used where the engine grants none through the step's
	// capabilities; nil means anonymous access.
	Credentials steps.CredentialSource
	// Clock is time.Now when nil. It sets commit times, never waits.
	Clock func() time.Time
	// PushSpacing is the least time between two pushes to one branch, for hosts
	// that limit pushes (GitHub recommends at most 6 a minute per repository).
	// Default none.
	PushSpacing time.Duration
	// FS is the file system for intents; the operating system's when nil.
	FS IntentFS
}

// New returns the step's registration. All runners made from it share one owner
// per repository, branch and credential identity.
func New(opts Options) steps.Registration {
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	if opts.FS == nil {
		opts.FS = OSFS()
	}
	s := &step{Options: opts, owners: newOwners(opts)}
	r := steps.Registration{
		Name: Kind,
		New: func(caps steps.Capabilities) steps.Runner {
			return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
				return s.run(ctx, sc, caps)
			})
		},
	}
	// The step has a deadline of its own; this is for what that does not cover.
	r.DefaultTimeout = 10 * time.Minute
	r.RequiredCapabilities = []steps.Capability{steps.AccessCredentials, steps.AccessGitUser}
	r.ConfigSchema, _ = schemas.Config(Kind)
	r.OutputSchema, _ = schemas.Output(Kind)
	return r
}

type step struct {
	Options
	owners *owners
}

func (s *step) run(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
	out, err := s.commit(ctx, sc, caps)
	if err == nil {
		return steps.Result{Status: steps.Succeeded, Message: out.message(), Output: out.output()}, nil
	}
	err = fmt.Errorf("cannot commit: %w", err)
	status := steps.Errored
	if errors.Is(err, steps.ErrConflict) || errors.Is(err, steps.ErrConfig) {
		status, err = steps.Failed, steps.Terminal(err)
	}
	if gitrepo.Permanent(err) {
		err = steps.Terminal(err)
	}
	return steps.Result{Status: status}, err
}

func (s *step) commit(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (*outcome, error) {
	cfg, err := decode(sc)
	if err != nil {
		return nil, err
	}
	if s.Dialer == nil || s.IntentDir == "" {
		return nil, errors.New("the step was built without a remote or without an intent directory")
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.deadline)
	defer cancel()

	in, err := readInput(ctx, sc, cfg)
	if err != nil {
		return nil, err
	}
	if err := checkAllowed(cfg.AllowPaths, in.changes); err != nil {
		return nil, err
	}
	record, err := s.verification(ctx, sc, cfg)
	if err != nil {
		return nil, err
	}
	who, err := s.identity(ctx, sc, cfg, caps)
	if err != nil {
		return nil, err
	}
	change := newChange(sc, in)
	message, err := composeMessage(sc, cfg, record, change)
	if err != nil {
		return nil, err
	}
	j := &job{
		change: change, overlay: in.overlay, base: in.base, message: message, identity: who,
		createBranch: cfg.CreateBranch, baseBranch: cfg.BaseBranch,
		maxAttempts: cfg.MaxAttempts, alias: sc.Alias, log: sc.Log,
	}
	out, err := s.submit(ctx, sc, cfg, caps, j)
	if err != nil {
		return nil, err
	}
	if u := repourl.Commit(cfg.Provider, in.repoURL, out.commit.String()); u != "" {
		out.url = &u
	}
	return out, nil
}

// submit hands the job to the owner of its branch. When the credentials turn
// out to have expired, fresh ones get one more chance, under an owner of their
// own.
func (s *step) submit(ctx context.Context, sc *steps.Context, cfg *config, caps steps.Capabilities, j *job) (*outcome, error) {
	creds, err := s.credentials(ctx, sc, caps, j.change.repoURL)
	if err != nil {
		return nil, err
	}
	for {
		target := gitrepo.Target{
			URL: j.change.repoURL, Credentials: creds,
			CABundle: []byte(cfg.CABundle), InsecureSkipTLSVerify: cfg.InsecureSkipTLSVerify,
		}
		out, err := s.owners.submit(ctx, target, j)
		if err == nil || !gitrepo.Unauthenticated(err) {
			return out, err
		}
		fresh, ferr := s.credentials(ctx, sc, caps, j.change.repoURL)
		if ferr != nil || fresh.Identity() == creds.Identity() {
			return nil, err
		}
		creds = fresh
		j = j.again()
	}
}

func (s *step) credentials(ctx context.Context, sc *steps.Context, caps steps.Capabilities, repoURL string) (gitrepo.Credentials, error) {
	source := caps.Credentials
	if source == nil {
		source = s.Credentials
	}
	if source == nil {
		return gitrepo.Credentials{}, nil
	}
	c, err := source.Get(ctx, sc.Project, steps.CredentialsGit, repoURL)
	if err != nil {
		return gitrepo.Credentials{}, fmt.Errorf("cannot get the credentials of the repository: %w", err)
	}
	if c == nil {
		return gitrepo.Credentials{}, nil
	}
	return gitrepo.Credentials{Username: c.Username, Password: c.Password, SSHPrivateKey: []byte(c.SSHPrivateKey)}, nil
}

func (s *step) verification(ctx context.Context, sc *steps.Context, cfg *config) (*verification.Record, error) {
	if cfg.Verified == "" {
		return nil, nil
	}
	if s.Ledger == nil {
		return nil, fmt.Errorf("%w: `verified` is set, but no verifications are recorded here", steps.ErrConfig)
	}
	r, err := verification.Find(ctx, s.Ledger, sc.Project, sc.Promotion, sc.Alias, cfg.Verified)
	var absent *verification.NotFoundError
	if errors.As(err, &absent) {
		return nil, fmt.Errorf("%w: %w", steps.ErrConfig, err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the verification that `verified` names: %w", err)
	}
	return &r, nil
}

// identity is who makes a commit, and with which key.
type identity struct {
	author, committer person
	signer            gitrepo.Signer
}

// identity resolves the precedence of compat.md §6.5: an author in the config
// replaces the system's identity, key included.
func (s *step) identity(ctx context.Context, sc *steps.Context, cfg *config, caps steps.Capabilities) (identity, error) {
	system := steps.GitUser{}
	if caps.GitUser != nil {
		u, err := caps.GitUser.GitUser(ctx)
		if err != nil {
			return identity{}, fmt.Errorf("cannot resolve the system's Git identity: %w", err)
		}
		system = u
	}
	id := identity{author: person{Name: system.Name, Email: system.Email}}
	if id.author.Name == "" {
		id.author.Name = "Kargo"
	}
	if id.author.Email == "" {
		id.author.Email = "no-reply@kargo.io"
	}
	if cfg.Author != nil {
		id.author = *cfg.Author
	}
	id.committer = id.author
	if cfg.Committer != nil {
		id.committer = *cfg.Committer
	}
	for _, p := range []person{id.author, id.committer} {
		if (gitrepo.Signature{Name: p.Name}).Nameless() {
			return identity{}, configErrorf("the name %q of the author or committer has nothing that Git keeps in a name", p.Name)
		}
	}
	var err error
	switch {
	case cfg.Signing != nil:
		id.signer, err = s.projectSigner(ctx, sc, cfg.Signing)
	case cfg.Author == nil && system.SigningKey != "":
		id.signer, err = newSigner(system.SigningKeyType, []byte(system.SigningKey))
	}
	return id, err
}

// outcome is what a commit came to.
type outcome struct {
	commit   gitrepo.Hash
	branch   string
	changed  bool
	paths    []string
	attempts int
	url      *string
	found    bool // by look-back
}

func (o *outcome) output() map[string]any {
	paths := make([]any, len(o.paths))
	for i, p := range o.paths {
		paths[i] = p
	}
	var url any
	if o.url != nil {
		url = *o.url
	}
	return map[string]any{
		"commit": o.commit.String(), "branch": o.branch, "changed": o.changed,
		"paths": paths, "attempts": int64(o.attempts), "commitURL": url,
	}
}

func (o *outcome) message() string {
	switch {
	case !o.changed:
		return fmt.Sprintf("nothing to change on branch %s at %s", o.branch, o.commit)
	case o.found:
		return fmt.Sprintf("commit %s was already on branch %s", o.commit, o.branch)
	}
	return fmt.Sprintf("made commit %s on branch %s", o.commit, o.branch)
}
