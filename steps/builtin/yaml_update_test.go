package builtin

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/steps"
)

func TestYAMLUpdate(t *testing.T) {
	type sets = []any
	set := func(key string, value any) map[string]any { return map[string]any{"key": key, "value": value} }
	cases := map[string]struct {
		reason  string
		in      string
		updates sets
		want    string
		message string
	}{
		"kargo": {"a comment on a changed line is lost, line ends become LF", "a: 1 # c\r\nb: 'x'\r\n#", sets{set("b", "y"), set("a", 2)},
			"a: 2\nb: y\n#\n", "- b: y\n- a: 2"},
		"quoted":      {"strings that look like other JSON", "a: x\n", sets{set("a", "1.10")}, "a: \"1.10\"\n", `- a: "1.10"`},
		"go bool":     {"t is a bool to Go", "a: x\n", sets{set("a", "t")}, "a: \"t\"\n", `- a: "t"`},
		"bare":        {"yes is written bare", "a: x\n", sets{set("a", "yes")}, "a: yes\n", "- a: yes"},
		"bare null":   {"so is ~, which reads as null", "a: x\n", sets{set("a", "~")}, "a: ~\n", "- a: ~"},
		"empty":       {"the empty string writes nothing", "a: x\n", sets{set("a", "")}, "a: \n", "- a: "},
		"whole":       {"whole numbers are written in full", "a: x\n", sets{set("a", 1000000.0)}, "a: 1000000\n", "- a: 1000000"},
		"big":         {"beyond float64", "a: x\n", sets{set("a", 9007199254740993)}, "a: 9007199254740993\n", "- a: 9007199254740993"},
		"fraction":    {"others like Go's percent v", "a: x\n", sets{set("a", 0.00001)}, "a: 1e-05\n", "- a: 1e-05"},
		"null":        {"null is null", "a: x\n", sets{set("a", nil)}, "a: null\n", "- a: null"},
		"bool":        {"a bool", "a: x\n", sets{set("a", true)}, "a: true\n", "- a: true"},
		"first":       {"the first of two equal keys", "a: 1\na: 2\n", sets{set("a", 3)}, "a: 3\na: 2\n", "- a: 3"},
		"flow":        {"Kargo would lose the closing brace", "m: {a: 1, b: 2} # c\n", sets{set("m.a", 3)}, "m: {a: 3, b: 2} # c\n", "- m.a: 3"},
		"block":       {"Kargo would leave the old lines", "a: |\n  l1\n  l2\nb: 1\n", sets{set("a", "x")}, "a: x\nb: 1\n", "- a: x"},
		"wide":        {"Kargo would cut in the middle", "漢字: old\nb: 1\n", sets{set("漢字", "x")}, "漢字: x\nb: 1\n", "- 漢字: x"},
		"line breaks": {"Kargo would write another key", "a: x\n", sets{set("a", "v\nadmin: yes")}, "a: \"v\\nadmin: yes\"\n", "- a: v\nadmin: yes"},
		"mapping":     {"Kargo would write another mapping", "a: x\n", sets{set("a", "b: c")}, "a: \"b: c\"\n", "- a: b: c"},
		"anchor":      {"Kargo's line loses an unused anchor", "a: &x old\n", sets{set("a", "new")}, "a: new\n", "- a: new"},
		"used anchor": {"Kargo would leave the alias dangling", "a: &x old\nb: *x\n", sets{set("a", "new")}, "a: &x new\nb: *x\n", "- a: new"},
		"object":      {"an object is written as JSON", "a: x # c\n", sets{set("a", map[string]any{"k": []any{1, "x"}})}, "a: {\"k\":[1,\"x\"]}\n", `- a: {"k":[1,"x"]}`},
		"F21":         {"long lines elsewhere do not matter", "a: x\nb: " + strings.Repeat("y", 700_000) + "\n", sets{set("a", "z")}, "a: z\nb: " + strings.Repeat("y", 700_000) + "\n", "- a: z"},
		"documents":   {"only the first document", "a: x\n---\na: x\n", sets{set("a", "z")}, "a: z\n---\na: x\n", "- a: z"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			p.write("v.yaml", tc.in)
			out := p.must(YAMLUpdate(), config{"path": "v.yaml", "updates": tc.updates})
			if diff := cmp.Diff(tc.want, p.read("v.yaml")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			if diff := cmp.Diff(map[string]any{"commitMessage": "Updated v.yaml\n\n" + tc.message}, out); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

func TestYAMLUpdateErrors(t *testing.T) {
	cases := map[string]struct {
		reason, in, key string
		want            outcome
	}{
		"F16":      {"the nearest key is named", "image:\n  tag: x\n", "image.tga", outcome{steps.Errored, false, `key path not found: v.yaml:2:3: key "image.tga": is not there (did you mean "image.tag"?)`}},
		"mapping":  {"not a scalar", "a: {b: 1}\n", "a", outcome{steps.Errored, false, "not a scalar"}},
		"F17":      {"nor is a list", "a: [1]\n", "a", outcome{steps.Errored, false, "key path does not address a scalar node"}},
		"index":    {"Kargo panics here", "a: [1]\n", "a.1", outcome{steps.Errored, false, "outside the sequence"}},
		"negative": {"and here", "a: [1]\n", "a.-1", outcome{steps.Errored, false, "index"}},
		"word":     {"Kargo's words are those of strconv", "a: [1]\n", "a.b", outcome{steps.Errored, false, `strconv.Atoi: parsing "b": invalid syntax: v.yaml:1:4: key "a.b": "a" is a sequence, so "b" must be an index`}},
		"alias":    {"aliases are not addressable", "a: &x 1\nb: *x\n", "b", outcome{steps.Errored, false, "alias"}},
		"key":      {"key syntax", "a: 1\n", "a..b", outcome{steps.Errored, false, "empty key part in key"}},
		"syntax":   {"not YAML", "a: [\n", "a", outcome{steps.Errored, false, "cannot parse v.yaml"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			p.write("v.yaml", tc.in)
			r, err := p.run(YAMLUpdate(), config{"path": "v.yaml", "updates": []any{map[string]any{"key": tc.key, "value": "w"}}})
			tc.want.check(t, tc.reason, r, err)
			if got := p.read("v.yaml"); got != tc.in {
				t.Errorf("the file was changed to %q", got)
			}
		})
	}
	r, err := newPromotion(t).run(YAMLUpdate(), config{"path": "../none.yaml", "updates": []any{map[string]any{"key": "a", "value": "w"}}})
	outcome{steps.Errored, false, `values file update failed: error updating image references in values file "../none.yaml": error reading file`}.check(t, "no file", r, err)
	r, err = newPromotion(t).run(YAMLUpdate(), config{"path": "a", "updates": []any{}})
	outcome{steps.Failed, true, "updates: Array must have at least 1 items"}.check(t, "schema", r, err)
}
