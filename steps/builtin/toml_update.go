package builtin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/stepd/stepd/internal/yamledit"
	"github.com/stepd/stepd/steps"
)

// TOMLUpdate is `toml-update`: it sets scalars in a TOML file and leaves the
// rest of the text alone. Keys have the syntax of yaml-update; nothing is
// created. Like Kargo it writes every number as a float.
func TOMLUpdate() steps.Registration { return stateless("toml-update", runTOMLUpdate) }

func runTOMLUpdate(_ context.Context, sc *steps.Context) (steps.Result, error) {
	return updateText(sc, "TOML", setTOML)
}

func setTOML(text []byte, path, key string, value any) (edited []byte, shown string, err error) {
	shown, err = tomlValue(value)
	if err != nil {
		return nil, "", fmt.Errorf("value for key %q: %w", key, err)
	}
	at, err := findTOML(text, key)
	if err != nil {
		return nil, "", fmt.Errorf("%s: key %q: %w", path, key, err)
	}
	edited = bytes.Join([][]byte{text[:at.Offset], text[at.Offset+at.Length:]}, []byte(shown))
	if err := sameTOMLExcept(text, edited, key); err != nil {
		return nil, "", fmt.Errorf("%s: key %q cannot be changed safely: %w", path, key, err)
	}
	return edited, shown, nil
}

// tomlValue renders a scalar as go-toml does.
func tomlValue(v any) (string, error) {
	switch n := v.(type) {
	case string, bool:
	case json.Number:
		f, err := n.Float64()
		if err != nil {
			return "", err
		}
		v = f
	default:
		return "", errors.New("it is not a scalar type")
	}
	text, err := toml.Marshal(map[string]any{"v": v})
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(text), "v = "), "\n"), nil
}

// findTOML returns where the scalar at key is in the text.
func findTOML(text []byte, key string) (unstable.Range, error) {
	want, err := yamledit.SplitKey(key)
	if err != nil {
		return unstable.Range{}, err
	}
	// go-toml's parser accepts a little more than TOML; what comes of the edit
	// must be readable anyway.
	document := map[string]any{}
	if err := toml.Unmarshal(text, &document); err != nil {
		return unstable.Range{}, err
	}
	if !nestedWithin(document, maxTOMLDepth) {
		return unstable.Range{}, fmt.Errorf("the document is nested more than %d deep", maxTOMLDepth)
	}
	f := tomlFinder{want: want}
	f.parser.Reset(text)
	arrays := map[string]int{}
	var table []string
	for f.parser.NextExpression() {
		e := f.parser.Expression()
		switch e.Kind {
		case unstable.Table:
			table = withIndices(tomlKey(e), arrays)
		case unstable.ArrayTable:
			key := tomlKey(e)
			last := len(key) - 1
			joined := strings.Join(key, "\x00")
			n, seen := arrays[joined]
			if seen {
				n++
			}
			// What is below the previous element starts to count anew.
			for k := range arrays {
				if strings.HasPrefix(k, joined+"\x00") {
					delete(arrays, k)
				}
			}
			arrays[joined] = n
			table = append(withIndices(key[:last], arrays), key[last], strconv.Itoa(n))
		case unstable.KeyValue:
			f.keyValue(table, e)
		}
	}
	switch {
	case f.parser.Error() != nil:
		return unstable.Range{}, f.parser.Error()
	case f.found != nil:
		return *f.found, nil
	case f.notScalar:
		return unstable.Range{}, errors.New("key path does not address a scalar")
	}
	return unstable.Range{}, errors.New("key path not found")
}

// maxTOMLDepth bounds the nesting of a document that is edited: writing one
// takes time by the square of it.
const maxTOMLDepth = 1000

func nestedWithin(v any, depth int) bool {
	if depth < 0 {
		return false
	}
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			if !nestedWithin(e, depth-1) {
				return false
			}
		}
	case []any:
		for _, e := range v {
			if !nestedWithin(e, depth-1) {
				return false
			}
		}
	}
	return true
}

// sameTOMLExcept makes sure that an edit changed the value at key only.
func sameTOMLExcept(before, after []byte, key string) error {
	parts, err := yamledit.SplitKey(key)
	if err != nil {
		return err
	}
	var texts [2][]byte
	for i, text := range [2][]byte{before, after} {
		document := map[string]any{}
		if err := toml.Unmarshal(text, &document); err != nil {
			return err
		}
		if !blank(document, parts) {
			return errors.New("the key would move")
		}
		if texts[i], err = toml.Marshal(document); err != nil {
			return err
		}
	}
	if !bytes.Equal(texts[0], texts[1]) {
		return errors.New("another key would change")
	}
	return nil
}

// blank sets the value at a path of a decoded document to a constant.
func blank(v any, parts []string) bool {
	switch v := v.(type) {
	case map[string]any:
		if _, ok := v[parts[0]]; !ok {
			return false
		}
		if len(parts) > 1 {
			return blank(v[parts[0]], parts[1:])
		}
		v[parts[0]] = ""
		return true
	case []any:
		i, err := strconv.Atoi(parts[0])
		if err != nil || i < 0 || i >= len(v) {
			return false
		}
		if len(parts) > 1 {
			return blank(v[i], parts[1:])
		}
		v[i] = ""
		return true
	}
	return false
}

// withIndices inserts, after every array of tables on a path, the index of its
// current element.
func withIndices(path []string, arrays map[string]int) []string {
	var full []string
	for i, part := range path {
		full = append(full, part)
		if n, ok := arrays[strings.Join(path[:i+1], "\x00")]; ok {
			full = append(full, strconv.Itoa(n))
		}
	}
	return full
}

type tomlFinder struct {
	parser    unstable.Parser
	want      []string
	found     *unstable.Range
	notScalar bool
}

func (f *tomlFinder) keyValue(table []string, e *unstable.Node) {
	path := slices.Concat(table, tomlKey(e))
	f.value(path, e.Value())
}

func (f *tomlFinder) value(path []string, v *unstable.Node) {
	if f.found != nil || len(path) > len(f.want) || !equalParts(path, f.want[:len(path)]) {
		return
	}
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			f.keyValue(path, it.Node())
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			f.value(append(path[:len(path):len(path)], strconv.Itoa(i)), it.Node())
			i++
		}
	default:
		if len(path) == len(f.want) {
			at := v.Raw
			if at.Length == 0 { // bools and dates carry no range, only their bytes
				at = f.parser.Range(v.Data)
			}
			f.found = &at
		}
		return
	}
	f.notScalar = f.notScalar || len(path) == len(f.want)
}

func equalParts(a, b []string) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func tomlKey(e *unstable.Node) []string {
	var parts []string
	for it := e.Key(); it.Next(); {
		parts = append(parts, string(it.Node().Data))
	}
	return parts
}
