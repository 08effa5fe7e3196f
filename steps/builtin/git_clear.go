package builtin

import (
	"context"
	"fmt"

	"github.com/stepd/stepd/steps"
)

// GitClear is `git-clear`: it removes every file of a work tree but .git.
func GitClear() steps.Registration { return stateless("git-clear", runGitClear) }

func runGitClear(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[struct {
		Path string `json:"path"`
	}](sc)
	if err != nil {
		return failed(err)
	}
	tree, err := loadWorkTree(ctx, sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	// What is not tracked yet is added so that it is removed too.
	for _, args := range [][]string{{"add", "."}, {"rm", "-rf", "--quiet", "--ignore-unmatch", "."}} {
		if _, err := tree.env.Run(ctx, tree.dir, args...); err != nil {
			return errored(fmt.Errorf("error clearing the working tree at %s: %w", cfg.Path, err))
		}
	}
	return succeeded(nil)
}
