package schemas

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// node is the part of a schema that says what a field is.
type node struct {
	Ref         string                     `json:"$ref"`
	Description string                     `json:"description"`
	Default     json.RawMessage            `json:"default"`
	Examples    []json.RawMessage          `json:"examples"`
	Properties  map[string]json.RawMessage `json:"properties"`
	Items       json.RawMessage            `json:"items"`
	Required    []string                   `json:"required"`
	Defs        map[string]json.RawMessage `json:"$defs"`
}

// TestFieldsAreDescribed wants a description and an example of every field of
// our own steps, and a default of those that need not be given: null where
// leaving the field out is a state of its own.
func TestFieldsAreDescribed(t *testing.T) {
	for _, kind := range []string{"oci-download-verified", "config-apply", "atomic-commit"} {
		text, ok := Config(kind)
		if !ok {
			t.Fatalf("no schema for %q", kind)
		}
		root := decode(t, text)
		if len(root.Properties) == 0 {
			t.Fatalf("the schema of %q has no fields", kind)
		}
		checkFields(t, root, root, kind)
	}
}

func checkFields(t *testing.T, root, n node, path string) {
	for name, text := range n.Properties {
		p, at := resolve(t, root, text), path+"."+name
		if p.Description == "" {
			t.Errorf("%s has no description", at)
		}
		if len(p.Examples) == 0 {
			t.Errorf("%s has no example", at)
		}
		if !slices.Contains(n.Required, name) && len(p.Default) == 0 {
			t.Errorf("%s has no default", at)
		}
		checkFields(t, root, p, at)
		if len(p.Items) > 0 {
			checkFields(t, root, resolve(t, root, p.Items), at+"[]")
		}
	}
}

func resolve(t *testing.T, root node, text []byte) node {
	n := decode(t, text)
	if name, ok := strings.CutPrefix(n.Ref, "#/$defs/"); ok {
		n = decode(t, root.Defs[name])
		if err := json.Unmarshal(text, &n); err != nil { // what stands beside $ref wins
			t.Fatal(err)
		}
	}
	return n
}

func decode(t *testing.T, text []byte) node {
	var n node
	if err := json.Unmarshal(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
