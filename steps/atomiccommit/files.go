package atomiccommit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/stepd/stepd/internal/fsroot"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/steps"
)

// Limits on one commit.
const (
	maxFiles     = 10_000
	maxFileSize  = 16 << 20
	maxTotalSize = 64 << 20
)

// input is what a step was given to commit.
type input struct {
	repoURL, branch string
	changes         []gitrepo.Change
	// overlay tells that the files came from a plain directory: they have no
	// mode of their own and keep that of the file they replace.
	overlay bool
	// base is the commit a work tree was made from; nil for an overlay.
	base *base
}

// readInput reads the directory at path, and the removals.
func readInput(ctx context.Context, sc *steps.Context, cfg *config) (*input, error) {
	root, err := os.OpenRoot(sc.WorkDir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the work dir: %w", withoutPath(err))
	}
	defer func() { _ = root.Close() }()
	if !fsroot.IsLocal(cfg.Path) {
		return nil, configErrorf("path %q is not inside the work dir", cfg.Path)
	}
	dir, err := root.OpenRoot(cfg.Path)
	if err != nil {
		return nil, configErrorf("cannot open path %q as a directory: %w", cfg.Path, withoutPath(err))
	}
	defer func() { _ = dir.Close() }()

	var in *input
	if _, err := dir.Lstat(".git"); err == nil {
		in, err = readWorktree(ctx, root, dir, sc.WorkDir, cfg)
		if err != nil {
			return nil, err
		}
	} else {
		in = &input{repoURL: cfg.RepoURL, branch: cfg.Branch, overlay: true}
		if in.repoURL == "" || in.branch == "" {
			return nil, configErrorf("repoURL and branch are required, because path %q is not a work tree made by git-clone", cfg.Path)
		}
		if in.changes, err = readOverlay(ctx, dir); err != nil {
			return nil, err
		}
	}
	return in, in.remove(cfg)
}

// remove adds the removals and refuses a path that is both written and removed.
func (in *input) remove(cfg *config) error {
	written := map[string]bool{}
	for _, c := range in.changes {
		written[c.Path] = c.Mode != gitrepo.ModeAbsent
	}
	for _, p := range cfg.Remove {
		p = strings.TrimPrefix(p, "./")
		if err := fsroot.CheckTreePath(p); err != nil {
			return configErrorf("remove: %w", err)
		}
		kept, known := written[p]
		if known && kept {
			return configErrorf("%q is to be removed, but is among the files to write", p)
		}
		if !known {
			in.changes = append(in.changes, gitrepo.Change{Path: p})
			written[p] = false
		}
	}
	if len(in.changes) == 0 && in.overlay {
		return configErrorf("path %q holds no files, and there is nothing to remove", cfg.Path)
	}
	return nil
}

// readOverlay reads every file below dir.
func readOverlay(ctx context.Context, dir *os.Root) ([]gitrepo.Change, error) {
	var changes []gitrepo.Change
	size := 0
	err := fs.WalkDir(dir.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("cannot read the files to commit: %w", withoutPath(err))
		}
		if p == "." {
			return nil
		}
		if err := fsroot.CheckTreePath(p); err != nil {
			return configErrorf("%w", err)
		}
		if e.IsDir() {
			return nil
		}
		if !e.Type().IsRegular() {
			return configErrorf("%q is %s; only regular files can be committed", p, kindOf(e.Type()))
		}
		c, err := readFile(dir, p)
		if err != nil {
			return err
		}
		changes = append(changes, c)
		if size += len(c.Data); size > maxTotalSize {
			return configErrorf("the files to commit are larger than %d MiB together", maxTotalSize>>20)
		}
		if len(changes) > maxFiles {
			return configErrorf("there are more than %d files to commit", maxFiles)
		}
		return nil
	})
	return changes, err
}

func readFile(dir *os.Root, p string) (gitrepo.Change, error) {
	f, err := dir.Open(p)
	if err != nil {
		return gitrepo.Change{}, fmt.Errorf("cannot read %q: %w", p, withoutPath(err))
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return gitrepo.Change{}, fmt.Errorf("cannot read %q: %w", p, withoutPath(err))
	}
	if !info.Mode().IsRegular() {
		return gitrepo.Change{}, configErrorf("%q is %s; only regular files can be committed", p, kindOf(info.Mode().Type()))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return gitrepo.Change{}, fmt.Errorf("cannot read %q: %w", p, withoutPath(err))
	}
	if len(data) > maxFileSize {
		return gitrepo.Change{}, configErrorf("%q is larger than %d MiB", p, maxFileSize>>20)
	}
	mode := gitrepo.ModeFile
	if info.Mode()&0o111 != 0 {
		mode = gitrepo.ModeExecutable
	}
	return gitrepo.Change{Path: p, Mode: mode, ID: gitrepo.BlobID(data), Data: data}, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}

// withoutPath takes the absolute path off a file error; callers name the path
// as the config does.
func withoutPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
