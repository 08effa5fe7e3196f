package load

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Position returns where the value at a JSON pointer (RFC 6901, "" is the
// whole document) is written: its key where it has one, the item in a list.
// For a value that is not there it is the nearest ancestor's position.
func (d *Document) Position(pointer string) Position {
	key, _ := d.find(pointer)
	if key == nil {
		return Position{File: d.File, Line: d.Line}
	}
	return Position{File: d.File, Line: key.Line, Column: key.Column}
}

// ValuePosition is like Position, but of the value rather than of its key.
func (d *Document) ValuePosition(pointer string) Position {
	_, value := d.find(pointer)
	if value == nil {
		return Position{File: d.File, Line: d.Line}
	}
	return Position{File: d.File, Line: value.Line, Column: value.Column}
}

// TextPosition returns where a byte of a scalar's text is written. Where that
// cannot be told it is the scalar's own position.
func (d *Document) TextPosition(pointer string, offset int) Position {
	pos := d.ValuePosition(pointer)
	node := d.Find(pointer)
	if node == nil || node.Kind != yaml.ScalarNode || pos.Line == 0 {
		return pos
	}
	value := node.Value
	offset = min(offset, len(value))
	const rewritten = yaml.LiteralStyle | yaml.FoldedStyle | yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle
	if node.Style&rewritten == 0 && !strings.Contains(value, " ") {
		pos.Column += utf8.RuneCountInString(value[:offset])
		return pos
	}
	// Escapes, folding and indentation change the text between here and
	// there: the word at the offset, or before it, is searched for, as often
	// as it occurs before.
	const separators = " \t\n'\"\\"
	start := len(strings.TrimRight(value[:min(offset+1, len(value))], separators))
	start = strings.LastIndexAny(value[:max(start-1, 0)], separators) + 1
	word := value[start:]
	if i := strings.IndexAny(word, separators); i >= 0 {
		word = word[:i]
	}
	if word == "" {
		return pos
	}
	text, line := d.source.from(pos)
	found := pos
	for range strings.Count(value[:start], word) + 1 {
		i := bytes.Index(text, []byte(word))
		if i < 0 {
			return pos
		}
		line += bytes.Count(text[:i], []byte("\n"))
		at := len(d.source.text) - len(text) + i
		first := bytes.LastIndexByte(d.source.text[:at], '\n') + 1
		found.Line, found.Column = line, utf8.RuneCount(d.source.text[first:at])+1
		text = text[i+len(word):]
	}
	if between := value[min(start, offset):offset]; !strings.Contains(between, "\n") {
		found.Column += utf8.RuneCountInString(between)
	}
	return found
}

// from returns the text from a position on, and the position's line.
func (p part) from(pos Position) ([]byte, int) {
	text := p.text
	for range pos.Line - p.line - 1 {
		i := bytes.IndexByte(text, '\n')
		if i < 0 {
			return nil, pos.Line
		}
		text = text[i+1:]
	}
	for range pos.Column - 1 {
		_, size := utf8.DecodeRune(text)
		text = text[size:]
	}
	return text, pos.Line
}

// Find returns the YAML node at a JSON pointer, or nil.
func (d *Document) Find(pointer string) *yaml.Node {
	value := d.Node
	for _, tok := range splitPointer(pointer) {
		if _, value = child(value, tok); value == nil {
			return nil
		}
	}
	return value
}

// Boolean11 returns the text of a plain scalar that only YAML 1.1 reads as a
// boolean, such as n or on: the key of the value at a JSON pointer, and the value
// itself. Each is "" if it is none.
func (d *Document) Boolean11(pointer string) (key, value string) {
	if d.Find(pointer) == nil {
		return "", ""
	}
	k, v := d.find(pointer)
	text := func(n *yaml.Node) string {
		const quoted = yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
		if n.Kind != yaml.ScalarNode || n.Style&(quoted|yaml.TaggedStyle) != 0 || strings.EqualFold(n.Value, keyText(n)) {
			return ""
		}
		return n.Value
	}
	if k != v {
		key = text(k)
	}
	return key, text(v)
}

// find returns the nodes of the deepest part of pointer that exists.
func (d *Document) find(pointer string) (key, value *yaml.Node) {
	key, value = d.Node, d.Node
	for _, tok := range splitPointer(pointer) {
		k, v := child(value, tok)
		if v == nil {
			break
		}
		key, value = k, v
	}
	return key, value
}

// Pointer makes a JSON pointer of object keys and list indices.
func Pointer(path ...any) string {
	var sb strings.Builder
	for _, p := range path {
		sb.WriteByte('/')
		switch p := p.(type) {
		case string:
			sb.WriteString(pointerEscaper.Replace(p))
		case int:
			sb.WriteString(strconv.Itoa(p))
		}
	}
	return sb.String()
}

var (
	pointerEscaper   = strings.NewReplacer("~", "~0", "/", "~1")
	pointerUnescaper = strings.NewReplacer("~1", "/", "~0", "~")
)

func splitPointer(pointer string) []string {
	if pointer == "" {
		return nil
	}
	toks := strings.Split(strings.TrimPrefix(pointer, "/"), "/")
	for i, t := range toks {
		toks[i] = pointerUnescaper.Replace(t)
	}
	return toks
}

// maxAliasHops bounds walks through aliases and merge keys, which a hostile
// document can make circular.
const maxAliasHops = 16

func child(n *yaml.Node, tok string) (key, value *yaml.Node) {
	return childN(n, tok, maxAliasHops)
}

func childN(n *yaml.Node, tok string, hops int) (key, value *yaml.Node) {
	for n != nil && n.Kind == yaml.AliasNode && hops > 0 {
		n = n.Alias
		hops--
	}
	if n == nil || hops == 0 {
		return nil, nil
	}
	switch n.Kind {
	case yaml.SequenceNode:
		i, err := strconv.Atoi(tok)
		if err != nil || i < 0 || i >= len(n.Content) {
			return nil, nil
		}
		return n.Content[i], n.Content[i]
	case yaml.MappingNode:
		var merges []*yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Value == "<<" && k.Tag == "!!merge" {
				merges = append(merges, n.Content[i+1])
				continue
			}
			if keyText(k) == tok {
				return k, n.Content[i+1]
			}
		}
		for _, m := range merges {
			sources := []*yaml.Node{m}
			if m.Kind == yaml.SequenceNode {
				sources = m.Content
			}
			for _, s := range sources {
				if k, v := childN(s, tok, hops-1); v != nil {
					return k, v
				}
			}
		}
	}
	return nil, nil
}

// keyText returns the JSON key that YAML 1.1 makes of a mapping key.
func keyText(k *yaml.Node) string {
	if k.Kind != yaml.ScalarNode || k.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		return k.Value
	}
	switch k.Value {
	case "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON":
		return "true"
	case "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF":
		return "false"
	}
	return k.Value
}
