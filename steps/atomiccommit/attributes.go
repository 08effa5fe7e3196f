package atomiccommit

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/stepd/stepd/internal/gitrepo"
)

const attributesFile = ".gitattributes"

// checkAttributes refuses changes that Git itself would have stored differently
// from the bytes at hand. Writing trees directly applies no filters and no
// line-ending conversion, so where .gitattributes asks for one, the bytes must
// already be what it would produce.
func checkAttributes(ctx context.Context, r gitrepo.Remote, t *gitrepo.Trees, changes []gitrepo.Change) error {
	rules, err := readAttributes(ctx, r, t, changes)
	if err != nil || rules == nil {
		return err
	}
	for _, c := range changes {
		if c.Mode == gitrepo.ModeAbsent {
			continue
		}
		a := attributesOf(rules, c.Path)
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

func attributesOf(rules []attributeRule, path string) attributes {
	found := lookUp(rules, path)
	var a attributes
	if v := found["filter"]; v != unset && v != set {
		a.filter = v
	}
	if v := found["working-tree-encoding"]; v != unset && v != set && !strings.EqualFold(v, "utf-8") {
		a.encoding = v
	}
	a.ident = found["ident"] == set
	text, ok := found["text"]
	if !ok {
		text, ok = found["crlf"], found["crlf"] != "" // the old name
	}
	switch {
	case ok && text == set:
		a.text = textSet
	case ok && text == unset:
		return a
	case text == "auto":
		a.text = textAuto
	}
	if eol := found["eol"]; (eol == "lf" || eol == "crlf") && a.text == textRaw {
		a.text = textSet
	}
	return a
}

// readAttributes reads the .gitattributes on the way to the changed paths, from
// the root down; nil when there are none. One that the changes write counts as
// written.
func readAttributes(ctx context.Context, r gitrepo.Remote, t *gitrepo.Trees, changes []gitrepo.Change) ([]attributeRule, error) {
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
	rules := builtinAttributes()
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
		rules = append(rules, m...)
	}
	return rules, nil
}

// attributeRule is one line of a .gitattributes file (gitattributes(5)). go-git's
// matcher lets the least specific line win, and panics on some patterns.
type attributeRule struct {
	// dir is the directory of the file; pattern is relative to it.
	dir, pattern string
	// anywhere: the pattern is for the last component, at any depth.
	anywhere bool
	// macro, if not empty, is the name the line defines instead.
	macro  string
	states []attributeState
}

// attributeState is one attribute of a line: set, unset, a value, or taken back
// to unspecified by the empty string.
type attributeState struct{ name, value string }

// Values of attributes that have none. No file can contain these.
const (
	set   = "\x00set"
	unset = "\x00unset"
)

// builtinAttributes is the one macro Git has built in.
func builtinAttributes() []attributeRule {
	return []attributeRule{{macro: "binary", states: []attributeState{{"diff", unset}, {"merge", unset}, {"text", unset}}}}
}

// lookUp returns the attributes of a path; later lines win.
func lookUp(rules []attributeRule, path string) map[string]string {
	macros := map[string][]attributeState{}
	found := map[string]string{}
	for _, r := range rules {
		if r.macro != "" {
			macros[r.macro] = r.states
			continue
		}
		if !r.matches(path) {
			continue
		}
		for _, st := range r.states {
			if st.value == set {
				for _, m := range macros[st.name] {
					found[m.name] = m.value
				}
			}
			found[st.name] = st.value
		}
	}
	for name, v := range found {
		if v == "" {
			delete(found, name)
		}
	}
	return found
}

func (r attributeRule) matches(path string) bool {
	if r.dir != "" {
		rest, ok := strings.CutPrefix(path, r.dir+"/")
		if !ok {
			return false
		}
		path = rest
	}
	if r.anywhere {
		path = path[strings.LastIndexByte(path, '/')+1:]
	}
	return doublestar.MatchUnvalidated(r.pattern, path)
}

// maxAttributesFile is git's own limit.
const maxAttributesFile = 100 << 20

// parseAttributes reads a .gitattributes file. A line it cannot understand is
// an error: what it would have said is not known.
func parseAttributes(data []byte, dir string) ([]attributeRule, error) {
	if len(data) > maxAttributesFile {
		return nil, configErrorf("the .gitattributes in %q is larger than %d bytes", dir, maxAttributesFile)
	}
	var rules []attributeRule
	for line := range strings.Lines(strings.TrimPrefix(string(data), "\ufeff")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, rest, err := cutPattern(line)
		if err != nil || !doublestar.ValidatePattern(pattern) {
			return nil, configErrorf("cannot understand the line %q of .gitattributes in %q", oneLine(line), dir)
		}
		r := attributeRule{dir: dir, pattern: pattern}
		if name, ok := strings.CutPrefix(pattern, "[attr]"); ok {
			if dir != "" { // git allows macros at the root only, and ignores others
				continue
			}
			r.macro = name
		}
		r.anywhere = !strings.Contains(pattern, "/")
		r.pattern = strings.NewReplacer("{", `\{`, "}", `\}`).Replace(strings.TrimPrefix(pattern, "/"))
		if strings.HasPrefix(pattern, "!") || strings.HasSuffix(pattern, "/") {
			continue // negative patterns are forbidden, and directories have no attributes
		}
		for _, f := range strings.Fields(rest) {
			r.states = append(r.states, parseState(f))
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parseState(f string) attributeState {
	switch {
	case strings.HasPrefix(f, "-"):
		return attributeState{f[1:], unset}
	case strings.HasPrefix(f, "!"):
		return attributeState{f[1:], ""}
	}
	if name, value, ok := strings.Cut(f, "="); ok {
		return attributeState{name, value}
	}
	return attributeState{f, set}
}

// cutPattern takes the pattern off a line; it may be quoted as in C.
func cutPattern(line string) (pattern, rest string, err error) {
	if !strings.HasPrefix(line, `"`) {
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			return line[:i], line[i:], nil
		}
		return line, "", nil
	}
	quoted, err := strconv.QuotedPrefix(line)
	if err != nil {
		return "", "", err
	}
	pattern, err = strconv.Unquote(quoted)
	return pattern, line[len(quoted):], err
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
