package kargoapi_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// TestRoundTripCRDs fills every field of Kargo's own CRDs and checks that
// reading the object strictly and writing it again keeps all of them.
func TestRoundTripCRDs(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(sharedata.Path(t, "kargo", "crds"), "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			kind, schema := readCRD(t, file)
			obj, ok := sample(schema, "").(map[string]any)
			if !ok {
				t.Fatal("the CRD's schema is not an object")
			}
			obj["apiVersion"], obj["kind"] = kargoapi.GroupVersion, kind
			obj["metadata"] = map[string]any{
				"name": "n", "namespace": "ns", "uid": "u", "generation": 3.0, "creationTimestamp": "2026-01-31T12:00:00Z",
				"labels": map[string]any{"l": "v"}, "annotations": map[string]any{"a": "v"}, "finalizers": []any{"f"},
				"ownerReferences": []any{map[string]any{"uid": "u"}}, "managedFields": []any{map[string]any{"x": 1.0}},
			}
			text, err := json.Marshal(obj)
			if err != nil {
				t.Fatal(err)
			}
			set, err := load.Bytes("sample", text)
			if err != nil {
				t.Fatalf("a field of the CRD is unknown: %v", err)
			}
			if len(set.Documents) != 1 || len(set.Warnings) > 0 {
				t.Fatalf("loaded %d documents with warnings %v", len(set.Documents), set.Warnings)
			}
			again, err := json.Marshal(set.Documents[0].Object)
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(again, &got); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(obj, got); d != "" {
				t.Errorf("lost or changed (-in +out):\n%s", d)
			}
		})
	}
}

func readCRD(t *testing.T, file string) (kind string, schema map[string]any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct{ OpenAPIV3Schema map[string]any }
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	if len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != "v1alpha1" {
		t.Fatalf("unexpected versions in %s", file)
	}
	return crd.Spec.Names.Kind, crd.Spec.Versions[0].Schema.OpenAPIV3Schema
}

// sample makes a value in which every declared property has a non-zero value.
func sample(schema map[string]any, name string) any {
	if enum, ok := schema["enum"].([]any); ok {
		return enum[0]
	}
	switch schema["type"] {
	case "string":
		switch {
		case schema["format"] == "date-time":
			return "2026-01-31T12:00:00Z"
		case strings.Contains(name, "imeout"), strings.Contains(name, "oak"), name == "interval":
			return "48h"
		}
		return "x-" + name
	case "boolean":
		return true
	case "integer":
		return 7.0
	case "array":
		items, _ := schema["items"].(map[string]any)
		return []any{sample(items, name), sample(items, name)}
	case "object":
		if values, ok := schema["additionalProperties"].(map[string]any); ok {
			return map[string]any{"k1": sample(values, "v"), "k2": sample(values, "v")}
		}
		obj := map[string]any{}
		props, _ := schema["properties"].(map[string]any)
		for k, v := range props {
			obj[k] = sample(v.(map[string]any), k)
		}
		return obj
	}
	// x-kubernetes-preserve-unknown-fields: any JSON
	return map[string]any{"any": []any{1.5, "x", nil, map[string]any{"deep": true}}}
}

func TestPresenceIsKept(t *testing.T) {
	in := `{"uses":"copy","continueOnError":false,"config":{"a":0}}`
	var s kargoapi.PromotionStep
	if err := json.Unmarshal([]byte(in), &s); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(s)
	if err != nil || string(out) != in {
		t.Errorf("got %s, %v; admission rules ask whether continueOnError is present", out, err)
	}
}

func TestDurations(t *testing.T) {
	for _, tc := range []struct {
		reason, in, out string
		ok              bool
	}{
		{"text is kept as written", `"48h"`, `"48h"`, true},
		{"fractions", `"1.5m"`, `"1.5m"`, true},
		{"null is zero", `null`, `"0s"`, true},
		{"a number is no duration", `5`, ``, false},
		{"a unit is needed", `"5"`, ``, false},
	} {
		var d kargoapi.Duration
		err := json.Unmarshal([]byte(tc.in), &d)
		if (err == nil) != tc.ok {
			t.Errorf("%s: error %v", tc.reason, err)
			continue
		}
		if out, _ := json.Marshal(d); tc.ok && string(out) != tc.out {
			t.Errorf("%s: got %s, want %s", tc.reason, out, tc.out)
		}
	}
}

func TestTerminalPhases(t *testing.T) {
	for phase, want := range map[kargoapi.PromotionPhase]bool{
		"": false, kargoapi.PromotionPending: false, kargoapi.PromotionRunning: false, kargoapi.PromotionSucceeded: true,
		kargoapi.PromotionFailed: true, kargoapi.PromotionErrored: true, kargoapi.PromotionAborted: true,
	} {
		if phase.Terminal() != want {
			t.Errorf("%q: terminal is %t", phase, !want)
		}
	}
}

func TestCollectionAsStepsSeeIt(t *testing.T) {
	c := &kargoapi.FreightCollection{ID: "x", Freight: map[string]steps.FreightReference{"Warehouse/w": {Name: "f"}}}
	if got := c.Steps(); got.ID != "x" || got.References()[0].Name != "f" {
		t.Errorf("got %+v", got)
	}
	if got := (*kargoapi.FreightCollection)(nil).Steps(); len(got.Freight) != 0 {
		t.Errorf("no collection is %+v", got)
	}
}

func TestSecretValues(t *testing.T) {
	s := &kargoapi.Secret{Data: map[string][]byte{"a": []byte("1"), "b": []byte("2")}, StringData: map[string]string{"b": "3"}}
	if d := cmp.Diff(map[string][]byte{"a": []byte("1"), "b": []byte("3")}, s.Values()); d != "" {
		t.Error(d)
	}
}

func TestSubscriptions(t *testing.T) {
	w := &kargoapi.Warehouse{}
	w.Spec.Subscriptions = []json.RawMessage{
		[]byte(`{"git":{"repoURL":"g"}}`), []byte(`{"chart":{"repoURL":"c","name":"n"}}`), []byte(`{"settings":{"name":"knobs","config":{"x":1}}}`),
	}
	got, err := w.ParseSubscriptions()
	if err != nil {
		t.Fatal(err)
	}
	want := []kargoapi.Subscription{{Type: "git", RepoURL: "g"}, {Type: "chart", RepoURL: "c", Name: "n"}, {Type: "settings", Name: "knobs"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{`{}`, `{"git":{},"image":{}}`, `"x"`, `{"git":{"repoURL":1}}`} {
		w.Spec.Subscriptions = []json.RawMessage{[]byte(bad)}
		if _, err := w.ParseSubscriptions(); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}
