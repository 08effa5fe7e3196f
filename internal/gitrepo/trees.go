package gitrepo

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// Trees are the trees of one commit along some paths, all that is needed to
// read and replace what is at those paths.
type Trees struct {
	commit *Commit
	// dirs has the directories on the paths, "" for the root. A directory that
	// does not exist, or is something else, is absent.
	dirs map[string]*tree
}

// EmptyTrees are those of a branch without commits.
func EmptyTrees() *Trees { return &Trees{dirs: map[string]*tree{}} }

// Commit is the commit the trees belong to; nil for EmptyTrees.
func (t *Trees) Commit() *Commit { return t.commit }

// Entry returns what is at a path; ModeAbsent when nothing is.
func (t *Trees) Entry(path string) Entry {
	dir, name := splitPath(path)
	e, _ := t.dirs[dir].find(name)
	return e
}

// Change is what a path becomes.
type Change struct {
	Path string
	// Mode is ModeFile or ModeExecutable, or ModeAbsent to remove the file.
	Mode Mode
	// ID is the blob's id, Data its content. Both are empty for a removal.
	ID   Hash
	Data []byte
}

// ObstacleError says that a path cannot be written or removed because of what
// is in the tree on the way to it or at it.
type ObstacleError struct {
	Path, At, What string
	// Removal is true if the path was to be removed.
	Removal bool
	// Remedy is what the user can do; may be empty.
	Remedy string
}

// Error implements error.
func (e *ObstacleError) Error() string {
	verb, at := "write", "it"
	if e.Removal {
		verb = "remove"
	}
	if e.At != e.Path {
		at = strconv.Quote(e.At)
	}
	msg := fmt.Sprintf("cannot %s %q: %s is %s in the repository", verb, e.Path, at, e.What)
	if e.Remedy != "" {
		msg += "; " + e.Remedy
	}
	return msg
}

// Check tells whether a change can be made: every directory on the way is a
// directory or absent, and the path itself is a file or absent. A new name must
// not differ from an existing one in case only, which a checkout on Windows or
// macOS could not hold.
func (t *Trees) Check(c Change) error {
	path, removal := c.Path, c.Mode == ModeAbsent
	obstacle := func(at, what string) error {
		return &ObstacleError{Path: path, At: at, What: what, Removal: removal}
	}
	parts := strings.Split(path, "/")
	dir := ""
	for i, name := range parts {
		at := strings.Join(parts[:i+1], "/")
		d, ok := t.dirs[dir]
		if !ok {
			return nil // nothing there
		}
		e, found := d.find(name)
		last := i == len(parts)-1
		switch {
		case !found:
			for _, other := range d.entries {
				if !removal && strings.EqualFold(other.Name, name) {
					return obstacle(at, fmt.Sprintf("the same as %q but for upper and lower case", strings.Join(append(parts[:i:i], other.Name), "/")))
				}
			}
			return nil
		case e.Mode == ModeSymlink:
			return obstacle(at, "a symbolic link")
		case e.Mode == ModeSubmodule:
			return obstacle(at, "a submodule")
		case last && e.Mode == ModeTree && removal:
			return &ObstacleError{Path: path, At: at, What: "a directory", Removal: true, Remedy: "name the files in it"}
		case last && e.Mode == ModeTree:
			return obstacle(at, "a directory")
		case !last && e.Mode != ModeTree && removal:
			return nil // nothing there
		case !last && e.Mode != ModeTree:
			return obstacle(at, "a file, not a directory")
		case last && !e.Mode.IsFile():
			return obstacle(at, "of unknown mode "+e.Mode.String())
		}
		dir = at
	}
	return nil
}

// Apply returns the trees with the changes in place, the objects that are new
// (blobs and trees), and the root tree's id. The receiver is unchanged.
// Directories that become empty are removed.
func (t *Trees) Apply(changes []Change) (next *Trees, objects []Object, root Hash) {
	edits := map[string]map[string]Entry{} // directory → name → entry
	edit := func(dir string, e Entry) {
		if edits[dir] == nil {
			edits[dir] = map[string]Entry{}
		}
		edits[dir][e.Name] = e
	}
	for _, c := range changes {
		dir, name := splitPath(c.Path)
		edit(dir, Entry{Name: name, Mode: c.Mode, ID: c.ID})
		if c.Mode != ModeAbsent {
			objects = append(objects, Object{ID: c.ID, Type: plumbing.BlobObject, Data: c.Data})
		}
		for dir != "" { // its ancestors change, too
			dir, _ = splitPath(dir)
			if edits[dir] == nil {
				edits[dir] = map[string]Entry{}
			}
		}
	}
	dirs := make([]string, 0, len(edits))
	for d := range edits {
		dirs = append(dirs, d)
	}
	// Deepest first, so that a directory's id is known before its parent's.
	sort.Slice(dirs, func(i, j int) bool {
		if a, b := depth(dirs[i]), depth(dirs[j]); a != b {
			return a > b
		}
		return dirs[i] < dirs[j]
	})
	next = &Trees{dirs: make(map[string]*tree, len(t.dirs))}
	for d, old := range t.dirs {
		next.dirs[d] = old
	}
	for _, dir := range dirs {
		o := t.dirs[dir].with(edits[dir])
		parsed, err := parseTree(o)
		if err != nil {
			panic(err) // we encoded it
		}
		if len(parsed.entries) == 0 && dir != "" {
			delete(next.dirs, dir)
		} else {
			next.dirs[dir] = parsed
			if old := t.dirs[dir]; old == nil || old.object.ID != o.ID {
				objects = append(objects, o)
			}
		}
		if dir == "" {
			return next, objects, o.ID
		}
		parent, name := splitPath(dir)
		if len(parsed.entries) == 0 {
			edit(parent, Entry{Name: name, Mode: ModeAbsent})
		} else {
			edit(parent, Entry{Name: name, Mode: ModeTree, ID: o.ID})
		}
	}
	return next, objects, next.root() // no changes
}

func (t *Trees) root() Hash {
	if d, ok := t.dirs[""]; ok {
		return d.object.ID
	}
	return plumbing.ComputeHash(plumbing.TreeObject, nil)
}

// at returns the trees as those of a commit.
func (t *Trees) at(c *Commit) *Trees { return &Trees{commit: c, dirs: t.dirs} }

func depth(dir string) int {
	if dir == "" {
		return 0
	}
	return strings.Count(dir, "/") + 1
}

// splitPath splits "a/b/c" into "a/b" and "c".
func splitPath(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

// parentDirs are the first directories on the paths.
func parentDirs(paths []string) map[string]bool {
	dirs := map[string]bool{}
	for _, p := range paths {
		if name, _, ok := strings.Cut(p, "/"); ok {
			dirs[name] = true
		}
	}
	return dirs
}
