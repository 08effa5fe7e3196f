package builtin

import (
	"context"
	"fmt"
	"strings"

	"github.com/stepd/stepd/internal/gitcli"
	"github.com/stepd/stepd/steps"
)

type gitCommitConfig struct {
	Path    string     `json:"path"`
	Message string     `json:"message"`
	Author  *gitAuthor `json:"author"`
}

// GitCommit is `git-commit`: everything that changed in a work tree becomes
// one local commit. With nothing changed it is Skipped.
func GitCommit() steps.Registration {
	return registration("git-commit", func(steps.Capabilities) steps.Runner { return steps.RunnerFunc(runGitCommit) }, steps.AccessGitUser)
}

func runGitCommit(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[gitCommitConfig](sc)
	if err != nil {
		return failed(err)
	}
	tree, err := loadWorkTree(ctx, sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	defer stopAgent(ctx, sc, tree.env.Home)
	if _, err := tree.env.Run(ctx, tree.dir, "add", "."); err != nil {
		return errored(fmt.Errorf("error adding all changes to the working tree: %w", err))
	}
	changes, err := tree.env.Run(ctx, tree.dir, "status", "-s")
	if err != nil {
		return errored(fmt.Errorf("error checking for diffs in the working tree: %w", err))
	}
	status := steps.Skipped
	if strings.TrimSpace(changes) != "" {
		status = steps.Succeeded
		env, err := tree.authoredBy(ctx, cfg.Author)
		if err != nil {
			return errored(err)
		}
		if _, err := env.RunInput(ctx, tree.dir, []byte(cfg.Message), "commit", "--quiet", "-F", "-"); err != nil {
			return errored(fmt.Errorf("error committing to the working tree: %w", err))
		}
	}
	id, err := tree.head(ctx)
	if err != nil {
		return errored(fmt.Errorf("error getting the last commit ID: %w", err))
	}
	return steps.Result{Status: status, Output: map[string]any{"commit": id}}, nil
}

// authoredBy returns the work tree's environment with another author and
// committer. The clone's signing key is not theirs, so theirs is used or none.
func (w *workTree) authoredBy(ctx context.Context, author *gitAuthor) (gitcli.Env, error) {
	env := w.env
	if author == nil {
		return env, nil
	}
	user, err := gitUser(ctx, steps.Capabilities{}, author)
	if err != nil {
		return env, err
	}
	env.Settings = append(env.Settings,
		gitcli.Setting{Key: "user.name", Value: user.Name},
		gitcli.Setting{Key: "user.email", Value: user.Email})
	if user.SigningKey == "" {
		env.Settings = append(env.Settings, gitcli.Setting{Key: "commit.gpgSign", Value: "false"})
		return env, nil
	}
	signing, err := gitcli.InstallSigningKey(ctx, env.Home, user)
	env.Settings = append(env.Settings, signing...)
	return env, err
}
