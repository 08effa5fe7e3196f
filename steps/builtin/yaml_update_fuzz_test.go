package builtin

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/stepd/stepd/internal/yamledit"
)

// FuzzYAMLUpdate sets two keys of arbitrary YAML. Whatever is accepted must
// still parse, and hold what it held except at the two keys.
func FuzzYAMLUpdate(f *testing.F) {
	for _, s := range []struct{ text, key, value, other string }{
		{"image:\n  tag: old # c\n", "image.tag", "1.10", "image.tag"},
		{"m: {a: 1, b: [x, 'y']}\n", "m.a", "new", "m.b.0"},
		{"a: |\n  l1\nb: &x 1\nc: *x\n", "a", "v\nb: 2", "b"},
		{"é漢: v\r\nb: 1", "é漢", "a: b", "b"},
		{"a: 1\n---\na: 2\n", "a", "'", "a"},
		{"k: 'a\n\n  b'\nl: 2\n", "k", "#", "l"},
	} {
		f.Add([]byte(s.text), s.key, s.value, s.other)
	}
	f.Fuzz(func(t *testing.T, src []byte, key, value, other string) {
		if len(src) > 1<<14 {
			return
		}
		updates := []yamledit.Update{
			{Key: key, Value: value, Type: yamledit.AsGiven},
			{Key: other, Value: true, Type: yamledit.AsGiven},
		}
		out, err := updateYAML(t.Context(), slog.New(slog.DiscardHandler), src, "f", updates)
		if err != nil {
			return
		}
		before, after := yamlLeaves(t, src), yamlLeaves(t, out)
		named := map[string]bool{}
		for _, k := range []string{key, other} {
			parts, err := yamledit.SplitKey(k)
			if err != nil {
				t.Fatalf("%q was accepted: %v", k, err)
			}
			for i, p := range parts {
				if n, err := strconv.Atoi(p); err == nil {
					parts[i] = strconv.Itoa(n) // 01 is another spelling of an index
				}
			}
			named["0\x00"+strings.Join(parts, "\x00")] = true
		}
		canonical := func(path string) string {
			parts := strings.Split(path, "\x00")
			for i, p := range parts {
				if n, err := strconv.Atoi(p); err == nil {
					parts[i] = strconv.Itoa(n)
				}
			}
			return strings.Join(parts, "\x00")
		}
		isNamed := func(path string) bool {
			path = canonical(path)
			for n := range named {
				if path == n || strings.HasPrefix(path, n+"\x00") { // a bare {a} is a mapping
					return true
				}
			}
			return false
		}
		for path, v := range before {
			if w, ok := after[path]; !isNamed(path) && (!ok || v != w) {
				t.Fatalf("%q → %q: %q changed from %q to %q", src, out, path, v, w)
			}
		}
		for path := range after {
			if _, ok := before[path]; !ok && !isNamed(path) {
				t.Fatalf("%q → %q: %q appeared", src, out, path)
			}
		}
	})
}

// yamlLeaves maps the path of every leaf of every document to its type and
// value; of duplicate keys, the last.
func yamlLeaves(t *testing.T, src []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	dec := yaml.NewDecoder(bytes.NewReader(src))
	for doc := 0; ; doc++ {
		var n yaml.Node
		err := dec.Decode(&n)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatalf("%q does not parse: %v", src, err)
			}
			return found
		}
		addYAMLLeaves(found, strconv.Itoa(doc), &n)
	}
}

func addYAMLLeaves(found map[string]string, path string, n *yaml.Node) {
	switch n.Kind {
	case yaml.DocumentNode:
		for _, c := range n.Content {
			addYAMLLeaves(found, path, c)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			addYAMLLeaves(found, path+"\x00"+n.Content[i].Value, n.Content[i+1])
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			addYAMLLeaves(found, path+"\x00"+strconv.Itoa(i), c)
		}
	case yaml.AliasNode:
		found[path] = "*" + n.Value
	default:
		found[path] = n.ShortTag() + " " + n.Value
	}
}
