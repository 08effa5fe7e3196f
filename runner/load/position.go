package load

import (
	"strconv"
	"strings"

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
