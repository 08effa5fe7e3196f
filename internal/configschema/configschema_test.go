package configschema

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/xeipuuv/gojsonschema"
)

const updateSchema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "required": ["path", "updates"],
  "additionalProperties": false,
  "definitions": {"update": {
    "type": "object", "required": ["key", "value"], "additionalProperties": false,
    "properties": {"key": {"type": "string", "minLength": 1}, "value": {}}}},
  "properties": {
    "path": {"type": "string", "minLength": 1},
    "updates": {"type": "array", "minItems": 1, "items": {"$ref": "#/definitions/update"}},
    "count": {"type": "integer", "minimum": 1, "maximum": 9},
    "kind": {"type": "string", "enum": ["Stage", "Freight"]},
    "mode": {"type": "string", "pattern": "^0[0-7]{3}$", "maxLength": 4},
    "mail": {"type": "string", "format": "email"},
    "url": {"type": "string", "format": "uri"},
    "either": {"type": "object", "additionalProperties": false,
      "properties": {"a": {"type": "string"}, "b": {"type": "string"}, "c": {"type": "boolean"}},
      "oneOf": [
        {"required": ["a"], "properties": {"b": {"enum": ["", null]}}},
        {"required": ["b"], "properties": {"a": {"enum": ["", null]}}}]},
    "labels": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
    "set": {"type": "array", "uniqueItems": true, "maxItems": 3},
    "fixed": {"const": true},
    "never": {"not": {"type": "string"}},
    "mixed": {"type": ["null", "string"]},
    "id": {"type": "string", "minLength": 1, "format": "uri"},
    "top": {"type": "integer", "maximum": 2147483647},
    "any": {"anyOf": [{"type": "string"}, {"type": "boolean"}]}
  }
}`

func TestValidate(t *testing.T) {
	s, err := Compile([]byte(updateSchema))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		reason string
		config string
		want   []string
	}{
		"valid":       {"nothing to say", `{"path":"a","updates":[{"key":"k","value":null}]}`, nil},
		"null":        {"a missing config", `null`, []string{"(root): Invalid type. Expected: object, given: null"}},
		"required":    {"in the schema's order", `{}`, []string{"(root): path is required", "(root): updates is required"}},
		"additional":  {"with what is required first", `{"pth":"a","updates":[{"key":"k","value":1}]}`, []string{"(root): path is required", "(root): Additional property pth is not allowed"}},
		"lengths":     {"paths are dotted", `{"path":"","updates":[{"key":"","value":1},{"value":2}]}`, []string{"path: String length must be greater than or equal to 1", "updates.0.key: String length must be greater than or equal to 1", "updates.1: key is required"}},
		"items":       {"an empty list", `{"path":"a","updates":[]}`, []string{"updates: Array must have at least 1 items"}},
		"integer":     {"integers are told from numbers", `{"path":1,"updates":1.5}`, []string{"path: Invalid type. Expected: string, given: integer", "updates: Invalid type. Expected: array, given: number"}},
		"a format":    {"a format and a length", `{"path":"a","updates":[{"key":"k","value":1}],"id":"","top":2147483648}`, []string{"id: String length must be greater than or equal to 1", "id: Does not match format 'uri'", "top: Must be less than or equal to 2.147483647e+09"}},
		"bounds":      {"numbers", `{"path":"a","updates":[{"key":"k","value":1}],"count":10}`, []string{"count: Must be less than or equal to 9"}},
		"enum":        {"the field is repeated", `{"path":"a","updates":[{"key":"k","value":1}],"kind":"Freigth"}`, []string{`kind: kind must be one of the following: "Stage", "Freight"`}},
		"pattern":     {"two things wrong with one value", `{"path":"a","updates":[{"key":"k","value":1}],"mode":"07777"}`, []string{"mode: String length must be less than or equal to 4", "mode: Does not match pattern '^0[0-7]{3}$'"}},
		"formats":     {"formats are asserted", `{"path":"a","updates":[{"key":"k","value":1}],"mail":"x","url":"a/b"}`, []string{"mail: Does not match format 'email'", "url: Does not match format 'uri'"}},
		"one of two":  {"both branches hold", `{"path":"a","updates":[{"key":"k","value":1}],"either":{"a":"","b":""}}`, []string{"either: Must validate one and only one schema (oneOf)"}},
		"one of none": {"the nearest branch is explained", `{"path":"a","updates":[{"key":"k","value":1}],"either":{}}`, []string{"either: Must validate one and only one schema (oneOf)", "either: a is required"}},
		"any":         {"anyOf", `{"path":"a","updates":[{"key":"k","value":1}],"any":1}`, []string{"any: Must validate at least one schema (anyOf)", "any: Invalid type. Expected: string, given: integer"}},
		"labels":      {"schema for additional properties", `{"path":"a","updates":[{"key":"k","value":1}],"labels":{"b":1,"a":true}}`, []string{"labels.a: Invalid type. Expected: string, given: boolean", "labels.b: Invalid type. Expected: string, given: integer"}},
		"no labels":   {"an empty object", `{"path":"a","updates":[{"key":"k","value":1}],"labels":{}}`, []string{"labels: Must have at least 1 properties"}},
		"set":         {"unique items", `{"path":"a","updates":[{"key":"k","value":1}],"set":[1,2,1]}`, []string{"set: array items[0,2] must be unique"}},
		"const":       {"const", `{"path":"a","updates":[{"key":"k","value":1}],"fixed":false}`, []string{"fixed: fixed does not match: true"}},
		"not":         {"not", `{"path":"a","updates":[{"key":"k","value":1}],"never":""}`, []string{"never: Must not validate the schema (not)"}},
		"mixed":       {"several types", `{"path":"a","updates":[{"key":"k","value":1}],"mixed":[]}`, []string{"mixed: Invalid type. Expected: [null,string], given: array"}},
	}
	oracle, err := gojsonschema.NewSchema(gojsonschema.NewStringLoader(updateSchema))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var v any
			if err := json.Unmarshal([]byte(tc.config), &v); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, x := range s.Validate(v) {
				got = append(got, x.Message)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			res, err := oracle.Validate(gojsonschema.NewStringLoader(tc.config))
			if err != nil {
				t.Fatal(err)
			}
			kargo := map[string]bool{}
			for _, e := range res.Errors() {
				kargo[e.String()] = true
			}
			for _, m := range got {
				if !kargo[m] {
					t.Errorf("gojsonschema does not say %q but %v", m, res.Errors())
				}
			}
			if len(kargo) != len(got) {
				t.Errorf("gojsonschema has %d messages, we have %d: %v", len(kargo), len(got), res.Errors())
			}
		})
	}
}

func TestViolationLocationAndHint(t *testing.T) {
	s, err := Compile([]byte(updateSchema))
	if err != nil {
		t.Fatal(err)
	}
	got := s.Validate(map[string]any{
		"path": "a", "kind": "stage", "updates": []any{map[string]any{"kye": "a", "key": "b", "value": 1}},
	})
	want := []Violation{
		{Pointer: "/kind", Message: `kind: kind must be one of the following: "Stage", "Freight"`, Hint: `did you mean "Stage"?`},
		{Pointer: "/updates/0", Property: "kye", Message: "updates.0: Additional property kye is not allowed", Hint: `did you mean "key"?`},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if p := pointer([]string{"a/b", "~"}); p != "/a~1b/~0" {
		t.Errorf("pointer = %q", p)
	}
}

func TestValidateGoValues(t *testing.T) {
	s, err := Compile([]byte(`{"type":"object","properties":{"n":{"type":"integer","maximum":5},"l":{"type":"array","items":{"type":"string"}},"f":{"type":"number","minimum":0}}}`))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		reason string
		v      any
		valid  bool
	}{
		"int":         {"the engine's whole numbers", map[string]any{"n": 5}, true},
		"int64":       {"outputs", map[string]any{"n": int64(6)}, false},
		"whole float": {"1.0 is an integer", map[string]any{"n": 1.0}, true},
		"typed slice": {"as encoding/json sees it", map[string]any{"l": []string{"a"}}, true},
		"struct": {"as encoding/json sees it", struct {
			N int `json:"n"`
		}{9}, false},
		"number":   {"json.Number", map[string]any{"n": json.Number("6")}, false},
		"huge":     {"no big arithmetic for hostile numbers", map[string]any{"n": json.Number("1e999999999")}, false},
		"NaN":      {"not JSON", map[string]any{"f": math.NaN()}, false},
		"infinity": {"not JSON", map[string]any{"f": math.Inf(1)}, false},
		"channel":  {"not JSON", map[string]any{"f": make(chan int)}, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := s.Validate(tc.v); (got == nil) != tc.valid {
				t.Errorf("%s: %v", tc.reason, got)
			}
		})
	}
}

func TestCompile(t *testing.T) {
	common := Sibling{"common.json", []byte(`{"definitions":{"name":{"type":"string"}}}`)}
	cases := map[string]struct {
		reason   string
		schema   string
		siblings []Sibling
		ok       bool
	}{
		"sibling":       {"a given document", `{"properties":{"n":{"$ref":"common.json#/definitions/name"}}}`, []Sibling{common}, true},
		"dot sibling":   {"with ./", `{"properties":{"n":{"$ref":"./common.json#/definitions/name"}}}`, []Sibling{common}, true},
		"no sibling":    {"not given", `{"properties":{"n":{"$ref":"common.json#/definitions/name"}}}`, nil, false},
		"file":          {"files are never read", `{"$ref":"file:///etc/hostname"}`, nil, false},
		"network":       {"the network is never asked", `{"$ref":"http://127.0.0.1:1/x.json"}`, nil, false},
		"not JSON":      {"syntax", `{`, nil, false},
		"bad type":      {"the schema itself is checked", `{"type":"strnig"}`, nil, false},
		"draft 7":       {"older drafts", `{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"a":{}},"items":{"$ref":"#/definitions/a"}}`, nil, true},
		"bad pattern":   {"RE2 only", `{"pattern":"(?<=a)b"}`, nil, false},
		"dangling name": {"no such definition", `{"$ref":"#/definitions/a"}`, nil, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, err := Compile([]byte(tc.schema), tc.siblings...)
			if (err == nil) != tc.ok {
				t.Fatalf("%s: error %v", tc.reason, err)
			}
			if tc.siblings != nil && err == nil {
				if got := Messages(s.Validate(map[string]any{"n": 1})); !strings.Contains(got, "n: Invalid type") {
					t.Errorf("the sibling's rule does not hold: %q", got)
				}
			}
		})
	}
}

// Kargo has no words for these: the library's do.
func TestForeignKeywords(t *testing.T) {
	deep := `{"$defs":{"d0":{"type":"integer"}`
	for i := 1; i <= 9; i++ {
		deep += fmt.Sprintf(`,"d%[1]d":{"allOf":[{"$ref":"#/$defs/d%[2]d"},{"$ref":"#/$defs/d%[2]d"},{"$ref":"#/$defs/d%[2]d"},{"$ref":"#/$defs/d%[2]d"}]}`, i, i-1)
	}
	for name, tc := range map[string]struct {
		reason, schema, config string
		want                   []string
	}{
		"unevaluated": {
			"nothing else is wrong", `{"properties":{"a":{}},"unevaluatedProperties":false}`, `{"a":1,"b":2}`,
			[]string{"b: false schema"},
		},
		"dependent": {
			"worded as dependencies are", `{"dependentRequired":{"a":["b"]},"dependentSchemas":{"c":{"required":["d"]}}}`, `{"a":1,"c":2}`,
			[]string{"(root): Has a dependency on b", "(root): d is required"},
		},
		"several": {
			"as many as are asked for", `{"properties":{"l":{"contains":{"type":"string"},"minContains":2},"m":{"contains":{"type":"string"},"maxContains":1}}}`, `{"l":["a",1],"m":["a","b"]}`,
			[]string{"l: At least 2 of the items must match", "m: At most 1 of the items may match"},
		},
		"beside a reference": {
			"both count", `{"$defs":{"s":{"type":"string"}},"properties":{"a":{"$ref":"#/$defs/s","minLength":2}}}`, `{"a":""}`,
			[]string{"a: String length must be greater than or equal to 2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Compile([]byte(tc.schema))
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := json.Unmarshal([]byte(tc.config), &v); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Join(tc.want, "\n"), Messages(s.Validate(v))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
	s, err := Compile([]byte(deep + `},"$ref":"#/$defs/d9"}`))
	if err != nil {
		t.Fatal(err)
	}
	if vs := s.explain("x"); vs != nil {
		t.Errorf("%d violations of a schema that multiplies", len(vs))
	}
}
