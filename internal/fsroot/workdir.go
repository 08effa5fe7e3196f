package fsroot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Root is an open work dir, which earlier steps and downloaded archives have
// filled. It reads and writes files below it and never leaves it: symlinks are
// refused rather than followed. Kargo's laxer path rule (clamping) is for the
// built-in steps. Paths given to its methods are slash separated and
// relative to it, in any form Clean accepts.
type Root struct{ root *os.Root }

// TooLargeError says that a file exceeds the limit it was read with.
type TooLargeError struct {
	Path  string
	Limit int64
}

// Error implements error.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s is larger than %d bytes", e.Path, e.Limit)
}

// Open opens the work dir dir, an absolute path.
func Open(dir string) (*Root, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open work dir: %w", err)
	}
	return &Root{root}, nil
}

// Close releases the work dir.
func (r *Root) Close() error { return r.root.Close() }

// Clean checks a configured path by its text alone and returns it without "."
// and empty parts. It refuses, with a *PathError, what climbs with "..", what
// names no file, and what CheckTreePath refuses.
func Clean(name string) (string, error) {
	refuse := func(reason string) (string, error) { return "", &PathError{name, reason} }
	if strings.HasPrefix(name, "/") {
		return refuse("it is absolute; paths are relative to the work dir")
	}
	if strings.HasSuffix(name, "/") {
		return refuse("it ends in a slash; name a file")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	if name != "" && len(parts) == 0 {
		return refuse("it names the work dir itself")
	}
	clean := strings.Join(parts, "/")
	var unsafe *PathError
	if err := CheckTreePath(clean); errors.As(err, &unsafe) {
		return refuse(unsafe.Reason)
	}
	return clean, nil
}

// ReadFile reads a regular file of at most limit bytes. No component may be a
// symlink. Errors are a *PathError, a *TooLargeError or satisfy
// errors.Is(err, fs.ErrNotExist) and the like.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	clean, err := Clean(name)
	if err != nil {
		return nil, err
	}
	info, err := r.check(clean)
	if err != nil {
		return nil, err
	}
	f, err := r.root.Open(clean)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", clean, reason(err))
	}
	defer func() { _ = f.Close() }() // nothing was written
	if opened, err := f.Stat(); err != nil || !os.SameFile(info, opened) {
		return nil, &PathError{name, "it was replaced while it was opened"}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", clean, reason(err))
	}
	if int64(len(data)) > limit {
		return nil, &TooLargeError{clean, limit}
	}
	return data, nil
}

// WriteFile writes a regular file by way of a temporary one at the top of the
// work dir, so that neither a reader nor a commit ever meets half of it. An
// existing file keeps its mode; a new one gets 0644 and missing directories
// 0755. No component may be a symlink.
func (r *Root) WriteFile(name string, data []byte) (err error) {
	clean, err := Clean(name)
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	info, err := r.check(clean)
	switch {
	case err == nil:
		mode = info.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if dir := path.Dir(clean); dir != "." {
		if err := r.root.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cannot create directory %s: %w", dir, reason(err))
		}
	}
	// One name per target: what a killed attempt left behind is overwritten.
	sum := sha256.Sum256([]byte(clean))
	tmp := ".stepd-" + hex.EncodeToString(sum[:8])
	if err := r.root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove %s: %w", tmp, reason(err))
	}
	f, err := r.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("cannot create a temporary file: %w", reason(err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.root.Remove(tmp))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = r.root.Rename(tmp, clean)
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", clean, reason(err))
	}
	return nil
}

// check looks at every component of a clean path: the last must be a regular
// file, the others directories.
func (r *Root) check(clean string) (fs.FileInfo, error) {
	parts := strings.Split(clean, "/")
	for i := range parts {
		name := strings.Join(parts[:i+1], "/")
		info, err := r.root.Lstat(name)
		if err != nil {
			return nil, fmt.Errorf("cannot open %s: %w", clean, reason(err))
		}
		last := i == len(parts)-1
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			return nil, &PathError{clean, fmt.Sprintf("%s is a symlink", name)}
		case !last && !info.IsDir():
			return nil, &PathError{clean, fmt.Sprintf("%s is not a directory", name)}
		case last && !info.Mode().IsRegular():
			return nil, &PathError{clean, "it is not a regular file"}
		case last:
			return info, nil
		}
	}
	return nil, &PathError{clean, "it is empty"}
}

// reason drops the operation and path, which the caller names its own way.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}
