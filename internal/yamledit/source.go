package yamledit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// source is a parsed stream with the means to find a node's bytes. The parser
// gives a node's line and column in characters; ends have to be scanned for.
type source struct {
	file string
	text []byte
	// start is the length of the byte order mark, which the parser does not count.
	start int
	// lines are the offsets at which lines start.
	lines []int
	// docs are the document nodes, in order.
	docs []*yaml.Node
	// json is true if the whole text is JSON, which it then stays.
	json bool
}

var byteOrderMark = []byte("\xef\xbb\xbf")

func parse(src []byte, file string) (*source, error) {
	s := &source{file: file, text: src}
	if s.file == "" {
		s.file = "YAML"
	}
	if !utf8.Valid(src) {
		return nil, &SyntaxError{s.file, errors.New("it is not UTF-8")}
	}
	if bytes.HasPrefix(src, byteOrderMark) {
		s.start = len(byteOrderMark)
	}
	s.json = json.Valid(src[s.start:])
	s.lines = []int{s.start}
	for i := s.start; i < len(src); {
		if n := breakLength(src[i:]); n > 0 {
			i += n
			s.lines = append(s.lines, i)
			continue
		}
		i++
	}
	dec := yaml.NewDecoder(bytes.NewReader(src))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return nil, &SyntaxError{s.file, err}
		}
		s.docs = append(s.docs, &doc)
	}
}

// document returns the root node of a document. With create, a stream without
// documents has an empty first one.
func (s *source) document(doc int, key string, create bool) (*yaml.Node, error) {
	if len(s.docs) == 0 && doc == 0 && create {
		null := &yaml.Node{Kind: yaml.ScalarNode, Tag: nullTag, Line: len(s.lines), Column: 1}
		s.docs = append(s.docs, &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{null}})
	}
	if doc < 0 || doc >= len(s.docs) || len(s.docs[doc].Content) != 1 {
		return nil, &Error{File: s.file, Key: key, Problem: fmt.Sprintf("there is no document %d; the file has %d", doc, len(s.docs)), Missing: true}
	}
	return s.docs[doc].Content[0], nil
}

// find returns the scalar node at key.
func (s *source) find(doc int, key string, followAliases bool) (*yaml.Node, error) {
	parts, err := SplitKey(key)
	if err != nil {
		return nil, &Error{File: s.file, Key: key, Problem: err.Error()}
	}
	root, err := s.document(doc, key, false)
	if err != nil {
		return nil, err
	}
	at := s.walk(root, parts, followAliases)
	if at.problem != nil {
		at.problem.Key = key
		return nil, at.problem
	}
	return at.node, nil
}

// errLost means that positions and text do not fit together. Nothing is
// edited then.
var errLost = errors.New("its place in the text cannot be determined")

// offset is where a node starts.
func (s *source) offset(n *yaml.Node) (int, error) {
	if n.Line < 1 || n.Line > len(s.lines) {
		return 0, errLost
	}
	i := s.lines[n.Line-1]
	for range n.Column - 1 {
		if i >= len(s.text) || breakLength(s.text[i:]) > 0 {
			return 0, errLost
		}
		_, size := utf8.DecodeRune(s.text[i:])
		i += size
	}
	return i, nil
}

// extent is where a scalar's bytes are, without anchor and tag.
type extent struct {
	start, end int
	// indicators is the end of a block scalar's header ("|2-"), and content
	// the start of the line after it; 0 for other scalars.
	indicators, content int
	// properties is true if an anchor or tag stands before the scalar.
	properties bool
}

func (s *source) scalarExtent(n *yaml.Node) (extent, error) {
	start, err := s.offset(n)
	if err != nil {
		return extent{}, err
	}
	propertiesEnd := s.skipProperties(start)
	e := extent{start: propertiesEnd, end: propertiesEnd, properties: propertiesEnd > start}
	if n.Value == "" && isPlain(n) {
		return e, nil
	}
	if e.properties {
		e.start = s.skipSpaceAndComments(propertiesEnd)
	}
	rest := s.text[e.start:]
	switch {
	case len(rest) == 0:
		return extent{}, errLost
	case n.Style&yaml.DoubleQuotedStyle != 0:
		e.end, err = s.quotedEnd(e.start, '"')
	case n.Style&yaml.SingleQuotedStyle != 0:
		e.end, err = s.quotedEnd(e.start, '\'')
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		err = s.blockExtent(n, &e)
	default:
		e.end, err = s.plainEnd(e.start, n.Value)
	}
	return e, err
}

// skipProperties skips an anchor and a tag in any order, and the space
// between them, but not the space after the last.
func (s *source) skipProperties(i int) int {
	end := i
	for i < len(s.text) && (s.text[i] == '&' || s.text[i] == '!') {
		for i < len(s.text) && !isSpace(s.text[i]) && breakLength(s.text[i:]) == 0 && !isFlowEnd(s.text[i]) {
			i++
		}
		end = i
		i = s.skipSpaceAndComments(i)
	}
	return end
}

func (s *source) quotedEnd(i int, quote byte) (int, error) {
	if s.text[i] != quote {
		return 0, errLost
	}
	for i++; i < len(s.text); i++ {
		switch {
		case quote == '"' && s.text[i] == '\\':
			i++
		case s.text[i] == quote && quote == '\'' && i+1 < len(s.text) && s.text[i+1] == quote:
			i++
		case s.text[i] == quote:
			return i + 1, nil
		}
	}
	return 0, errLost
}

// plainEnd matches the words of a plain scalar's value against the text, in
// which they may be on several lines.
func (s *source) plainEnd(i int, value string) (int, error) {
	for k, word := range strings.FieldsFunc(value, func(r rune) bool {
		return r == ' ' || r == '\t' || r == '\n' || r == 0x85 || r == 0x2028 || r == 0x2029
	}) {
		if k > 0 {
			i = s.skipSpaceAndBreaks(i)
		}
		if !bytes.HasPrefix(s.text[i:], []byte(word)) {
			return 0, errLost
		}
		i += len(word)
	}
	return i, nil
}

// blockExtent finds the header and the last content line of a block scalar.
func (s *source) blockExtent(n *yaml.Node, e *extent) error {
	i := e.start
	if s.text[i] != '|' && s.text[i] != '>' {
		return errLost
	}
	keep := false
	for i++; i < len(s.text) && strings.IndexByte("+-0123456789", s.text[i]) >= 0; i++ {
		keep = keep || s.text[i] == '+'
	}
	e.indicators = i
	i = s.lineEnd(i)
	e.end = i
	i += breakLength(s.text[i:])
	e.content = i

	first := strings.TrimLeft(n.Value, "\n")
	indent := -1
	for i < len(s.text) {
		lineEnd := s.lineEnd(i)
		next := lineEnd + breakLength(s.text[lineEnd:])
		line := string(s.text[i:lineEnd])
		spaces := len(line) - len(strings.TrimLeft(line, " "))
		blank := strings.TrimLeft(line, " \t") == ""
		if indent < 0 && spaces < len(line) && first != "" {
			// The first line with text: what the value shows of its spaces is
			// content, the rest is indentation.
			shown := len(first) - len(strings.TrimLeft(first, " "))
			if indent = spaces - shown; indent < 1 {
				return errLost
			}
		}
		switch {
		case blank && (indent < 0 || spaces <= indent):
			if len(line) > 0 || keep {
				e.end = lineEnd
			}
		case indent < 0 || spaces < indent:
			return nil
		default:
			e.end = lineEnd
		}
		if next == lineEnd {
			break
		}
		i = next
	}
	return nil
}

// nodeEnd is where the last byte of a node and everything below it is.
func (s *source) nodeEnd(n *yaml.Node) (int, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		e, err := s.scalarExtent(n)
		return e.end, err
	case yaml.AliasNode:
		i, err := s.offset(n)
		if err != nil || i >= len(s.text) || s.text[i] != '*' || !bytes.HasPrefix(s.text[i+1:], []byte(n.Value)) {
			return 0, errLost
		}
		return i + 1 + len(n.Value), nil
	case yaml.MappingNode, yaml.SequenceNode:
		if n.Style&yaml.FlowStyle == 0 {
			if len(n.Content) == 0 {
				return 0, errLost
			}
			return s.nodeEnd(n.Content[len(n.Content)-1])
		}
		i, err := s.flowContentEnd(n)
		if err != nil {
			return 0, err
		}
		for i < len(s.text) {
			i = s.skipSpaceAndComments(i)
			if i >= len(s.text) {
				break
			}
			switch s.text[i] {
			case ',', ':':
				i++
			case '}', ']':
				return i + 1, nil
			default:
				return 0, errLost
			}
		}
	}
	return 0, errLost
}

// flowContentEnd is where the last child of a flow collection ends, or just
// after the opening bracket if it has none.
func (s *source) flowContentEnd(n *yaml.Node) (int, error) {
	if len(n.Content) > 0 {
		return s.nodeEnd(n.Content[len(n.Content)-1])
	}
	i, err := s.offset(n)
	if err != nil {
		return 0, err
	}
	if end := s.skipProperties(i); end > i {
		i = s.skipSpaceAndComments(end)
	}
	if i >= len(s.text) || s.text[i] != '{' && s.text[i] != '[' {
		return 0, errLost
	}
	return i + 1, nil
}

// lineEnd is where the line that holds i ends, before its line break.
func (s *source) lineEnd(i int) int {
	for i < len(s.text) && breakLength(s.text[i:]) == 0 {
		i++
	}
	return i
}

func (s *source) lineStart(i int) int {
	start := s.start
	for _, l := range s.lines {
		if l > i {
			break
		}
		start = l
	}
	return start
}

// lineBreak is the line ending in use around i.
func (s *source) lineBreak(i int) string {
	end := s.lineEnd(i)
	if n := breakLength(s.text[end:]); n > 0 {
		return string(s.text[end : end+n])
	}
	if len(s.lines) > 1 {
		end = s.lineEnd(s.start)
		return string(s.text[end : end+breakLength(s.text[end:])])
	}
	return "\n"
}

func (s *source) skipSpaceAndBreaks(i int) int {
	for i < len(s.text) {
		if isSpace(s.text[i]) {
			i++
		} else if n := breakLength(s.text[i:]); n > 0 {
			i += n
		} else {
			break
		}
	}
	return i
}

func (s *source) skipSpaceAndComments(i int) int {
	for {
		j := s.skipSpaceAndBreaks(i)
		if j < len(s.text) && s.text[j] == '#' && (j > i || j == 0 || isSpace(s.text[j-1]) || s.text[j-1] == '\n' || s.text[j-1] == '\r') {
			i = s.lineEnd(j)
			continue
		}
		return j
	}
}

// breakLength is the length of the line break b starts with, or 0. These are
// the breaks the parser counts lines by: CR LF, CR, LF, NEL, LS, PS.
func breakLength(b []byte) int {
	switch {
	case len(b) == 0:
		return 0
	case b[0] == '\n':
		return 1
	case b[0] == '\r':
		if len(b) > 1 && b[1] == '\n' {
			return 2
		}
		return 1
	case len(b) > 1 && b[0] == 0xC2 && b[1] == 0x85:
		return 2
	case len(b) > 2 && b[0] == 0xE2 && b[1] == 0x80 && (b[2] == 0xA8 || b[2] == 0xA9):
		return 3
	}
	return 0
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

func isFlowEnd(c byte) bool { return c == ',' || c == ']' || c == '}' || c == '[' || c == '{' }
