package strictyaml

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestUnmarshal(t *testing.T) {
	cases := map[string]struct {
		reason string
		text   string
		want   any
		fails  string
	}{
		"yaml":            {"the usual form", "a: 1\nb: [x, yes]\n", map[string]any{"a": 1.0, "b": []any{"x", true}}, ""},
		"json":            {"is read alike", `{"a": 1, "b": ["x", true, null], "c": {"a": {}}}`, map[string]any{"a": 1.0, "b": []any{"x", true, nil}, "c": map[string]any{"a": map[string]any{}}}, ""},
		"surrogate pairs": {"legal in JSON, not in YAML", `{"a": "\ud83d\ude80"}`, map[string]any{"a": "🚀"}, ""},
		"empty":           {"no document", "", nil, ""},
		"scalar":          {"whatever the caller makes of it", `"a"`, "a", ""},
		"key twice":       {"YAML", "a: 1\na: 2\n", nil, "error converting YAML to JSON: yaml: unmarshal errors:\n  line 2: key \"a\" already set in map"},
		"json key twice":  {"encoding/json would take the second", "{\"b\": [{\"a\": 1,\n\"a\": 2}]}", nil, "line 2: key \"a\" already set in map"},
		"escaped twice":   {"the same key", `{"a": 1, "\u0061": 2}`, nil, `line 1: key "a" already set in map`},
		"same key deeper": {"another object's", `{"a": {"a": "a"}, "b": ["a", "a", {"a": 1}]}`, map[string]any{"a": map[string]any{"a": "a"}, "b": []any{"a", "a", map[string]any{"a": 1.0}}}, ""},
		"end":             {"of one document", "---\na: 1\n...\n---\n# no more\n", map[string]any{"a": 1.0}, ""},
		"two documents":   {"the second would not be read", "a: 1\n---\nb: 2\n", nil, "a second document follows the first: there may be only one"},
		"two of JSON":     {"nor this", `{"a": 1} {"b": 2}`, nil, "yaml: did not find expected <document start>"},
		"first is empty":  {"the second is the one that was meant", "---\n---\nb: 2\n", nil, "a second document follows the first: there may be only one"},
		"then garbage":    {"not read either", "a: 1\n---\nb: [", nil, "yaml: line 3: did not find expected node content"},
		"neither":         {"told as YAML's error", "{\"a\": 1", nil, "error converting YAML to JSON: yaml: line 1: did not find expected ',' or '}'"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var got any
			err := Unmarshal([]byte(tc.text), &got)
			if text := message(err); text != tc.fails {
				t.Fatalf("%s: %q, want %q", tc.reason, text, tc.fails)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" && err == nil {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

func TestUnknownFields(t *testing.T) {
	var v struct {
		A int `json:"a"`
	}
	for _, text := range []string{"a: 1\nb: 2\n", `{"a": 1, "b": 2}`} {
		if err := Unmarshal([]byte(text), &v); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// FuzzUnmarshal: JSON is what encoding/json reads, all else what the YAML
// library does, and refusing more is for keys that occur twice only.
func FuzzUnmarshal(f *testing.F) {
	for _, s := range []string{`{"a":[1,{"b":"c"}]}`, "a: b", `{"a":1,"a":2}`, `"\ud83d\ude80"`, `[[[]]]`, "1 2"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var got, want any
		read := yaml.UnmarshalStrict
		if json.Valid(text) {
			read = func(text []byte, v any, _ ...yaml.JSONOpt) error { return json.Unmarshal(text, v) }
		}
		err, werr := Unmarshal(text, &got), read(text, &want)
		if werr != nil && err == nil || err == nil && !cmp.Equal(want, got) {
			t.Errorf("%q: %v (%v), want %v (%v)", text, got, err, want, werr)
		}
	})
}
