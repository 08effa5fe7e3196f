package gitrepo

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// Object is a Git object with its id.
type Object struct {
	ID   Hash
	Type plumbing.ObjectType
	Data []byte
	// base, if not nil, is a tree that Data resembles and the server has.
	base *Object
}

func newObject(t plumbing.ObjectType, data []byte) Object {
	return Object{ID: plumbing.ComputeHash(t, data), Type: t, Data: data}
}

// BlobID is the id of a blob with that content.
func BlobID(data []byte) Hash { return plumbing.ComputeHash(plumbing.BlobObject, data) }

// Commit is a parsed commit.
type Commit struct {
	ID      Hash
	Tree    Hash
	Parents []Hash
	// When is the committer's time.
	When    time.Time
	Author  string
	Message string
}

// parseCommit reads what we need of a commit object. Unknown headers, and
// signatures, are skipped.
func parseCommit(id Hash, data []byte) (*Commit, error) {
	c := &Commit{ID: id}
	head, message, ok := bytes.Cut(data, []byte("\n\n"))
	if !ok {
		head = bytes.TrimSuffix(data, []byte("\n"))
	}
	c.Message = string(message)
	for line := range bytes.SplitSeq(head, []byte("\n")) {
		key, value, _ := strings.Cut(string(line), " ")
		switch key {
		case "tree":
			if !plumbing.IsHash(value) {
				return nil, malformed("commit %s has no valid tree", id)
			}
			c.Tree = plumbing.NewHash(value)
		case "parent":
			if !plumbing.IsHash(value) {
				return nil, malformed("commit %s has no valid parent", id)
			}
			c.Parents = append(c.Parents, plumbing.NewHash(value))
		case "author":
			c.Author, _, _ = strings.Cut(value, " <")
		case "committer":
			fields := strings.Fields(value[strings.LastIndexByte(value, '>')+1:])
			if len(fields) > 0 {
				if sec, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
					c.When = time.Unix(sec, 0).UTC()
				}
			}
		}
	}
	if c.Tree.IsZero() {
		return nil, malformed("commit %s has no tree", id)
	}
	return c, nil
}

// Mode is the mode of a tree entry as Git writes it, in octal without leading
// zero.
type Mode uint32

// The modes that trees hold.
const (
	ModeAbsent     Mode = 0
	ModeFile       Mode = 0o100644
	ModeExecutable Mode = 0o100755
	ModeSymlink    Mode = 0o120000
	ModeSubmodule  Mode = 0o160000
	ModeTree       Mode = 0o40000
)

// IsFile tells whether m is a regular file, executable or not. Old repositories
// have 100664, too.
func (m Mode) IsFile() bool { return m&0o170000 == 0o100000 }

// String returns the octal form.
func (m Mode) String() string { return strconv.FormatUint(uint64(m), 8) }

// Entry is an entry of a tree.
type Entry struct {
	Name string
	Mode Mode
	ID   Hash
}

// tree is a parsed tree object. Entries are in Git's order.
type tree struct {
	object  Object
	entries []Entry
}

func parseTree(o Object) (*tree, error) {
	t := &tree{object: o, entries: make([]Entry, 0, len(o.Data)/32+1)}
	data := string(o.Data) // the names share it
	for len(data) > 0 {
		sp := strings.IndexByte(data, ' ')
		nul := strings.IndexByte(data, 0)
		if sp < 1 || nul < sp+2 || len(data) < nul+21 {
			return nil, malformed("tree %s", o.ID)
		}
		mode, err := strconv.ParseUint(data[:sp], 8, 32)
		if err != nil {
			return nil, malformed("tree %s: mode %q", o.ID, data[:sp])
		}
		e := Entry{Name: data[sp+1 : nul], Mode: Mode(mode)}
		copy(e.ID[:], data[nul+1:nul+21])
		t.entries = append(t.entries, e)
		data = data[nul+21:]
	}
	return t, nil
}

func (t *tree) find(name string) (Entry, bool) {
	if t == nil {
		return Entry{}, false
	}
	for _, e := range t.entries {
		if e.Name == name {
			return e, true
		}
	}
	return Entry{}, false
}

// with returns the entries with some replaced (or, with ModeAbsent, removed),
// as a new object. Untouched entries keep their bytes.
func (t *tree) with(changes map[string]Entry) Object {
	var entries []Entry
	var base *Object
	if t != nil {
		for _, e := range t.entries {
			if _, ok := changes[e.Name]; !ok {
				entries = append(entries, e)
			}
		}
		base = &t.object
	}
	for _, e := range changes {
		if e.Mode != ModeAbsent {
			entries = append(entries, e)
		}
	}
	sort.Slice(entries, func(i, j int) bool { return sortKey(entries[i]) < sortKey(entries[j]) })
	var b bytes.Buffer
	for _, e := range entries {
		fmt.Fprintf(&b, "%o %s\x00", uint32(e.Mode), e.Name)
		b.Write(e.ID[:])
	}
	o := newObject(plumbing.TreeObject, b.Bytes())
	o.base = base
	return o
}

// sortKey orders entries as Git does: directories as if they ended in a slash.
func sortKey(e Entry) string {
	if e.Mode == ModeTree {
		return e.Name + "/"
	}
	return e.Name
}

// storeMemory bounds what is remembered of a repository until it is trimmed, in
// bytes: every answer is bounded, but how many are asked for is up to the server,
// which may give one commit of a history at a time.
const storeMemory = 4 * packMemory

// objects is a bounded memory of commits and trees, which are immutable.
type objects struct {
	mu      sync.Mutex
	size    int
	max     int
	commits map[Hash]*Commit
	trees   map[Hash]*tree
	blobs   map[Hash][]byte
}

func newObjects(maxBytes int) *objects {
	s := &objects{max: maxBytes}
	s.reset()
	return s
}

func (s *objects) reset() {
	s.size = 0
	s.commits, s.trees, s.blobs = map[Hash]*Commit{}, map[Hash]*tree{}, map[Hash][]byte{}
}

// trim forgets everything when the memory is over its bound. Forgetting costs
// a fetch later, never correctness.
func (s *objects) trim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size > s.max {
		s.reset()
	}
}

func (s *objects) add(o Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch o.Type {
	case plumbing.CommitObject:
		if _, ok := s.commits[o.ID]; ok {
			return nil
		}
		c, err := parseCommit(o.ID, o.Data)
		if err != nil {
			return err
		}
		s.commits[o.ID] = c
	case plumbing.TreeObject:
		if _, ok := s.trees[o.ID]; ok {
			return nil
		}
		o.base = nil
		t, err := parseTree(o)
		if err != nil {
			return err
		}
		s.trees[o.ID] = t
	case plumbing.BlobObject:
		if _, ok := s.blobs[o.ID]; ok {
			return nil
		}
		s.blobs[o.ID] = o.Data
	default:
		return nil
	}
	if s.size += 2*len(o.Data) + 200; s.size > storeMemory {
		return &LimitError{What: "objects", Limit: storeMemory}
	}
	return nil
}

func (s *objects) commit(id Hash) (*Commit, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.commits[id]
	return c, ok
}

func (s *objects) tree(id Hash) (*tree, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.trees[id]
	return t, ok
}

func (s *objects) blob(id Hash) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[id]
	return b, ok
}
