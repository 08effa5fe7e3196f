package yamledit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestEditRandomDocuments writes documents in every style YAML has, sets each
// of their scalars to awkward values, and requires that this works: the value
// is there, nothing else changed, no line without the scalar changed, and
// doing it again changes nothing.
func TestEditRandomDocuments(t *testing.T) {
	values := []any{
		"v1.2.3", "1.10", "007", "on", "1e3", "2024-01-15", "~", "", " ", "a: b", "a #b", "it's", `"q"`, "- x", "{a}", "[b]", "a,b", "*x", "&x", "!t", "|", ">", "%d", "@a", "`b", "é漢😀",
		"two\nlines", "two\nlines\n", "\n", "tab\there", "\u0085", "\u2028", "\ufeff", "trailing ", " leading", "a:", ":a", "#", "? x", "---", "...", "=", "<<", "null", "0x1F", "12:30:45", "\\", "a\\nb", "\x01",
		"l1\n\n  l2\n", "  indented\nnext", "a\r\nb",
		Scalar{Number, "3"}, Scalar{Number, "1.50"}, Scalar{Boolean, "true"}, Scalar{Null, ""}, 1000000.0, -7, 1e-7,
	}
	rng := rand.New(rand.NewPCG(3, 5)) //nolint:gosec // repeatable on purpose
	edits := 0
	for round := range 1500 {
		w := &writer{rng: rng, br: "\n"}
		if rng.IntN(4) == 0 {
			w.br = "\r\n"
		}
		text := w.document()
		s, err := parse(text, "")
		if err != nil {
			continue // a tab where none may be
		}
		doc := rng.IntN(len(s.docs))
		var keys []string
		for path := range paths(s.docs[doc].Content[0], nil) {
			keys = append(keys, path)
		}
		for range 4 {
			if len(keys) == 0 {
				break
			}
			u := Update{Key: keys[rng.IntN(len(keys))], Value: values[rng.IntN(len(values))], Type: AsGiven}
			opts := Options{}
			if rng.IntN(3) == 0 {
				opts.CreateKeys = true
				u.Key = strings.TrimSuffix(u.Key, lastPart(u.Key)) + []string{"fresh", "fresh.below", "on", `new\.dot`}[rng.IntN(4)]
			}
			out, changes, err := Edit(t.Context(), text, doc, []Update{u}, opts)
			if err != nil {
				if strings.Contains(err.Error(), "sequence") || strings.Contains(err.Error(), "it has the tag") || strings.Contains(err.Error(), "no keys below it") || strings.Contains(err.Error(), "is not a scalar") { // no place for a fresh key; another type
					continue
				}
				if opts.CreateKeys && text[len(text)-1] != '\n' && strings.Contains(err.Error(), "changed safely") {
					continue // a block scalar at the end would get a line break
				}
				t.Fatalf("round %d: %v\nto %#v in document %d of:\n%s", round, err, u.Value, doc, text)
			}
			edits++
			want, err := Of(u.Value)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Get(out, doc, u.Key, opts); err != nil || !got.Equal(want) {
				t.Fatalf("round %d: %s is %v, %v; want %v\n%s\n→\n%s", round, u.Key, got, err, want, text, out)
			}
			again, _, err := Edit(t.Context(), out, doc, []Update{u}, opts)
			if err != nil || !bytes.Equal(again, out) {
				t.Fatalf("round %d: again: %v\n%q\n→\n%q", round, err, out, again)
			}
			if !changes[0].Created && !commentsKept(text, out) {
				t.Fatalf("round %d: a comment got lost\n%s\n→\n%s", round, text, out)
			}
			text = out
		}
	}
	if edits < 3000 {
		t.Errorf("only %d edits were made", edits)
	}
}

func lastPart(key string) string {
	parts, err := SplitKey(key)
	if err != nil {
		return ""
	}
	return JoinKey(parts[len(parts)-1:])
}

// commentsKept compares the comments, which the writer makes unmistakable.
func commentsKept(a, b []byte) bool {
	return bytes.Count(a, []byte("#c")) == bytes.Count(b, []byte("#c"))
}

// paths finds the keys of scalars that may be edited.
func paths(n *yaml.Node, prefix []string) map[string]bool {
	found := map[string]bool{}
	visitPaths(n, prefix, found)
	return found
}

func visitPaths(n *yaml.Node, prefix []string, found map[string]bool) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			visitPaths(n.Content[i+1], append(prefix[:len(prefix):len(prefix)], n.Content[i].Value), found)
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			visitPaths(c, append(prefix[:len(prefix):len(prefix)], strconv.Itoa(i)), found)
		}
	case yaml.ScalarNode:
		if len(prefix) > 0 {
			found[JoinKey(prefix)] = true
		}
	}
}

// writer writes random YAML.
type writer struct {
	bytes.Buffer
	rng  *rand.Rand
	br   string
	next int
}

func (w *writer) pick(options ...string) string { return options[w.rng.IntN(len(options))] }

func (w *writer) document() []byte {
	if w.rng.IntN(8) == 0 {
		w.Write(byteOrderMark)
	}
	docs := 1 + w.rng.IntN(5)/4*w.rng.IntN(3)
	for i := range docs {
		if i > 0 || w.rng.IntN(5) == 0 {
			w.WriteString("---" + w.br)
		}
		w.blockMapping("", 0)
	}
	text := w.Bytes()
	if w.rng.IntN(5) == 0 {
		text = bytes.TrimRight(text, "\r\n")
	}
	return bytes.Clone(text)
}

// key is unique in a document, in one of YAML's styles.
func (w *writer) key() string {
	w.next++
	return fmt.Sprintf(w.pick("k%d", "k%d", "é%d", "\"q.%d\"", "'s %d'", "漢%d", "😀%d", "a-b/%d"), w.next)
}

func (w *writer) comment() string {
	if w.rng.IntN(3) > 0 {
		return ""
	}
	return w.pick(" #c", "   #c: 'é", "\t#c {")
}

func (w *writer) blockMapping(indent string, depth int) {
	step := w.pick("  ", "  ", "    ", " ")
	for range 1 + w.rng.IntN(4) {
		if w.rng.IntN(6) == 0 {
			w.WriteString(w.pick(indent+"#c", "") + w.br)
		}
		w.WriteString(indent + w.key() + ":")
		w.blockValue(indent, indent+step, depth)
	}
}

// blockValue writes what follows "key:" or "-", up to the end of the line.
func (w *writer) blockValue(indent, below string, depth int) {
	kind := w.rng.IntN(12)
	if depth > 3 {
		kind = w.rng.IntN(8)
	}
	switch kind {
	case 0:
		w.WriteString(w.comment() + w.br)
	case 1:
		header := w.pick("|", ">", "|-", ">-", "|+", ">+")
		w.WriteString(" " + header + w.pick("", " #c") + w.br + below + "first" + w.br)
		for range 1 + w.rng.IntN(3) {
			w.WriteString(below + w.pick("text", "# no comment", "  more", "é: x", "") + w.br)
		}
		w.WriteString(below + "last" + w.br)
		if w.rng.IntN(3) == 0 {
			w.WriteString(w.br)
		}
	case 2:
		w.WriteString(" plain" + w.br + below + "goes on" + w.br)
	case 3:
		w.WriteString(" " + w.pick("\"on", "'on") + w.br + w.br + below + "lines")
		w.fixQuote()
		w.WriteString(w.comment() + w.br)
	case 8, 9:
		w.WriteString(w.comment() + w.br)
		w.blockMapping(below, depth+1)
	case 10:
		w.WriteString(w.comment() + w.br)
		lead := w.pick(indent, below)
		for range 1 + w.rng.IntN(3) {
			w.WriteString(lead + "-")
			w.blockValue(lead, lead+"  ", depth+2)
		}
	case 11:
		w.WriteString(" ")
		w.flow(0, below)
		w.WriteString(w.comment() + w.br)
	default:
		w.WriteString(w.pick(" ", "  ", " \t") + w.scalar(false) + w.comment() + w.br)
	}
}

// fixQuote closes the quote opened last.
func (w *writer) fixQuote() {
	text := w.Bytes()
	if bytes.LastIndexByte(text, '"') > bytes.LastIndexByte(text, '\'') {
		w.WriteByte('"')
	} else {
		w.WriteByte('\'')
	}
}

func (w *writer) scalar(flow bool) string {
	plain := w.pick("x", "3", "1.5", "true", "null", "~", "a b", "é", "2024-01-15", "v1.2.3", "a:b", "a#b", "-x")
	if flow {
		plain = w.pick("x", "3", "true", "null", "a b", "é", "v1.2.3")
	}
	return w.pick(plain, plain, plain, `"d\"q\\ # é"`, `'s''q: #'`, `""`, `''`, "!!str 5", "!t x", "&a"+strconv.Itoa(w.next)+" x")
}

func (w *writer) flow(depth int, below string) {
	space := w.pick("", " ", "", w.br+below+" ")
	kind := w.rng.IntN(3)
	if depth > 2 {
		kind = 2
	}
	n := w.rng.IntN(4)
	switch kind {
	case 0:
		w.WriteString("{" + space)
		for i := range n {
			if i > 0 {
				w.WriteString("," + w.pick(" ", w.br+below+" "))
			}
			w.WriteString(w.key() + ": ")
			w.flow(depth+1, below)
		}
		w.WriteString(space + "}")
	case 1:
		w.WriteString("[" + space)
		for i := range n {
			if i > 0 {
				w.WriteString(", ")
			}
			w.flow(depth+1, below)
		}
		w.WriteString(space + "]")
	default:
		if depth == 0 {
			w.WriteString("[x]")
			return
		}
		w.WriteString(w.scalar(true))
	}
}
