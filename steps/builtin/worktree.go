package builtin

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/stepd/stepd/internal/gitcli"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/steps"
)

// The keys under which git-clone leaves, in the configuration of the
// repository it made, what later git steps need (Kargo's names).
const (
	keyRepoDir     = "kargo.repoDir"
	keyHomeDir     = "kargo.repoHomeDir"
	keyOriginalURL = "kargo.repoOriginalURL"
)

// workTree is a directory that git-clone checked out.
type workTree struct {
	// dir is the work tree's absolute path.
	dir string
	// url is the repository's URL as configured, without user info.
	url string
	// env runs git on the clone, offline and without credentials.
	env gitcli.Env
}

// loadWorkTree finds the clone behind a configured path. Only work trees made
// by git-clone in this work dir are accepted: the clone's HOME is trusted with
// git's configuration.
func loadWorkTree(ctx context.Context, sc *steps.Context, path string) (*workTree, error) {
	fail := func(err error) error {
		return fmt.Errorf("error loading working tree from %s: %w", path, relativeTo(sc.WorkDir, err))
	}
	dir, err := within(sc, path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fail(err)
	}
	w := &workTree{dir: dir, env: gitcli.Env{Ceiling: sc.WorkDir}}
	out, err := w.env.Run(ctx, dir, "config", "-z", "--get-regexp", `^kargo\.`)
	if err != nil {
		return nil, fail(fmt.Errorf("it is not a work tree made by git-clone: %w", err))
	}
	settings := map[string]string{}
	for entry := range strings.SplitSeq(out, "\x00") {
		key, value, _ := strings.Cut(entry, "\n")
		settings[key] = value // git lower-cases keys
	}
	repo, home, original := settings[strings.ToLower(keyRepoDir)], settings[strings.ToLower(keyHomeDir)], settings[strings.ToLower(keyOriginalURL)]
	if !inside(sc.WorkDir, home) || !inside(sc.WorkDir, repo) {
		return nil, fail(errors.New("its repository is not in this promotion's work dir"))
	}
	w.env.Home, w.url = home, original
	return w, nil
}

// stopAgent ends what may hold a signing key, once a step is done with it.
func stopAgent(ctx context.Context, sc *steps.Context, home string) {
	if err := gitcli.StopAgent(context.WithoutCancel(ctx), home); err != nil {
		sc.Log.Warn("cannot stop the agent that holds the signing key", "error", err)
	}
}

// inside tells whether path is below dir, symlinks resolved.
func inside(dir, path string) bool {
	realDir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	realPath, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(realDir, realPath)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}

// head returns the id of the work tree's commit.
func (w *workTree) head(ctx context.Context) (string, error) {
	out, err := w.env.Run(ctx, w.dir, "rev-parse", "HEAD")
	return strings.TrimSpace(out), err
}

// branch returns the checked out branch; empty for a detached HEAD.
func (w *workTree) branch(ctx context.Context) (string, error) {
	out, err := w.env.Run(ctx, w.dir, "branch", "--show-current")
	return strings.TrimSpace(out), err
}

// gitAccess reaches the servers of repositories: remotes decides where, the
// granted capabilities with which credentials.
type gitAccess struct {
	remotes gitremote.Remotes
	caps    steps.Capabilities
}

// open returns env extended by what git needs to reach repoURL.
func (a gitAccess) open(ctx context.Context, sc *steps.Context, env gitcli.Env, repoURL string, insecure bool) (gitcli.Env, error) {
	clean, embedded := splitUserinfo(repoURL)
	auth := embedded
	if a.caps.Credentials != nil {
		found, err := a.caps.Credentials.Get(ctx, sc.Project, steps.CredentialsGit, clean)
		if err != nil {
			return env, fmt.Errorf("error getting credentials for %s: %w", clean, err)
		}
		if found != nil {
			auth = &gitcli.Auth{URL: clean, Username: found.Username, Password: found.Password, SSHPrivateKey: found.SSHPrivateKey}
		}
	}
	repo := gitremote.Repository{URL: clean, Auth: auth}
	if insecure {
		repo.Settings = append(repo.Settings, gitcli.Setting{Key: "http.sslVerify", Value: "false"})
	} else if env.Home != "" { // git-clone's setting carries over to later steps
		if out, err := env.Run(ctx, env.Home, "config", "--global", "http.sslVerify"); err == nil && strings.TrimSpace(out) == "false" {
			repo.Settings = append(repo.Settings, gitcli.Setting{Key: "http.sslVerify", Value: "false"})
		}
	}
	settings, err := a.remotes.Open(ctx, repo)
	if err != nil {
		return env, err
	}
	env.Auth, env.Settings = auth, append(env.Settings, settings...)
	return env, nil
}

// splitUserinfo takes user info out of an HTTP URL, so that it reaches no
// configuration file, log or output.
func splitUserinfo(repoURL string) (string, *gitcli.Auth) {
	u, err := url.Parse(repoURL)
	if err != nil || u.User == nil || u.Scheme != "http" && u.Scheme != "https" {
		return repoURL, nil
	}
	username := u.User.Username()
	password, _ := u.User.Password()
	u.User = nil
	clean := u.String()
	if password == "" {
		return clean, nil
	}
	return clean, &gitcli.Auth{URL: clean, Username: username, Password: password}
}

// remoteHeads returns the tips of the remote's branches by name.
func remoteHeads(ctx context.Context, env gitcli.Env, dir, remote string) (map[string]string, error) {
	out, err := env.Run(ctx, dir, "ls-remote", "--heads", "--", remote)
	if err != nil {
		return nil, err
	}
	heads := map[string]string{}
	for line := range strings.Lines(out) {
		if id, ref, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			heads[strings.TrimPrefix(ref, "refs/heads/")] = id
		}
	}
	return heads, nil
}

func values(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}
