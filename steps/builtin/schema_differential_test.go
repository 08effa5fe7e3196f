package builtin

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/xeipuuv/gojsonschema"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/schemas"
)

// TestSchemasAcceptWhatKargoAccepts generates configs, most of them nearly
// right, and asks Kargo's schema, by Kargo's validator, and ours, by ours,
// whether they are valid. The answers must be the same for every step kind of
// Kargo that we have.
func TestSchemasAcceptWhatKargoAccepts(t *testing.T) {
	dir := sharedata.Path(t, "kargo", "step-schemas")
	files, err := filepath.Glob(filepath.Join(dir, "*-config.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no schemas of Kargo: %v", err)
	}
	const perKind = 4000
	var missing []string
	for _, file := range files {
		kind := strings.TrimSuffix(filepath.Base(file), "-config.json")
		mine, ok := schemas.Config(kind)
		if !ok {
			missing = append(missing, kind)
			continue
		}
		t.Run(kind, func(t *testing.T) {
			ours, err := configschema.Compile(mine)
			if err != nil {
				t.Fatal(err)
			}
			kargo, root := kargoSchema(t, dir, file)
			g := generator{root: root, rng: rand.New(rand.NewPCG(7, 11)), pool: constants(root)} //nolint:gosec // repeatable on purpose
			accepted, differences := 0, 0
			for range perKind {
				config := g.value(root, 0)
				if g.rng.IntN(50) == 0 {
					config = g.wrong()
				}
				res, err := kargo.Validate(gojsonschema.NewGoLoader(config))
				if err != nil {
					t.Fatal(err)
				}
				violations := ours.Validate(config)
				if res.Valid() {
					accepted++
				}
				if res.Valid() == (violations == nil) && sameMessages(res.Errors(), violations) {
					continue
				}
				text, err := json.Marshal(config)
				if err != nil {
					t.Fatal(err)
				}
				t.Errorf("%s\nKargo: %v\nours: %v", text, res.Errors(), violations)
				if differences++; differences == 3 {
					break
				}
			}
			if differences == 0 && (accepted < perKind/50 || accepted > perKind-10) {
				t.Errorf("only one answer was tried: %d of %d configs are valid", accepted, perKind)
			}
		})
	}
	if len(missing) > 0 {
		t.Logf("step kinds of Kargo without a schema here: %s", strings.Join(missing, ", "))
	}
}

// sameMessages tells whether both say the same of a config, in whatever order.
// Which alternative of a choice is explained is not compared: Kargo's validator
// keeps a score of its own.
func sameMessages(kargo []gojsonschema.ResultError, ours []configschema.Violation) bool {
	choices := slices.ContainsFunc(ours, func(v configschema.Violation) bool { return v.Combination })
	isChoice := func(message string) bool {
		return strings.HasSuffix(message, "(oneOf)") || strings.HasSuffix(message, "(anyOf)") || strings.HasSuffix(message, "(allOf)")
	}
	var want, got []string
	for _, e := range kargo {
		if !choices || isChoice(e.String()) {
			want = append(want, e.String())
		}
	}
	for _, v := range ours {
		if !choices || v.Combination {
			got = append(got, v.Message)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	return slices.Equal(slices.Compact(want), slices.Compact(got))
}

func kargoSchema(t *testing.T, dir, file string) (*gojsonschema.Schema, map[string]any) {
	t.Helper()
	read := func(file string) map[string]any {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		return doc
	}
	const base = "http://kargo.invalid/"
	loader := gojsonschema.NewSchemaLoader()
	root := read(file)
	root["$id"] = base + filepath.Base(file)
	for _, common := range []string{"common.json", "argocd-common.json"} {
		doc := read(filepath.Join(dir, common))
		if err := loader.AddSchema(base+common, gojsonschema.NewGoLoader(doc)); err != nil {
			t.Fatal(err)
		}
	}
	compiled, err := loader.Compile(gojsonschema.NewGoLoader(root))
	if err != nil {
		t.Fatal(err)
	}
	// The generator follows references by name.
	definitions, _ := root["definitions"].(map[string]any)
	if definitions == nil {
		definitions = map[string]any{}
	}
	for _, common := range []string{"common.json", "argocd-common.json"} {
		for name, d := range read(filepath.Join(dir, common))["definitions"].(map[string]any) {
			definitions[name] = d
		}
	}
	root["definitions"] = definitions
	return compiled, root
}

// generator makes configs that satisfy a schema, but for some mistakes.
type generator struct {
	root map[string]any
	rng  *rand.Rand
	// pool are the constants that occur anywhere in the schema.
	pool []any
}

func (g *generator) one(in int) bool { return g.rng.IntN(in) == 0 }

func (g *generator) value(schema map[string]any, depth int) any {
	if ref, ok := schema["$ref"].(string); ok {
		name := ref[strings.LastIndex(ref, "/")+1:]
		if d, ok := g.root["definitions"].(map[string]any)[name].(map[string]any); ok {
			return g.value(d, depth)
		}
	}
	if depth > 0 && g.one(40) {
		return g.wrong()
	}
	if enum, ok := schema["enum"].([]any); ok && !g.one(10) {
		return enum[g.rng.IntN(len(enum))]
	}
	if c, ok := schema["const"]; ok && !g.one(10) {
		return c
	}
	switch schema["type"] {
	case "object":
		return g.object(schema, depth)
	case "array":
		items, _ := schema["items"].(map[string]any)
		list := []any{}
		for range g.rng.IntN(3) {
			list = append(list, g.value(items, depth+1))
		}
		if schema["uniqueItems"] == true && len(list) == 1 && g.one(4) {
			list = append(list, list[0])
		}
		return list
	case "string":
		return g.text(schema)
	case "boolean":
		return g.one(2)
	case "integer", "number":
		numbers := []any{-1, 0, 1, 2, 10, 101, 1.5}
		for _, bound := range []string{"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} {
			if b, ok := schema[bound].(float64); ok {
				numbers = append(numbers, b-1, b, b+1)
			}
		}
		return numbers[g.rng.IntN(len(numbers))]
	}
	if len(schema) == 0 || schema["properties"] == nil {
		return g.wrong()
	}
	return g.object(schema, depth)
}

func (g *generator) object(schema map[string]any, depth int) any {
	object := map[string]any{}
	properties, _ := schema["properties"].(map[string]any)
	names := make([]string, 0, len(properties))
	for n := range properties {
		names = append(names, n)
	}
	sort.Strings(names)
	required, _ := schema["required"].([]any)
	// One of the alternatives is the one that is meant.
	for _, word := range []string{"oneOf", "anyOf"} {
		if branches, ok := schema[word].([]any); ok && !g.one(5) {
			branch, _ := branches[g.rng.IntN(len(branches))].(map[string]any)
			more, _ := branch["required"].([]any)
			required = append(slices.Clone(required), more...)
			overrides, _ := branch["properties"].(map[string]any)
			for _, n := range sortedKeys(overrides) {
				if o, ok := overrides[n].(map[string]any); ok && o["enum"] != nil && g.one(2) {
					names = slices.DeleteFunc(names, func(m string) bool { return m == n })
				} else if ok && o["const"] != nil {
					object[n] = o["const"]
				}
			}
		}
	}
	for _, n := range names {
		must := slices.Contains(required, any(n))
		if must && g.one(25) || !must && !g.one(3) {
			continue
		}
		if _, ok := object[n]; ok {
			continue
		}
		p, _ := properties[n].(map[string]any)
		object[n] = g.value(p, depth+1)
	}
	if g.one(30) || properties == nil {
		object["unknown"] = g.wrong()
	}
	return object
}

func (g *generator) text(schema map[string]any) any {
	samples := []string{"x", "a/b", ".", "é", "0", "true"}
	if g.one(6) {
		samples = []string{"", " ", "0755", "1h", "5m30s", "xx1sxx", "POST", "get", "https://x.example/y", "http://", "ftp://x", "oci://r.example/a:1", "r.example:5000/a/b@sha256:00", "r/a", "a b@c.example", "a@b.example", "A <a@b.example>", `c:\d`, "git@h.example:p/q.git", "application/json", "text/plain; x"}
	}
	if pattern, ok := schema["pattern"].(string); ok && !g.one(4) {
		switch {
		case strings.Contains(pattern, "DELETE"):
			samples = []string{"GET", "POST", "DELETE"}
		case strings.Contains(pattern, "application"):
			samples = []string{"application/json", "application/yaml", "text/plain"}
		case strings.Contains(pattern, "oci"):
			samples = []string{"oci://r.example/a:1", "r.example:5000/a/b:v1", "r.example/a@sha256:00", "a:b"}
		case strings.Contains(pattern, "ns|us"):
			samples = []string{"1h", "5m30s", "xx1sxx", "100ms"}
		case strings.Contains(pattern, "[0-7]"):
			samples = []string{"0600", "0777"}
		case strings.Contains(pattern, "https?"):
			samples = []string{"http://p.example", "https://"}
		}
	}
	switch format := schema["format"]; {
	case format == "email" && !g.one(4):
		samples = []string{"a@b.example", "A <a@b.example>"}
	case format == "uri" && !g.one(4):
		samples = []string{"https://x.example/y", "ssh://git@h.example/p", "mailto:a", "x:"}
	}
	return samples[g.rng.IntN(len(samples))]
}

// wrong is any value, often of the wrong type.
func (g *generator) wrong() any {
	values := []any{nil, "", "x", true, false, 0, 1, -3, 1.5, []any{}, []any{"x"}, []any{nil}, map[string]any{}, map[string]any{"x": 1}}
	values = append(values, g.pool...)
	return values[g.rng.IntN(len(values))]
}

// constants collects what enum and const allow anywhere in a schema.
func constants(node any) (found []any) {
	switch node := node.(type) {
	case map[string]any:
		for _, k := range sortedKeys(node) {
			switch v := node[k].(type) {
			case []any:
				if k == "enum" {
					found = append(found, v...)
				}
			default:
				if k == "const" {
					found = append(found, v)
				}
			}
			found = append(found, constants(node[k])...)
		}
	case []any:
		for _, e := range node {
			found = append(found, constants(e)...)
		}
	}
	return found
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// TestSchemasDescribeEverything holds the house rule: every property has a
// description, and a default or examples, and every object of a config is
// closed, save where Kargo's is open.
func TestSchemasDescribeEverything(t *testing.T) {
	for _, kind := range schemas.Kinds() {
		text, _ := schemas.Config(kind)
		checkDescriptions(t, kind, text)
		if text, ok := schemas.Output(kind); ok {
			checkDescriptions(t, kind+" output", text)
		}
	}
}

func checkDescriptions(t *testing.T, name string, text []byte) {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal(text, &root); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	var check func(path string, schema map[string]any, property bool)
	check = func(path string, schema map[string]any, property bool) {
		if schema["$ref"] == nil && property {
			if d, _ := schema["description"].(string); d == "" {
				t.Errorf("%s: %s has no description", name, path)
			}
			if schema["default"] == nil && schema["examples"] == nil && schema["enum"] == nil && schema["const"] == nil {
				t.Errorf("%s: %s has neither default nor examples", name, path)
			}
		}
		open := strings.HasSuffix(name, " output") || name == "git-tag" && path == "(root)"
		if schema["properties"] != nil && schema["type"] == "object" && schema["additionalProperties"] == nil && !open {
			t.Errorf("%s: %s does not say additionalProperties", name, path)
		}
		properties, _ := schema["properties"].(map[string]any)
		for n, p := range properties {
			if p, ok := p.(map[string]any); ok {
				check(path+"."+n, p, true)
			}
		}
		if items, ok := schema["items"].(map[string]any); ok {
			check(path+"[]", items, false)
		}
		defs, _ := schema["$defs"].(map[string]any)
		for n, d := range defs {
			if d, ok := d.(map[string]any); ok {
				check(fmt.Sprintf("$defs/%s", n), d, false)
			}
		}
	}
	check("(root)", root, false)
}
