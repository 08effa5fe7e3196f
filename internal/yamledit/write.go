package yamledit

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// splice replaces text[start:end] by new.
type splice struct {
	start, end int
	new        string
}

// apply returns a copy of text with the splices, which must not overlap.
func apply(text []byte, splices []splice) []byte {
	sort.Slice(splices, func(i, j int) bool { return splices[i].start < splices[j].start })
	var out bytes.Buffer
	last := 0
	for _, sp := range splices {
		out.Write(text[last:sp.start])
		out.WriteString(sp.new)
		last = sp.end
	}
	out.Write(text[last:])
	return out.Bytes()
}

// replace gives the scalar at a location another value. It returns what to
// splice and the node expected there afterwards.
func (s *source) replace(at *location, v Scalar) ([]splice, *yaml.Node, error) {
	e, err := s.scalarExtent(at.node)
	if err != nil {
		return nil, nil, err
	}
	want := scalarNode(v)
	want.Anchor = at.node.Anchor
	if at.node.Style&yaml.TaggedStyle != 0 {
		if want.Tag = at.node.ShortTag(); v.Kind != scalarOf(at.node).Kind {
			return nil, nil, &Error{Problem: fmt.Sprintf("it has the tag %s, which does not fit %s", want.Tag, v), Remedy: "remove the tag"}
		}
	}
	st := style{flow: inFlow(at.trail), json: s.json, quote: quoteOf(at.node)}
	if e.content > 0 {
		if v.Kind == String && strings.Contains(v.Text, "\n") {
			if sp, ok := s.rewriteBlock(e, v.Text); ok {
				return sp, want, nil
			}
		}
		// What the header line says after the indicators, a comment, stays.
		header := s.lineEnd(e.indicators)
		st.quote = 0
		return []splice{
			{e.start, e.indicators, st.text(v)},
			{header, max(header, e.end), ""},
		}, want, nil
	}
	text := st.text(v)
	if e.start == e.end {
		// An empty value: its place is right after a colon, a dash or its
		// properties, which need a space.
		switch {
		case v.Kind == Null:
			return nil, want, nil
		case e.properties:
			text = " " + text
		case e.start > 0 && (s.text[e.start-1] == ':' || s.text[e.start-1] == '-' || s.text[e.start-1] == '?'):
			text = " " + text
		case e.start > 0 && isSpace(s.text[e.start-1]):
		default:
			return nil, nil, errors.New("it has no value and no place for one")
		}
		if e.end < len(s.text) && !isSpace(s.text[e.end]) && breakLength(s.text[e.end:]) == 0 && !isFlowEnd(s.text[e.end]) {
			text += " "
		}
	}
	return []splice{{e.start, e.end, text}}, want, nil
}

// rewriteBlock replaces the lines of a block scalar by those of text, as a
// literal one with the same indentation.
func (s *source) rewriteBlock(e extent, text string) ([]splice, bool) {
	if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && r != '\t' && !printable(r) }) {
		return nil, false
	}
	body, chomp := strings.CutSuffix(text, "\n")
	first := strings.TrimLeft(body, "\n")
	if first == "" || first[0] == ' ' || first[0] == '\t' || strings.HasSuffix(body, "\n") {
		return nil, false // would need an indentation or keep indicator: quoting is clearer
	}
	i := s.skipSpaceAndBreaks(e.content)
	if i >= e.end || i == s.lineStart(i) {
		return nil, false
	}
	indent := string(s.text[s.lineStart(i):i])
	if strings.Trim(indent, " ") != "" || strings.IndexByte("0123456789", s.text[e.indicators-1]) >= 0 {
		return nil, false
	}
	header := "|"
	if !chomp {
		header = "|-"
	}
	br := s.lineBreak(e.start)
	var b strings.Builder
	for i, line := range strings.Split(body, "\n") {
		if i > 0 {
			b.WriteString(br)
		}
		if line != "" {
			b.WriteString(indent + line)
		}
	}
	if e.end == len(s.text) && chomp {
		b.WriteString(br) // clipping keeps a line break only if there is one
	}
	return []splice{{e.start, e.indicators, header}, {e.content, e.end, b.String()}}, true
}

// create adds the parts of a path that are missing. It returns what to splice
// and the node expected at the location reached.
func (s *source) create(at *location, v Scalar) ([]splice, *yaml.Node, error) {
	missing := at.parts[at.depth:]
	for _, p := range missing {
		if strings.ContainsFunc(p, func(r rune) bool { return !printable(r) }) {
			return nil, nil, fmt.Errorf("%q cannot be a key", p)
		}
	}
	flow := inFlow(at.trail) || at.node.Style&yaml.FlowStyle != 0
	want := *at.node
	if at.node.Kind == yaml.MappingNode {
		want.Content = append(want.Content[:len(want.Content):len(want.Content)], scalarNode(Scalar{String, missing[0]}), nest(missing[1:], v))
		if flow {
			sp, err := s.createInFlow(at.node, missing, v)
			return sp, &want, err
		}
		sp, err := s.createInBlock(at.node, missing, v)
		return sp, &want, err
	}
	// A null becomes a mapping.
	filled := nest(missing, v)
	filled.Anchor = at.node.Anchor
	e, err := s.scalarExtent(at.node)
	if err != nil {
		return nil, nil, err
	}
	if len(at.trail) == 1 {
		sp, err := s.createDocument(e, missing, v)
		return sp, filled, err
	}
	if flow || e.start != e.end || at.key == nil || e.properties {
		st := style{flow: true, json: s.json}
		text := "{" + st.entry(missing, v) + "}"
		if e.start == e.end {
			text = " " + text
		}
		return []splice{{e.start, e.end, text}}, filled, nil
	}
	indent := strings.Repeat(" ", at.key.Column-1+s.indentUnit())
	end := s.lineEnd(e.end)
	br := s.lineBreak(end)
	return []splice{{end, end, br + style{br: br, unit: s.indentUnit()}.block(indent, missing, v)}}, filled, nil
}

// createDocument fills a document that has no content.
func (s *source) createDocument(e extent, parts []string, v Scalar) ([]splice, error) {
	if len(s.docs) != 1 || e.start != e.end || e.properties {
		return nil, errors.New("the document is empty; write a mapping first")
	}
	br := s.lineBreak(s.start)
	text := style{br: br, unit: 2}.block("", parts, v) + br
	end := len(s.text)
	if end > s.start && s.lineStart(end) != end {
		text = br + text
	}
	return []splice{{end, end, text}}, nil
}

// createInBlock adds an entry after the last one of a block mapping.
func (s *source) createInBlock(m *yaml.Node, parts []string, v Scalar) ([]splice, error) {
	end, err := s.nodeEnd(m)
	if err != nil {
		return nil, err
	}
	lineEnd := s.lineEnd(end)
	if rest := strings.TrimLeft(string(s.text[end:lineEnd]), " \t"); rest != "" && rest[0] != '#' {
		return nil, errLost
	}
	first := m.Content[0]
	i, err := s.offset(first)
	if err != nil {
		return nil, err
	}
	indent := strings.Repeat(" ", first.Column-1)
	if before := string(s.text[s.lineStart(i):i]); strings.ContainsFunc(before, func(r rune) bool { return r != ' ' && r != '-' }) {
		return nil, errors.New("the mapping starts on a line with something else; add the key by hand")
	}
	br := s.lineBreak(end)
	st := style{br: br, unit: s.indentUnit(), quote: quoteOf(m.Content[0])}
	if st.quote != '"' {
		st.quote = 0
	}
	return []splice{{lineEnd, lineEnd, br + st.block(indent, parts, v)}}, nil
}

// createInFlow adds an entry after the last one of a flow mapping, on a line
// of its own if the last one has that. In JSON the key and strings are quoted.
func (s *source) createInFlow(m *yaml.Node, parts []string, v Scalar) ([]splice, error) {
	end, err := s.flowContentEnd(m)
	if err != nil {
		return nil, err
	}
	st := style{flow: true, json: s.json}
	if len(m.Content) == 0 {
		return []splice{{end, end, st.entry(parts, v)}}, nil
	}
	key, value := m.Content[len(m.Content)-2], m.Content[len(m.Content)-1]
	st.json = s.json || quoteOf(key) == '"'
	separator := ", "
	i, err := s.offset(key)
	if err != nil {
		return nil, err
	}
	start := s.lineStart(i)
	if before := string(s.text[start:i]); start > s.start && strings.TrimLeft(before, " \t") == "" {
		separator = "," + s.lineBreak(start-1) + before
	}
	if value.Kind == yaml.ScalarNode && value.Value == "" && isPlain(value) {
		return nil, errors.New("the flow mapping ends in an entry without a value; add the key by hand")
	}
	return []splice{{end, end, separator + st.entry(parts, v)}}, nil
}

// indentUnit is the indentation of the first nested block mapping, 2 if there
// is none.
func (s *source) indentUnit() int {
	unit := 0
	for _, d := range s.docs {
		visit(d, func(n *yaml.Node) {
			if unit > 0 || n.Kind != yaml.MappingNode || n.Style&yaml.FlowStyle != 0 {
				return
			}
			for i := 0; i+1 < len(n.Content); i += 2 {
				k, v := n.Content[i], n.Content[i+1]
				if v.Kind == yaml.MappingNode && v.Style&yaml.FlowStyle == 0 && len(v.Content) > 0 && v.Content[0].Line > k.Line && v.Content[0].Column > k.Column {
					unit = v.Content[0].Column - k.Column
					return
				}
			}
		})
	}
	if unit == 0 || unit > 8 {
		return 2
	}
	return unit
}

// style is how new text is written.
type style struct {
	// flow is true inside brackets, json if names and strings must be quoted.
	flow, json bool
	// quote is the quotation mark in use, 0 for none.
	quote byte
	// br is the line break, unit the indentation step of block mappings.
	br   string
	unit int
}

// text writes a scalar so that every reader gets the same type.
func (st style) text(v Scalar) string {
	switch v.Kind {
	case Null:
		return "null"
	case Number, Boolean:
		return v.Text
	}
	oneLine := !strings.ContainsFunc(v.Text, func(r rune) bool { return !printable(r) })
	switch {
	case st.json || st.quote == '"' || !oneLine:
		return doubleQuoted(v.Text)
	case st.quote == '\'':
		return "'" + strings.ReplaceAll(v.Text, "'", "''") + "'"
	case plainSafe(v.Text, st.flow) && plainIsString(v.Text):
		return v.Text
	}
	return doubleQuoted(v.Text)
}

func (st style) key(part string) string {
	if st.quote == '"' {
		return doubleQuoted(part)
	}
	st.quote = 0
	return st.text(Scalar{String, part})
}

// entry writes "a: {b: value}" for parts a, b.
func (st style) entry(parts []string, v Scalar) string {
	if len(parts) == 1 {
		return st.key(parts[0]) + ": " + st.text(v)
	}
	return st.key(parts[0]) + ": {" + st.entry(parts[1:], v) + "}"
}

// block writes nested block mappings, without a line break at the end.
func (st style) block(indent string, parts []string, v Scalar) string {
	line := indent + st.key(parts[0]) + ":"
	if len(parts) == 1 {
		return line + " " + st.text(v)
	}
	return line + st.br + st.block(indent+strings.Repeat(" ", st.unit), parts[1:], v)
}

// plainSafe tells whether text can stand without quotes. It is stricter than
// YAML: what is not obviously safe is quoted.
func plainSafe(text string, flow bool) bool {
	if text == "" || strings.TrimSpace(text) != text {
		return false
	}
	first := rune(text[0])
	switch {
	case first >= '0' && first <= '9', first >= 'a' && first <= 'z', first >= 'A' && first <= 'Z', first == '_', first == '/', first == '.', first == '+':
	case first == '-' && len(text) > 1 && text[1] != ' ' && text[1] != '-':
	case []rune(text)[0] >= 0x80 && unicode.IsLetter([]rune(text)[0]):
	default:
		return false
	}
	if strings.HasPrefix(text, "...") {
		return false
	}
	for i := range len(text) {
		switch c := text[i]; {
		case c == ':' && (flow || i+1 == len(text) || isSpace(text[i+1])):
			return false
		case c == '#' && i > 0 && isSpace(text[i-1]):
			return false
		case flow && isFlowEnd(c):
			return false
		}
	}
	return !strings.ContainsFunc(text, func(r rune) bool { return r == '\t' || !printable(r) })
}

// printable tells whether a rune can be written as it is inside one line.
func printable(r rune) bool {
	return r == '\t' || unicode.IsPrint(r) && r != 0xFEFF
}

// doubleQuoted writes a string as JSON does, where YAML 1.1 and 1.2 and JSON
// agree.
func doubleQuoted(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"', r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case printable(r), r > 0xFFFF: // beyond the BMP, YAML and JSON have no escape in common
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func quoteOf(n *yaml.Node) byte {
	switch {
	case n.Style&yaml.DoubleQuotedStyle != 0:
		return '"'
	case n.Style&yaml.SingleQuotedStyle != 0:
		return '\''
	}
	return 0
}

// inFlow tells whether the last node of a trail is inside a flow collection.
func inFlow(trail []*yaml.Node) bool {
	for _, n := range trail[:len(trail)-1] {
		if n.Style&yaml.FlowStyle != 0 {
			return true
		}
	}
	return false
}

// scalarNode is the node a scalar is expected to be parsed as.
func scalarNode(v Scalar) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: v.Text}
	switch v.Kind {
	case String:
		n.Tag = strTag
	case Boolean:
		n.Tag = boolTag
	case Null:
		n.Tag = nullTag
	case Number:
		n.Tag = (&yaml.Node{Kind: yaml.ScalarNode, Value: v.Text}).ShortTag()
	}
	return n
}

func nest(parts []string, v Scalar) *yaml.Node {
	n := scalarNode(v)
	for i := len(parts) - 1; i >= 0; i-- {
		n = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{scalarNode(Scalar{String, parts[i]}), n}}
	}
	return n
}

// verify parses the edited text again and compares it with the original in
// which the node at the location is want.
func (s *source) verify(out []byte, at *location, want *yaml.Node) (*source, error) {
	edited, err := parse(out, s.file)
	if err != nil {
		return nil, err
	}
	if s.json && !edited.json {
		return nil, errors.New("the file would no longer be JSON")
	}
	if len(edited.docs) != len(s.docs) {
		return nil, errors.New("the number of documents would change")
	}
	for i := range s.docs {
		if path, ok := same(s.docs[i], edited.docs[i], at.trail[len(at.trail)-1], want); !ok {
			return nil, fmt.Errorf("document %d would change at %q", i, JoinKey(path))
		}
	}
	return edited, nil
}

// same compares trees, with the node replaced in the first taken as want. If
// they differ it returns the path to the difference.
func same(a, b, replaced, want *yaml.Node) ([]string, bool) {
	if a == replaced {
		a = want
	}
	if a.Kind != b.Kind || a.Anchor != b.Anchor || len(a.Content) != len(b.Content) || a.ShortTag() != b.ShortTag() {
		return nil, false
	}
	if a.Value != b.Value && a.ShortTag() != nullTag { // nulls have many spellings
		return nil, false
	}
	for i := range a.Content {
		if path, ok := same(a.Content[i], b.Content[i], replaced, want); !ok {
			switch a.Kind {
			case yaml.MappingNode:
				path = append([]string{a.Content[i&^1].Value}, path...)
			case yaml.SequenceNode:
				path = append([]string{strconv.Itoa(i)}, path...)
			}
			return path, false
		}
	}
	return nil, true
}

// SameExcept tells whether two texts both parse and hold the same documents,
// but for the keys of written in the first document: there, the second holds
// what the given texts read as when they stand alone after a key.
// It is for those who edit text by other rules and want to know whether they
// broke it.
func SameExcept(before, after []byte, written map[string]string) bool {
	a, err := parse(before, "")
	if err != nil {
		return false
	}
	b, err := parse(after, "")
	if err != nil || len(a.docs) != len(b.docs) || len(a.docs) == 0 {
		return false
	}
	for key, text := range written {
		alone, err := parse([]byte("k: "+text), "")
		if err != nil || len(alone.docs) != 1 {
			return false
		}
		parts, err := SplitKey(key)
		if err != nil {
			return false
		}
		old, _ := First(a.docs[0], parts)
		got, _ := First(b.docs[0], parts)
		want, _ := First(alone.docs[0], []string{"k"})
		if old == nil || got == nil || want == nil {
			return false
		}
		if _, ok := same(want, got, nil, nil); !ok {
			return false
		}
		*old = *got
	}
	for i := range a.docs {
		if _, ok := same(a.docs[i], b.docs[i], nil, nil); !ok {
			return false
		}
	}
	return true
}

// First follows parts from a document node the way Kargo does: the first
// mapping key with the part's text, or a sequence index; aliases lead nowhere.
// It returns nil if the path ends early, with strconv's error if that is because
// a part is no number where a sequence needs one.
func First(doc *yaml.Node, parts []string) (*yaml.Node, error) {
	n := doc
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	for _, part := range parts {
		var next *yaml.Node
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content) && next == nil; i += 2 {
				if n.Content[i].Value == part {
					next = n.Content[i+1]
				}
			}
		case yaml.SequenceNode:
			i, err := strconv.Atoi(part)
			if err != nil {
				return nil, err
			}
			if i >= 0 && i < len(n.Content) {
				next = n.Content[i]
			}
		}
		if next == nil {
			return nil, nil
		}
		n = next
	}
	return n, nil
}
