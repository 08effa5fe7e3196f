package sidecar

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/steps"
)

// results are the answers of operations that have ended, and the error counts
// of those that have not: one file a step.
type results struct{ dir string }

// result is what is known of a step's last operation.
type result struct {
	Namespace string `json:"namespace"`
	Promotion string `json:"promotion"`
	UID       string `json:"uid"`
	Alias     string `json:"alias"`

	StartedAt time.Time `json:"startedAt"`
	// Lost is how many answers Kargo had not got; Errors are the step's own.
	Lost    uint32 `json:"lost"`
	Errors  uint32 `json:"errors"`
	WorkDir dirID  `json:"workDir"`
	// Files has the SHA-256 of what the step wrote, by path in the work dir.
	Files map[string]string `json:"files,omitempty"`
	// Answer is nil while the step is not done.
	Answer *wire.Answer `json:"answer,omitempty"`
}

const (
	resultSuffix = ".operation.json"
	// maxResult bounds a file; an answer is at most wire.MaxAnswer.
	maxResult = 2*wire.MaxAnswer + 64<<10
	// maxHashed bounds a file that is hashed.
	maxHashed = 1 << 30
)

func openResults(dir string) (*results, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make a place for answers: %w", err)
	}
	return &results{dir}, nil
}

func (r *results) path(k stepKey) string {
	sum := sha256.Sum256([]byte(k.uid + "\x00" + k.alias))
	return filepath.Join(r.dir, hex.EncodeToString(sum[:])+resultSuffix)
}

// load returns what is stored of a step; nil if nothing is.
func (r *results) load(k stepKey) (*result, error) {
	found, err := readResult(r.path(k))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && (found.UID != k.uid || found.Alias != k.alias) {
		err = errors.New("it is another step's")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use a stored answer: %w", err)
	}
	return found, nil
}

func readResult(path string) (*result, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	var found result
	if err := json.NewDecoder(io.LimitReader(f, maxResult)).Decode(&found); err != nil {
		return nil, err
	}
	return &found, nil
}

// store replaces what is stored of a step. A reader, and whoever comes after a
// crash, sees the old or the new.
func (r *results) store(k stepKey, v *result) (err error) {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot store an answer: %w", err)
	}
	f, err := os.CreateTemp(r.dir, ".new-*")
	if err != nil {
		return fmt.Errorf("cannot store an answer: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("cannot store an answer: %w", err)
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), r.path(k)); err != nil {
		return err
	}
	return syncDir(r.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// holds tells whether the files that the step wrote are as it left them.
func (r *result) holds(workDir string) bool {
	if len(r.Files) == 0 {
		return true
	}
	root, err := os.OpenRoot(workDir)
	if err != nil {
		return false
	}
	defer func() { _ = root.Close() }()
	for name, want := range r.Files {
		if got, err := hashFile(root, name); err != nil || got != want {
			return false
		}
	}
	return true
}

// hashFiles hashes the file that a step says it has written, in its output path.
func hashFiles(workDir string, a wire.Answer) (map[string]string, error) {
	name, ok := a.Output["path"].(string)
	if !ok || a.Status != steps.Succeeded {
		return nil, nil
	}
	root, err := os.OpenRoot(workDir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	sum, err := hashFile(root, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return map[string]string{name: sum}, nil
}

func hashFile(root *os.Root, name string) (string, error) {
	// Without O_NONBLOCK a FIFO would be waited for.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // nothing was written
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("it is not a regular file")
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxHashed+1))
	if err != nil {
		return "", err
	}
	if n > maxHashed {
		return "", fmt.Errorf("it is larger than %d bytes", maxHashed)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// each calls f with every stored result and the path of its file. Files that
// cannot be read are removed, and so is what a crash left behind.
func (r *results) each(f func(path string, found *result)) error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("cannot list stored answers: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		if !strings.HasSuffix(e.Name(), resultSuffix) {
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > time.Hour {
				_ = os.Remove(path) // tried again at the next sweep
			}
			continue
		}
		found, err := readResult(path)
		if err != nil {
			_ = os.Remove(path)
			continue
		}
		f(path, found)
	}
	return nil
}
