package install_test

import (
	"context"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/stepd/stepd/e2e/kargo/apiserver"
)

// task is a PromotionTask with one step.
func task(name, uses string, config map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "PromotionTask",
		"metadata": map[string]any{"name": name, "namespace": project},
		"spec":     map[string]any{"steps": []any{map[string]any{"uses": uses, "as": "a", "config": config}}},
	}}
}

// refuses checks what is said of tasks when they are applied, and that nothing
// is said about what the webhook is not for.
func refuses(t *testing.T, server *apiserver.Server) {
	said := &warnings{}
	config := rest.CopyConfig(server.Config(apiserver.Admin))
	config.WarningHandlerWithContext = said
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fine := map[string]any{"inPath": "a", "outPath": "b"}
	for _, tc := range []struct {
		reason       string
		task         *unstructured.Unstructured
		want, warned string
	}{
		{"nothing is wrong", task("fine", "config-apply", fine), "", ""},
		{
			"a misspelt field", task("misspelt", "config-apply", map[string]any{"inPath": "a", "outPath": "b", "verifed": "x"}),
			`spec.steps[0].config (step 1 "a", config-apply): invalid config-apply config: (root): Additional property verifed is not allowed; did you mean "verified"?`, "",
		},
		{
			"an expression that does not compile", task("broken", "config-apply", map[string]any{"inPath": "${{ a + }}", "outPath": "b"}),
			"spec.steps[0].config.inPath", "",
		},
		{"Kargo's own step", task("others", "git-clone", map[string]any{"nonsense": "${{ a + }}"}), "", ""},
		{
			"what a task alone does not tell", task("warned", "config-apply", map[string]any{"inPath": "${{ vars.nobodys }}", "outPath": "b"}),
			"", "vars.nobodys is not declared",
		},
	} {
		for _, options := range [][]client.CreateOption{{client.DryRunAll}, nil} {
			said.text = nil
			err := c.Create(t.Context(), tc.task.DeepCopy(), options...)
			if tc.want == "" && err != nil || tc.want != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%s: %v", tc.reason, err)
			}
			if got := strings.Join(said.text, "\n"); (got != "") != (tc.warned != "") || !strings.Contains(got, tc.warned) {
				t.Errorf("%s: the warnings are %q", tc.reason, got)
			}
		}
	}
	changed := task("fine", "config-apply", fine)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(changed), changed); err != nil {
		t.Fatal(err)
	}
	changed.Object["spec"] = task("", "config-apply", nil).Object["spec"]
	if err := c.Update(t.Context(), changed); !apierrors.IsInvalid(err) {
		t.Errorf("a task that was fine was changed into one that cannot run: %v", err)
	}
}

// warnings are what the API server says beside its answer.
type warnings struct{ text []string }

// HandleWarningHeaderWithContext implements rest.WarningHandlerWithContext.
func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _ string, text string) {
	w.text = append(w.text, text)
}

// mends takes away what the replicas look after, and waits for them.
func mends(t *testing.T, c client.Client) {
	before := caBundle(t, c)
	var validating admissionv1.ValidatingWebhookConfiguration
	if err := c.Get(t.Context(), client.ObjectKey{Name: "stepd"}, &validating); err != nil {
		t.Fatal(err)
	}
	for i := range validating.Webhooks {
		validating.Webhooks[i].ClientConfig.CABundle = nil
	}
	if err := c.Update(t.Context(), &validating); err != nil {
		t.Fatal(err)
	}
	// A signing key that has leaked is thrown away as docs/kargo.md says, and the
	// public keys with it, with one of somebody else's left behind.
	var leaked string
	for name := range publicKeys(t, c) {
		leaked = name
	}
	s := secret(t, c)
	if err := c.Patch(t.Context(), &s, client.RawPatch("application/json-patch+json", []byte(`[{"op":"remove","path":"/data/signing-keys.json"}]`))); err != nil {
		t.Fatal(err)
	}
	keys := &corev1.ConfigMap{}
	keys.Namespace, keys.Name = "kargo", "stepd-public-keys"
	if err := c.Patch(t.Context(), keys, client.RawPatch("application/merge-patch+json", []byte(`{"data":{"theirs.pem":"x"}}`))); err != nil {
		t.Fatal(err)
	}
	wait(t, "caBundle", func() bool {
		if err := c.Get(t.Context(), client.ObjectKey{Name: "stepd"}, &validating); err != nil {
			t.Fatal(err)
		}
		for _, w := range validating.Webhooks {
			if string(w.ClientConfig.CABundle) != before {
				return false
			}
		}
		return true
	})
	wait(t, "new signing key", func() bool {
		published := publicKeys(t, c)
		return len(published) == 1 && published[leaked] == "" && published["theirs.pem"] == "" && len(secret(t, c).Data["signing-keys.json"]) > 0
	})
}

func wait(t *testing.T, what string, there func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !there() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("there is no %s", what)
		}
	}
}
