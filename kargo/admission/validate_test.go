package admission

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
)

func task(steps ...string) string {
	return `
apiVersion: kargo.akuity.io/v1alpha1
kind: PromotionTask
metadata: {name: promote, namespace: acme}
spec:
  vars: [{name: tag}]
  steps: [` + strings.Join(steps, ", ") + `]
`
}

func stage(steps ...string) string {
	return `
apiVersion: kargo.akuity.io/v1alpha1
kind: Stage
metadata: {name: prd, namespace: acme, managedFields: [{manager: x}]}
spec:
  future: {kept: true}
  requestedFreight: [{origin: {kind: Warehouse, name: w}, sources: {direct: true, requiredSoakTime: 5x}}]
  promotionTemplate:
    spec:
      steps: [` + strings.Join(steps, ", ") + `]
status: {health: 1}
`
}

const (
	download = `{uses: oci-download-verified, as: config, config: {imageRef: 'ghcr.io/a/b:${{ vars.tag }}', outPath: c.yaml,
		verify: {keys: [{path: k.pem}]}}}`
	apply = `{uses: config-apply, as: apply, config: {inPath: c.yaml, outPath: d.yaml, verified: config}}`
)

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		reason           string
		resource, object string
		old              string
		update           bool
		// denied are parts of the message, none for an object that is allowed.
		denied []string
		// warned are parts of the warnings.
		warned []string
	}{
		"fine": {
			reason: "nothing is wrong", resource: "promotiontasks", object: task(download, apply),
		},
		"no steps of ours": {
			reason: "other people's steps are not judged", resource: "stages",
			object: stage(`{uses: git-clone, config: {nonsense: '${{ ( }}'}}`, `{uses: oci-download-verifed, config: []}`),
		},
		"other people's step beside ours": {
			reason: "neither its config, nor that it is unknown", resource: "stages",
			object: stage(`{uses: git-clone, as: g, config: {nonsense: '${{ ( }}'}}`, `{uses: nonsense, if: '${{ ( }}'}`, `{uses: config-apply, as: c, config: {inPath: a, outPath: b}}`),
		},
		"control flow Stage": {
			reason: "a Stage without a template has no steps", resource: "stages",
			object: `{metadata: {name: x}, spec: {requestedFreight: []}}`,
		},
		"field missing": {
			reason: "the schema asks for it", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: apply, config: {inPath: a}}`),
			denied: []string{`PromotionTask "promote" has steps that cannot run:`, `spec.steps[0].config (step 1 "apply", config-apply): invalid config-apply config: (root): outPath is required`},
		},
		"field misspelt": {
			reason: "with the name that was meant", resource: "stages",
			object: stage(`{uses: copy, config: {}}`, `{uses: config-apply, config: {inPath: a, outPath: b, verifed: x}}`),
			denied: []string{`spec.promotionTemplate.spec.steps[1].config (step 2 "step-2", config-apply)`, "Additional property verifed is not allowed", `did you mean "verified"?`},
		},
		"wrong type": {
			reason: "a literal of another type", resource: "clusterpromotiontasks",
			object: task(`{uses: atomic-commit, as: c, config: {path: ., maxAttempts: many}}`),
			denied: []string{"ClusterPromotionTask", "spec.steps[0].config.maxAttempts", "Expected: integer, given: string"},
		},
		"expression of a certain type": {
			reason: "an expression that yields a bool is no path", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: c, config: {inPath: '${{ 1 == 2 }}', outPath: b}}`),
			denied: []string{"spec.steps[0].config.inPath", "Expected: string, given: boolean"},
		},
		"expression of an uncertain type": {
			reason: "only a run can tell", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: c, config: {inPath: '${{ vars.tag }}', outPath: b}}`),
		},
		"expression that does not compile": {
			reason: "in config", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: c, config: {inPath: '${{ vars.tag + }}', outPath: b}}`),
			denied: []string{"spec.steps[0].config.inPath", "cannot compile the expression"},
		},
		"expression that is not closed": {
			reason: "in config", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: c, config: {inPath: '${{ vars.tag', outPath: b}}`),
			denied: []string{"spec.steps[0].config.inPath", "close it"},
		},
		"condition that does not compile": {
			reason: "if", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: c, if: '${{ succes() }}', config: {inPath: a, outPath: b}}`),
			denied: []string{"spec.steps[0].if", "there is no function succes", "did you mean success?"},
		},
		"variable that does not compile": {
			reason: "the step's own vars", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: c, vars: [{name: v, value: '${{ ) }}'}], config: {inPath: a, outPath: b}}`),
			denied: []string{"spec.steps[0].vars[0].value"},
		},
		"several": {
			reason: "all of them at once", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: a, config: {}}`, `{uses: copy}`, `{uses: atomic-commit, as: b, config: {nonsense: 1}}`),
			denied: []string{"spec.steps[0].config", "inPath is required", "outPath is required", "spec.steps[2].config", "nonsense is not allowed"},
		},
		"config that is a list": {
			reason: "no object", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: a, config: [1]}`),
			denied: []string{"the config must be an object"},
		},
		"no config": {
			reason: "what is required is missing", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: a}`),
			denied: []string{"inPath is required"},
		},
		"verified by nobody": {
			reason: "a Stage has all its steps", resource: "stages",
			object: stage(`{uses: config-apply, as: a, config: {inPath: a, outPath: b, verified: nobody}}`),
			denied: []string{`no oci-download-verified step "nobody" runs before this one`},
		},
		"verified elsewhere": {
			reason: "a task may name a step of the Stage", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: a, config: {inPath: a, outPath: b, verified: elsewhere}}`),
			warned: []string{`no oci-download-verified step "elsewhere" runs before this one`},
		},
		"what lint warns about": {
			reason: "it may be meant", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: a, config: {inPath: a, outPath: b, updates: [{key: image.tag, value: "${{ imageFrom('x').Tag }}"}]}}`),
			warned: []string{"becomes a number"},
		},
		"a variable of the Stage": {
			reason: "a task alone does not tell", resource: "promotiontasks",
			object: task(`{uses: config-apply, as: a, config: {inPath: '${{ vars.of_the_stage }}', outPath: b}}`),
			warned: []string{"vars.of_the_stage"},
		},
		"unchanged": {
			reason: "what is wrong was there before this webhook was", resource: "promotiontasks", update: true,
			object: task(`{uses: config-apply, as: a, config: {inPath: a}}`),
			old:    strings.Replace(task(`{uses: config-apply, as: a, config: {inPath: a}}`), "metadata: {", "metadata: {labels: {a: b}, ", 1),
		},
		"changed elsewhere": {
			reason: "another step changed, ours did not but is judged again with it", resource: "promotiontasks", update: true,
			object: task(`{uses: config-apply, as: a, config: {inPath: a}}`, `{uses: copy, as: two}`),
			old:    task(`{uses: config-apply, as: a, config: {inPath: a}}`, `{uses: copy, as: one}`),
			denied: []string{"outPath is required"},
		},
		"changed": {
			reason: "the fault is new", resource: "promotiontasks", update: true,
			object: task(`{uses: config-apply, as: a, config: {inPath: a}}`), old: task(apply),
			denied: []string{"outPath is required"},
		},
		"deleted": {
			reason: "a finalizer is removed", resource: "promotiontasks", update: true,
			object: strings.Replace(task(`{uses: config-apply, as: a}`), "metadata: {", "metadata: {deletionTimestamp: '2030-01-01T00:00:00Z', ", 1), old: task(apply),
		},
		"steps of another type": {
			reason: "nothing is known about it", resource: "promotiontasks", object: `{spec: {steps: {a: b}}}`,
			denied: []string{"cannot check the steps"},
		},
		"our step of another type": {
			reason: "nothing is known about it", resource: "promotiontasks", object: task(`{uses: config-apply, retry: {timeout: soon}}`),
			denied: []string{"cannot read step 1 (config-apply)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			op := admissionv1.Create
			if tc.update {
				op = admissionv1.Update
			}
			_, out, text := post(t, testServer(t).reviews(), ValidatePath, review(t, op, tc.resource, tc.object, tc.old))
			if out.Response == nil || out.Response.Allowed != (tc.denied == nil) {
				t.Fatalf("%s: %s", tc.reason, text)
			}
			if tc.denied != nil {
				if out.Response.Result.Code != http.StatusUnprocessableEntity {
					t.Errorf("the code is %d", out.Response.Result.Code)
				}
				for _, want := range tc.denied {
					if !strings.Contains(out.Response.Result.Message, want) {
						t.Errorf("the message lacks %q:\n%s", want, out.Response.Result.Message)
					}
				}
			}
			if tc.denied == nil && (len(tc.warned) == 0) != (len(out.Response.Warnings) == 0) {
				t.Errorf("the warnings are %q", out.Response.Warnings)
			}
			for _, want := range tc.warned {
				if !strings.Contains(strings.Join(out.Response.Warnings, "\n"), want) {
					t.Errorf("the warnings lack %q: %q", want, out.Response.Warnings)
				}
			}
		})
	}
}

func TestValidateManyFaults(t *testing.T) {
	var list []string
	for range 200 {
		list = append(list, `{uses: config-apply, config: {inPath: a}}`)
	}
	_, out, _ := post(t, testServer(t).reviews(), ValidatePath, review(t, admissionv1.Create, "promotiontasks", task(list...), ""))
	message := out.Response.Result.Message
	if lines := strings.Count(message, "\n"); lines != maxFindings+1 || !strings.Contains(message, "and 180 more") {
		t.Errorf("%d lines: %s", lines, message)
	}
}

func TestDotted(t *testing.T) {
	for pointer, want := range map[string]string{
		"/spec/steps/0/as":                  "spec.steps[0].as",
		"/spec/steps/12/config/a~1b/c~0d/0": "spec.steps[12].config.a/b.c~d[0]",
	} {
		if diff := cmp.Diff(want, dotted(pointer)); diff != "" {
			t.Error(diff)
		}
	}
}
