package atomiccommit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	gitconfig "github.com/go-git/go-git/v5/plumbing/format/config"
	"github.com/go-git/go-git/v5/plumbing/format/index"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/stepd/stepd/internal/fsroot"
	"github.com/stepd/stepd/internal/gitrepo"
)

// worktree is a work tree made by git-clone, read without running git: earlier
// steps could write its configuration, which can name programs to run.
type worktree struct {
	ctx  context.Context
	dir  *os.Root
	head map[string]gitrepo.Entry
	// dirs are the directories of HEAD.
	dirs map[string]bool
	// blob reads the content of a file in HEAD.
	blob func(gitrepo.Hash) ([]byte, error)
	// clean has the index entries: what was checked out, with size and time;
	// indexed is when the index was written.
	clean   map[string]*index.Entry
	indexed time.Time

	ignore     []ignoreRule
	attributes []attributeRule
	changes    []gitrepo.Change
	seen       map[string]bool
	size       int
}

// readWorktree reads how the work tree differs from its HEAD. Like `git add .`
// it takes untracked files that are not ignored, and deletions.
func readWorktree(ctx context.Context, work, dir *os.Root, workDir string, cfg *config) (*input, error) {
	g, err := gitDirs(work, dir, workDir, cfg.Path)
	if err != nil {
		return nil, configErrorf("path %q is not a work tree made by git-clone in this work dir: %w", cfg.Path, err)
	}
	defer g.close()
	in := &input{repoURL: cfg.RepoURL, branch: cfg.Branch}
	own, err := originalURL(g.common)
	if err != nil {
		return nil, configErrorf("path %q: %w", cfg.Path, err)
	}
	if in.repoURL == "" {
		in.repoURL = own
	}
	commit, branch, err := resolveHead(g)
	if err != nil {
		return nil, configErrorf("path %q: %w", cfg.Path, err)
	}
	if in.branch == "" {
		in.branch = branch
	}
	if in.branch == "" {
		return nil, configErrorf("the work tree %q is not on a branch; set branch", cfg.Path)
	}
	if err := checkBranch(in.branch); err != nil {
		return nil, configErrorf("branch %q: %w", in.branch, err)
	}

	w := &worktree{ctx: ctx, dir: dir, seen: map[string]bool{}, attributes: builtinAttributes()}
	storage := filesystem.NewStorage(osfs.New(g.commonPath, osfs.WithBoundOS()), cache.NewObjectLRU(16<<20))
	w.blob = func(id gitrepo.Hash) ([]byte, error) { return readBlob(storage, id) }
	if w.head, w.dirs, err = headEntries(storage, commit); err != nil {
		return nil, fmt.Errorf("cannot read the HEAD of work tree %q: %w", cfg.Path, err)
	}
	if w.clean, w.indexed, err = readIndex(g.own); err != nil {
		return nil, fmt.Errorf("cannot read the index of work tree %q: %w", cfg.Path, err)
	}
	if text, err := readSmall(g.common, "info/exclude"); err == nil {
		if w.ignore, err = parseIgnore(text, ""); err != nil {
			return nil, err
		}
	}
	if err := w.walk("", false); err != nil {
		return nil, err
	}
	w.deletions()
	in.changes = w.changes
	in.base = &base{commit: commit, entries: map[string]gitrepo.Entry{}}
	for _, p := range append(changedPaths(in.changes), cfg.Remove...) {
		p = strings.TrimPrefix(p, "./")
		if e, ok := w.head[p]; ok {
			in.base.entries[p] = e
		}
	}
	return in, nil
}

func changedPaths(changes []gitrepo.Change) []string {
	paths := make([]string, len(changes))
	for i, c := range changes {
		paths[i] = c.Path
	}
	return paths
}

// gitDir is where Git keeps what belongs to a work tree: its own directory, and
// the repository's common one.
type gitDir struct {
	own, common *os.Root
	// commonPath is the absolute path of common.
	commonPath string
}

func (g *gitDir) close() {
	_ = g.own.Close()
	_ = g.common.Close()
}

// gitDirs finds the directories, both of which must be in the work dir.
func gitDirs(work, dir *os.Root, workDir, configured string) (*gitDir, error) {
	info, err := dir.Lstat(".git")
	if err != nil {
		return nil, withoutPath(err)
	}
	own := filepath.Join(workDir, configured, ".git")
	if !info.IsDir() {
		text, err := readSmall(dir, ".git")
		if err != nil {
			return nil, err
		}
		target, ok := strings.CutPrefix(strings.TrimSpace(text), "gitdir: ")
		if !ok {
			return nil, errors.New("its .git file names no directory")
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(workDir, configured, target)
		}
		own = target
	}
	g := &gitDir{}
	if g.own, own, err = openWithin(work, workDir, own); err != nil {
		return nil, err
	}
	common, err := readSmall(g.own, "commondir")
	common = strings.TrimSpace(common)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		common = own
	case err != nil:
	case !filepath.IsAbs(common):
		common = filepath.Join(own, common)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		g.common, g.commonPath, err = openWithin(work, workDir, common)
	}
	if err != nil {
		_ = g.own.Close()
		return nil, err
	}
	return g, nil
}

// openWithin opens an absolute path that must be in the work dir, and returns
// it with symbolic links resolved.
func openWithin(work *os.Root, workDir, abs string) (*os.Root, string, error) {
	rel, real, err := within(workDir, abs)
	if err != nil {
		return nil, "", err
	}
	r, err := work.OpenRoot(rel)
	return r, real, withoutPath(err)
}

// within returns abs relative to dir, both with symbolic links resolved.
func within(dir, abs string) (rel, real string, err error) {
	outside := errors.New("its repository is not in this promotion's work dir")
	realDir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", "", outside
	}
	realAbs, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", "", outside
	}
	rel, err = filepath.Rel(realDir, realAbs)
	if err != nil || !filepath.IsLocal(rel) {
		return "", "", outside
	}
	return rel, realAbs, nil
}

const maxSmallFile = 1 << 20

func readSmall(r *os.Root, name string) (string, error) {
	f, err := r.Open(name)
	if err != nil {
		return "", withoutPath(err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile))
	return string(b), withoutPath(err)
}

// originalURL reads what git-clone recorded, else the remote's URL.
func originalURL(commonDir *os.Root) (string, error) {
	text, err := readSmall(commonDir, "config")
	if err != nil {
		return "", fmt.Errorf("cannot read its git configuration: %w", err)
	}
	cfg := gitconfig.New()
	if err := gitconfig.NewDecoder(strings.NewReader(text)).Decode(cfg); err != nil {
		return "", fmt.Errorf("cannot read its git configuration: %w", err)
	}
	if u := cfg.Section("kargo").Option("repoOriginalURL"); u != "" {
		return u, nil
	}
	if u := cfg.Section("remote").Subsection("origin").Option("url"); u != "" {
		return u, nil
	}
	return "", errors.New("its git configuration does not say where it was cloned from; set repoURL")
}

// resolveHead returns the commit that is checked out, and the branch; no branch
// for a detached HEAD.
func resolveHead(g *gitDir) (gitrepo.Hash, string, error) {
	text, err := readSmall(g.own, "HEAD")
	if err != nil {
		return gitrepo.ZeroHash, "", fmt.Errorf("cannot read HEAD: %w", err)
	}
	ref, symbolic := strings.CutPrefix(strings.TrimSpace(text), "ref: ")
	if !symbolic {
		if !plumbing.IsHash(ref) {
			return gitrepo.ZeroHash, "", errors.New("HEAD is malformed")
		}
		return plumbing.NewHash(ref), "", nil
	}
	branch := strings.TrimPrefix(ref, "refs/heads/")
	if err := checkBranch(branch); err != nil {
		return gitrepo.ZeroHash, "", errors.New("HEAD is malformed")
	}
	if loose, err := readSmall(g.common, filepath.FromSlash(ref)); err == nil && plumbing.IsHash(strings.TrimSpace(loose)) {
		return plumbing.NewHash(strings.TrimSpace(loose)), branch, nil
	}
	packed, err := g.common.ReadFile("packed-refs")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return gitrepo.ZeroHash, "", fmt.Errorf("cannot read packed-refs: %w", withoutPath(err))
	}
	for line := range bytes.SplitSeq(packed, []byte("\n")) {
		id, name, ok := strings.Cut(string(line), " ")
		if ok && name == ref && plumbing.IsHash(id) {
			return plumbing.NewHash(id), branch, nil
		}
	}
	return gitrepo.ZeroHash, branch, nil // a branch without commits
}

// headEntries reads the files and directories of a commit from the clone.
func headEntries(storage *filesystem.Storage, commit gitrepo.Hash) (entries map[string]gitrepo.Entry, dirs map[string]bool, err error) {
	entries, dirs = map[string]gitrepo.Entry{}, map[string]bool{}
	if commit.IsZero() {
		return entries, dirs, nil
	}
	c, err := object.GetCommit(storage, commit)
	if err != nil {
		return nil, nil, err
	}
	var read func(id plumbing.Hash, prefix string, depth int) error
	read = func(id plumbing.Hash, prefix string, depth int) error {
		if depth > 256 {
			return errors.New("its directories are nested more than 256 deep")
		}
		t, err := object.GetTree(storage, id)
		if err != nil {
			return err
		}
		for _, e := range t.Entries {
			p := prefix + e.Name
			if e.Mode == filemode.Dir {
				dirs[p] = true
				if err := read(e.Hash, p+"/", depth+1); err != nil {
					return err
				}
				continue
			}
			entries[p] = gitrepo.Entry{Name: path.Base(p), Mode: gitrepo.Mode(e.Mode), ID: e.Hash}
		}
		return nil
	}
	return entries, dirs, read(c.TreeHash, "", 0)
}

// readBlob reads a file's content, which may be no larger than what can be
// committed.
func readBlob(storage *filesystem.Storage, id gitrepo.Hash) ([]byte, error) {
	b, err := object.GetBlob(storage, id)
	if err != nil {
		return nil, err
	}
	if b.Size > maxFileSize {
		return nil, fmt.Errorf("it is larger than %d MiB", maxFileSize>>20)
	}
	r, err := b.Reader()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return io.ReadAll(r)
}

func readIndex(own *os.Root) (map[string]*index.Entry, time.Time, error) {
	f, err := own.Open("index")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, withoutPath(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, withoutPath(err)
	}
	idx := &index.Index{}
	if err := index.NewDecoder(f).Decode(idx); err != nil {
		return nil, time.Time{}, err
	}
	entries := make(map[string]*index.Entry, len(idx.Entries))
	for _, e := range idx.Entries {
		if e.Stage != 0 {
			return nil, time.Time{}, configErrorf("%q has an unresolved merge conflict", e.Name)
		}
		entries[e.Name] = e
	}
	return entries, info.ModTime(), nil
}

// walk goes through one directory, "" for the root. Below one that is ignored
// only tracked files count.
func (w *worktree) walk(dir string, ignoredDir bool) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	name := "."
	if dir != "" {
		name = dir
	}
	list, err := fs.ReadDir(w.dir.FS(), name)
	if err != nil {
		return fmt.Errorf("cannot read the work tree: %w", withoutPath(err))
	}
	// What a directory declares holds below it only.
	ignore, attrs := len(w.ignore), len(w.attributes)
	defer func() { w.ignore, w.attributes = w.ignore[:ignore], w.attributes[:attrs] }()
	text, err := w.declared(path.Join(dir, ".gitignore"), list)
	if err != nil {
		return err
	}
	ignoreRules, err := parseIgnore(text, dir)
	if err != nil {
		return err
	}
	w.ignore = append(w.ignore, ignoreRules...)
	if text, err = w.declared(path.Join(dir, attributesFile), list); err != nil {
		return err
	}
	attributeRules, err := parseAttributes([]byte(text), dir)
	if err != nil {
		return err
	}
	w.attributes = append(w.attributes, attributeRules...)
	for _, e := range list {
		if dir == "" && e.Name() == ".git" {
			continue
		}
		if err := w.visit(path.Join(dir, e.Name()), e, ignoredDir); err != nil {
			return err
		}
	}
	return nil
}

// declared reads the .gitignore or .gitattributes of a directory that was listed,
// as git does: it follows no symbolic link to one, and one that a sparse checkout
// left out counts as it is in HEAD. There being none is no error.
func (w *worktree) declared(p string, list []fs.DirEntry) (text string, err error) {
	name := path.Base(p)
	i := slices.IndexFunc(list, func(e fs.DirEntry) bool { return e.Name() == name })
	if i >= 0 && list[i].Type().IsRegular() {
		text, err = readSmall(w.dir, p)
	}
	if head := w.head[p]; i < 0 && head.Mode.IsFile() && w.clean[p] != nil && w.clean[p].SkipWorktree {
		var data []byte
		data, err = w.blob(head.ID)
		text = string(data)
	}
	if err != nil {
		return "", fmt.Errorf("cannot read %q: %w", p, err)
	}
	return text, nil
}

func (w *worktree) visit(p string, e fs.DirEntry, ignoredDir bool) error {
	head, tracked := w.head[p]
	skip := ignoredDir || ignored(w.ignore, p, e.IsDir())
	if e.IsDir() {
		if tracked && head.Mode == gitrepo.ModeSubmodule {
			w.seen[p] = true
			return nil
		}
		if skip && !w.tracksBelow(p) {
			return nil
		}
		if _, err := w.dir.Lstat(path.Join(p, ".git")); err == nil {
			return configErrorf("%q is a repository of its own inside the work tree", p)
		}
		return w.walk(p, skip)
	}
	if !tracked && skip {
		return nil
	}
	w.seen[p] = true
	if e.Type()&fs.ModeSymlink != 0 {
		target, err := w.dir.Readlink(filepath.FromSlash(p))
		if err == nil && tracked && head.Mode == gitrepo.ModeSymlink && gitrepo.BlobID([]byte(target)) == head.ID {
			return nil
		}
		return configErrorf("%q is a new or changed symbolic link; only regular files can be committed", p)
	}
	if !e.Type().IsRegular() {
		return configErrorf("%q is %s; only regular files can be committed", p, kindOf(e.Type()))
	}
	return w.file(p, e, head, tracked)
}

func (w *worktree) file(p string, e fs.DirEntry, head gitrepo.Entry, tracked bool) error {
	info, err := e.Info()
	if err != nil {
		return fmt.Errorf("cannot read %q: %w", p, withoutPath(err))
	}
	exec := info.Mode()&0o111 != 0
	if ie, ok := w.clean[p]; ok && tracked && ie.Hash == head.ID && w.unchanged(ie, info) &&
		exec == (head.Mode == gitrepo.ModeExecutable) {
		return nil
	}
	c, err := readFile(w.dir, p)
	if err != nil {
		return err
	}
	if err := w.convert(&c); err != nil {
		return err
	}
	if tracked && head.ID == c.ID && head.Mode.IsFile() && exec == (head.Mode == gitrepo.ModeExecutable) {
		return nil
	}
	if err := fsroot.CheckTreePath(p); err != nil {
		return configErrorf("%w", err)
	}
	if w.dirs[p] {
		return configErrorf("%q is a file, but a directory in HEAD; one cannot take the place of the other in one commit", p)
	}
	w.changes = append(w.changes, c)
	if w.size += len(c.Data); w.size > maxTotalSize {
		return configErrorf("the files to commit are larger than %d MiB together", maxTotalSize>>20)
	}
	if len(w.changes) > maxFiles {
		return configErrorf("there are more than %d files to commit", maxFiles)
	}
	return nil
}

// unchanged trusts size and time as git does, unless the file may have been
// written after the index in the same tick of the clock (git's "racy-git"),
// where the content must be compared.
func (w *worktree) unchanged(e *index.Entry, info fs.FileInfo) bool {
	return int64(e.Size) == info.Size() && e.ModifiedAt.Equal(info.ModTime()) && e.ModifiedAt.Before(w.indexed)
}

// convert does what Git's clean filters would: line endings. Others it refuses.
func (w *worktree) convert(c *gitrepo.Change) error {
	a := attributesOf(w.attributes, c.Path)
	switch {
	case a.filter != "":
		return configErrorf("%q has the attribute filter=%s in .gitattributes, which this step does not run; keep such files out of it", c.Path, oneLine(a.filter))
	case a.encoding != "":
		return configErrorf("%q has the attribute working-tree-encoding=%s in .gitattributes, which this step does not convert", c.Path, oneLine(a.encoding))
	case a.ident && bytes.Contains(c.Data, []byte("$Id:")):
		return configErrorf("%q has the attribute ident in .gitattributes and an expanded $Id$, which Git would not store", c.Path)
	}
	changes, err := becomesLF(a, c.Data, func() ([]byte, error) {
		if old, ok := w.head[c.Path]; ok && old.Mode.IsFile() {
			return w.blob(old.ID)
		}
		return nil, nil
	})
	if err != nil {
		return fmt.Errorf("cannot read %q as it is in HEAD: %w", c.Path, err)
	}
	if changes {
		c.Data = bytes.ReplaceAll(c.Data, []byte("\r\n"), []byte("\n"))
		c.ID = gitrepo.BlobID(c.Data)
	}
	return nil
}

// deletions are the files of HEAD that are gone. A sparse checkout does not
// have all of them to begin with.
func (w *worktree) deletions() {
	for p, e := range w.head {
		if w.seen[p] || e.Mode == gitrepo.ModeSubmodule {
			continue
		}
		if ie, ok := w.clean[p]; ok && ie.SkipWorktree {
			continue
		}
		w.changes = append(w.changes, gitrepo.Change{Path: p})
	}
}

func (w *worktree) tracksBelow(dir string) bool {
	for p := range w.clean {
		if strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}
