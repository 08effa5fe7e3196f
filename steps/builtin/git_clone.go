package builtin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/stepd/stepd/internal/gitcli"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/steps"
)

type gitCloneConfig struct {
	RepoURL               string        `json:"repoURL"`
	Checkout              []gitCheckout `json:"checkout"`
	Author                *gitAuthor    `json:"author"`
	InsecureSkipTLSVerify bool          `json:"insecureSkipTLSVerify"`
	RecurseSubmodules     bool          `json:"recurseSubmodules"`
	Blobless              bool          `json:"blobless"`
}

type gitCheckout struct {
	Path   string   `json:"path"`
	Branch string   `json:"branch"`
	Commit string   `json:"commit"`
	Tag    string   `json:"tag"`
	Create bool     `json:"create"`
	As     string   `json:"as"`
	Sparse []string `json:"sparse"`
}

type gitAuthor struct {
	Name       string `json:"name"`
	Email      string `json:"email"`
	SigningKey string `json:"signingKey"`
}

// GitClone is `git-clone`: a bare clone in a private HOME in the work dir, and
// a work tree per checkout.
//
// Other than Kargo, a checkout without branch, commit and tag gets the remote's
// default branch, as Kargo documents but git refuses; and the orphan branch of
// `create` is made without `git worktree add --orphan`, which needs git 2.42.
func GitClone(remotes gitremote.Remotes) steps.Registration {
	return registration("git-clone", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		return runGitClone(ctx, sc, gitAccess{remotes, caps})
	}), steps.AccessCredentials, steps.AccessGitUser)
}

func runGitClone(ctx context.Context, sc *steps.Context, access gitAccess) (steps.Result, error) {
	cfg, err := decodeConfig[gitCloneConfig](sc)
	if err != nil {
		return failed(err)
	}
	aliases := map[string]bool{}
	for i, c := range cfg.Checkout {
		if c.As != "" && aliases[c.As] {
			return failed(fmt.Errorf("duplicate checkout alias %q at checkout[%d]", c.As, i))
		}
		aliases[c.As] = true
		if err := checkSparse(c.Sparse); err != nil {
			return errored(fmt.Errorf("checkout[%d]: %w", i, err))
		}
	}
	clean, _ := splitUserinfo(cfg.RepoURL)
	user, err := gitUser(ctx, access.caps, cfg.Author)
	if err != nil {
		return errored(err)
	}
	home, err := os.MkdirTemp(sc.WorkDir, "repo-")
	if err != nil {
		return errored(relativeTo(sc.WorkDir, err))
	}
	defer stopAgent(ctx, sc, home)
	repo := filepath.Join(home, "repo")
	offline := gitcli.Env{Home: home, Ceiling: sc.WorkDir}
	if err := prepareHome(ctx, offline, user, cfg.InsecureSkipTLSVerify); err != nil {
		return errored(err)
	}
	env, err := access.open(ctx, sc, offline, cfg.RepoURL, cfg.InsecureSkipTLSVerify)
	if err != nil {
		return errored(err)
	}

	args := []string{"clone", "--bare", "--quiet"}
	for _, s := range [][2]string{{keyRepoDir, repo}, {keyHomeDir, home}, {keyOriginalURL, clean}} {
		args = append(args, "--config", s[0]+"="+s[1])
	}
	if cfg.Blobless {
		args = append(args, "--filter", "blob:none")
	}
	if _, err := env.Run(ctx, home, append(args, "--", clean, repo)...); err != nil {
		return errored(fmt.Errorf("error cloning %s: %w", clean, err))
	}

	commits := map[string]any{}
	for _, c := range cfg.Checkout {
		id, err := checkout{cfg: c, url: clean, repo: repo, env: env, remotes: access.remotes, signed: user.SigningKey != ""}.run(ctx, sc, cfg.RecurseSubmodules)
		if err != nil {
			return errored(relativeTo(sc.WorkDir, err))
		}
		key := c.As
		if key == "" {
			key = c.Path
		}
		commits[key] = id
	}
	return succeeded(map[string]any{"commits": commits})
}

// checkSparse accepts directories, as cone mode needs them.
func checkSparse(dirs []string) error {
	for _, dir := range dirs {
		switch {
		case path.IsAbs(dir):
			return fmt.Errorf("sparse path %q must be relative to the repository's root", dir)
		case strings.HasPrefix(path.Clean(dir), ".."):
			return fmt.Errorf("sparse path %q leaves the repository", dir)
		case strings.ContainsAny(dir, "*?["):
			return fmt.Errorf("sparse path %q is a pattern; name a directory", dir)
		}
	}
	return nil
}

type checkout struct {
	cfg       gitCheckout
	url, repo string
	env       gitcli.Env
	remotes   gitremote.Remotes
	signed    bool
}

// run makes the work tree and returns the id of its commit.
func (c checkout) run(ctx context.Context, sc *steps.Context, submodules bool) (string, error) {
	dir, err := within(sc, c.cfg.Path)
	if err != nil {
		return "", err
	}
	ref, err := c.ref(ctx, sc)
	if err != nil {
		return "", err
	}
	args := []string{"worktree", "add", "--quiet"}
	if c.cfg.Commit != "" || c.cfg.Tag != "" {
		args = append(args, "--detach")
	}
	if len(c.cfg.Sparse) > 0 {
		args = append(args, "--no-checkout")
	}
	if _, err := c.env.Run(ctx, c.repo, append(args, "--", dir, ref)...); err != nil {
		return "", fmt.Errorf("error adding work tree %s for %s: %w", c.cfg.Path, ref, err)
	}
	if len(c.cfg.Sparse) > 0 {
		if _, err := c.env.Run(ctx, dir, append([]string{"sparse-checkout", "set", "--cone", "--end-of-options"}, c.cfg.Sparse...)...); err != nil {
			return "", fmt.Errorf("error setting sparse checkout of %s: %w", c.cfg.Path, err)
		}
		if _, err := c.env.Run(ctx, dir, "checkout", "--quiet"); err != nil {
			return "", fmt.Errorf("error checking out %s: %w", c.cfg.Path, err)
		}
	}
	if submodules {
		if _, err := c.env.Run(ctx, dir, "submodule", "--quiet", "update", "--init", "--recursive"); err != nil {
			return "", fmt.Errorf("error updating submodules of %s: %w", c.cfg.Path, err)
		}
	}
	id, err := c.env.Run(ctx, dir, "rev-parse", "HEAD")
	return strings.TrimSpace(id), err
}

// ref says what to check out, creating a branch where that was asked for.
func (c checkout) ref(ctx context.Context, sc *steps.Context) (string, error) {
	switch {
	case c.cfg.Commit != "":
		return c.cfg.Commit, nil
	case c.cfg.Tag != "":
		return "refs/tags/" + c.cfg.Tag, nil // a branch may have the same name
	case c.cfg.Branch == "":
		head, err := c.env.Run(ctx, c.repo, "symbolic-ref", "--short", "HEAD")
		if err != nil {
			return "", fmt.Errorf("cannot tell the default branch of %s: %w", c.url, err)
		}
		sc.Log.Warn("git-clone checks out the default branch; Kargo fails without branch, commit or tag", "path", c.cfg.Path)
		return strings.TrimSpace(head), nil
	}
	heads, err := remoteHeads(ctx, c.env, c.repo, "origin")
	if err != nil {
		return "", fmt.Errorf("error listing the branches of %s: %w", c.url, err)
	}
	if _, ok := heads[c.cfg.Branch]; ok {
		return c.cfg.Branch, nil
	}
	if !c.cfg.Create {
		return "", fmt.Errorf("remote branch %q of repo %s does not exist; set create=true to create it", c.cfg.Branch, c.url)
	}
	return c.cfg.Branch, c.createOrphan(ctx, sc, heads)
}

// createOrphan makes a branch of one empty commit and pushes it.
func (c checkout) createOrphan(ctx context.Context, sc *steps.Context, heads map[string]string) error {
	fail := func(err error) error {
		return fmt.Errorf("error creating orphan branch %q: %w", c.cfg.Branch, err)
	}
	tree, err := c.env.RunInput(ctx, c.repo, []byte{}, "mktree")
	if err != nil {
		return fail(err)
	}
	args := []string{"commit-tree", "-m", "Initial commit"}
	if c.signed { // commit-tree does not read commit.gpgSign
		args = append(args, "-S")
	}
	out, err := c.env.Run(ctx, c.repo, append(args, strings.TrimSpace(tree))...)
	if err != nil {
		return fail(err)
	}
	id, ref := strings.TrimSpace(out), "refs/heads/"+c.cfg.Branch
	if _, err := c.env.Run(ctx, c.repo, "update-ref", ref, id); err != nil {
		return fail(err)
	}
	if _, err := c.env.Run(ctx, c.repo, "push", "--quiet", "origin", ref+":"+ref); err != nil {
		return fail(err)
	}
	return c.remotes.Pushed(ctx, gitremote.Push{
		RepoURL: c.url, Branch: c.cfg.Branch, New: id, Known: values(heads),
		Env: c.env, Dir: c.repo, Step: sc.Alias,
	})
}

// gitUser is who commits in a clone: the configured author, else the system's
// user, else Kargo's default. An author without a key commits unsigned.
func gitUser(ctx context.Context, caps steps.Capabilities, author *gitAuthor) (steps.GitUser, error) {
	if author != nil {
		user := steps.GitUser{Name: author.Name, Email: author.Email, SigningKey: author.SigningKey}
		if author.SigningKey != "" {
			user.SigningKeyType = signingKeyType(author.SigningKey)
		}
		return user, nil
	}
	var user steps.GitUser
	if caps.GitUser != nil {
		var err error
		if user, err = caps.GitUser.GitUser(ctx); err != nil {
			return user, fmt.Errorf("error getting the git user: %w", err)
		}
	}
	if user.Name == "" {
		user.Name = "Kargo"
	}
	if user.Email == "" {
		user.Email = "no-reply@kargo.io"
	}
	return user, nil
}

func signingKeyType(key string) string {
	if strings.Contains(key, "OPENSSH PRIVATE KEY") {
		return "ssh"
	}
	return "gpg"
}

// prepareHome writes the global git configuration of a clone.
func prepareHome(ctx context.Context, env gitcli.Env, user steps.GitUser, insecure bool) error {
	settings := []gitcli.Setting{
		{Key: "init.defaultBranch", Value: "main"},
		{Key: "user.name", Value: user.Name},
		{Key: "user.email", Value: user.Email},
	}
	if insecure {
		settings = append(settings, gitcli.Setting{Key: "http.sslVerify", Value: "false"})
	}
	if user.SigningKey != "" {
		signing, err := gitcli.InstallSigningKey(ctx, env.Home, user)
		if err != nil {
			return errors.Join(errors.New("error installing the signing key"), err)
		}
		settings = append(settings, signing...)
	}
	for _, s := range settings {
		if _, err := env.Run(ctx, env.Home, "config", "--global", s.Key, s.Value); err != nil {
			return err
		}
	}
	return nil
}
