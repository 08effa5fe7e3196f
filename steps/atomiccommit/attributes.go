package atomiccommit

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/gitattributes"

	"github.com/stepd/stepd/internal/gitrepo"
)

const attributesFile = ".gitattributes"

// checkAttributes refuses changes that Git itself would have stored differently
// from the bytes at hand. Writing trees directly applies no filters and no
// line-ending conversion, so where .gitattributes asks for one, the bytes must
// already be what it would produce.
func checkAttributes(ctx context.Context, r gitrepo.Remote, t *gitrepo.Trees, changes []gitrepo.Change) error {
	matcher, err := readAttributes(ctx, r, t, changes)
	if err != nil || matcher == nil {
		return err
	}
	for _, c := range changes {
		if c.Mode == gitrepo.ModeAbsent {
			continue
		}
		a := attributesOf(matcher, c.Path)
		if a.filter != "" {
			return configErrorf("%q has the attribute filter=%s in .gitattributes, which this step does not run; keep such files out of it", c.Path, oneLine(a.filter))
		}
		if a.encoding != "" {
			return configErrorf("%q has the attribute working-tree-encoding=%s in .gitattributes, which this step does not convert", c.Path, oneLine(a.encoding))
		}
		if a.ident && bytes.Contains(c.Data, []byte("$Id:")) {
			return configErrorf("%q has the attribute ident in .gitattributes and an expanded $Id$, which Git would not store", c.Path)
		}
		if err := checkLineEndings(ctx, r, t, c, a); err != nil {
			return err
		}
	}
	return nil
}

// checkLineEndings follows gitattributes(5), "text": with text or eol set, Git
// stores LF; with text=auto it does so for text files, unless the stored file
// has CRLF already.
func checkLineEndings(ctx context.Context, r gitrepo.Remote, t *gitrepo.Trees, c gitrepo.Change, a attributes) error {
	if a.text == textRaw || !bytes.Contains(c.Data, []byte("\r\n")) || a.text == textAuto && bytes.IndexByte(c.Data, 0) >= 0 {
		return nil
	}
	if old := t.Entry(c.Path); a.text == textAuto && old.Mode.IsFile() {
		blobs, err := r.Blobs(ctx, []gitrepo.Hash{old.ID})
		if err != nil {
			return err
		}
		if bytes.Contains(blobs[old.ID], []byte("\r\n")) {
			return nil
		}
	}
	return configErrorf("%q has CRLF line endings, but .gitattributes says that it is text, which Git stores with LF; write it with LF, or give it the attribute -text", c.Path)
}

type textAttribute int

const (
	textRaw textAttribute = iota
	textAuto
	textSet
)

type attributes struct {
	filter, encoding string
	ident            bool
	text             textAttribute
}

func attributesOf(m gitattributes.Matcher, path string) attributes {
	found, _ := m.Match(strings.Split(path, "/"), []string{"filter", "working-tree-encoding", "ident", "text", "eol", "crlf"})
	get := func(name string) gitattributes.Attribute { return found[name] }
	var a attributes
	if f := get("filter"); f != nil && f.IsValueSet() {
		a.filter = f.Value()
	}
	if e := get("working-tree-encoding"); e != nil && e.IsValueSet() && !strings.EqualFold(e.Value(), "utf-8") {
		a.encoding = e.Value()
	}
	if i := get("ident"); i != nil {
		a.ident = i.IsSet()
	}
	text := get("text")
	if text == nil || text.IsUnspecified() {
		text = get("crlf") // the old name
	}
	switch {
	case text != nil && text.IsSet():
		a.text = textSet
	case text != nil && text.IsUnset():
		return a
	case text != nil && text.IsValueSet() && text.Value() == "auto":
		a.text = textAuto
	}
	if eol := get("eol"); eol != nil && eol.IsValueSet() && a.text == textRaw {
		a.text = textSet
	}
	return a
}

// readAttributes reads the .gitattributes on the way to the changed paths, from
// the root down; nil when there are none. One that the changes write counts as
// written.
func readAttributes(ctx context.Context, r gitrepo.Remote, t *gitrepo.Trees, changes []gitrepo.Change) (gitattributes.Matcher, error) {
	written := map[string]gitrepo.Change{}
	for _, c := range changes {
		written[c.Path] = c
	}
	var dirs []string
	seen := map[string]bool{}
	for _, c := range changes {
		for _, d := range append([]string{""}, ancestors(c.Path)...) {
			if !seen[d] {
				seen[d] = true
				dirs = append(dirs, d)
			}
		}
	}
	type file struct {
		dir  string
		id   gitrepo.Hash
		data []byte
	}
	var files []file
	var ids []gitrepo.Hash
	for _, d := range dirs { // a directory comes after its ancestors
		p := attributesFile
		if d != "" {
			p = d + "/" + attributesFile
		}
		if c, ok := written[p]; ok {
			files = append(files, file{dir: d, data: c.Data})
			continue
		}
		if e := t.Entry(p); e.Mode.IsFile() {
			files = append(files, file{dir: d, id: e.ID})
			ids = append(ids, e.ID)
		}
	}
	if len(files) == 0 {
		return nil, nil
	}
	blobs, err := r.Blobs(ctx, ids)
	if err != nil {
		return nil, err
	}
	stack := builtinAttributes()
	for _, f := range files {
		if f.data == nil && !f.id.IsZero() {
			data, ok := blobs[f.id]
			if !ok {
				return nil, fmt.Errorf("cannot read .gitattributes in %q: %w", f.dir, &gitrepo.MissingError{ID: f.id})
			}
			f.data = data
		}
		m, err := parseAttributes(f.data, f.dir)
		if err != nil {
			return nil, err
		}
		stack = append(stack, m...)
	}
	return gitattributes.NewMatcher(stack), nil
}

// builtinAttributes is the one macro Git has built in.
func builtinAttributes() []gitattributes.MatchAttribute {
	m, err := gitattributes.ParseAttributesLine("[attr]binary -diff -merge -text", nil, true)
	if err != nil {
		panic(err) // the line is constant
	}
	return []gitattributes.MatchAttribute{m}
}

func parseAttributes(data []byte, dir string) ([]gitattributes.MatchAttribute, error) {
	var domain []string
	if dir != "" {
		domain = strings.Split(dir, "/")
	}
	m, err := gitattributes.ReadAttributes(bytes.NewReader(data), domain, dir == "")
	if err != nil {
		return nil, configErrorf("cannot understand .gitattributes in %q: %w", dir, err)
	}
	return m, nil
}

// ancestors of "a/b/c" are "a" and "a/b".
func ancestors(path string) []string {
	var dirs []string
	for i := range path {
		if path[i] == '/' {
			dirs = append(dirs, path[:i])
		}
	}
	return dirs
}
