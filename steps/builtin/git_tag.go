package builtin

import (
	"context"
	"fmt"

	"github.com/stepd/stepd/steps"
)

type gitTagConfig struct {
	Path    string `json:"path"`
	Tag     string `json:"tag"`
	Message string `json:"message"`
	Force   bool   `json:"force"`
}

// GitTag is `git-tag`: an annotated tag on a work tree's commit, local until
// git-push pushes it.
func GitTag() steps.Registration {
	return registration("git-tag", func(steps.Capabilities) steps.Runner { return steps.RunnerFunc(runGitTag) }, steps.AccessGitUser)
}

func runGitTag(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[gitTagConfig](sc)
	if err != nil {
		return failed(err)
	}
	tree, err := loadWorkTree(ctx, sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	defer stopAgent(ctx, sc, tree.env.Home)
	args := []string{"tag", "-a", "-F", "-"}
	if cfg.Force {
		args = append(args, "--force")
	}
	if _, err := tree.env.RunInput(ctx, tree.dir, []byte(cfg.Message), append(args, "--", cfg.Tag)...); err != nil {
		return errored(fmt.Errorf("error creating tag %q: %w", cfg.Tag, err))
	}
	id, err := tree.head(ctx)
	if err != nil {
		return errored(fmt.Errorf("error getting the last commit ID: %w", err))
	}
	return succeeded(map[string]any{"commit": id})
}
