package yamledit

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// FuzzSplitKey holds SplitKey and JoinKey against each other.
func FuzzSplitKey(f *testing.F) {
	for _, k := range []string{"a.b", `a\.b`, ":1", " a . b ", `\:`, "a:b", "a..b", `\\`, ""} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, key string) {
		parts, err := SplitKey(key)
		if err != nil {
			if parts != nil {
				t.Errorf("parts with an error: %q", parts)
			}
			return
		}
		again, err := SplitKey(JoinKey(parts))
		if trimmed := strings.TrimSpace(JoinKey(parts)) != JoinKey(parts); trimmed {
			return // space at an end is lost on the way
		}
		if err != nil || strings.Join(again, "\x00") != strings.Join(parts, "\x00") {
			t.Errorf("%q → %q → %q, %v", key, parts, again, err)
		}
	})
}

// FuzzEdit edits arbitrary YAML at an arbitrary key. Whatever Edit accepts
// must parse, hold the value, differ from the input in that path only (checked
// by a comparison of its own, on decoded paths), and be a no-op when repeated.
func FuzzEdit(f *testing.F) {
	seeds := []struct{ text, key, value string }{
		{"image:\n  tag: old # c\n", "image.tag", "1.10"},
		{"m: {a: 1, b: [x, 'y', \"z\"]}\n", "m.b.2", "new"},
		{"a: |+\n  l1\n\n\nb: >-\n   f\n", "b", "x\ny\n"},
		{"\xef\xbb\xbfé: &x !!str v\r\nb: *x\r\n", "é", "007"},
		{"a: 1\n---\nb:\n- c:\n", "z.y", "on"},
		{"? a\n: b\n", "a", "2024-01-15"},
		{"a: one\n  two\n\n  three # c\n", "a", "~"},
		{"# only a comment", "k", ""},
		{"a:\n  <<: &d {x: 1}\n  y: ''\n", "a.y", "a: b"},
		{"{\n \"a\": {},\n \"b\": null }", "a.c.d", "\"'"},
		{"a:\u2028b: 1\n", "a", "\u2028"},
		{"- - x\n  - y: |2\n      z\n", "0.1.y", "#"},
	}
	for i, s := range seeds {
		f.Add([]byte(s.text), s.key, s.value, uint8(i))
	}
	f.Fuzz(func(t *testing.T, src []byte, key, value string, how uint8) {
		if len(src) > 1<<14 {
			return
		}
		u := Update{Key: key, Value: value}
		switch how % 4 {
		case 1:
			u = Update{Key: key, Value: len(value), Type: AsGiven}
		case 2:
			u = Update{Key: key, Value: how >= 128, Type: AsGiven}
		}
		opts := Options{CreateKeys: how&4 != 0}
		doc := int(how >> 3 & 1)
		out, changes, err := Edit(t.Context(), src, doc, []Update{u}, opts)
		if err != nil {
			var e *Error
			var s *SyntaxError
			if !errors.As(err, &e) && !errors.As(err, &s) {
				t.Fatalf("an error of another type: %T %v", err, err)
			}
			return
		}
		want, err := Of(u.Value)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Get(out, doc, key, opts)
		if err != nil || !got.Equal(want) {
			t.Fatalf("%q: %s is %v (%v), want %v in %q", src, key, got, err, want, out)
		}
		parts, err := SplitKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range parts {
			// As an index, 01 and +1 are other spellings of 1.
			if n, err := strconv.Atoi(p); err == nil && strconv.Itoa(n) != p {
				if _, ok := leaves(t, src)[strconv.Itoa(doc)+"\x00"+strings.Join(parts[:i+1], "\x00")]; !ok && !changes[0].Created {
					return
				}
			}
		}
		before, after := leaves(t, src), leaves(t, out)
		named := strconv.Itoa(doc) + "\x00" + strings.Join(parts, "\x00")
		for path, v := range before {
			if path == named || changes[0].Created && strings.HasPrefix(named, path+"\x00") {
				continue // set, or a null that became a mapping
			}
			if w, ok := after[path]; !ok || v != w {
				t.Fatalf("%q → %q: %q changed from %q to %q", src, out, path, v, w)
			}
		}
		for path := range after {
			if _, ok := before[path]; !ok && path != named {
				t.Fatalf("%q → %q: %q appeared", src, out, path)
			}
		}
		again, repeated, err := Edit(t.Context(), out, doc, []Update{u}, opts)
		if err != nil || !bytes.Equal(again, out) || repeated[0].Changed {
			t.Fatalf("%q → %q → %q, %v", src, out, again, err)
		}
	})
}

// leaves maps the path of every leaf of every document to its type and value.
func leaves(t *testing.T, src []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	dec := yaml.NewDecoder(bytes.NewReader(src))
	for doc := 0; ; doc++ {
		var n yaml.Node
		if dec.Decode(&n) != nil {
			return found
		}
		if len(n.Content) == 1 {
			addLeaves(found, strconv.Itoa(doc), n.Content[0])
		}
	}
}

func addLeaves(found map[string]string, path string, n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			name := k.Value
			if k.Kind != yaml.ScalarNode {
				name = "\x01complex" + strconv.Itoa(i)
			}
			addLeaves(found, path+"\x00"+name, n.Content[i+1])
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			addLeaves(found, path+"\x00"+strconv.Itoa(i), c)
		}
	case yaml.AliasNode:
		found[path] = "*" + n.Value
	default:
		found[path] = n.ShortTag() + " " + n.Value
	}
}
