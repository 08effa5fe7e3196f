package yamledit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/stepd/stepd/internal/nearname"
)

// SplitKey splits a key in the syntax of Kargo's yaml-update (v1.11.2,
// pkg/yaml): parts are separated by dots, a part is a mapping key or a decimal
// sequence index. `\.` and `\:` are a literal dot and colon; a colon that
// starts a part is a hint that is dropped. Space around the key is dropped.
func SplitKey(key string) ([]string, error) {
	var parts []string
	var part strings.Builder
	end := func() error {
		if part.Len() == 0 {
			return errors.New("empty key part in key")
		}
		parts = append(parts, part.String())
		part.Reset()
		return nil
	}
	key = strings.TrimSpace(key)
	atStart := true
	for i := 0; i < len(key); i++ {
		switch c := key[i]; c {
		case '\\':
			if i+1 == len(key) || key[i+1] != '.' && key[i+1] != ':' {
				return nil, errors.New("invalid escape sequence in key")
			}
			i++
			part.WriteByte(key[i])
		case '.':
			if err := end(); err != nil {
				return nil, err
			}
			atStart = true
			continue
		case ':':
			if !atStart {
				return nil, errors.New("unexpected colon in key")
			}
		default:
			part.WriteByte(c)
		}
		atStart = false
	}
	if err := end(); err != nil {
		return nil, err
	}
	return parts, nil
}

// JoinKey is the inverse of SplitKey for parts without backslashes.
func JoinKey(parts []string) string {
	escaped := make([]string, len(parts))
	for i, p := range parts {
		escaped[i] = strings.NewReplacer(".", `\.`, ":", `\:`).Replace(p)
	}
	return strings.Join(escaped, ".")
}

// location is how far a path leads.
type location struct {
	parts []string
	// trail are the nodes from the root to node, both included.
	trail []*yaml.Node
	// node is the deepest node reached, key its mapping key if it has one.
	node, key *yaml.Node
	// depth is how many parts were resolved.
	depth int
	// problem is nil if node is the scalar asked for.
	problem *Error
}

// error locates err at the node reached.
func (at *location) error(s *source, key string, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		e.File, e.Key = s.file, key
		if e.Line == 0 {
			e.Line, e.Column = at.node.Line, at.node.Column
		}
		return e
	}
	return &Error{File: s.file, Line: at.node.Line, Column: at.node.Column, Key: key, Problem: err.Error()}
}

// name is what messages call the node reached.
func (at *location) name() string {
	if at.depth == 0 {
		return "the document"
	}
	return strconv.Quote(JoinKey(at.parts[:at.depth]))
}

// walk follows parts from root as far as they lead.
func (s *source) walk(root *yaml.Node, parts []string, followAliases bool) *location {
	at := &location{parts: parts, node: root, trail: []*yaml.Node{root}}
	stop := func(missing bool, problem, remedy string) *location {
		at.problem = &Error{File: s.file, Line: at.node.Line, Column: at.node.Column, Problem: problem, Remedy: remedy, Missing: missing}
		if missing {
			at.problem.Nearest = nearest(root, parts)
		}
		return at
	}
	for {
		if at.node.Kind == yaml.AliasNode {
			if !followAliases {
				return stop(false, fmt.Sprintf("%q is the alias *%s; what it stands for is shared with other places",
					JoinKey(parts[:at.depth]), at.node.Value), "set the key at the anchor, or write the value out in place of the alias")
			}
			at.node = at.node.Alias
			at.trail = append(at.trail, at.node)
			continue
		}
		if at.depth == len(parts) {
			if at.node.Kind != yaml.ScalarNode {
				return stop(false, "is not a scalar but a "+kindName(at.node), "name a scalar below it")
			}
			return at
		}
		part := parts[at.depth]
		var next, key *yaml.Node
		switch at.node.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(at.node.Content); i += 2 {
				k := at.node.Content[i]
				if k.Kind != yaml.ScalarNode || isMerge(k) || k.Value != part {
					continue
				}
				if next != nil {
					return stop(false, fmt.Sprintf("key %q occurs twice, at lines %d and %d", part, key.Line, k.Line), "remove one")
				}
				key, next = k, at.node.Content[i+1]
			}
			if next == nil {
				if line := mergedFrom(at.node, part); line > 0 {
					return stop(false, fmt.Sprintf("comes from the merge key << at line %d", line), "add the key below its own mapping first")
				}
				return stop(true, "is not there", "")
			}
		case yaml.SequenceNode:
			i, err := strconv.ParseUint(part, 10, 31)
			if err != nil {
				return stop(false, fmt.Sprintf("%s is a sequence, so %q must be an index", at.name(), part), "")
			}
			if int(i) >= len(at.node.Content) {
				return stop(false, fmt.Sprintf("index %d is outside the sequence, which has %d items", i, len(at.node.Content)), "")
			}
			next = at.node.Content[i]
		default:
			if at.node.ShortTag() == nullTag {
				return stop(true, "is not there", "")
			}
			return stop(false, at.name()+" is a scalar, which has no keys below it", "")
		}
		at.node, at.key = next, key
		at.trail = append(at.trail, next)
		at.depth++
	}
}

// shared refuses a path through an anchor that an alias refers to: the edit
// would show in places nobody named.
func (s *source) shared(root *yaml.Node, trail []*yaml.Node) *Error {
	anchored := map[*yaml.Node]bool{}
	for _, n := range trail {
		if n.Anchor != "" {
			anchored[n] = true
		}
	}
	if len(anchored) == 0 {
		return nil
	}
	var found *Error
	visit(root, func(n *yaml.Node) {
		if found == nil && n.Kind == yaml.AliasNode && anchored[n.Alias] {
			found = &Error{
				File: s.file, Line: n.Alias.Line, Column: n.Alias.Column,
				Problem: fmt.Sprintf("the anchor &%s is used again at line %d, which would change too", n.Value, n.Line),
				Remedy:  "write the value out in place of the alias",
			}
		}
	})
	return found
}

const (
	nullTag  = "!!null"
	strTag   = "!!str"
	intTag   = "!!int"
	floatTag = "!!float"
	boolTag  = "!!bool"
	mergeTag = "!!merge"
)

func isMerge(k *yaml.Node) bool { return k.Value == "<<" && k.ShortTag() == mergeTag }

// mergedFrom returns the line of the merge key of m that provides key, or 0.
func mergedFrom(m *yaml.Node, key string) int {
	seen := map[*yaml.Node]bool{}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if isMerge(m.Content[i]) && provides(m.Content[i+1], key, seen) {
			return m.Content[i].Line
		}
	}
	return 0
}

// provides looks at every node once: merges of merges are as many paths as an
// attacker likes.
func provides(n *yaml.Node, key string, seen map[*yaml.Node]bool) bool {
	if seen[n] {
		return false // it did not, or is still being looked at
	}
	seen[n] = true
	switch n.Kind {
	case yaml.AliasNode:
		return provides(n.Alias, key, seen)
	case yaml.SequenceNode:
		for _, c := range n.Content {
			if provides(c, key, seen) {
				return true
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key || isMerge(n.Content[i]) && provides(n.Content[i+1], key, seen) {
				return true
			}
		}
	}
	return false
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "mapping"
	case yaml.SequenceNode:
		return "sequence"
	case yaml.AliasNode:
		return "alias"
	}
	return "scalar"
}

// visit calls f for n and everything below it, not following aliases.
func visit(n *yaml.Node, f func(*yaml.Node)) {
	f(n)
	for _, c := range n.Content {
		visit(c, f)
	}
}

// maxCandidates bounds the search for near keys in huge documents.
const maxCandidates = 5000

// nearest finds keys of scalars that resemble parts: a small misspelling, or
// the same last part somewhere else.
func nearest(root *yaml.Node, parts []string) []string {
	var all, sameLast []string
	var collect func(n *yaml.Node, path []string)
	collect = func(n *yaml.Node, path []string) {
		if len(all) >= maxCandidates || len(path) > 32 {
			return
		}
		switch n.Kind {
		case yaml.ScalarNode:
			if len(path) > 0 {
				key := JoinKey(path)
				all = append(all, key)
				if path[len(path)-1] == parts[len(parts)-1] {
					sameLast = append(sameLast, key)
				}
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				collect(n.Content[i+1], append(path[:len(path):len(path)], n.Content[i].Value))
			}
		case yaml.SequenceNode:
			for i, c := range n.Content {
				collect(c, append(path[:len(path):len(path)], strconv.Itoa(i)))
			}
		}
	}
	collect(root, nil)
	near := nearname.Nearest(JoinKey(parts), all, 3)
	if len(near) == 0 {
		near = sameLast[:min(3, len(sameLast))]
	}
	return near
}
