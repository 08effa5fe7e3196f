package builtin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/stepd/stepd/steps"
)

type fileWriteConfig struct {
	Path        string `json:"path"`
	Contents    string `json:"contents"`
	Permissions string `json:"permissions"`
	Overwrite   bool   `json:"overwrite"`
}

// FileWrite is `file-write`: contents exactly as given. It is stricter about
// paths than other steps: they are not clamped, and no symlink may be on the
// way.
func FileWrite() steps.Registration { return stateless("file-write", runFileWrite) }

func runFileWrite(_ context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[fileWriteConfig](sc)
	if err != nil {
		return failed(err)
	}
	mode, err := fileMode(cfg.Permissions)
	if err != nil {
		return failed(err)
	}
	clean, err := checkFilePath(cfg.Path)
	if err != nil {
		return failed(err)
	}
	file, err := within(sc, clean)
	if err != nil {
		return errored(err)
	}
	if rel, err := filepath.Rel(sc.WorkDir, file); err != nil || rel != clean {
		return failed(fmt.Errorf("path %q resolves to a different path %q (symlinks are forbidden)", cfg.Path, rel))
	}
	if info, err := os.Lstat(file); err == nil && !cfg.Overwrite {
		return failed(fmt.Errorf("file %q already exists; set overwrite to true to replace it", cfg.Path))
	} else if err == nil && info.IsDir() {
		return errored(fmt.Errorf("error writing file %q: open %s: is a directory", cfg.Path, clean))
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return errored(fmt.Errorf("error creating parent directories for %q: %w", cfg.Path, relativeTo(sc.WorkDir, err)))
	}
	err = writeFile(file, mode, func(f *os.File) error {
		_, err := f.WriteString(cfg.Contents)
		return err
	})
	if err != nil {
		return errored(fmt.Errorf("error writing file %q: %w", cfg.Path, relativeTo(sc.WorkDir, err)))
	}
	return succeeded(nil)
}

// checkFilePath returns path cleaned. The .git of the work dir itself is out
// of bounds; a clone's is not, as in Kargo.
func checkFilePath(path string) (string, error) {
	clean := filepath.Clean(path)
	switch {
	case filepath.IsAbs(path):
		return "", fmt.Errorf("path %q must be relative", path)
	case clean == ".." || strings.HasPrefix(clean, "../"):
		return "", fmt.Errorf("path %q attempts to traverse outside the working directory", path)
	case clean == ".git" || strings.HasPrefix(clean, ".git/"):
		return "", fmt.Errorf("writing to the .git directory is forbidden: %q", path)
	}
	return clean, nil
}

// fileMode reads octal permissions; 0600 if there are none.
func fileMode(permissions string) (os.FileMode, error) {
	if permissions == "" {
		return 0o600, nil
	}
	mode, err := strconv.ParseUint(permissions, 8, 12)
	switch {
	case err != nil:
		return 0, fmt.Errorf("permissions %q are not octal: %w", permissions, err)
	case mode&0o111 != 0:
		return 0, fmt.Errorf("permissions %q must not include executable bits", permissions)
	case mode&0o002 != 0:
		return 0, fmt.Errorf("permissions %q must not be world-writable", permissions)
	}
	return os.FileMode(mode), nil
}
