package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// DigestError says that a program is not the one that was pinned.
type DigestError struct {
	Path string
	// Want and Got are "sha256:…".
	Want, Got string
}

// Error names both digests.
func (e *DigestError) Error() string {
	return fmt.Sprintf("%s has changed: its digest is %s, but %s is pinned", e.Path, e.Got, e.Want)
}

// Digest returns the digest of a file, "sha256:…".
func Digest(path string) (string, error) {
	f, err := openProgram(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return copyDigest(io.Discard, f)
}

// maxProgram is the size of the largest program: 1 GiB.
const maxProgram = 1 << 30

// openProgram opens a file, and nothing that blocks or never ends.
func openProgram(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a file", path)
	case info.Size() > maxProgram:
		err = fmt.Errorf("%s has %d bytes, and the limit is %d", path, info.Size(), maxProgram)
	default:
		return f, nil
	}
	return nil, errors.Join(err, f.Close())
}

func copyDigest(dst io.Writer, src io.Reader) (string, error) {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(dst, h), io.LimitReader(src, maxProgram+1))
	if err != nil {
		return "", err
	}
	if n > maxProgram {
		return "", fmt.Errorf("it grew beyond %d bytes", maxProgram)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
