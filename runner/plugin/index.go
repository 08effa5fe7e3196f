package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/stepd/stepd/internal/sandbox"
	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/steps"
)

const (
	indexFile    = "index.json"
	indexVersion = 1
	maxIndex     = 16 << 20
)

// Index lists the plugins of a directory with the digest each is pinned to. A
// program that is not in it does not start.
type Index struct {
	Version int     `json:"version"`
	Plugins []Entry `json:"plugins"`
}

// Entry is one pinned plugin.
type Entry struct {
	// Name is the program's file name in the plugin directory.
	Name string `json:"name"`
	// Digest of the program, "sha256:…".
	Digest string `json:"digest"`
	// Source says where it came from, for people.
	Source Source `json:"source"`
	// Grants are the capabilities the operator lets the plugin have.
	Grants []steps.Capability `json:"grants,omitempty"`
	// Steps are what the program said of itself when it was pinned.
	Steps []Step `json:"steps"`
}

// Source is where a plugin was installed from.
type Source struct {
	// File or ImageRef (name@digest) is set.
	File     string `json:"file,omitempty"`
	ImageRef string `json:"imageRef,omitempty"`
	// Signer is who signed the image, as oci-download-verified reports it.
	Signer    map[string]any `json:"signer,omitempty"`
	Installed time.Time      `json:"installed,omitzero"`
}

// Step describes a step as steps.Registration does.
type Step struct {
	Name                  string             `json:"name"`
	ConfigSchema          json.RawMessage    `json:"configSchema,omitempty"`
	OutputSchema          json.RawMessage    `json:"outputSchema,omitempty"`
	DefaultTimeout        string             `json:"defaultTimeout,omitempty"`
	DefaultErrorThreshold uint32             `json:"defaultErrorThreshold,omitempty"`
	RequiredCapabilities  []steps.Capability `json:"requiredCapabilities,omitempty"`
}

// namePattern is what a plugin may be called.
func namePattern() *regexp.Regexp {
	return regexp.MustCompile(`^` + protocol.NamePrefix + `[a-z0-9][a-z0-9.-]{0,63}$`)
}

// ReadIndex reads the index of a plugin directory. Without a directory or an
// index there are no plugins. An index that others can write pins nothing and
// is refused.
func ReadIndex(dir string) (Index, error) {
	ix := Index{Version: indexVersion}
	path := filepath.Join(dir, indexFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ix, nil
	}
	if err != nil {
		return Index{}, fmt.Errorf("cannot read the plugin index: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := trusted(dir, f); err != nil {
		return Index{}, fmt.Errorf("cannot trust the plugin index: %w", err)
	}
	d := json.NewDecoder(io.LimitReader(f, maxIndex))
	d.DisallowUnknownFields()
	if err := d.Decode(&ix); err != nil {
		return Index{}, fmt.Errorf("cannot read the plugin index %s: %w", path, err)
	}
	if ix.Version != indexVersion {
		return Index{}, fmt.Errorf("cannot read the plugin index %s: it has version %d, and this stepd knows version %d", path, ix.Version, indexVersion)
	}
	for _, e := range ix.Plugins {
		if !namePattern().MatchString(e.Name) {
			return Index{}, fmt.Errorf("cannot use the plugin index %s: %q is no name of a plugin", path, e.Name)
		}
	}
	return ix, nil
}

// Find returns the entry of a plugin.
func (ix Index) Find(name string) (Entry, bool) {
	i := slices.IndexFunc(ix.Plugins, func(e Entry) bool { return e.Name == name })
	if i < 0 {
		return Entry{}, false
	}
	return ix.Plugins[i], true
}

// Unpinned lists the programs in dir that are named like plugins but are not
// in the index.
func (ix Index) Unpinned(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list plugins: %w", err)
	}
	var out []string
	for _, f := range files {
		if _, pinned := ix.Find(f.Name()); !pinned && namePattern().MatchString(f.Name()) {
			out = append(out, f.Name())
		}
	}
	return out, nil
}

// Check compares every pinned program with its digest. The result has one
// error, or nil, for each entry, in order.
func (ix Index) Check(dir string) []error {
	out := make([]error, len(ix.Plugins))
	for i, e := range ix.Plugins {
		path := filepath.Join(dir, e.Name)
		got, err := sandbox.Digest(path)
		switch {
		case err != nil:
			out[i] = fmt.Errorf("cannot check plugin %s: %w", e.Name, err)
		case got != e.Digest:
			out[i] = &sandbox.DigestError{Path: path, Want: e.Digest, Got: got}
		}
	}
	return out
}

// change applies f to the index of dir under a lock and replaces the file at
// once.
func change(dir string, f func(*Index) error) error {
	if dir == "" {
		return errors.New("cannot change the plugin index: there is no plugin directory; name one with --plugin-dir")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot change the plugin index: %w", err)
	}
	lock := flock.New(filepath.Join(dir, ".lock"))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("cannot lock the plugin index: %w", err)
	}
	defer func() { _ = lock.Unlock() }()
	ix, err := ReadIndex(dir)
	if err != nil {
		return err
	}
	if err := f(&ix); err != nil {
		return err
	}
	sort.Slice(ix.Plugins, func(i, j int) bool { return ix.Plugins[i].Name < ix.Plugins[j].Name })
	b, err := json.MarshalIndent(ix, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write the plugin index: %w", err)
	}
	if len(b) >= maxIndex {
		return fmt.Errorf("cannot write the plugin index: it would have %d bytes, and the limit is %d", len(b), maxIndex)
	}
	if err := replaceFile(filepath.Join(dir, indexFile), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot write the plugin index: %w", err)
	}
	return nil
}

// replaceFile writes a file so that a reader sees the old or the new content.
func replaceFile(path string, content []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// trusted refuses an index that somebody other than this user or root could
// have written: in its file, or by replacing it or a directory on the way to
// it. A sticky directory, such as /tmp, lets nobody replace what is not theirs.
func trusted(dir string, index *os.File) error {
	info, err := index.Stat()
	if err != nil {
		return err
	}
	if err := writableByOwnerOnly(index.Name(), info); err != nil {
		return err
	}
	dir, err = filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	for err == nil {
		if info, err = os.Stat(dir); err != nil {
			break
		}
		err = writableByOwnerOnly(dir, info)
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	return err
}

func writableByOwnerOnly(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case ok && st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, neither you nor root", path, st.Uid)
	case info.IsDir() && info.Mode()&fs.ModeSticky != 0:
		return nil
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("%s can be written by everybody: chmod o-w it", path)
	case ok && info.Mode().Perm()&0o020 != 0 && st.Gid != 0 && int(st.Gid) != os.Getegid():
		return fmt.Errorf("%s can be written by group %d: chmod g-w it", path, st.Gid)
	}
	return nil
}

// describe makes index steps of registrations.
func describe(regs []steps.Registration) []Step {
	out := make([]Step, len(regs))
	for i, r := range regs {
		out[i] = Step{
			Name:                  r.Name,
			ConfigSchema:          r.ConfigSchema,
			OutputSchema:          r.OutputSchema,
			DefaultErrorThreshold: r.DefaultErrorThreshold,
			RequiredCapabilities:  r.RequiredCapabilities,
		}
		if r.DefaultTimeout > 0 {
			out[i].DefaultTimeout = r.DefaultTimeout.String()
		}
	}
	return out
}

// registration is the inverse of describe, for a step made by factory.
func (s Step) registration(factory func(steps.Capabilities) steps.Runner) (steps.Registration, error) {
	reg := steps.Registration{
		Name:         s.Name,
		New:          factory,
		ConfigSchema: s.ConfigSchema,
		OutputSchema: s.OutputSchema,
		Metadata: steps.Metadata{
			DefaultErrorThreshold: s.DefaultErrorThreshold,
			RequiredCapabilities:  s.RequiredCapabilities,
		},
	}
	if s.DefaultTimeout != "" {
		d, err := time.ParseDuration(s.DefaultTimeout)
		if err != nil {
			return steps.Registration{}, fmt.Errorf("cannot use step %q: default timeout: %w", s.Name, err)
		}
		reg.DefaultTimeout = d
	}
	return reg, nil
}
