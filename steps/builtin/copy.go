package builtin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
//
// Three things that Kargo does are not done: a copy onto itself leaves the
// files as they are instead of empty, a directory is not copied into itself
// again and again, and nothing is written through a symlink of the target that
// leads out of the work dir.
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
	fail := func(err error) (steps.Result, error) {
		return errored(fmt.Errorf("failed to copy %q to %q: %w", cfg.InPath, cfg.OutPath, relativeTo(sc.WorkDir, err)))
	}
	if in == out {
		if _, err := os.Stat(in); err != nil {
			return fail(err)
		}
		return succeeded(nil)
	}
	ignored := ignoreMatcher(cfg.Ignore)
	err = copy.Copy(in, out, copy.Options{
		OnSymlink: func(string) copy.SymlinkAction { return copy.Skip },
		Skip: func(info os.FileInfo, src, dest string) (bool, error) {
			rel, err := filepath.Rel(in, src)
			if err != nil || rel == "." {
				return false, err
			}
			if ignored(rel, info.IsDir()) {
				return true, nil
			}
			if src == out {
				return false, errors.New("the target is inside the source: choose another outPath, or ignore it")
			}
			return false, staysWithin(sc.WorkDir, dest)
		},
	})
	if err != nil {
		return fail(err)
	}
	return succeeded(nil)
}

// staysWithin refuses a target that is a symlink out of dir, or to nothing:
// what is written to it would be written there.
func staysWithin(dir, target string) error {
	info, err := os.Lstat(target)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return nil //nolint:nilerr // what does not exist is no link; the copy reports the rest
	}
	base, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	end, err := filepath.EvalSymlinks(target)
	if err != nil {
		return fmt.Errorf("the target %s is a symlink to nothing: %w", target, err)
	}
	if rel, err := filepath.Rel(base, end); err != nil || !filepath.IsLocal(rel) {
		return fmt.Errorf("the target %s is a symlink that leads out of the working directory", target)
	}
	return nil
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
