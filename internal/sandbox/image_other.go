//go:build !linux

package sandbox

import "fmt"

// Image is a program whose digest was checked.
type Image struct{ path string }

// Load refuses the program at path with a *DigestError unless its digest is
// the pinned one. Off Linux the file can still change between check and start.
func Load(path, digest string) (*Image, error) {
	got, err := Digest(path)
	if err != nil {
		return nil, fmt.Errorf("cannot load program: %w", err)
	}
	if got != digest {
		return nil, &DigestError{Path: path, Want: digest, Got: got}
	}
	return &Image{path}, nil
}

// Path is what a child of this process executes.
func (i *Image) Path() string { return i.path }

// Close gives up the image.
func (i *Image) Close() error { return nil }
