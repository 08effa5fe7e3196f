package builtin

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/configschema/configtest"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/schemas"
)

// TestSchemasSayWhatKargoSays generates configs, most of them nearly
// right, and asks Kargo's schema, by Kargo's validator, and ours, by ours,
// what is wrong with them. The answers must be the same, to the word and in an
// order in which Kargo may give them, for every step kind of Kargo that we have.
func TestSchemasSayWhatKargoSays(t *testing.T) {
	dir := sharedata.Path(t, "kargo", "step-schemas")
	files, err := filepath.Glob(filepath.Join(dir, "*-config.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no schemas of Kargo: %v", err)
	}
	var siblings []configtest.Document
	for _, name := range []string{"common.json", "argocd-common.json"} {
		siblings = append(siblings, document(t, filepath.Join(dir, name)))
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
			kargo := configtest.NewOracle(t, document(t, file), siblings...)
			g := kargo.Generator(t)
			accepted, differences := 0, 0
			for range perKind {
				config := g.Config()
				var said []string
				for _, v := range ours.Validate(config) {
					said = append(said, v.Message)
				}
				if said == nil {
					accepted++
				}
				difference := kargo.Difference(t, config, said)
				if difference == "" {
					continue
				}
				text, err := json.Marshal(config)
				if err != nil {
					t.Fatal(err)
				}
				t.Errorf("%s\n%s", text, difference)
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

func document(t *testing.T, file string) configtest.Document {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return configtest.Document{Name: filepath.Base(file), Text: text}
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
