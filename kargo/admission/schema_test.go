package admission_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/xeipuuv/gojsonschema"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/sharedata"
)

// TestRewrittenIsKargos holds rewritten Promotions against Kargo's CRD, closed
// to fields it does not name, and the steps against the schema of its http step.
func TestRewrittenIsKargos(t *testing.T) {
	crd := promotionSchema(t)
	if crd.Validate(map[string]any{"spec": map[string]any{"stage": "s", "freight": "f", "steps": []any{map[string]any{"uses": "http", "retries": 1.0}}}}) == nil {
		t.Fatal("the CRD accepts a field that it does not name")
	}
	// By Kargo's own validator.
	kargo, err := gojsonschema.NewSchema(gojsonschema.NewReferenceLoader("file://" + sharedata.Path(t, "kargo", "step-schemas", "http-config.json")))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/rewrite/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		object := promotion(t, file)
		list, _, err := rewriter(t).Rewrite(object)
		if err != nil {
			t.Fatal(err)
		}
		var p any
		if err := json.Unmarshal(withSteps(t, object, list), &p); err != nil {
			t.Fatal(err)
		}
		if err := crd.Validate(p); err != nil {
			t.Errorf("%s: not what Kargo's CRD says: %v", file, err)
		}
		steps := 0
		for _, raw := range list {
			var step struct {
				Uses   string
				As     string
				Config map[string]any
			}
			if err := json.Unmarshal(raw, &step); err != nil {
				t.Fatal(err)
			}
			if step.Uses != "http" {
				continue
			}
			steps++
			res, err := kargo.Validate(gojsonschema.NewGoLoader(step.Config))
			if err != nil {
				t.Fatal(err)
			}
			if !res.Valid() {
				t.Errorf("%s: step %s: %v", file, step.As, res.Errors())
			}
		}
		if steps == 0 {
			t.Errorf("%s has no rewritten step", file)
		}
	}
}

func promotionSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile(sharedata.Path(t, "kargo", "crds", "kargo.akuity.io_promotions.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct{ OpenAPIV3Schema map[string]any }
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	schema := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	closed(schema)
	delete(schema["properties"].(map[string]any)["metadata"].(map[string]any), "additionalProperties")
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("promotion.json", schema); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("promotion.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// closed refuses what an object schema does not name, which a cluster drops.
func closed(schema map[string]any) {
	properties, named := schema["properties"].(map[string]any)
	if named && schema["x-kubernetes-preserve-unknown-fields"] == nil {
		schema["additionalProperties"] = false
	}
	for _, p := range properties {
		if p, ok := p.(map[string]any); ok {
			closed(p)
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if nested, ok := schema[key].(map[string]any); ok {
			closed(nested)
		}
	}
	delete(schema, "format")
}
