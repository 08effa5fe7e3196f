package builtin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/gitignore"
	"github.com/otiai10/copy"

	"github.com/stepd/stepd/steps"
)

type copyConfig struct {
	InPath  string `json:"inPath"`
	OutPath string `json:"outPath"`
	Ignore  string `json:"ignore"`
}

// Copy is `copy`: a file, or a directory merged into what is there. Symlinks
// are skipped, except that inPath itself may be one; .git is skipped unless
// ignore says "!.git/".
func Copy() steps.Registration { return stateless("copy", runCopy) }

func runCopy(_ context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[copyConfig](sc)
	if err != nil {
		return failed(err)
	}
	in, err := within(sc, cfg.InPath)
	if err != nil {
		return errored(err)
	}
	out, err := within(sc, cfg.OutPath)
	if err != nil {
		return errored(err)
	}
	ignored := ignoreMatcher(cfg.Ignore)
	err = copy.Copy(in, out, copy.Options{
		OnSymlink: func(string) copy.SymlinkAction { return copy.Skip },
		Skip: func(info os.FileInfo, src, _ string) (bool, error) {
			rel, err := filepath.Rel(in, src)
			if err != nil || rel == "." {
				return false, err
			}
			return ignored(rel, info.IsDir()), nil
		},
	})
	if err != nil {
		return errored(fmt.Errorf("failed to copy %q to %q: %w", cfg.InPath, cfg.OutPath, relativeTo(sc.WorkDir, err)))
	}
	return succeeded(nil)
}

// ignoreMatcher reads .gitignore text; .git is ignored before its first line.
func ignoreMatcher(rules string) func(rel string, isDir bool) bool {
	patterns := []gitignore.Pattern{gitignore.ParsePattern(".git", nil)}
	for line := range strings.Lines(rules) {
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		patterns = append(patterns, gitignore.ParsePattern(line, nil))
	}
	matcher := gitignore.NewMatcher(patterns)
	return func(rel string, isDir bool) bool {
		return matcher.Match(strings.Split(filepath.ToSlash(rel), "/"), isDir)
	}
}
