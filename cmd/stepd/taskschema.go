package main

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stepd/stepd/schemas"
)

// documentEnvelope is what surrounds step configs in a document, as Kargo's
// CRDs have it.
//
//go:embed document.schema.json
var documentEnvelope []byte

func documentKinds() []string { return []string{"PromotionTask", "ClusterPromotionTask", "Stage"} }

// documentSchema returns a JSON Schema for documents of a kind, with the config
// of every known step. Where a config field is not text, an expression may
// stand in its place.
func documentSchema(kind string) (map[string]any, error) {
	doc := mustParse(documentEnvelope)
	props := doc["properties"].(map[string]any)
	defs := doc["$defs"].(map[string]any)
	switch kind {
	case "PromotionTask", "ClusterPromotionTask":
		props["spec"] = map[string]any{"$ref": "#/$defs/taskSpec"}
		delete(defs, "stageSpec")
		delete(defs, "stageStep")
	case "Stage":
		props["spec"] = map[string]any{"$ref": "#/$defs/stageSpec"}
		delete(defs, "taskSpec")
		delete(defs, "taskVars")
	default:
		return nil, fmt.Errorf("no schema for documents of kind %q; there is one for %s", kind, strings.Join(documentKinds(), ", "))
	}
	doc["title"] = kind
	props["kind"] = map[string]any{"const": kind}

	step := defs["taskStep"].(map[string]any)
	var perKind []any
	for _, uses := range schemas.Kinds() {
		b, _ := schemas.Config(uses)
		config := mustParse(b)
		delete(config, "$schema")
		delete(config, "$id")
		def := "config:" + uses
		defs[def] = allowTemplates(rebase(config, "#/$defs/"+def).(map[string]any))
		perKind = append(perKind, map[string]any{
			"if":   map[string]any{"properties": map[string]any{"uses": map[string]any{"const": uses}}},
			"then": map[string]any{"properties": map[string]any{"config": map[string]any{"$ref": "#/$defs/" + def}}},
		})
	}
	step["allOf"] = perKind
	uses := step["properties"].(map[string]any)["uses"].(map[string]any)
	uses["anyOf"] = []any{map[string]any{"enum": schemas.Kinds()}, map[string]any{"description": "a step of a plugin", "minLength": 1}}
	return doc, nil
}

// rebase makes references that were relative to a schema's own root relative to
// the document it now is a part of.
func rebase(v any, root string) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if ref, ok := x.(string); ok && k == "$ref" && strings.HasPrefix(ref, "#") {
				v[k] = root + strings.TrimPrefix(ref, "#")
				continue
			}
			v[k] = rebase(x, root)
		}
	case []any:
		for i, x := range v {
			v[i] = rebase(x, root)
		}
	}
	return v
}

// allowTemplates lets an expression take the place of every value below an
// object schema that plain text would not satisfy. Branches of anyOf, oneOf and
// allOf stay as they are: they tell settings apart by their literal values.
func allowTemplates(schema map[string]any) map[string]any {
	for _, key := range slices.Sorted(maps.Keys(schema)) {
		sub, ok := schema[key].(map[string]any)
		if !ok {
			continue
		}
		switch key {
		case "properties", "patternProperties":
			forEach(sub, orTemplate)
		case "$defs", "definitions":
			forEach(sub, allowTemplates)
		case "items", "additionalProperties":
			schema[key] = orTemplate(sub)
		}
	}
	return schema
}

func forEach(schemas map[string]any, f func(map[string]any) map[string]any) {
	for name, s := range schemas {
		if s, ok := s.(map[string]any); ok {
			schemas[name] = f(s)
		}
	}
}

func orTemplate(schema map[string]any) map[string]any {
	schema = allowTemplates(schema)
	if len(schema) == 0 || plainText(schema) {
		return schema
	}
	// Not anyOf: validators would then say only that nothing matched.
	out := map[string]any{"if": map[string]any{"$ref": "#/$defs/template"}, "then": true, "else": schema}
	for _, annotation := range []string{"description", "default", "examples", "deprecated"} {
		if v, ok := schema[annotation]; ok {
			out[annotation] = v
			delete(schema, annotation)
		}
	}
	return out
}

// plainText tells whether every non-empty string satisfies the schema.
func plainText(schema map[string]any) bool {
	if schema["type"] != "string" {
		return false
	}
	for _, k := range []string{"pattern", "enum", "const", "format", "maxLength", "oneOf", "anyOf", "allOf", "not"} {
		if _, ok := schema[k]; ok {
			return false
		}
	}
	return true
}
