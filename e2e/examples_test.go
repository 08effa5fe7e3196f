package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/internal/sharedata"
)

// environments are the example PromotionTasks.
var environments = []string{"dev", "stg", "prd-us", "prd-ca"}

// TestExamplesAreValidKargoResources checks every example document against
// Kargo's own CRDs, where a field that they do not have is an error.
func TestExamplesAreValidKargoResources(t *testing.T) {
	schemas := map[string]*jsonschema.Schema{}
	for _, kind := range []string{"promotiontasks", "stages", "warehouses", "freights", "projects", "projectconfigs"} {
		name, schema := loadCRD(t, kind)
		schemas[name] = schema
	}
	var files []string
	for _, env := range environments {
		files = append(files, "promotiontasks/"+env+".yaml", "promotiontasks/"+env+".freight.yaml")
	}
	files = append(files, "kargo/project/project.yaml", "kargo/project/warehouses.yaml", "kargo/project/stages.yaml")
	for _, file := range files {
		for i, doc := range readExample(t, file) {
			t.Run(fmt.Sprintf("%s/%d", file, i), func(t *testing.T) {
				kind, _ := doc["kind"].(string)
				schema := schemas[kind]
				if schema == nil {
					t.Fatalf("no CRD for kind %q", kind)
				}
				if err := schema.Validate(asJSON(t, doc)); err != nil {
					t.Errorf("%s: %v", kind, err)
				}
			})
		}
	}
}

// TestExamplesAreOnePattern checks that the environments differ in the
// defaults of region and sourceRef and in nothing else.
func TestExamplesAreOnePattern(t *testing.T) {
	want := normalise(t, environments[0])
	for _, env := range environments[1:] {
		if diff := cmp.Diff(want, normalise(t, env)); diff != "" {
			t.Errorf("%s.yaml differs from %s.yaml (-want +got):\n%s", env, environments[0], diff)
		}
	}
}

// TestProjectIsWhatRunsLocally checks that the project for a cluster has the
// Stages and Warehouses with which the tasks are run on a laptop, manual gates
// for production, and an Application for each Stage that only that Stage may
// sync.
func TestProjectIsWhatRunsLocally(t *testing.T) {
	const project = "devex-kargo"
	cluster := map[string]map[string]any{}
	for _, file := range []string{"kargo/project/stages.yaml", "kargo/project/warehouses.yaml"} {
		for _, doc := range readExample(t, file) {
			cluster[doc["kind"].(string)+" "+doc["metadata"].(map[string]any)["name"].(string)] = doc
		}
	}
	auto := map[string]bool{}
	for _, p := range cluster["ProjectConfig "+project]["spec"].(map[string]any)["promotionPolicies"].([]any) {
		p := p.(map[string]any)
		auto[p["stageSelector"].(map[string]any)["name"].(string)] = p["autoPromotionEnabled"].(bool)
	}
	if diff := cmp.Diff(map[string]bool{"dev": true, "stg": true, "prd-us": false, "prd-ca": false}, auto); diff != "" {
		t.Errorf("Stages promoted without asking anybody (-want +got):\n%s", diff)
	}
	for _, env := range environments {
		for _, local := range readExample(t, "promotiontasks/"+env+".freight.yaml") {
			id := local["kind"].(string) + " " + local["metadata"].(map[string]any)["name"].(string)
			if local["kind"] == "Freight" {
				continue // Kargo makes it
			}
			if diff := cmp.Diff(local, cluster[id]); diff != "" {
				t.Errorf("%s of %s.freight.yaml is another in the cluster (-local +cluster):\n%s", id, env, diff)
			}
		}
	}

	applications := map[string]map[string]any{}
	for _, doc := range readExample(t, "kargo/applications.yaml") {
		applications[doc["metadata"].(map[string]any)["name"].(string)] = doc
	}
	for _, env := range environments {
		region := taskVar(t, env, "region")
		app := applications["svc-"+region]
		if app == nil {
			t.Errorf("%s syncs svc-%s, which there is not", env, region)
			continue
		}
		stage := app["metadata"].(map[string]any)["annotations"].(map[string]any)["kargo.akuity.io/authorized-stage"]
		source := app["spec"].(map[string]any)["source"].(map[string]any)
		values := source["helm"].(map[string]any)["valueFiles"].([]any)
		if diff := cmp.Diff([]any{project + ":" + env, taskVar(t, env, "gitopsRepo"), taskVar(t, env, "branch"), []any{"/services/svc/" + region + "/values.yaml"}},
			[]any{stage, source["repoURL"], source["targetRevision"], values}); diff != "" {
			t.Errorf("svc-%s (-want +got):\n%s", region, diff)
		}
	}
	if len(applications) != len(environments) {
		t.Errorf("%d Applications, want %d", len(applications), len(environments))
	}
}

// taskVar is the default of a variable of an environment's task.
func taskVar(t *testing.T, env, name string) string {
	t.Helper()
	for _, v := range readExample(t, "promotiontasks/"+env+".yaml")[0]["spec"].(map[string]any)["vars"].([]any) {
		if v := v.(map[string]any); v["name"] == name {
			return v["value"].(string)
		}
	}
	t.Fatalf("%s.yaml has no variable %s", env, name)
	return ""
}

// TestProjectRunsLocally promotes to production with the files of the cluster
// and nothing else: the Freight is what the command line says.
func TestProjectRunsLocally(t *testing.T) {
	s := startSandbox(t)
	publish(t, s, sandbox.RegionUS, sandbox.RegionCA)
	for _, env := range []string{"prd-us", "prd-ca"} {
		r, err := s.Command(t.Context(), append([]string{
			"run", "--live", "--stage", env, "--image", "ghcr.io/yourorg/svc:v1.2.0",
			"-f", filepath.Join("examples", "kargo", "project"), "-f", filepath.Join("examples", "promotiontasks", env+".yaml"),
		}, s.Vars()...)...)
		if err != nil {
			t.Fatal(err)
		}
		if r.Code != 0 || !strings.Contains(r.Stdout, "[pushed]") {
			t.Errorf("%s: exit code %d\n%s%s", env, r.Code, r.Stderr, r.Stdout)
		}
	}
}

// normalise returns the task of an environment without what may differ.
func normalise(t *testing.T, env string) map[string]any {
	t.Helper()
	docs := readExample(t, "promotiontasks/"+env+".yaml")
	if len(docs) != 1 {
		t.Fatalf("%s.yaml has %d documents, want 1", env, len(docs))
	}
	doc := docs[0]
	if got, want := doc["metadata"].(map[string]any)["name"], "promote-"+env; got != want {
		t.Errorf("%s.yaml is named %q, want %q", env, got, want)
	}
	delete(doc["metadata"].(map[string]any), "name")
	seen := map[string]bool{}
	for _, v := range doc["spec"].(map[string]any)["vars"].([]any) {
		v := v.(map[string]any)
		if name := v["name"].(string); name == "region" || name == "sourceRef" {
			seen[name] = true
			delete(v, "value")
		}
	}
	if len(seen) != 2 {
		t.Errorf("%s.yaml lacks a var that says what the environment is: %v", env, seen)
	}
	return doc
}

// readExample reads the documents of a file below examples/.
func readExample(t *testing.T, name string) []map[string]any {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "examples", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var docs []map[string]any
	for dec := yaml.NewDecoder(f); ; {
		var doc map[string]any
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		docs = append(docs, doc)
	}
}

// loadCRD returns the kind that a CRD defines and its schema, made strict the
// way kubectl's server-side validation is.
func loadCRD(t *testing.T, plural string) (string, *jsonschema.Schema) {
	t.Helper()
	b, err := os.ReadFile(sharedata.Path(t, "kargo", "crds", "kargo.akuity.io_"+plural+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Names    struct{ Kind string }
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema map[string]any `yaml:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(b, &crd); err != nil {
		t.Fatal(err)
	}
	schema := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	strict(schema)
	// Kubernetes knows what a CRD leaves open.
	schema["properties"].(map[string]any)["metadata"] = map[string]any{
		"type": "object", "required": []any{"name"}, "additionalProperties": false,
		"properties": map[string]any{
			"name": map[string]any{"type": "string"}, "namespace": map[string]any{"type": "string"},
			"labels":      map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}},
			"annotations": map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}},
		},
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("crd.json", asJSON(t, schema)); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("crd.json")
	if err != nil {
		t.Fatal(err)
	}
	return crd.Spec.Names.Kind, compiled
}

// strict closes every object of a schema that names its properties. Defaults
// are filled in before Kubernetes validates, so what has one is not required.
func strict(schema map[string]any) {
	properties, named := schema["properties"].(map[string]any)
	if required, ok := schema["required"].([]any); ok {
		schema["required"] = slices.DeleteFunc(required, func(name any) bool {
			p, _ := properties[name.(string)].(map[string]any)
			return p["default"] != nil
		})
	}
	if open, _ := schema["x-kubernetes-preserve-unknown-fields"].(bool); named && !open && schema["additionalProperties"] == nil {
		schema["additionalProperties"] = false
	}
	for key, value := range schema {
		nested, _ := value.(map[string]any)
		switch key {
		case "properties":
			for _, p := range nested {
				if p, ok := p.(map[string]any); ok {
					strict(p)
				}
			}
			continue
		case "items", "additionalProperties":
			if nested != nil {
				strict(nested)
			}
		}
		if strings.HasPrefix(key, "x-kubernetes-") || key == "format" {
			delete(schema, key)
		}
	}
}

// asJSON turns what YAML decoded into what JSON would have.
func asJSON(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsonschema.UnmarshalJSON(strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return out
}
