package atomiccommit

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
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

// checkLineEndings refuses a file that Git would store with other line endings.
func checkLineEndings(ctx context.Context, r gitrepo.Remote, t *gitrepo.Trees, c gitrepo.Change, a attributes) error {
	other, err := becomesLF(a, c.Data, func() ([]byte, error) {
		old := t.Entry(c.Path)
		if !old.Mode.IsFile() {
			return nil, nil
		}
		blobs, err := r.Blobs(ctx, []gitrepo.Hash{old.ID})
		return blobs[old.ID], err
	})
	if other && err == nil {
		return configErrorf("%q has CRLF line endings, but .gitattributes says that it is text, which Git stores with LF; write it with LF, or give it the attribute -text", c.Path)
	}
	return err
}

// becomesLF tells whether Git stores LF in place of a file's CRLF
// (gitattributes(5), "text"; convert.c): always with text or eol set; with
// text=auto if it is text, unless the stored file has CRLF already.
func becomesLF(a attributes, data []byte, stored func() ([]byte, error)) (bool, error) {
	if !bytes.Contains(data, []byte("\r\n")) || a.text == textRaw {
		return false, nil
	}
	if a.text == textSet {
		return true, nil
	}
	if looksBinary(data) {
		return false, nil
	}
	old, err := stored()
	return !storedWithCRLF(old), err
}

// storedWithCRLF is git's has_crlf_in_index: text=auto leaves such a file alone.
func storedWithCRLF(data []byte) bool {
	return bytes.Contains(data, []byte("\r\n")) && !looksBinary(data)
}

// looksBinary is how git tells, for text=auto, that a file is no text (convert.c,
// gather_stats and convert_is_binary).
func looksBinary(data []byte) bool {
	printable, odd := 0, 0
	for i, c := range data {
		switch {
		case c == 0:
			return true
		case c == '\r':
			if i+1 == len(data) || data[i+1] != '\n' {
				return true
			}
		case c == '\n':
		case c == '\b' || c == '\t' || c == '\f' || c == 0x1b:
			printable++
		case c < ' ' || c == 0x7f:
			if c != 0x1a || i+1 != len(data) { // DOS ends files so
				odd++
			}
		default:
			printable++
		}
	}
	return printable>>7 < odd
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
	for _, name := range []string{"text", "crlf"} { // crlf is the old name
		switch found[name] {
		case set, "input":
			a.text = textSet
		case "auto":
			a.text = textAuto
		case unset:
			return a
		default: // says nothing
			continue
		}
		break
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

// lookUp returns the attributes of a path, as git's attr.c does: from the last
// line to the first, and from the last attribute of a line to the first, what is
// found first stays; a macro that is set stands for its own attributes. The last
// definition of a macro holds, wherever it is used.
func lookUp(rules []attributeRule, path string) map[string]string {
	macros := map[string][]attributeState{}
	for _, r := range rules {
		if r.macro != "" {
			macros[r.macro] = r.states
		}
	}
	found := map[string]string{}
	var fill func(states []attributeState)
	fill = func(states []attributeState) {
		for _, st := range slices.Backward(states) {
			if _, ok := found[st.name]; ok {
				continue
			}
			found[st.name] = st.value
			if st.value == set {
				fill(macros[st.name])
			}
		}
	}
	for _, r := range slices.Backward(rules) {
		if r.macro == "" && r.matches(path) {
			fill(r.states)
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
		if err != nil || !doublestar.ValidatePattern(pattern) || strings.Contains(pattern, "[[:") { // classes by name
			return nil, configErrorf("cannot understand the line %q of .gitattributes in %q", oneLine(line), dir)
		}
		r := attributeRule{dir: dir, pattern: pattern}
		if name, ok := strings.CutPrefix(pattern, "[attr]"); ok {
			if dir != "" || !attributeName.MatchString(name) { // git allows macros at the root only, and ignores others
				continue
			}
			r.macro = name
		}
		r.anywhere = !strings.Contains(pattern, "/")
		r.pattern = asDoublestar(strings.TrimPrefix(pattern, "/"))
		if strings.HasPrefix(pattern, "!") || strings.HasSuffix(pattern, "/") {
			continue // negative patterns are forbidden, and directories have no attributes
		}
		valid := true
		for _, f := range strings.Fields(rest) {
			st := parseState(f)
			valid = valid && attributeName.MatchString(st.name)
			r.states = append(r.states, st)
		}
		if valid { // git ignores the others as a whole
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// attributeName is git's attr_name_valid.
var attributeName = regexp.MustCompile(`^[A-Za-z0-9_.][A-Za-z0-9_.-]*$`)

// asDoublestar turns a pattern of git's into one of the matcher's: braces mean
// nothing to git, more than two stars the same as two, and "a/**" is what is
// inside a, not a itself.
func asDoublestar(pattern string) string {
	var b strings.Builder
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\' && i+1 < len(pattern):
			b.WriteByte(c)
			i++
		case c == '{' || c == '}':
			b.WriteByte('\\')
		case c == '*' && strings.HasPrefix(pattern[i:], "***"):
			continue
		}
		b.WriteByte(pattern[i])
	}
	if s := b.String(); !strings.HasSuffix(s, "/**") {
		return s
	}
	return b.String() + "/*"
}

func parseState(f string) attributeState {
	name, value, ok := strings.Cut(f, "=")
	switch {
	case strings.HasPrefix(f, "-"):
		return attributeState{name[1:], unset}
	case strings.HasPrefix(f, "!"):
		return attributeState{name[1:], ""}
	case ok:
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
