package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// confinedDisk is the file system that kustomize sees: the work dir, and the
// temporary directories that kustomize makes for what it clones. What leads
// out, by path or by symlink, is an error.
type confinedDisk struct {
	workDir   string
	work      *os.Root
	temporary string
}

var _ filesys.FileSystem = (*confinedDisk)(nil)

var errOutside = errors.New("it is outside the work dir")

func newConfinedDisk(workDir string) (*confinedDisk, error) {
	resolved, err := filepath.EvalSymlinks(workDir)
	if err != nil {
		return nil, err
	}
	temporary, err := filepath.EvalSymlinks(os.TempDir())
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(resolved)
	if err != nil {
		return nil, err
	}
	return &confinedDisk{resolved, root, temporary}, nil
}

// Close releases the work dir.
func (d *confinedDisk) Close() error { return d.work.Close() }

// in calls f with the directory that path may be reached through.
func (d *confinedDisk) in(path string, f func(root *os.Root, rel string) error) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if rel, ok := below(d.workDir, abs); ok {
		return f(d.work, rel)
	}
	rel, ok := below(d.temporary, abs)
	clone, rest, _ := strings.Cut(rel, string(filepath.Separator))
	if !ok || !strings.HasPrefix(clone, "kustomize-") {
		return &fs.PathError{Op: "open", Path: path, Err: errOutside}
	}
	root, err := os.OpenRoot(filepath.Join(d.temporary, clone))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // files opened through it stay open
	if rest == "" {
		rest = "."
	}
	return f(root, rest)
}

func below(dir, path string) (rel string, ok bool) {
	rel, err := filepath.Rel(dir, path)
	return rel, err == nil && filepath.IsLocal(rel)
}

// Create implements filesys.FileSystem, as do the methods below.
func (d *confinedDisk) Create(path string) (file filesys.File, err error) {
	err = d.in(path, func(root *os.Root, rel string) error {
		f, err := root.Create(rel)
		file = f
		return err
	})
	return file, err
}

// Open opens a file for reading.
func (d *confinedDisk) Open(path string) (file filesys.File, err error) {
	err = d.in(path, func(root *os.Root, rel string) error {
		f, err := root.Open(rel)
		file = f
		return err
	})
	return file, err
}

// Mkdir makes a directory.
func (d *confinedDisk) Mkdir(path string) error {
	return d.in(path, func(root *os.Root, rel string) error { return root.Mkdir(rel, 0o700) })
}

// MkdirAll makes a directory and its parents.
func (d *confinedDisk) MkdirAll(path string) error {
	return d.in(path, func(root *os.Root, rel string) error { return root.MkdirAll(rel, 0o700) })
}

// RemoveAll removes a tree.
func (d *confinedDisk) RemoveAll(path string) error {
	return d.in(path, func(root *os.Root, rel string) error { return root.RemoveAll(rel) })
}

// ReadFile reads a file.
func (d *confinedDisk) ReadFile(path string) (data []byte, err error) {
	err = d.in(path, func(root *os.Root, rel string) error {
		data, err = root.ReadFile(rel)
		return err
	})
	return data, err
}

// WriteFile writes a file.
func (d *confinedDisk) WriteFile(path string, data []byte) error {
	return d.in(path, func(root *os.Root, rel string) error { return root.WriteFile(rel, data, 0o600) })
}

// ReadDir lists the names in a directory.
func (d *confinedDisk) ReadDir(path string) (names []string, err error) {
	err = d.in(path, func(root *os.Root, rel string) error {
		entries, err := fs.ReadDir(root.FS(), filepath.ToSlash(rel))
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return err
	})
	return names, err
}

// Exists tells whether a path can be reached.
func (d *confinedDisk) Exists(path string) bool {
	_, err := d.stat(path)
	return err == nil
}

// IsDir tells whether a path is a directory.
func (d *confinedDisk) IsDir(path string) bool {
	info, err := d.stat(path)
	return err == nil && info.IsDir()
}

func (d *confinedDisk) stat(path string) (info fs.FileInfo, err error) {
	err = d.in(path, func(root *os.Root, rel string) error {
		info, err = root.Stat(rel)
		return err
	})
	return info, err
}

// CleanedAbs resolves symlinks and splits the directory from the file.
func (d *confinedDisk) CleanedAbs(path string) (filesys.ConfirmedDir, string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", "", err
	}
	if _, err := d.stat(abs); err != nil { // before anything outside is looked at
		return "", "", fmt.Errorf("cannot resolve %q: %w", path, err)
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", "", fmt.Errorf("cannot resolve %q: %w", path, err)
	}
	info, err := d.stat(resolved)
	if err != nil {
		return "", "", fmt.Errorf("cannot resolve %q: %w", path, err)
	}
	if info.IsDir() {
		return filesys.ConfirmedDir(resolved), "", nil
	}
	return filesys.ConfirmedDir(filepath.Dir(resolved)), filepath.Base(resolved), nil
}

// Glob lists what matches, hidden files left out as in kustomize's own.
func (d *confinedDisk) Glob(pattern string) ([]string, error) {
	all, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	if !filesys.IsHiddenFilePath(pattern) {
		all = filesys.RemoveHiddenFiles(all)
	}
	var found []string
	for _, f := range all {
		if d.Exists(f) {
			found = append(found, f)
		}
	}
	return found, nil
}

// Walk walks a tree without following symlinks.
func (d *confinedDisk) Walk(path string, visit filepath.WalkFunc) error {
	if _, err := d.stat(path); err != nil {
		return err
	}
	return filepath.Walk(path, visit)
}
