package builtin

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/stepd/stepd/internal/yamledit"
	"github.com/stepd/stepd/steps"
)

func TestParseSteps(t *testing.T) {
	cases := map[string]struct {
		reason string
		step   steps.Registration
		file   string
		expr   map[string]string
		want   map[string]any
	}{
		"yaml": {"YAML 1.1, numbers are floats", YAMLParse(), "a: 1\nb: {c: yes}\nd: 2026-11-22\n",
			map[string]string{"a": "a", "c": "b.c", "d": "d", "missing": "zip", "all": "$env.b"},
			map[string]any{"a": 1.0, "c": true, "d": "2026-11-22", "missing": nil, "all": map[string]any{"c": true}}},
		"F24":          {"a list root is $env", YAMLParse(), "- 1\n- 2\n- 3\n", map[string]string{"n": "len($env)", "l": "$env[2]"}, map[string]any{"n": int64(3), "l": 3.0}},
		"yaml types":   {"Go types become JSON types", YAMLParse(), "s: a,b\n", map[string]string{"split": `split(s, ",")`, "int": "1 + 2"}, map[string]any{"split": []any{"a", "b"}, "int": int64(3)}},
		"yaml first":   {"the first document", YAMLParse(), "a: 1\n---\na: 2\n", map[string]string{"a": "a"}, map[string]any{"a": 1.0}},
		"json":         {"JSON", JSONParse(), `{"a": {"b": [1, "x"]}}`, map[string]string{"b": "a.b[1]", "n": "a.b[0]"}, map[string]any{"b": "x", "n": 1.0}},
		"toml":         {"integers are integers", TOMLParse(), "n = 3\nf = 1.5\nd = 2026-11-22T10:00:00Z\nday = 2026-11-22\n[t]\nk = 'v'\n", map[string]string{"n": "n", "f": "f", "d": "d", "k": "t.k", "day": "day"}, map[string]any{"n": int64(3), "f": 1.5, "d": "2026-11-22T10:00:00Z", "k": "v", "day": "2026-11-22"}},
		"json nothing": {"an expression may yield nil", JSONParse(), `{}`, map[string]string{"a": "nil"}, map[string]any{"a": nil}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			p.write("f", tc.file)
			var outputs []any
			for name, e := range tc.expr {
				outputs = append(outputs, map[string]any{"name": name, "fromExpression": e})
			}
			got := p.must(tc.step, config{"path": "f", "outputs": outputs})
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

// Conformance F26 and F27 among them.
func TestParseErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		step steps.Registration
		file string
		expr string
		text string
	}{
		"compile":    {YAMLParse(), "a: 1", "(1 + ", "failed to extract outputs: error compiling expression"},
		"evaluate":   {YAMLParse(), "a: 1", "a.b.c", "failed to extract outputs: error evaluating expression"},
		"nan":        {YAMLParse(), "a: 0", "a / a", "not a JSON number"},
		"empty":      {YAMLParse(), "", "a", "could not parse empty YAML file"},
		"yaml":       {YAMLParse(), "a: [", "a", "could not parse YAML file"},
		"json":       {JSONParse(), "{", "a", "could not parse JSON file"},
		"json empty": {JSONParse(), "", "a", "could not parse JSON file"},
		"toml":       {TOMLParse(), "a = ", "a", "could not parse TOML file"},
		"toml empty": {TOMLParse(), "", "a", "could not parse empty TOML file"},
	} {
		p := newPromotion(t)
		p.write("f", tc.file)
		r, err := p.run(tc.step, config{"path": "f", "outputs": []any{map[string]any{"name": "x", "fromExpression": tc.expr}}})
		outcome{steps.Errored, false, tc.text}.check(t, name, r, err)
		if err != nil && strings.HasPrefix(tc.text, "could not") && !strings.HasPrefix(err.Error(), tc.text) {
			t.Errorf("%s: %q does not begin with Kargo's words", name, err)
		}
	}
	p := newPromotion(t)
	r, err := p.run(TOMLParse(), config{"path": "../none", "outputs": []any{map[string]any{"name": "x", "fromExpression": "a"}}})
	outcome{steps.Errored, false, `error reading TOML file "../none": open none: no such file`}.check(t, "no file", r, err)
}

func TestJSONShaped(t *testing.T) {
	type named string
	for _, tc := range []struct {
		reason   string
		in, want any
	}{
		{"int", 3, int64(3)}, {"uint8", uint8(3), int64(3)}, {"huge", uint64(math.MaxUint64), float64(math.MaxUint64)},
		{"float32", float32(1.5), 1.5}, {"strings", []string{"a"}, []any{"a"}}, {"map", map[any]any{1: []int{2}}, map[string]any{"1": []any{int64(2)}}},
		{"time", time.Unix(0, 0).UTC(), "1970-01-01T00:00:00Z"}, {"number", json.Number("2"), 2.0}, {"named", named("x"), "x"},
		{"duration", time.Second, int64(time.Second)},
	} {
		got, err := jsonShaped(tc.in)
		if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tc.reason, err, diff)
		}
	}
	if _, err := jsonShaped(map[string]any{"f": func() {}}); err == nil {
		t.Error("a function is no JSON value")
	}
}

func TestJSONUpdate(t *testing.T) {
	set := func(key string, value any) map[string]any { return map[string]any{"key": key, "value": value} }
	cases := map[string]struct {
		reason, in string
		updates    []any
		want       string
		message    string
	}{
		"kept":    {"the rest of the text stays", "{\n  \"a\" : 1,\n  \"b\":[ 1 ]}", []any{set("a", "x"), set("b.0", true)}, "{\n  \"a\" : \"x\",\n  \"b\":[ true ]}", "- a: \"x\"\n- b.0: true"},
		"created": {"F31: what is missing is created", `{"s":{}}`, []any{set("s.n.m", 1)}, `{"s":{"n":{"m":1}}}`, "- s.n.m: 1"},
		"numbers": {"plain decimals in the file", `{}`, []any{set("n", 1000000.0), set("m", 9007199254740993), set("f", 1e-7)}, `{"n":1000000,"m":9007199254740993,"f":0.0000001}`, "- n: 1e+06\n- m: 9.007199254740992e+15\n- f: 1e-07"},
		"escapes": {"as sjson writes them", `{}`, []any{set(`a\.b`, "é<&>"), set(":1", "<x>")}, `{"a.b":"é\u003c\u0026\u003e","1":"<x>"}`, "- a\\.b: \"é<&>\"\n- :1: \"<x>\""},
		"append":  {"-1 appends", `[1]`, []any{set("-1", 2)}, `[1,2]`, "- -1: 2"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			p.write("f.json", tc.in)
			got := p.must(JSONUpdate(), config{"path": "f.json", "updates": tc.updates})
			if diff := cmp.Diff(tc.want, p.read("f.json")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			if diff := cmp.Diff(map[string]any{"commitMessage": "Updated f.json\n\n" + tc.message}, got); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

// TestJSONUpdateIndices: sjson would fill an array up to any index.
func TestJSONUpdateIndices(t *testing.T) {
	for key, refused := range map[string]bool{
		"l.100001": true, "new.20240101.x": true, "n.99999999999999999999": true, "20240101.0": false, // the root is an object
		"l.3": false, "m.20240101": false, "m.a\\.b": false, "new.:20240101": false,
	} {
		p := newPromotion(t)
		p.write("f.json", `{"l":[1],"m":{}}`)
		r, err := p.run(JSONUpdate(), config{"path": "f.json", "updates": []any{config{"key": key, "value": 1}}})
		if !refused {
			outcome{status: steps.Succeeded}.check(t, key, r, err)
			continue
		}
		outcome{steps.Errored, false, "is larger than 100000"}.check(t, key, r, err)
	}
}

const tomlFile = `# head
title = "t" # c
n = 3
on = true
day = 2026-11-22
list = [1, # one
  { k = "v" }]
a.b = 'dotted'
[[x]]
y = 1
  [[x.z]]
  w = 1
  [[x.z]]
  w = 2
[[x]]
y = 2
  [[x.z]]
  w = 3
[x.sub]
k = "s"
["q.t".u]
k = """multi
line"""
`

func TestTOMLUpdate(t *testing.T) {
	for name, tc := range map[string]struct {
		reason   string
		key      string
		value    any
		old, new string
	}{
		"string":       {"the comment stays", "title", "new", `"t" #`, `'new' #`},
		"escaped":      {"what needs escapes is double-quoted", "title", "a'\n", `"t" #`, `"a'\n" #`},
		"number":       {"every number is a float", "n", 5, "n = 3\n", "n = 5.0\n"},
		"bool":         {"a bool", "on", false, "on = true", "on = false"},
		"date":         {"a date may become a string", "day", "x", "2026-11-22", "'x'"},
		"item":         {"an index", "list.0", 7, "[1,", "[7.0,"},
		"inline":       {"an inline table", "list.1.k", "w", `{ k = "v" }`, `{ k = 'w' }`},
		"dotted":       {"a dotted key", "a.b", "x", "'dotted'", "'x'"},
		"array table":  {"an element of an array of tables", "x.1.y", 9, "\ny = 2\n", "\ny = 9.0\n"},
		"nested":       {"an array below an element", "x.0.z.1.w", 9, "w = 2", "w = 9.0"},
		"nested again": {"it counts anew below the next", "x.1.z.0.w", 9, "w = 3", "w = 9.0"},
		"sub table":    {"a table of the last element", "x.1.sub.k", "n", `k = "s"`, `k = 'n'`},
		"multi-line":   {"a string on lines, under a quoted name", `q\.t.u.k`, "one", "\"\"\"multi\nline\"\"\"", "'one'"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			p.write("f.toml", tomlFile)
			p.must(TOMLUpdate(), config{"path": "f.toml", "updates": []any{map[string]any{"key": tc.key, "value": tc.value}}})
			want := replaceOnce(t, tomlFile, tc.old, tc.new)
			if diff := cmp.Diff(want, p.read("f.toml")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
	for key, text := range map[string]string{
		"zip": "key path not found", "x": "key path not found", "list": "does not address a scalar", "list.5": "key path not found",
		"a..b": "empty key part", "x.7.y": "key path not found",
	} {
		p := newPromotion(t)
		p.write("f.toml", tomlFile)
		r, err := p.run(TOMLUpdate(), config{"path": "f.toml", "updates": []any{map[string]any{"key": key, "value": 1}}})
		outcome{steps.Errored, false, text}.check(t, key, r, err)
		if p.read("f.toml") != tomlFile {
			t.Errorf("%s: the file was changed", key)
		}
	}
	p := newPromotion(t)
	p.write("f.toml", tomlFile)
	r, err := p.run(TOMLUpdate(), config{"path": "f.toml", "updates": []any{map[string]any{"key": "n", "value": nil}}})
	outcome{steps.Errored, false, "not a scalar type"}.check(t, "null", r, err)
	p.write("f.toml", "a = 1\na = 2\n")
	r, err = p.run(TOMLUpdate(), config{"path": "f.toml", "updates": []any{map[string]any{"key": "a", "value": 1}}})
	outcome{steps.Errored, false, "toml"}.check(t, "not TOML", r, err)
}

func replaceOnce(t *testing.T, text, old, by string) string {
	t.Helper()
	before, after, ok := strings.Cut(text, old)
	if !ok {
		t.Fatalf("%q is not in the text", old)
	}
	return before + by + after
}

// FuzzTOMLUpdate sets a key of arbitrary TOML. What is accepted must hold the
// value afterwards.
func FuzzTOMLUpdate(f *testing.F) {
	f.Add(tomlFile, "x.1.z.0.w", "v")
	f.Add("a = [[1, 2], [{b = 1}]]\n", "a.1.0.b", "'\n")
	f.Add("a.b.c = 1979-05-27T07:32:00Z\n[t.'u v']\nk=+inf", "t.u v.k", "")
	f.Add("s = \"\"\"\\\n  x\"\"\"\ni = {a = {b = true}}", "i.a.b", "\u0000")
	f.Fuzz(func(t *testing.T, text, key, value string) {
		at, err := findTOML([]byte(text), key)
		if err != nil {
			return
		}
		rendered, err := tomlValue(value)
		if err != nil {
			return
		}
		edited := text[:at.Offset] + rendered + text[at.Offset+at.Length:]
		if err := sameTOMLExcept([]byte(text), []byte(edited), key); err != nil {
			return // refused, which is always safe
		}
		var document map[string]any
		if err := toml.Unmarshal([]byte(edited), &document); err != nil {
			t.Fatal(err)
		}
		parts, err := yamledit.SplitKey(key)
		if err != nil {
			t.Fatal(err)
		}
		var v any = document
		for _, p := range parts {
			switch c := v.(type) {
			case map[string]any:
				v = c[p]
			case []any:
				i, err := strconv.Atoi(p)
				if err != nil {
					t.Fatal(err)
				}
				v = c[i]
			}
		}
		if v != any(value) {
			t.Fatalf("%q → %q: %s is %#v, want %q", text, edited, key, v, value)
		}
	})
}

func TestTOMLUpdateOfDeepDocument(t *testing.T) {
	for reason, text := range map[string]string{
		"a table":       "b = 1\n[a" + strings.Repeat(".a", maxTOMLDepth) + "]\nx = 1\n",
		"arrays":        "b = 1\na = " + strings.Repeat("[", maxTOMLDepth+1) + strings.Repeat("]", maxTOMLDepth+1) + "\n",
		"inline tables": "b = 1\na = " + strings.Repeat("{ a = ", maxTOMLDepth) + "1" + strings.Repeat(" }", maxTOMLDepth) + "\n",
	} {
		p := newPromotion(t)
		p.write("d.toml", text)
		r, err := p.run(TOMLUpdate(), config{"path": "d.toml", "updates": []any{map[string]any{"key": "b", "value": 2}}})
		outcome{steps.Errored, false, "the document is nested more than 1000 deep"}.check(t, reason, r, err)
		if p.read("d.toml") != text {
			t.Errorf("%s: the file changed", reason)
		}
	}
}
