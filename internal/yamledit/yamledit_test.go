package yamledit

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestEdit(t *testing.T) {
	type set = []Update
	cases := map[string]struct {
		reason  string
		in      string
		doc     int
		updates set
		create  bool
		want    string
	}{
		"plain":              {"a comment on the line stays", "image:\n  tag: old # why\n  repo: r\n", 0, set{{Key: "image.tag", Value: "new"}}, false, "image:\n  tag: new # why\n  repo: r\n"},
		"double quoted":      {"the quotes stay", `tag: "old" # c` + "\n", 0, set{{Key: "tag", Value: `a"b\c`}}, false, `tag: "a\"b\\c" # c` + "\n"},
		"single quoted":      {"the quotes stay", "tag: 'o''ld'\n", 0, set{{Key: "tag", Value: "it's"}}, false, "tag: 'it''s'\n"},
		"single to double":   {"a line break needs escapes", "tag: 'x'\n", 0, set{{Key: "tag", Value: "a\nb"}}, false, `tag: "a\nb"` + "\n"},
		"version":            {"a version stays a string", "tag: v1\n", 0, set{{Key: "tag", Value: "1.10"}}, false, "tag: \"1.10\"\n"},
		"semver":             {"no quotes where none are needed", "tag: v1.0.0\n", 0, set{{Key: "tag", Value: "1.2.0"}}, false, "tag: 1.2.0\n"},
		"leading zeros":      {"007 stays a string", "tag: a\n", 0, set{{Key: "tag", Value: "007"}}, false, "tag: \"007\"\n"},
		"on":                 {"on is a bool to YAML 1.1", "tag: a\n", 0, set{{Key: "tag", Value: "on"}}, false, "tag: \"on\"\n"},
		"exponent":           {"1e3 is a float", "tag: a\n", 0, set{{Key: "tag", Value: "1e3"}}, false, "tag: \"1e3\"\n"},
		"sha exponent":       {"a short commit id can be a float", "tag: abc1234\n", 0, set{{Key: "tag", Value: "1234e567"}}, false, "tag: \"1234e567\"\n"},
		"sha":                {"most commit ids are plain", "tag: abc1234\n", 0, set{{Key: "tag", Value: "0ab12cd"}}, false, "tag: 0ab12cd\n"},
		"date":               {"a date is a timestamp to some", "tag: a\n", 0, set{{Key: "tag", Value: "2024-01-15"}}, false, "tag: \"2024-01-15\"\n"},
		"date in place":      {"an unquoted date given as a string is quoted", "tag: 2024-01-15\n", 0, set{{Key: "tag", Value: "2024-01-15"}}, false, "tag: \"2024-01-15\"\n"},
		"sexagesimal":        {"12:30:45 is a number to YAML 1.1", "t: a\n", 0, set{{Key: "t", Value: "12:30:45"}}, false, "t: \"12:30:45\"\n"},
		"null word":          {"~ given as a string", "t: a\n", 0, set{{Key: "t", Value: "~"}}, false, "t: \"~\"\n"},
		"empty string":       {"empty text needs quotes", "t: a\n", 0, set{{Key: "t", Value: ""}}, false, "t: \"\"\n"},
		"looks like mapping": {"a colon and a space", "t: a\n", 0, set{{Key: "t", Value: "a: b"}}, false, "t: \"a: b\"\n"},
		"looks like comment": {"a hash after a space", "t: a\n", 0, set{{Key: "t", Value: "a #b"}}, false, "t: \"a #b\"\n"},
		"url":                {"a colon without a space is fine", "t: a\n", 0, set{{Key: "t", Value: "https://x.example/y#z"}}, false, "t: https://x.example/y#z\n"},
		"digest":             {"sha256:…", "t: a\n", 0, set{{Key: "t", Value: "sha256:0123"}}, false, "t: sha256:0123\n"},
		"number":             {"a number over a number", "n: 3 # c\n", 0, set{{Key: "n", Value: 1000000.0}}, false, "n: 1000000 # c\n"},
		"int":                {"Go ints are numbers", "n: 3\n", 0, set{{Key: "n", Value: 20261122}}, false, "n: 20261122\n"},
		"fraction":           {"a fraction", "n: 3\n", 0, set{{Key: "n", Value: 0.0001}}, false, "n: 0.0001\n"},
		"bool":               {"a bool over a bool", "b: false\n", 0, set{{Key: "b", Value: true}}, false, "b: true\n"},
		"string over number": {"a string is what was given", "v: 1.10\n", 0, set{{Key: "v", Value: "1.20"}}, false, "v: \"1.20\"\n"},
		"opt in number":      {"valueType number", "v: \"3\"\n", 0, set{{Key: "v", Value: 4, Type: AsNumber}}, false, "v: 4\n"},
		"opt in text number": {"valueType number takes text", "v: x\n", 0, set{{Key: "v", Value: "4.50", Type: AsNumber}}, false, "v: 4.50\n"},
		"opt in boolean":     {"valueType boolean", "v: x\n", 0, set{{Key: "v", Value: "true", Type: AsBoolean}}, false, "v: true\n"},
		"number of a file":   {"a number keeps its text", "v: 1\n", 0, set{{Key: "v", Value: Scalar{Number, "1.10"}}}, false, "v: 1.10\n"},
		"equal number":       {"3.0 is 3", "n: 3.0\n", 0, set{{Key: "n", Value: 3}}, false, "n: 3.0\n"},
		"equal string":       {"quotes are not touched", "t: 'v1'\n", 0, set{{Key: "t", Value: "v1"}}, false, "t: 'v1'\n"},
		"empty value":        {"a key without a value", "a:\nb: 1\n", 0, set{{Key: "a", Value: "x"}}, false, "a: x\nb: 1\n"},
		"empty with comment": {"a key without a value", "a:   # why\nb: 1\n", 0, set{{Key: "a", Value: "x"}}, false, "a: x   # why\nb: 1\n"},
		"empty item":         {"an item without a value", "-\n- b\n", 0, set{{Key: "0", Value: "x"}}, false, "- x\n- b\n"},
		"flow":               {"the rest of the line stays", "m: {a: 1x, b: 2x} # c\n", 0, set{{Key: "m.a", Value: "9x"}, {Key: "m.b", Value: "8x"}}, false, "m: {a: 9x, b: 8x} # c\n"},
		"flow needs quotes":  {"a comma inside brackets", "m: {a: x}\n", 0, set{{Key: "m.a", Value: "a,b"}}, false, "m: {a: \"a,b\"}\n"},
		"flow sequence":      {"indices", "m: [a, b, c]\n", 0, set{{Key: "m.1", Value: "x"}}, false, "m: [a, x, c]\n"},
		"flow empty value":   {"a flow key without a value", "m: {a: , b: 1}\n", 0, set{{Key: "m.a", Value: "x"}}, false, "m: {a: x, b: 1}\n"},
		"json":               {"a JSON document", "{\n  \"a\": \"x\",\n  \"n\": 1\n}\n", 0, set{{Key: "a", Value: "y"}, {Key: "n", Value: 2}}, false, "{\n  \"a\": \"y\",\n  \"n\": 2\n}\n"},
		"text in JSON":       {"a number's or null's place gets quotes, too", "{\"a\":null,\"l\":[1]}\n", 0, set{{Key: "a", Value: "v1.2.0"}, {Key: "l.0", Value: "x"}}, false, "{\"a\":\"v1.2.0\",\"l\":[\"x\"]}\n"},
		"new emoji in JSON":  {"JSON has no \\U, and Go may not know that it is printable", "{\"a\":\"x\"}", 0, set{{Key: "a", Value: "\U0001FAE9\U000F0000"}}, false, "{\"a\":\"\U0001FAE9\U000F0000\"}"},
		"non-ASCII":          {"columns count characters", "äöü: {é: {b: old}} # 漢字\n", 0, set{{Key: "äöü.é.b", Value: "naïve"}}, false, "äöü: {é: {b: naïve}} # 漢字\n"},
		"emoji":              {"beyond the BMP", "\"😀😀\": a\n", 0, set{{Key: "😀😀", Value: "x"}}, false, "\"😀😀\": x\n"},
		"BOM":                {"a byte order mark", "\xef\xbb\xbfa: 1x\nb: 2x\n", 0, set{{Key: "a", Value: "w"}, {Key: "b", Value: "z"}}, false, "\xef\xbb\xbfa: w\nb: z\n"},
		"CRLF":               {"line endings stay", "a: x # c\r\nb:\r\n  c: y\r\n", 0, set{{Key: "a", Value: "1x"}, {Key: "b.c", Value: "2x"}}, false, "a: 1x # c\r\nb:\r\n  c: 2x\r\n"},
		"no final newline":   {"and none is added", "a: x", 0, set{{Key: "a", Value: "w"}}, false, "a: w"},
		"second document":    {"document: 1", "a: x\n---\na: y\n...\n---\na: z\n", 1, set{{Key: "a", Value: "new"}}, false, "a: x\n---\na: new\n...\n---\na: z\n"},
		"multi-line plain":   {"a folded plain scalar", "a: one\n  two # c\nb: 1\n", 0, set{{Key: "a", Value: "x"}}, false, "a: x # c\nb: 1\n"},
		"multi-line quoted":  {"a quoted scalar on lines", "a: \"one\n  two\"\nb: 1\n", 0, set{{Key: "a", Value: "x"}}, false, "a: \"x\"\nb: 1\n"},
		"literal to line":    {"a block scalar becomes one line", "a: | # c\n  l1\n  l2\n\nb: 1\n", 0, set{{Key: "a", Value: "x"}}, false, "a: x # c\n\nb: 1\n"},
		"literal to literal": {"a block scalar stays one", "a: |\n  l1\n  l2\nb: 1\n", 0, set{{Key: "a", Value: "x\n\ny\n"}}, false, "a: |\n  x\n\n  y\nb: 1\n"},
		"folded to literal":  {"what folding could change is literal", "a: >-\n    f1\n    f2\nb: 1\n", 0, set{{Key: "a", Value: "x\ny"}}, false, "a: |-\n    x\n    y\nb: 1\n"},
		"literal at end":     {"no newline at the end of the file", "a: |\n  l1", 0, set{{Key: "a", Value: "x"}}, false, "a: x"},
		"literal CRLF":       {"with CR LF", "a: |\r\n  l1\r\nb: 1\r\n", 0, set{{Key: "a", Value: "x\ny\n"}}, false, "a: |\r\n  x\r\n  y\r\nb: 1\r\n"},
		"literal indent":     {"an indentation indicator", "a: |2\n    l1\nb: 1\n", 0, set{{Key: "a", Value: "x"}}, false, "a: x\nb: 1\n"},
		"literal keep":       {"keep chomping", "a: |+\n  l1\n\n\nb: 1\n", 0, set{{Key: "a", Value: "x"}}, false, "a: x\nb: 1\n"},
		"empty literal":      {"a header only", "a: |\nb: 1\n", 0, set{{Key: "a", Value: "x"}}, false, "a: x\nb: 1\n"},
		"literal to number":  {"a block scalar is a string", "a: |-\n  3\nb: 1\n", 0, set{{Key: "a", Value: 4, Type: AsNumber}}, false, "a: 4\nb: 1\n"},
		"tagged":             {"a tag stays", "a: !!str 5 # c\n", 0, set{{Key: "a", Value: "6"}}, false, "a: !!str \"6\" # c\n"},
		"custom tag":         {"so does a custom one", "a: !vault x\n", 0, set{{Key: "a", Value: "w"}}, false, "a: !vault w\n"},
		"unused anchor":      {"an anchor nobody uses stays", "a: &b x\n", 0, set{{Key: "a", Value: "w"}}, false, "a: &b w\n"},
		"anchor elsewhere":   {"anchors off the path do not matter", "base: &b {x: 1}\nuse: *b\nm:\n  <<: *b\n  t: old\n", 0, set{{Key: "m.t", Value: "new"}}, false, "base: &b {x: 1}\nuse: *b\nm:\n  <<: *b\n  t: new\n"},
		"escaped dot":        {"a dot in a key", "\"a.b\": x\n", 0, set{{Key: `a\.b`, Value: "w"}}, false, "\"a.b\": w\n"},
		"number key":         {"keys are compared as text", "1: x\n", 0, set{{Key: "1", Value: "w"}}, false, "1: w\n"},
		"tab":                {"a tab before the value", "a:\tx\n", 0, set{{Key: "a", Value: "w"}}, false, "a:\tw\n"},
		"item mapping":       {"in a sequence", "l:\n- name: a\n  v: 1x\n- name: b\n  v: 2x\n", 0, set{{Key: "l.1.v", Value: "w"}}, false, "l:\n- name: a\n  v: 1x\n- name: b\n  v: w\n"},
		"explicit key":       {"the ? form", "? a\n: x\nb: 1\n", 0, set{{Key: "a", Value: "w"}}, false, "? a\n: w\nb: 1\n"},
		"same value":         {"nothing to do", "a: 'x'   # c", 0, set{{Key: "a", Value: "x"}}, false, "a: 'x'   # c"},

		"create":                {"a new key comes last", "image:\n  repo: r # c\n\nz: 1\n", 0, set{{Key: "image.tag", Value: "v1"}}, true, "image:\n  repo: r # c\n  tag: v1\n\nz: 1\n"},
		"create nested":         {"with the file's indentation", "a:\n    b: 1\nz: 1\n", 0, set{{Key: "a.c.d", Value: "1.0"}}, true, "a:\n    b: 1\n    c:\n        d: \"1.0\"\nz: 1\n"},
		"create at top":         {"at the end of the file", "a: 1\n", 0, set{{Key: "b.c", Value: true}}, true, "a: 1\nb:\n  c: true\n"},
		"create no newline":     {"without a newline at the end", "a: 1", 0, set{{Key: "b", Value: "x"}}, true, "a: 1\nb: x"},
		"create CRLF":           {"line endings", "a: 1\r\n", 0, set{{Key: "b.c", Value: "x"}}, true, "a: 1\r\nb:\r\n  c: x\r\n"},
		"create under null":     {"a key without a value", "a: # c\nz: 1\n", 0, set{{Key: "a.b", Value: "x"}}, true, "a: # c\n  b: x\nz: 1\n"},
		"create under ~":        {"an explicit null", "a: ~ # c\nz: 1\n", 0, set{{Key: "a.b.c", Value: "x"}}, true, "a: {b: {c: x}} # c\nz: 1\n"},
		"create in flow":        {"flow", "a: {b: 1} # c\n", 0, set{{Key: "a.c.d", Value: "x"}}, true, "a: {b: 1, c: {d: x}} # c\n"},
		"create in empty flow":  {"{}", "a: {}\n", 0, set{{Key: "a.b", Value: "x"}}, true, "a: {b: x}\n"},
		"create trailing comma": {"a trailing comma stays", "a: {b: 1,}\n", 0, set{{Key: "a.c", Value: "x"}}, true, "a: {b: 1, c: x,}\n"},
		"create in JSON":        {"JSON stays JSON", "{\n  \"a\": 1\n}\n", 0, set{{Key: "b", Value: "x"}}, true, "{\n  \"a\": 1,\n  \"b\": \"x\"\n}\n"},
		"create in empty JSON":  {"{} and null show no quotes to copy", "{\"a\":{},\"b\":null}", 0, set{{Key: "a.c", Value: "x"}, {Key: "b.c", Value: "x"}}, true, "{\"a\":{\"c\": \"x\"},\"b\":{\"c\": \"x\"}}"},
		"create in bare JSON":   {"an empty document of JSON", "{}\n", 0, set{{Key: "a.c", Value: "x"}}, true, "{\"a\": {\"c\": \"x\"}}\n"},
		"create after literal":  {"after a block scalar", "m:\n  a: |\n    l1\n\nz: 1\n", 0, set{{Key: "m.b", Value: "x"}}, true, "m:\n  a: |\n    l1\n  b: x\n\nz: 1\n"},
		"create after keep":     {"kept line breaks are content", "m:\n  a: |+\n    l1\n\n\nz: 1\n", 0, set{{Key: "m.b", Value: "x"}}, true, "m:\n  a: |+\n    l1\n\n\n  b: x\nz: 1\n"},
		"create after flow":     {"after a flow collection on lines", "m:\n  a: [1,\n    2] # c\nz: 1\n", 0, set{{Key: "m.b", Value: "x"}}, true, "m:\n  a: [1,\n    2] # c\n  b: x\nz: 1\n"},
		"create in item":        {"in a sequence item", "l:\n- name: a\n- name: b\n", 0, set{{Key: "l.0.v", Value: "x"}}, true, "l:\n- name: a\n  v: x\n- name: b\n"},
		"create after null":     {"after a key without a value", "a:\n  b:\nc: 1\n", 0, set{{Key: "a.d", Value: "x"}}, true, "a:\n  b:\n  d: x\nc: 1\n"},
		"create after alias":    {"after an alias", "x: &x 1\nm:\n  a: *x\nc: 1\n", 0, set{{Key: "m.d", Value: "x"}}, true, "x: &x 1\nm:\n  a: *x\n  d: x\nc: 1\n"},
		"create empty file":     {"an empty file", "", 0, set{{Key: "a.b", Value: "x"}, {Key: "a.c", Value: 1}}, true, "a:\n  b: x\n  c: 1\n"},
		"create comment file":   {"a file of comments", "# only\n", 0, set{{Key: "a", Value: "x"}}, true, "# only\na: x\n"},
		"create odd key":        {"a key that would be something else", "a: 1\n", 0, set{{Key: `on`, Value: "x"}, {Key: `b\:c d\.e`, Value: "w"}}, true, "a: 1\n\"on\": x\nb:c d.e: w\n"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in := []byte(tc.in)
			opts := Options{File: "f.yaml", CreateKeys: tc.create}
			got, changes, err := Edit(t.Context(), in, tc.doc, tc.updates, opts)
			if err != nil {
				t.Fatalf("%s: %v", tc.reason, err)
			}
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			if string(in) != tc.in {
				t.Error("the input was modified")
			}
			again, changes2, err := Edit(t.Context(), got, tc.doc, tc.updates, opts)
			if err != nil || string(again) != string(got) {
				t.Errorf("not a no-op when applied again: %q, %v", again, err)
			}
			for i, c := range changes {
				if changes2[i].Changed {
					t.Errorf("%s is reported as changed again", c.Key)
				}
				v, err := Get(got, tc.doc, c.Key, opts)
				if err != nil || !v.Equal(c.New) {
					t.Errorf("Get(%s) = %v, %v; want %v", c.Key, v, err, c.New)
				}
			}
		})
	}
}

func TestEditRefuses(t *testing.T) {
	cases := map[string]struct {
		reason  string
		in      string
		doc     int
		update  Update
		create  bool
		want    Error
		mention string
	}{
		"number for string": {"Kargo's typing has already lost 1.10", "image:\n  tag: v1\n", 0, Update{Key: "image.tag", Value: 1.1}, false,
			Error{Line: 2, Column: 8}, "quote("},
		"bool for string":       {"the same for bools", "a: x\n", 0, Update{Key: "a", Value: true}, false, Error{Line: 1, Column: 4}, "quote("},
		"null for string":       {"and null", "a: x\n", 0, Update{Key: "a", Value: nil}, false, Error{Line: 1, Column: 4}, "null"},
		"number for date":       {"a date counts as a string", "a: 2024-01-15\n", 0, Update{Key: "a", Value: 1}, false, Error{Line: 1, Column: 4}, "quote("},
		"number as string":      {"its text is lost already", "a: 1\n", 0, Update{Key: "a", Value: 1.1, Type: AsString}, false, Error{Line: 1, Column: 4}, "it is to become a string, but the value is the number 1.1"},
		"text as number":        {"not a number", "a: 1\n", 0, Update{Key: "a", Value: "x", Type: AsNumber}, false, Error{Line: 1, Column: 4}, "not a number"},
		"text as boolean":       {"not a boolean", "a: 1\n", 0, Update{Key: "a", Value: "yes", Type: AsBoolean}, false, Error{Line: 1, Column: 4}, "not a boolean"},
		"tag contradicts":       {"an explicit tag", "a: !!str x\n", 0, Update{Key: "a", Value: 1, Type: AsNumber}, false, Error{Line: 1, Column: 4}, "!!str"},
		"missing":               {"near keys are named", "image:\n  tag: v1\n", 0, Update{Key: "image.tga", Value: "x"}, false, Error{Line: 2, Column: 3, Missing: true, Nearest: []string{"image.tag"}}, "did you mean"},
		"missing elsewhere":     {"the same name somewhere else", "web:\n  image:\n    tag: v1\n", 0, Update{Key: "tag", Value: "x"}, false, Error{Line: 1, Column: 1, Missing: true, Nearest: []string{"web.image.tag"}}, "web.image.tag"},
		"mapping":               {"not a scalar", "a:\n  b: 1\n", 0, Update{Key: "a", Value: "x"}, false, Error{Line: 2, Column: 3}, "mapping"},
		"below scalar":          {"nothing is below a scalar", "a: 1\n", 0, Update{Key: "a.b", Value: "x"}, true, Error{Line: 1, Column: 4}, "scalar"},
		"document is a scalar":  {"and has no key to name", "text\n", 0, Update{Key: "b", Value: "x"}, true, Error{Line: 1, Column: 1}, "the document is a scalar"},
		"not a JSON number":     {"JSON stays JSON", "{\"a\":1}", 0, Update{Key: "a", Value: Scalar{Number, "0x1F"}}, false, Error{Line: 1, Column: 6}, "no longer be JSON"},
		"index":                 {"outside the sequence", "a: [1]\n", 0, Update{Key: "a.1", Value: "x"}, true, Error{Line: 1, Column: 4}, "outside"},
		"negative index":        {"not an index", "a: [1]\n", 0, Update{Key: "a.-1", Value: "x"}, false, Error{Line: 1, Column: 4}, "index"},
		"alias":                 {"the path ends in an alias", "a: &x 1\nb: *x\n", 0, Update{Key: "b", Value: 2}, false, Error{Line: 2, Column: 4}, "alias"},
		"through alias":         {"the path leads through an alias", "a: &x {c: 1}\nb: *x\n", 0, Update{Key: "b.c", Value: 2}, false, Error{Line: 2, Column: 4}, "alias"},
		"used anchor":           {"the change would show elsewhere", "a: &x 1\nb: *x\n", 0, Update{Key: "a", Value: 2}, false, Error{Line: 1, Column: 4}, "used again at line 2"},
		"inside used anchor":    {"the change would show elsewhere", "a: &x\n  c: 1\nb:\n  <<: *x\n", 0, Update{Key: "a.c", Value: 2}, false, Error{Line: 1, Column: 4}, "used again at line 4"},
		"create in used anchor": {"the key would show elsewhere", "a: &x {c: 1}\nb: *x\n", 0, Update{Key: "a.d", Value: 2}, true, Error{Line: 1, Column: 4}, "used again"},
		"merged":                {"the value comes from a merge", "a: &x {c: 1}\nb:\n  <<: *x\n  d: 1\n", 0, Update{Key: "b.c", Value: 2}, true, Error{Line: 3, Column: 3}, "merge"},
		"duplicate":             {"ambiguous", "a: 1\na: 2\n", 0, Update{Key: "a", Value: 2}, false, Error{Line: 1, Column: 1}, "twice"},
		"no document":           {"there is only one", "a: 1\n", 1, Update{Key: "a", Value: 2}, false, Error{Missing: true}, "no document 1"},
		"bad key":               {"Kargo's syntax", "a: 1\n", 0, Update{Key: "a..b", Value: 2}, false, Error{}, "empty key part"},
		"not a scalar":          {"a value of no scalar type", "a: 1\n", 0, Update{Key: "a", Value: []any{}}, false, Error{}, "not a scalar"},
		"not UTF-8 value":       {"invalid text", "a: 1\n", 0, Update{Key: "a", Value: "\xff"}, false, Error{}, "UTF-8"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			out, _, err := Edit(t.Context(), []byte(tc.in), tc.doc, []Update{tc.update}, Options{File: "f.yaml", CreateKeys: tc.create})
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("%s: got %q, %v", tc.reason, out, err)
			}
			tc.want.File, tc.want.Key = "f.yaml", tc.update.Key
			if diff := cmp.Diff(&tc.want, got, cmpopts.IgnoreFields(Error{}, "Problem", "Remedy")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			if !strings.Contains(got.Error(), tc.mention) {
				t.Errorf("%s: %q does not mention %q", tc.reason, got, tc.mention)
			}
		})
	}
}

func TestSyntaxError(t *testing.T) {
	for name, in := range map[string]string{"broken": "a: [", "latin-1": "a: \xe9", "tab": "a:\n\tb: 1"} {
		var syntax *SyntaxError
		if _, _, err := Edit(t.Context(), []byte(in), 0, []Update{{Key: "a", Value: 1}}, Options{}); !errors.As(err, &syntax) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestSplitKey holds conformance case F19.
func TestSplitKey(t *testing.T) {
	cases := map[string]struct {
		want []string
		err  string
	}{
		"a":         {[]string{"a"}, ""},
		" a.b ":     {[]string{"a", "b"}, ""},
		`a\.b.c`:    {[]string{"a.b", "c"}, ""},
		`a\:b`:      {[]string{"a:b"}, ""},
		"a.:2":      {[]string{"a", "2"}, ""},
		"a..b":      {nil, "empty key part"},
		`a\nb`:      {nil, "invalid escape sequence in key"},
		":1":        {[]string{"1"}, ""},
		"a.:0":      {[]string{"a", "0"}, ""},
		"é.ü":       {[]string{"é", "ü"}, ""},
		"":          {nil, "empty key part"},
		"a.":        {nil, "empty key part"},
		".a":        {nil, "empty key part"},
		"a.:":       {nil, "empty key part"},
		"a:b":       {nil, "unexpected colon"},
		"::a":       {nil, "unexpected colon"},
		`a\b`:       {nil, "invalid escape"},
		`a\`:        {nil, "invalid escape"},
		"a[0]":      {[]string{"a[0]"}, ""},
		`\:a.\.b`:   {[]string{":a", ".b"}, ""},
		"a b.c - d": {[]string{"a b", "c - d"}, ""},
	}
	for key, tc := range cases {
		got, err := SplitKey(key)
		if diff := cmp.Diff(tc.want, got); diff != "" || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("SplitKey(%q) = %q, %v", key, got, err)
		}
	}
}

func TestGet(t *testing.T) {
	const in = "s: '1.10'\nn: 1.10\nb: True\nz:\nd: 2024-01-15\na: &x {k: v}\nu: *x\nl: [p, q]\nbig: 9007199254740993\n---\ns: second\n"
	cases := map[string]struct {
		doc  int
		key  string
		want Scalar
		val  any
	}{
		"string":   {0, "s", Scalar{String, "1.10"}, "1.10"},
		"number":   {0, "n", Scalar{Number, "1.10"}, 1.1},
		"bool":     {0, "b", Scalar{Boolean, "true"}, true},
		"null":     {0, "z", Scalar{Null, ""}, nil},
		"date":     {0, "d", Scalar{String, "2024-01-15"}, "2024-01-15"},
		"alias":    {0, "u.k", Scalar{String, "v"}, "v"},
		"index":    {0, "l.1", Scalar{String, "q"}, "q"},
		"big":      {0, "big", Scalar{Number, "9007199254740993"}, int64(9007199254740993)},
		"document": {1, "s", Scalar{String, "second"}, "second"},
	}
	for name, tc := range cases {
		got, err := Get([]byte(in), tc.doc, tc.key, Options{})
		if err != nil || got != tc.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if diff := cmp.Diff(tc.val, got.Value()); diff != "" {
			t.Errorf("%s: value -want +got:\n%s", name, diff)
		}
	}
}

// Merges of merges: 60 levels are 2^60 paths.
func TestMergesOfMergesAreLookedAtOnce(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 {x: 1}\n")
	for i := 1; i < 60; i++ {
		fmt.Fprintf(&b, "a%d: &a%d\n  <<: [*a%d, *a%d]\n", i, i, i-1, i-1)
	}
	b.WriteString("m:\n  <<: *a59\n  y: 1\n")
	for key, missing := range map[string]bool{"m.z": true, "m.x": false} { // x comes from the merge
		_, _, err := Edit(t.Context(), []byte(b.String()), 0, []Update{{Key: key, Value: "1"}}, Options{})
		var e *Error
		if !errors.As(err, &e) || e.Missing != missing {
			t.Errorf("%s: %v, want missing %t", key, err, missing)
		}
	}
}
