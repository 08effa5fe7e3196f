package builtin

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/stepd/stepd/internal/gitcli"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/pullrequest"
	"github.com/stepd/stepd/steps"
)

type gitOpenPRConfig struct {
	prConfig
	SourceBranch string   `json:"sourceBranch"`
	TargetBranch string   `json:"targetBranch"`
	Title        string   `json:"title"`
	Description  string   `json:"description"`
	Labels       []string `json:"labels"`
}

// prConfig is what the pull request steps have in common.
type prConfig struct {
	RepoURL               string `json:"repoURL"`
	Provider              string `json:"provider"`
	InsecureSkipTLSVerify bool   `json:"insecureSkipTLSVerify"`
}

// GitOpenPR is `git-open-pr`: it opens a pull request for a branch, or adopts
// the one that is open or was merged for the branch's commit. If there is
// nothing to merge it is Skipped, and has no output.
func GitOpenPR(remotes gitremote.Remotes, hosts pullrequest.Hosts) steps.Registration {
	return registration("git-open-pr", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		return runGitOpenPR(ctx, sc, gitAccess{remotes, caps}, hosts)
	}), steps.AccessCredentials)
}

func runGitOpenPR(ctx context.Context, sc *steps.Context, access gitAccess, hosts pullrequest.Hosts) (steps.Result, error) {
	cfg, err := decodeConfig[gitOpenPRConfig](sc)
	if err != nil {
		return failed(err)
	}
	if before, ok := sc.SharedState[sc.Alias].(map[string]any); ok {
		if pr, ok := before["pr"].(map[string]any); ok && pr["id"] != nil {
			return succeeded(before) // opened before a restart
		}
	}
	host, err := cfg.open(ctx, sc, access.caps, hosts)
	if err != nil {
		return errored(err)
	}
	home, err := os.MkdirTemp(sc.WorkDir, "repo-")
	if err != nil {
		return errored(relativeTo(sc.WorkDir, err))
	}
	defer func() { _ = os.RemoveAll(home) }()
	env, err := access.open(ctx, sc, gitcli.Env{Home: home, Ceiling: sc.WorkDir}, cfg.RepoURL, cfg.InsecureSkipTLSVerify)
	if err != nil {
		return errored(err)
	}
	branches, err := compare(ctx, env, home, cfg)
	if err != nil {
		return errored(err)
	}
	known, err := host.List(ctx, cfg.TargetBranch, cfg.SourceBranch)
	if err != nil {
		return errored(fmt.Errorf("error listing pull requests: %w", err))
	}
	if pr, ok := adoptable(known, branches.head); ok {
		return opened(pr)
	}
	if branches.target == "" {
		return errored(fmt.Errorf("remote branch %q of repo %s does not exist", cfg.TargetBranch, cfg.RepoURL))
	}
	if !branches.differ {
		return steps.Result{Status: steps.Skipped, Message: fmt.Sprintf("%s has nothing that %s has not", cfg.SourceBranch, cfg.TargetBranch)}, nil
	}
	title, description := cfg.text(branches.message, sc)
	pr, err := host.Create(ctx, pullrequest.New{
		Title: title, Description: description, Base: cfg.TargetBranch, Head: cfg.SourceBranch,
		HeadCommit: branches.head, Labels: cfg.Labels,
	})
	if err != nil {
		return errored(fmt.Errorf("error opening a pull request: %w", err))
	}
	return opened(pr)
}

func opened(pr pullrequest.PullRequest) (steps.Result, error) {
	return succeeded(map[string]any{"pr": map[string]any{"id": pr.Number, "url": pr.URL}})
}

// open reaches the repository's provider with the password of its git
// credentials as API token.
func (c prConfig) open(ctx context.Context, sc *steps.Context, caps steps.Capabilities, hosts pullrequest.Hosts) (pullrequest.Host, error) {
	clean, embedded := splitUserinfo(c.RepoURL)
	repo := pullrequest.Repository{URL: clean, Provider: c.Provider, InsecureSkipTLSVerify: c.InsecureSkipTLSVerify, Step: sc.Alias}
	if embedded != nil {
		repo.Token = embedded.Password
	}
	if caps.Credentials != nil {
		found, err := caps.Credentials.Get(ctx, sc.Project, steps.CredentialsGit, clean)
		if err != nil {
			return nil, fmt.Errorf("error getting credentials for %s: %w", clean, err)
		}
		if found != nil {
			repo.Token = found.Password
		}
	}
	return hosts.Open(repo)
}

// comparison is what is on the two branches.
type comparison struct {
	head, message string
	// target is the target's tip; empty if there is no such branch.
	target string
	differ bool
}

// compare fetches the tips of both branches, without history.
func compare(ctx context.Context, env gitcli.Env, home string, cfg gitOpenPRConfig) (comparison, error) {
	var c comparison
	fail := func(err error) (comparison, error) {
		return c, fmt.Errorf("error comparing branches of %s: %w", cfg.RepoURL, err)
	}
	clean, _ := splitUserinfo(cfg.RepoURL)
	if _, err := env.Run(ctx, home, "init", "--quiet", "--bare", "repo"); err != nil {
		return fail(err)
	}
	repo := home + "/repo"
	heads, err := remoteHeads(ctx, env, repo, clean)
	if err != nil {
		return fail(err)
	}
	c.head, c.target = heads[cfg.SourceBranch], heads[cfg.TargetBranch]
	if c.head == "" {
		return c, fmt.Errorf("remote branch %q of repo %s does not exist", cfg.SourceBranch, clean)
	}
	refs := []string{"refs/heads/" + cfg.SourceBranch}
	if c.target != "" {
		refs = append(refs, "refs/heads/"+cfg.TargetBranch)
	}
	if _, err := env.Run(ctx, repo, append([]string{"fetch", "--quiet", "--depth", "1", "--", clean}, refs...)...); err != nil {
		return fail(err)
	}
	if c.message, err = env.Run(ctx, repo, "log", "-1", "--format=%B", c.head); err != nil {
		return fail(err)
	}
	if c.target != "" {
		trees, err := env.Run(ctx, repo, "rev-parse", c.head+"^{tree}", c.target+"^{tree}")
		if err != nil {
			return fail(err)
		}
		ids := strings.Fields(trees)
		c.differ = len(ids) == 2 && ids[0] != ids[1]
	}
	return c, nil
}

// adoptable chooses among the pull requests for a commit: an open one, else a
// merged one, the newest of them.
func adoptable(known []pullrequest.PullRequest, head string) (pullrequest.PullRequest, bool) {
	candidates := slices.DeleteFunc(slices.Clone(known), func(pr pullrequest.PullRequest) bool {
		return pr.HeadCommit != head || !pr.Open && !pr.Merged
	})
	if len(candidates) == 0 {
		return pullrequest.PullRequest{}, false
	}
	rank := func(pr pullrequest.PullRequest) int {
		if pr.Open {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(candidates, func(a, b pullrequest.PullRequest) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), b.Created.Compare(a.Created))
	})
	return candidates[0], true
}

// text is the pull request's title and description. What is not configured
// comes from the head commit's message: its first line, and the rest, or all
// of it below another title.
func (c gitOpenPRConfig) text(message string, sc *steps.Context) (title, description string) {
	message = strings.TrimSpace(message)
	first, rest, _ := strings.Cut(message, "\n")
	title, description = c.Title, c.Description
	if description == "" {
		if description = message; title == "" {
			description = strings.TrimSpace(rest)
		}
	}
	if title == "" {
		title = strings.TrimSpace(first)
	}
	if sc.UIBaseURL != "" {
		description += fmt.Sprintf("\n\n[View in Kargo UI](%s/project/%s/stage/%s)", strings.TrimSuffix(sc.UIBaseURL, "/"), sc.Project, sc.Stage)
	}
	return title, description
}
