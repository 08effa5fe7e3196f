// Package program finds the programs that are installed beside stepd: what few
// need and would cost everybody start-up time and memory is linked into one of
// its own (docs/decisions/0008-helm.md, docs/decisions/0014-serve-program.md).
// What is said to them belongs where they are started.
package program

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNotInstalled says that a program is missing.
var ErrNotInstalled = errors.New("not installed")

// Beside returns the path of a program in the directory of the running
// executable, after symlinks. For one that is missing, or that this user cannot
// execute, it returns an ErrNotInstalled.
func Beside(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("cannot look beside the running executable: %w", err)
	}
	want := filepath.Join(filepath.Dir(self), name)
	path, err := exec.LookPath(want)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: there is no program %s; `go install github.com/stepd/stepd/cmd/...@latest` installs all that stepd needs, and `make build` builds it",
			ErrNotInstalled, want)
	case err != nil:
		return "", fmt.Errorf("%w so that it can be started: %w", ErrNotInstalled, err)
	}
	return path, nil
}
