package ociverified

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// holds tells whether name is a regular file with exactly the layer's bytes,
// and whether there is anything at all under that name.
func holds(root *os.Root, name string, layer ocispec.Descriptor) (same, exists bool, err error) {
	info, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("cannot look at outPath: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() != layer.Size {
		return false, true, nil
	}
	f, err := root.Open(name)
	if err != nil {
		return false, true, fmt.Errorf("cannot read outPath: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return false, true, fmt.Errorf("cannot read outPath: %w", err)
	}
	return "sha256:"+hex.EncodeToString(h.Sum(nil)) == string(layer.Digest), true, nil
}

// writeFile makes name appear whole or not at all, in directories of mode 0700
// and as a file of mode 0600, as Kargo's oci-download does. Without overwrite
// a file that appeared meanwhile stays. What fails leaves nothing behind, not
// even a directory.
func writeFile(root *os.Root, name string, overwrite bool, fill func(*os.File) error) (err error) {
	made, err := makeParents(root, name)
	defer func() {
		for i := len(made) - 1; err != nil && i >= 0; i-- {
			_ = root.Remove(made[i]) // only if it is still empty
		}
	}()
	if err != nil {
		return fmt.Errorf("cannot make the directory of outPath: %w", err)
	}
	temp := path.Join(path.Dir(name), tempPrefix(name)+rand.Text())
	f, err := root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make a temporary file beside outPath: %w", err)
	}
	defer func() {
		_ = f.Close()
		_ = root.Remove(temp) // gone already after a rename
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("cannot write outPath: %w", err)
	}
	if err := place(root, temp, name, overwrite); err != nil {
		return fmt.Errorf("cannot put outPath in place: %w", err)
	}
	return nil
}

// tempPrefix begins the names of temporary files for name, beside it.
func tempPrefix(name string) string {
	sum := sha256.Sum256([]byte(name))
	return ".stepd-" + hex.EncodeToString(sum[:8]) + "-"
}

// removeLeftovers removes the temporary files that attempts at name left behind
// when they were killed: a later step could commit them, and what is in them
// was perhaps never compared with its digest.
func removeLeftovers(root *os.Root, name string) error {
	if info, err := root.Stat(path.Dir(name)); err != nil || !info.IsDir() {
		return nil //nolint:nilerr // writing will say so, if it matters
	}
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return nil //nolint:nilerr // likewise
	}
	defer func() { _ = dir.Close() }()
	prefix := tempPrefix(name)
	for {
		entries, err := dir.ReadDir(256)
		if err != nil {
			return nil //nolint:nilerr // io.EOF, or not a directory
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), prefix) {
				continue
			}
			if err := root.Remove(path.Join(path.Dir(name), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("cannot remove what an earlier attempt left beside outPath: %w", err)
			}
		}
	}
}

// place moves temp to name. A link, unlike a rename, never replaces what is
// there; file systems without links get a check and a rename.
func place(root *os.Root, temp, name string, overwrite bool) error {
	if overwrite {
		return root.Rename(temp, name)
	}
	err := root.Link(temp, name)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, err := root.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return fs.ErrExist
	}
	return root.Rename(temp, name)
}

// makeParents makes the directories above name and returns those it made,
// outermost first.
func makeParents(root *os.Root, name string) (made []string, err error) {
	dir := path.Dir(name)
	if dir == "." {
		return nil, nil
	}
	for i := range len(dir) + 1 {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		switch err := root.Mkdir(dir[:i], 0o700); {
		case err == nil:
			made = append(made, dir[:i])
		case !errors.Is(err, fs.ErrExist):
			return made, err
		}
	}
	return made, nil
}
