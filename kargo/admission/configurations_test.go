package admission

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	k8syaml "sigs.k8s.io/yaml"
)

// configurations are those of testdata/webhook-configurations.yaml.
func configurations(t *testing.T) (mutating admissionregistrationv1.MutatingWebhookConfiguration, validating admissionregistrationv1.ValidatingWebhookConfiguration) {
	t.Helper()
	text, err := os.ReadFile("testdata/webhook-configurations.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for _, into := range []any{&mutating, &validating} {
		d, err := documents.Read()
		if err != nil {
			t.Fatal(err)
		}
		if err := k8syaml.UnmarshalStrict(d, into); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := documents.Read(); !errors.Is(err, io.EOF) {
		t.Fatalf("there is more in the file: %v", err)
	}
	return mutating, validating
}

// TestConfigurations holds what is installed against what the webhook does.
func TestConfigurations(t *testing.T) {
	m, v := configurations(t)
	if m.Kind != "MutatingWebhookConfiguration" || v.Kind != "ValidatingWebhookConfiguration" || m.APIVersion != "admissionregistration.k8s.io/v1" || v.APIVersion != m.APIVersion {
		t.Fatalf("they are %s and %s", m.Kind, v.Kind)
	}
	if m.Name != v.Name || m.Name <= "kargo" {
		t.Errorf("they are named %s and %s; one name that sorts after kargo is needed", m.Name, v.Name)
	}
	type webhook struct {
		name          string
		client        admissionregistrationv1.WebhookClientConfig
		rules         []admissionregistrationv1.RuleWithOperations
		policy        *admissionregistrationv1.FailurePolicyType
		effects       *admissionregistrationv1.SideEffectClass
		timeout       *int32
		versions      []string
		selects, open bool
	}
	var all []webhook
	for _, w := range m.Webhooks {
		if *w.ReinvocationPolicy != admissionregistrationv1.IfNeededReinvocationPolicy {
			t.Errorf("%s is not called again when another webhook changes what it saw", w.Name)
		}
		all = append(all, webhook{w.Name, w.ClientConfig, w.Rules, w.FailurePolicy, w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions, w.NamespaceSelector != nil || w.ObjectSelector != nil, len(w.MatchConditions) == 0})
	}
	for _, w := range v.Webhooks {
		all = append(all, webhook{w.Name, w.ClientConfig, w.Rules, w.FailurePolicy, w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions, w.NamespaceSelector != nil || w.ObjectSelector != nil, len(w.MatchConditions) == 0})
	}
	var asked []string
	for _, w := range all {
		if w.policy == nil || *w.policy != admissionregistrationv1.Fail {
			t.Errorf("%s lets pass what it cannot ask about", w.name)
		}
		if *w.effects != admissionregistrationv1.SideEffectClassNone {
			t.Errorf("%s has side effects: dry runs would fail", w.name)
		}
		if w.selects {
			t.Errorf("%s is for some objects only: who can label them gets around it", w.name)
		}
		if w.open {
			t.Errorf("%s is called for objects that have nothing to do with it", w.name)
		}
		if len(w.client.CABundle) > 0 {
			t.Errorf("%s has a caBundle: applying the file again would break it", w.name)
		}
		if *w.timeout > 30 || !slices.Equal(w.versions, []string{"v1"}) {
			t.Errorf("%s has timeout %d and versions %v", w.name, *w.timeout, w.versions)
		}
		resources := map[string][]string{MutatePath: {"promotions"}, ValidatePath: {"stages", "promotiontasks", "clusterpromotiontasks"}}[*w.client.Service.Path]
		operations := map[string][]admissionv1.Operation{MutatePath: {admissionv1.Create}, ValidatePath: {admissionv1.Create, admissionv1.Update}}[*w.client.Service.Path]
		for _, rule := range w.rules {
			for _, resource := range rule.Resources {
				for _, op := range rule.Operations {
					asked = append(asked, *w.client.Service.Path+" "+string(op)+" "+resource)
					req := &admissionv1.AdmissionRequest{
						Operation: admissionv1.Operation(op),
						Resource:  metav1.GroupVersionResource{Group: rule.APIGroups[0], Version: rule.APIVersions[0], Resource: resource},
					}
					if no := expects(req, resources, operations...); no != nil {
						t.Errorf("%s asks what nobody answers: %s", w.name, no.message)
					}
				}
			}
		}
	}
	slices.Sort(asked)
	want := []string{
		"/mutate CREATE promotions",
		"/validate CREATE clusterpromotiontasks", "/validate CREATE promotiontasks", "/validate CREATE stages",
		"/validate UPDATE clusterpromotiontasks", "/validate UPDATE promotiontasks", "/validate UPDATE stages",
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("what is asked differs from what is answered:\n%s", diff)
	}
}

// TestMatchConditions evaluates the conditions as the API server does: an object
// gets here if all of them hold, and is refused if one cannot be evaluated.
func TestMatchConditions(t *testing.T) {
	_, registry := ourSteps(t)
	m, v := configurations(t)
	conditions := map[string][]admissionregistrationv1.MatchCondition{
		"promotion": m.Webhooks[0].MatchConditions, "stage": v.Webhooks[0].MatchConditions, "task": v.Webhooks[1].MatchConditions,
	}
	for _, list := range conditions {
		for _, c := range list {
			if c.Name != "has-stepd-steps" {
				continue
			}
			for _, kind := range registry.Kinds() {
				if !strings.Contains(c.Expression, "'"+kind+"'") {
					t.Errorf("steps of kind %s would not get here", kind)
				}
			}
			if got := strings.Count(c.Expression, "'"); got != 2*len(registry.Kinds()) {
				t.Errorf("other steps would get here: %s", c.Expression)
			}
		}
	}
	for name, tc := range map[string]struct {
		reason       string
		webhook      string
		object, old  string
		want, failed bool
	}{
		"promotion with ours":      {"it cannot run otherwise", "promotion", promotion, "", true, false},
		"promotion without":        {"it does not depend on stepd", "promotion", `{spec: {steps: [{uses: http}, {uses: git-clone, config: {uses: config-apply}}]}}`, "", false, false},
		"promotion without steps":  {"Kargo refuses it", "promotion", `{spec: {stage: x}}`, "", false, false},
		"promotion without a spec": {"the CRD refuses it", "promotion", `{metadata: {name: x}}`, "", false, false},
		"task with ours":           {"it is checked", "task", task(apply), "", true, false},
		"task without":             {"it does not depend on stepd", "task", task(`{uses: copy}`), "", false, false},
		"task unchanged":           {"labels do not depend on stepd", "task", strings.Replace(task(apply), "metadata: {", "metadata: {labels: {a: b}, ", 1), task(apply), false, false},
		"task changed":             {"it is checked again", "task", task(apply), task(download), true, false},
		"stage with ours":          {"it is checked", "stage", stage(`{task: {name: t}}`, apply), "", true, false},
		"stage with a task":        {"the task was checked", "stage", stage(`{task: {name: t}}`), "", false, false},
		"control flow stage":       {"it has no steps", "stage", `{spec: {requestedFreight: []}}`, "", false, false},
		"stage with empty spec":    {"the CRD refuses it", "stage", `{spec: {promotionTemplate: {}}}`, "", false, false},
		"stage unchanged":          {"finalizers do not depend on stepd", "stage", stage(apply), stage(apply), false, false},
		"steps that are no list":   {"refused, not let through", "promotion", `{spec: {steps: 1}}`, "", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := matches(t, conditions[tc.webhook], tc.object, tc.old)
			if got != tc.want || (err != nil) != tc.failed {
				t.Errorf("%s: got %t, %v", tc.reason, got, err)
			}
		})
	}
}

func matches(t *testing.T, conditions []admissionregistrationv1.MatchCondition, object, old string) (bool, error) {
	t.Helper()
	env, err := cel.NewEnv(cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType))
	if err != nil {
		t.Fatal(err)
	}
	var objects [2]any
	for i, text := range []string{object, old} {
		if err := k8syaml.Unmarshal([]byte(text), &objects[i]); err != nil {
			t.Fatal(err)
		}
	}
	all := true
	for _, c := range conditions {
		tree, issues := env.Compile(c.Expression)
		if issues.Err() != nil {
			t.Fatalf("%s: %v", c.Name, issues.Err())
		}
		program, err := env.Program(tree)
		if err != nil {
			t.Fatal(err)
		}
		out, _, err := program.Eval(map[string]any{"object": objects[0], "oldObject": objects[1]})
		if err != nil {
			return false, err
		}
		holds, ok := out.Value().(bool)
		if !ok {
			t.Fatalf("%s yields %v", c.Name, out)
		}
		all = all && holds
	}
	return all, nil
}
