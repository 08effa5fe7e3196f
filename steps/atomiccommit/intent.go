package atomiccommit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/repourl"
)

// base is the state of the branch that a change was made against: what differs
// from it now was changed by somebody else.
type base struct {
	// commit is zero when the branch had no commit.
	commit gitrepo.Hash
	// entries are what was at the paths.
	entries map[string]gitrepo.Entry
}

// intent is what is known of an attempt before its first push. It is on disk,
// synced, before the push is sent: whoever retries after a crash reads it, and
// so judges conflicts against the same base, looks back to the same place, and
// builds the same commit.
type intent struct {
	base base
	// when is the commit's time.
	when time.Time
	// provisional tells that the base was a remembered tip, and the push was
	// only sent in the hope that it still is the tip. When it is not, the base is
	// the tip at first contact.
	provisional bool
	// change is what the earlier attempt was to write; without contents.
	change *change
}

// intentFile is the form on disk.
type intentFile struct {
	Version   int                    `json:"version"`
	Project   string                 `json:"project"`
	Promotion string                 `json:"promotion"`
	Alias     string                 `json:"alias"`
	RepoURL   string                 `json:"repoURL"`
	Branch    string                 `json:"branch"`
	Change    string                 `json:"change"`
	Base      string                 `json:"base"`
	Entries   map[string]intentEntry `json:"entries"`
	Files     map[string]intentEntry `json:"files"`
	When      time.Time              `json:"when"`
	// Provisional: see intent.
	Provisional bool `json:"provisional,omitempty"`
}

type intentEntry struct {
	Mode uint32 `json:"mode"`
	ID   string `json:"id"`
}

// IntentFS is the few file operations that intents need, so that a test can
// count them and die between any two.
type IntentFS interface {
	MkdirAll(dir string) error
	ReadFile(name string) ([]byte, error)
	// WriteSync creates a file and syncs it.
	WriteSync(name string, data []byte) error
	Rename(from, to string) error
	// SyncDir makes renames in dir durable.
	SyncDir(dir string) error
	Remove(name string) error
	ReadDir(dir string) ([]fs.DirEntry, error)
}

const (
	intentVersion = 1
	maxIntentSize = 16 << 20
	// intentAge is how long intents are kept. A promotion is long over by then.
	intentAge = 30 * 24 * time.Hour
)

// intents keeps one file per project, promotion, alias, repository and branch.
type intents struct {
	dir string
	fs  IntentFS
}

func (s intents) path(c *change) string {
	h := sha256.New()
	for _, f := range []string{c.project, c.promotion, c.alias, repourl.Git(c.repoURL), c.branch} {
		_, _ = fmt.Fprintf(h, "%d:%s,", len(f), f)
	}
	return filepath.Join(s.dir, hex.EncodeToString(h.Sum(nil))+".json")
}

// load returns the intent of an earlier attempt, or nil. A file that cannot be
// read is an error: to go on without it could commit twice.
func (s intents) load(c *change) (*intent, error) {
	text, err := s.fs.ReadFile(s.path(c))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the record of an earlier attempt: %w", err)
	}
	var f intentFile
	if err := json.Unmarshal(text, &f); err != nil || f.Version != intentVersion {
		return nil, fmt.Errorf("the record of an earlier attempt, %s, is damaged or of another version: look at the branch for a commit of promotion %q, then remove the file", s.path(c), c.promotion)
	}
	in := &intent{
		when: f.When, provisional: f.Provisional,
		base:   base{commit: plumbing.NewHash(f.Base)},
		change: &change{id: f.Change},
	}
	for p, e := range f.Files {
		in.change.files = append(in.change.files, gitrepo.Change{Path: p, Mode: gitrepo.Mode(e.Mode), ID: plumbing.NewHash(e.ID)})
	}
	in.change.sort()
	if f.Change != c.id {
		return in, nil // other files than before: what was there is read again
	}
	in.base.entries = map[string]gitrepo.Entry{}
	for p, e := range f.Entries {
		in.base.entries[p] = gitrepo.Entry{Name: p, Mode: gitrepo.Mode(e.Mode), ID: plumbing.NewHash(e.ID)}
	}
	return in, nil
}

// save makes an intent durable.
func (s intents) save(c *change, in intent) error {
	f := intentFile{
		Version: intentVersion, Project: c.project, Promotion: c.promotion, Alias: c.alias,
		RepoURL: repourl.Git(c.repoURL), Branch: c.branch, Change: c.id,
		Base: in.base.commit.String(), Entries: map[string]intentEntry{}, Files: map[string]intentEntry{},
		When: in.when, Provisional: in.provisional,
	}
	for _, cf := range c.files {
		f.Files[cf.Path] = intentEntry{Mode: uint32(cf.Mode), ID: cf.ID.String()}
	}
	for p, e := range in.base.entries {
		f.Entries[p] = intentEntry{Mode: uint32(e.Mode), ID: e.ID.String()}
	}
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot record the attempt: %w", err)
	}
	name := s.path(c)
	tmp := fmt.Sprintf("%s.%d-%x.tmp", name, os.Getpid(), rand.Uint64()) //nolint:gosec // containers that share a volume may share ids, too
	err = s.fs.MkdirAll(s.dir)
	if err == nil {
		err = s.fs.WriteSync(tmp, append(text, '\n'))
	}
	if err == nil {
		err = s.fs.Rename(tmp, name)
	}
	if err == nil {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("cannot record the attempt, without which a push could be made twice: %w", err)
	}
	return nil
}

// prune removes intents that are too old to matter. Failing to is harmless.
func (s intents) prune(now time.Time) {
	files, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil && now.Sub(info.ModTime()) > intentAge {
			_ = s.fs.Remove(filepath.Join(s.dir, f.Name()))
		}
	}
}

// OSFS is the operating system's file system.
func OSFS() IntentFS { return osFS{} }

type osFS struct{}

func (osFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osFS) ReadFile(name string) ([]byte, error) {
	if info, err := os.Stat(name); err == nil && info.Size() > maxIntentSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxIntentSize)
	}
	return os.ReadFile(name)
}

func (osFS) WriteSync(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) Remove(name string) error { return os.Remove(name) }

func (osFS) ReadDir(dir string) ([]fs.DirEntry, error) { return os.ReadDir(dir) }
