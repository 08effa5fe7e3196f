package configschema

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stepd/stepd/internal/configschema/configtest"
	"github.com/stepd/stepd/internal/sharedata"
)

// Of one schema, Kargo's validator and ours say the same, to the word and in an
// order in which Kargo may say it: of Kargo's own schemas and of all of ours.
func TestMessagesAreKargos(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		files, err := filepath.Glob("../../schemas/*.json")
		if err != nil || len(files) == 0 {
			t.Fatalf("no schemas: %v", err)
		}
		for _, f := range files {
			compare(t, document(t, f))
		}
	})
	t.Run("Kargo's", func(t *testing.T) {
		dir := sharedata.Path(t, "kargo", "step-schemas")
		files, err := filepath.Glob(filepath.Join(dir, "*-config.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no schemas: %v", err)
		}
		for _, f := range files {
			compare(t, document(t, f), document(t, filepath.Join(dir, "common.json")), document(t, filepath.Join(dir, "argocd-common.json")))
		}
	})
}

// The constructs that no step has, and those whose alternatives score alike.
func TestMessagesOfConstructsAreKargos(t *testing.T) {
	for name, schema := range map[string]string{
		"a tie":          `{"properties":{"a":{},"b":{}},"oneOf":[{"required":["a"]},{"required":["b"]}]}`,
		"the better one": `{"properties":{"a":{},"b":{},"c":{}},"oneOf":[{"required":["a","b"],"properties":{"a":{"type":"string"},"b":{"type":"string"}}},{"required":["c"],"properties":{"c":{"type":"string"},"a":{"enum":["",null]}}}]}`,
		"nested":         `{"properties":{"l":{"type":"array","items":{"anyOf":[{"type":"string","minLength":2},{"oneOf":[{"type":"object","required":["a"],"properties":{"a":{"type":"integer"}}},{"type":"integer","maximum":1000000}]}]}}}}`,
		"all":            `{"properties":{"a":{},"b":{},"c":{}},"allOf":[{"required":["a"]},{"properties":{"b":{"type":["string","null"],"maxLength":3}}},{"not":{"required":["c"]}}]}`,
		"if":             `{"properties":{"a":{"enum":["x","y"]},"b":{},"c":{}},"if":{"required":["a"],"properties":{"a":{"const":"x"}}},"then":{"required":["b"]},"else":{"properties":{"c":{"type":"boolean"}}}}`,
		"patterns":       `{"properties":{"abc":{},"bb":{},"x":{}},"patternProperties":{"^a":{"type":"integer"},"b$":{"multipleOf":2}},"additionalProperties":{"type":"string"},"propertyNames":{"maxLength":2}}`,
		"a closed list":  `{"properties":{"x":{"type":"array","contains":{"type":"string","minLength":1},"uniqueItems":true,"minItems":2}}}`,
		"ranges":         `{"properties":{"x":{"type":"number","exclusiveMinimum":0,"maximum":1234567.25,"multipleOf":0.5},"unknown":{"minimum":100000000000}}}`,
		"markup":         `{"properties":{"x":{"enum":["<a>","&",1.0,1e3,null,{"a":1.0}]},"unknown":{"const":["<",1.50]}}}`,
		"draft 7":        `{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"x":{"items":[{"type":"string"},{"type":"integer"}],"additionalItems":false},"unknown":{"items":[{"type":"string"}],"additionalItems":{"type":"null"}}},"dependencies":{"x":["y"],"unknown":{"required":["z"]}}}`,
		"false":          `{"properties":{"x":false,"unknown":{"anyOf":[false,{"type":"boolean"}]}}}`,
		"a reference":    `{"$ref":"#/definitions/a","definitions":{"a":{"type":"object","required":["x"],"properties":{"x":{"$ref":"#/definitions/b"}}},"b":{"anyOf":[{"type":"array","items":{"$ref":"#/definitions/a"}},{"type":"boolean"}]}}}`,
	} {
		compare(t, configtest.Document{Name: name, Text: []byte(schema)})
	}
}

func compare(t *testing.T, schema configtest.Document, siblings ...configtest.Document) {
	t.Helper()
	t.Run(schema.Name, func(t *testing.T) {
		var known []Sibling
		for _, s := range siblings {
			known = append(known, Sibling{Name: s.Name, Schema: s.Text})
		}
		ours, err := Compile(schema.Text, known...)
		if err != nil {
			t.Fatal(err)
		}
		oracle := configtest.NewOracle(t, schema, siblings...)
		g := oracle.Generator(t)
		refused := 0
		for range 1000 {
			config := g.Config()
			var said []string
			for _, v := range ours.Validate(config) {
				said = append(said, v.Message)
			}
			if said != nil {
				refused++
			}
			if difference := oracle.Difference(t, config, said); difference != "" {
				text, err := json.Marshal(config)
				if err != nil {
					t.Fatal(err)
				}
				t.Fatalf("%s\n%s", text, difference)
			}
		}
		if refused == 0 {
			t.Error("nothing was refused")
		}
	})
}

func document(t *testing.T, file string) configtest.Document {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return configtest.Document{Name: filepath.Base(file), Text: text}
}
