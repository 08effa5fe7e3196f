package rpc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// WorkDirs confines the work dirs that callers name to a root directory. A
// nil *WorkDirs accepts any absolute path.
type WorkDirs struct {
	path string
	root *os.Root
}

// OpenWorkDirs confines work dirs to the directory root, which must exist.
func OpenWorkDirs(root string) (*WorkDirs, error) {
	path, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s as the root of work dirs: %w", root, err)
	}
	r, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s as the root of work dirs: %w", root, err)
	}
	return &WorkDirs{path: path, root: r}, nil
}

// Close lets go of the root.
func (w *WorkDirs) Close() error { return w.root.Close() }

// check returns the work dir to use for one attempt. It has to be an existing
// directory below the root, reached through no symbolic link: the steps of
// another promotion may write below the root, and a link of theirs must not
// lead this one astray.
func (w *WorkDirs) check(dir string) (string, error) {
	if !filepath.IsAbs(dir) {
		return "", badRequest("context.work_dir", "has to be an absolute path")
	}
	dir = filepath.Clean(dir)
	if w == nil {
		return dir, nil
	}
	rel, err := filepath.Rel(w.path, dir)
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return "", status.Errorf(codes.PermissionDenied,
			"work dir %q is not below %s, where this server's work dirs are", dir, w.path)
	}
	prefix := ""
	for part := range strings.SplitSeq(rel, string(filepath.Separator)) {
		prefix = filepath.Join(prefix, part)
		info, err := w.root.Lstat(prefix)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", status.Errorf(codes.FailedPrecondition, "work dir %q does not exist", dir)
		case err != nil:
			return "", status.Errorf(codes.PermissionDenied, "cannot use work dir %q: %v", dir, err)
		case !info.IsDir():
			return "", status.Errorf(codes.PermissionDenied,
				"cannot use work dir %q: %s is not a directory", dir, filepath.Join(w.path, prefix))
		}
	}
	return dir, nil
}
