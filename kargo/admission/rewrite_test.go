package admission_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/kargo/admission"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	signingKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	publicKeys = []ed25519.PublicKey{signingKey.Public().(ed25519.PublicKey)}
)

// rewriter knows the steps that stepd brings, with their real schemas.
func rewriter(tb testing.TB) *admission.Rewriter {
	tb.Helper()
	var registrations []steps.Registration
	for _, name := range []string{"oci-download-verified", "config-apply", "atomic-commit"} {
		output, ok := schemas.Output(name)
		if !ok {
			tb.Fatalf("%s has no output schema", name)
		}
		registrations = append(registrations, steps.Registration{Name: name, OutputSchema: output})
	}
	kinds, err := admission.KindsOf(registrations)
	if err != nil {
		tb.Fatal(err)
	}
	return &admission.Rewriter{
		SidecarURL: "http://127.0.0.1:9470", Key: signingKey, Kinds: kinds,
		Now: func() time.Time { return time.Date(2026, 11, 22, 3, 4, 5, 0, time.UTC) },
	}
}

func promotion(tb testing.TB, file string) []byte {
	tb.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	object, err := yaml.YAMLToJSON(text)
	if err != nil {
		tb.Fatal(err)
	}
	return object
}

// withSteps returns a Promotion with other steps.
func withSteps(tb testing.TB, object []byte, list []json.RawMessage) []byte {
	tb.Helper()
	var p map[string]any
	if err := json.Unmarshal(object, &p); err != nil {
		tb.Fatal(err)
	}
	p["spec"].(map[string]any)["steps"] = list
	out, err := json.Marshal(p)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func TestRewriteGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/rewrite/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			object := promotion(t, file)
			list, changed, err := rewriter(t).Rewrite(object)
			if err != nil || !changed {
				t.Fatalf("changed %t, %v", changed, err)
			}
			var text bytes.Buffer
			enc := json.NewEncoder(&text)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			if err := enc.Encode(list); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden.json"
			if *update {
				if err := os.WriteFile(golden, text.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), text.String()); d != "" {
				t.Errorf("run with -update if this is wanted (-want +got):\n%s", d)
			}
			again, changed, err := rewriter(t).Rewrite(withSteps(t, object, list))
			if err != nil || changed || len(again) != len(list) {
				t.Errorf("rewriting it again: changed %t, %v", changed, err)
			}
		})
	}
}

func TestRewriteRefuses(t *testing.T) {
	const ours = `{"as":"a","uses":"config-apply","config":{}}`
	for _, tc := range []struct{ reason, promotion, want string }{
		{"no name yet", `{"metadata":{"namespace":"demo","generateName":"x-"},"spec":{"steps":[` + ours + `]}}`, "has to run after Kargo's"},
		{"a name that Kubernetes does not read", `{"metadata":{"Name":"x","namespace":"demo"},"spec":{"steps":[` + ours + `]}}`, "has to run after Kargo's"},
		{"no namespace", `{"metadata":{"name":"p"},"spec":{"steps":[` + ours + `]}}`, "no namespace"},
		{"no alias", `{"metadata":{"name":"p","namespace":"demo"},"spec":{"steps":[{"uses":"config-apply"}]}}`, "no alias"},
		{"one alias twice", `{"metadata":{"name":"p","namespace":"demo"},"spec":{"steps":[` + ours + `,{"as":"a","uses":"copy"}]}}`, `step "a": 2 steps`},
		{"a config that is no object", `{"metadata":{"name":"p","namespace":"demo"},"spec":{"steps":[{"as":"a","uses":"config-apply","config":[1]}]}}`, "cannot encode the config"},
		{"a number that no float64 holds", `{"metadata":{"name":"p","namespace":"demo"},"spec":{"steps":[{"as":"a","uses":"config-apply","config":{"x":1e400}}]}}`, "1e400"},
		{"a timeout that is none", `{"metadata":{"name":"p","namespace":"demo"},"spec":{"steps":[{"as":"a","uses":"config-apply","retry":{"timeout":"soon"}}]}}`, "retry"},
		{"no JSON", `{`, "cannot decode the Promotion"},
		{"a step that is none", `{"spec":{"steps":[1]}}`, "cannot decode step 1"},
	} {
		list, changed, err := rewriter(t).Rewrite([]byte(tc.promotion))
		if err == nil || !strings.Contains(err.Error(), tc.want) || changed || list != nil {
			t.Errorf("%s: got %s, changed %t, %v", tc.reason, list, changed, err)
		}
	}
}

// TestRewriteLeavesOthers has Promotions that are none of the webhook's business.
func TestRewriteLeavesOthers(t *testing.T) {
	for _, tc := range []struct{ reason, promotion string }{
		{"no step of ours, and no name", `{"metadata":{},"spec":{"steps":[{"uses":"copy","config":[1e400]},{"task":{"name":"t"}}]}}`},
		{"no steps", `{"metadata":{"name":"p"},"spec":{}}`},
		{"steps that Kubernetes does not read", `{"metadata":{"name":"p"},"spec":{"Steps":[{"uses":"config-apply"}]}}`},
	} {
		_, changed, err := rewriter(t).Rewrite([]byte(tc.promotion))
		if err != nil || changed {
			t.Errorf("%s: changed %t, %v", tc.reason, changed, err)
		}
	}
}

// TestRewriteKeepsEverythingElse compares a rewritten step with the original.
func TestRewriteKeepsEverythingElse(t *testing.T) {
	other := `{"uses": "copy", "config": {"n": 1.10, "big": 12345678901234567890}}`
	step := `{"uses":"atomic-commit","as":"t::c","if":"${{ true }}","continueOnError":true,"vars":[{"name":"a","value":"b"}],` +
		`"future":{"n":1.10,"big":12345678901234567890},"retry":{"timeout":"90s","errorThreshold":4,"backoff":{"x":1.0}},"config":{"path":"x"}}`
	list, changed, err := rewriter(t).Rewrite([]byte(`{"metadata":{"name":"p","namespace":"demo"},"spec":{"steps":[` + other + `,` + step + `]}}`))
	if err != nil || !changed {
		t.Fatalf("changed %t, %v", changed, err)
	}
	if string(list[0]) != other {
		t.Errorf("a step of Kargo's own became %s", list[0])
	}
	var was, is map[string]json.RawMessage
	if err := json.Unmarshal([]byte(step), &was); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(list[1], &is); err != nil {
		t.Fatal(err)
	}
	var config struct {
		Headers []struct{ Name, Value string }
	}
	if err := json.Unmarshal(is["config"], &config); err != nil {
		t.Fatal(err)
	}
	claims, err := wire.Verify(publicKeys, strings.TrimPrefix(config.Headers[1].Value, "Bearer "))
	if err != nil || config.Headers[1].Name != wire.HeaderToken {
		t.Fatalf("no token: %v in %+v", err, config.Headers)
	}
	_, skeleton, err := wire.EncodeConfig(json.RawMessage(`{"path":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wire.Claims{
		Namespace: "demo", Promotion: "p", Alias: "t::c", Kind: "atomic-commit", Skeleton: skeleton,
		Retry: wire.Retry{Timeout: 90 * time.Second, ErrorThreshold: 4}, IssuedAt: time.Date(2026, 11, 22, 3, 4, 5, 0, time.UTC),
	}, claims); d != "" {
		t.Errorf("claims (-want +got):\n%s", d)
	}
	was["uses"] = json.RawMessage(`"http"`)
	was["retry"] = json.RawMessage(`{"backoff":{"x":1.0},"errorThreshold":1000,"timeout":"6m30s"}`)
	delete(was, "config")
	delete(is, "config")
	if d := cmp.Diff(was, is); d != "" {
		t.Errorf("fields (-want +got):\n%s", d)
	}
}

// FuzzRewrite holds for anything that is created: what is not ours stays as it
// is, and rewriting again changes nothing.
func FuzzRewrite(f *testing.F) {
	for _, file := range []string{"testdata/rewrite/task.yaml", "testdata/rewrite/odd.yaml"} {
		f.Add(promotion(f, file))
	}
	f.Add([]byte(`{"metadata":{"name":"p","namespace":"n"},"spec":{"steps":[{"uses":"copy","as":null},{"uses":"atomic-commit","as":"a","retry":null,"config":null}]}}`))
	r := rewriter(f)
	f.Fuzz(func(t *testing.T, object []byte) {
		list, changed, err := r.Rewrite(object)
		if err != nil || !changed {
			return
		}
		var was struct {
			Spec struct {
				Steps []json.RawMessage `json:"steps"`
			} `json:"spec"`
		}
		if err := json.Unmarshal(object, &was); err != nil || len(was.Spec.Steps) != len(list) {
			t.Skip("fields in two spellings")
		}
		for i, raw := range list {
			var step map[string]any
			if err := json.Unmarshal(was.Spec.Steps[i], &step); err != nil {
				t.Fatal(err)
			}
			uses, _ := step["uses"].(string)
			if _, ours := r.Kinds[uses]; ours == bytes.Equal(raw, was.Spec.Steps[i]) {
				t.Errorf("step %d (uses %q): %s became %s", i, uses, was.Spec.Steps[i], raw)
			}
		}
		if _, changed, err := r.Rewrite(withSteps(t, object, list)); err != nil || changed {
			t.Errorf("rewriting again: changed %t, %v", changed, err)
		}
	})
}
