package kargo_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
)

// TestWebhookConfigurations holds the configurations against those that the
// webhook is tested with, of which they differ in the Service's namespace only.
func TestWebhookConfigurations(t *testing.T) {
	w := render(t)
	text, err := os.ReadFile(filepath.Join("..", "..", "kargo", "admission", "testdata", "webhook-configurations.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	tested := documents(t, text)
	if len(tested) != 2 {
		t.Fatalf("%d configurations are tested, want 2", len(tested))
	}
	var mutating admissionv1.MutatingWebhookConfiguration
	var validating admissionv1.ValidatingWebhookConfiguration
	decode(t, tested[0], &mutating, true)
	decode(t, tested[1], &validating, true)
	for i := range mutating.Webhooks {
		mutating.Webhooks[i].ClientConfig.Service.Namespace = w.namespace.Name
	}
	for i := range validating.Webhooks {
		validating.Webhooks[i].ClientConfig.Service.Namespace = w.namespace.Name
	}
	if diff := cmp.Diff(mutating, w.mutating); diff != "" {
		t.Errorf("mutating (-tested +installed):\n%s", diff)
	}
	if diff := cmp.Diff(validating, w.validating); diff != "" {
		t.Errorf("validating (-tested +installed):\n%s", diff)
	}
	if w.mutating.Name <= "kargo" {
		t.Errorf("%s is called before Kargo's own webhook", w.mutating.Name)
	}
	for _, m := range w.mutating.Webhooks {
		if *m.FailurePolicy != admissionv1.Fail || *m.ReinvocationPolicy != admissionv1.IfNeededReinvocationPolicy || len(m.MatchConditions) == 0 {
			t.Errorf("%s does not fail closed, is not called again, or is called for everything", m.Name)
		}
		checkService(t, w, m.ClientConfig)
	}
	for _, v := range w.validating.Webhooks {
		if *v.FailurePolicy != admissionv1.Fail || len(v.MatchConditions) == 0 {
			t.Errorf("%s does not fail closed, or is called for everything", v.Name)
		}
		checkService(t, w, v.ClientConfig)
	}
}

func checkService(t *testing.T, w webhook, c admissionv1.WebhookClientConfig) {
	t.Helper()
	if s := c.Service; s == nil || s.Namespace != w.service.Namespace || s.Name != w.service.Name || *s.Port != w.service.Spec.Ports[0].Port || len(c.CABundle) > 0 {
		t.Errorf("a configuration leads to %+v, not to the Service of the webhook", c)
	}
}
