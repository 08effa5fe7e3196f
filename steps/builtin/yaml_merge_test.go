package builtin

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/steps"
)

func TestYAMLMerge(t *testing.T) {
	for name, tc := range map[string]struct {
		reason  string
		files   map[string]string
		config  config
		want    string
		message any
	}{
		"merge": {"mappings merge, lists and scalars replace, null removes", map[string]string{"a": "m: {k: 1, l: [1, 2], gone: x}\n# foot\n", "b": "m:\n  l: [3]\n  gone: null\n  new: y\n"},
			config{"inFiles": []any{"a", "b"}, "outFile": "out/o"}, "m: {k: 1, l: [3], new: \"y\"}\n\n# foot\n", "Merged 2 YAML files to out/o\n- a\n- b"},
		"empty": {"F29: an empty input adds nothing but is listed", map[string]string{"a": "x: 1\n", "b": "# none\n"},
			config{"inFiles": []any{"b", "a"}, "outFile": "out/o"}, "x: 1\n", "Merged 2 YAML files to out/o\n- b\n- a"},
		"one":  {"one file", map[string]string{"a": "x: 1\n"}, config{"inFiles": []any{"a", "none"}, "ignoreMissingFiles": true, "outFile": "out/o"}, "x: 1\n", "Wrote a to out/o"},
		"none": {"no file", nil, config{"inFiles": []any{"none"}, "ignoreMissingFiles": true, "outFile": "out/o"}, "", nil},
		"up":   {"paths are clamped", map[string]string{"a": "x: 1\n"}, config{"inFiles": []any{"../../a"}, "outFile": "/out/o"}, "x: 1\n", "Wrote ../../a to /out/o"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			for f, text := range tc.files {
				p.write(f, text)
			}
			out := p.must(YAMLMerge(), tc.config)
			if diff := cmp.Diff(tc.want, p.read("out/o")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			if diff := cmp.Diff(tc.message, out["commitMessage"]); diff != "" {
				t.Errorf("commitMessage (-want +got):\n%s", diff)
			}
		})
	}
	p := newPromotion(t)
	p.write("a", "x: [\n")
	r, err := p.run(YAMLMerge(), config{"inFiles": []any{"a"}, "outFile": "o"})
	outcome{steps.Errored, false, "error reading input file a: yaml: line"}.check(t, "not YAML", r, err)
	var wide strings.Builder
	for i := range maxMergeKeys + 1 {
		fmt.Fprintf(&wide, "k%d: v\n", i)
	}
	p.write("wide", wide.String())
	p.write("narrow", "k: v\n")
	for _, files := range [][]any{{"wide", "narrow"}, {"narrow", "wide"}} {
		r, err = p.run(YAMLMerge(), config{"inFiles": files, "outFile": "o"})
		outcome{steps.Errored, false, "a mapping has more than 20000 keys"}.check(t, "a merge that would take minutes", r, err)
	}
	r, err = p.run(YAMLMerge(), config{"inFiles": []any{"a", "none"}, "outFile": "o"}) // a is no YAML, too
	outcome{steps.Errored, false, `input file "none" not found: stat none: no such file`}.check(t, "missing", r, err)
}
