package sandbox

import (
	"slices"
	"strings"
)

// History is what happened on main of the gitops repository since a commit.
type History struct {
	// Commits are the new commits, oldest first.
	Commits []Commit
	// Linear tells whether each commit has one parent: the one before it.
	Linear bool
	// Files are the configurations on main, by path.
	Files map[string]string
}

// Commit is one commit of a History.
type Commit struct {
	ID, Message string
	// Paths are what it changes.
	Paths []string
}

// History reads main from the commit base on.
func (s *Sandbox) History(base string) (History, error) {
	h := History{Linear: true, Files: map[string]string{}}
	ids, err := s.Git.Git(GitOps, "rev-list", "--reverse", base+"..main")
	if err != nil {
		return h, err
	}
	parent := base
	for _, id := range strings.Fields(ids) {
		c := Commit{ID: id}
		if c.Message, err = s.Git.Git(GitOps, "show", "--no-patch", "--format=%B", id); err != nil {
			return h, err
		}
		paths, err := s.Git.Git(GitOps, "diff-tree", "--no-commit-id", "--name-only", "-r", id)
		if err != nil {
			return h, err
		}
		c.Paths = strings.Fields(paths)
		parents, err := s.Git.Git(GitOps, "show", "--no-patch", "--format=%P", id)
		if err != nil {
			return h, err
		}
		h.Linear = h.Linear && parents == parent
		parent = id
		h.Commits = append(h.Commits, c)
	}
	for _, region := range []string{RegionUS, RegionCA} {
		path := ValuesPath(region)
		content, err := s.Git.Git(GitOps, "cat-file", "blob", "main:"+path)
		if err != nil {
			return h, err
		}
		h.Files[path] = content + "\n" // Git drops the final newline
	}
	return h, nil
}

// Changed tells whether the commits change these paths, one each, in any order.
func (h History) Changed(paths ...string) bool {
	var got []string
	for _, c := range h.Commits {
		if len(c.Paths) != 1 {
			return false
		}
		got = append(got, c.Paths[0])
	}
	slices.Sort(got)
	slices.Sort(paths)
	return slices.Equal(got, paths)
}

// Trailers tells whether every commit ends with a paragraph that has these
// trailers, none of them empty.
func (h History) Trailers(names ...string) bool {
	for _, c := range h.Commits {
		message := strings.TrimSpace(c.Message)
		block := message[strings.LastIndex(message, "\n\n")+1:]
		for _, name := range names {
			if _, value, ok := strings.Cut(block, "\n"+name+": "); !ok || strings.HasPrefix(value, "\n") {
				return false
			}
		}
	}
	return len(h.Commits) > 0
}
