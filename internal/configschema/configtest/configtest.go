// Package configtest compares what a validator says of configs with what Kargo's
// says, xeipuuv/gojsonschema: an oracle made of a schema, and a generator of
// configs that satisfy it, most of them but for some mistakes.
//
// Which schemas and which validator are compared belongs to the tests that use it.
package configtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/xeipuuv/gojsonschema"
)

// Document is a JSON Schema and the name by which others refer to it.
type Document struct {
	Name string
	Text []byte
}

// Oracle is Kargo's validator for one schema.
type Oracle struct {
	root     Document
	siblings []Document
	compiled []*gojsonschema.Schema
	next     int
}

// variants is how many times a schema is compiled: gojsonschema goes through the
// properties in an order that each compilation draws.
const variants = 8

// NewOracle compiles root, which may refer to siblings.
func NewOracle(t testing.TB, root Document, siblings ...Document) *Oracle {
	t.Helper()
	o := &Oracle{root: root, siblings: siblings}
	for range variants {
		o.compiled = append(o.compiled, o.compile(t))
	}
	return o
}

func (o *Oracle) compile(t testing.TB) *gojsonschema.Schema {
	t.Helper()
	const base = "http://kargo.invalid/"
	loader := gojsonschema.NewSchemaLoader()
	for _, d := range o.siblings {
		if err := loader.AddSchema(base+d.Name, gojsonschema.NewBytesLoader(d.Text)); err != nil {
			t.Fatal(err)
		}
	}
	root := parse(t, o.root)
	root["$id"] = base + filepath.Base(o.root.Name)
	compiled, err := loader.Compile(gojsonschema.NewGoLoader(root))
	if err != nil {
		t.Fatalf("%s: %v", o.root.Name, err)
	}
	return compiled
}

func parse(t testing.TB, d Document) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(d.Text, &doc); err != nil {
		t.Fatalf("%s: %v", d.Name, err)
	}
	return doc
}

// Messages are what Kargo says of a config, in one of the orders in which it may.
func (o *Oracle) Messages(t testing.TB, config any) []string {
	t.Helper()
	o.next++
	return messages(t, o.compiled[o.next%len(o.compiled)], config)
}

func messages(t testing.TB, schema *gojsonschema.Schema, config any) []string {
	t.Helper()
	res, err := schema.Validate(gojsonschema.NewGoLoader(config))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range res.Errors() {
		out = append(out, e.String())
	}
	return out
}

// Difference says how got, what another validator says of the config, differs
// from what Kargo does: in its messages, or in an order that Kargo's never has. It
// is empty if it does not.
func (o *Oracle) Difference(t testing.TB, config any, got []string) string {
	t.Helper()
	want := o.Messages(t, config)
	if slices.Equal(want, got) {
		return ""
	}
	if a, b := slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got)); !slices.Equal(a, b) {
		return fmt.Sprintf("Kargo:\n\t%s\nours:\n\t%s", strings.Join(want, "\n\t"), strings.Join(got, "\n\t"))
	}
	type pair struct{ first, second string }
	var open []pair
	for i, first := range got {
		for _, second := range got[i+1:] {
			if slices.Index(got, second) > i {
				open = append(open, pair{first, second})
			}
		}
	}
	// Go's maps begin at a random place, so one order of two may be seven times as
	// likely as the other.
	for i := 0; len(open) > 0; i++ {
		switch {
		case i == 300:
			return fmt.Sprintf("Kargo never says\n\t%s\nbefore\n\t%s\nbut\n\t%s", open[0].first, open[0].second, strings.Join(want, "\n\t"))
		case i < 4*variants:
			want = o.Messages(t, config)
		default:
			want = messages(t, o.compile(t), config)
		}
		at := map[string]int{}
		for i, m := range slices.Backward(want) {
			at[m] = i
		}
		open = slices.DeleteFunc(open, func(p pair) bool { return at[p.first] <= at[p.second] })
	}
	return ""
}

// Generator makes configs that satisfy a schema, but for some mistakes.
type Generator struct {
	root, definitions map[string]any

	rng *rand.Rand
	// pool are the constants that occur anywhere in the schema.
	pool []any
}

// Generator returns one for the oracle's schema. It makes the same configs every
// time.
func (o *Oracle) Generator(t testing.TB) *Generator {
	t.Helper()
	g := &Generator{
		root: parse(t, o.root), definitions: map[string]any{},
		rng: rand.New(rand.NewPCG(7, 11)), //nolint:gosec // repeatable on purpose
	}
	for _, d := range append([]Document{o.root}, o.siblings...) {
		doc := parse(t, d)
		for _, word := range []string{"definitions", "$defs"} {
			named, _ := doc[word].(map[string]any)
			for name, def := range named { // names are unique among the documents
				g.definitions[name] = def
			}
		}
		g.pool = append(g.pool, constants(doc)...)
	}
	return g
}

// Config makes a config.
func (g *Generator) Config() any {
	if g.one(50) {
		return g.wrong()
	}
	return g.value(g.root, 0)
}

func (g *Generator) one(in int) bool { return g.rng.IntN(in) == 0 }

func (g *Generator) value(schema map[string]any, depth int) any {
	if ref, ok := schema["$ref"].(string); ok {
		name := ref[strings.LastIndex(ref, "/")+1:]
		if d, ok := g.definitions[name].(map[string]any); ok {
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

func (g *Generator) object(schema map[string]any, depth int) any {
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
			for _, n := range slices.Sorted(maps.Keys(overrides)) {
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

func (g *Generator) text(schema map[string]any) any {
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
func (g *Generator) wrong() any {
	values := []any{nil, "", "x", true, false, 0, 1, -3, 1.5, []any{}, []any{"x"}, []any{nil}, map[string]any{}, map[string]any{"x": 1}}
	values = append(values, g.pool...)
	return values[g.rng.IntN(len(values))]
}

// constants collects what enum and const allow anywhere in a schema.
func constants(node any) (found []any) {
	switch node := node.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(node)) {
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
