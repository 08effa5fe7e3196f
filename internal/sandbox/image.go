package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
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
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return copyDigest(io.Discard, f)
}

func copyDigest(dst io.Writer, src io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(dst, h), src); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
