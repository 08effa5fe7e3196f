package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	kjson "sigs.k8s.io/json"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/lint"
	"github.com/stepd/stepd/runner/load"
)

// Bounds on what is said at a time.
const (
	maxFindings      = 20
	maxWarningLength = 240 // the API server cuts longer ones
)

// validator refuses Stages and tasks with steps of ours that cannot run. It
// says what `stepd lint` says; what lint only warns about, or can only judge
// together with other documents, becomes a warning. Steps of other kinds are
// not looked at.
type validator struct {
	// registry holds the kinds that are judged.
	registry *runner.Registry
}

// judge implements judge.
func (v *validator) judge(ctx context.Context, req *admissionv1.AdmissionRequest) verdict {
	if no := expects(req, []string{"stages", "promotiontasks", "clusterpromotiontasks"}, admissionv1.Create, admissionv1.Update); no != nil {
		return *no
	}
	doc, err := v.document(req.Resource.Resource, req.Object.Raw)
	if err != nil {
		return deny(http.StatusUnprocessableEntity, "cannot check the steps: %v", err)
	}
	if doc.deleted || len(doc.ours) == 0 {
		return verdict{outcome: outcomeAllowed}
	}
	if req.Operation == admissionv1.Update {
		// Whatever is in the cluster already can still be labelled, annotated and
		// finalised.
		old, err := v.document(req.Resource.Resource, req.OldObject.Raw)
		if err == nil && bytes.Equal(old.JSON, doc.JSON) {
			return verdict{outcome: outcomeAllowed}
		}
	}
	if no := tooMany(doc.texts); no != nil {
		return *no
	}
	findings, err := lint.Run(ctx, &load.Set{Documents: []*load.Document{&doc.Document}}, nil, lint.Options{
		Registry: v.registry, KnownSteps: doc.others,
	})
	if err != nil {
		return fail(http.StatusInternalServerError, "cannot check the steps: %v", err)
	}
	return doc.verdict(findings)
}

// document is what is judged of a Stage or task: its variables and steps, of
// which those of other kinds are reduced to their names.
type document struct {
	load.Document
	// base is the JSON pointer of the steps.
	base string
	// ours are the steps to judge, by index.
	ours map[int]kargoapi.PromotionStep
	// texts are the same as they were written.
	texts []json.RawMessage
	// others are the kinds of the other steps.
	others []string
	// deleted is set for an object that is on its way out.
	deleted bool
}

func (v *validator) document(resource string, object []byte) (*document, error) {
	var peek struct {
		Metadata struct {
			Name              string  `json:"name"`
			Namespace         string  `json:"namespace"`
			DeletionTimestamp *string `json:"deletionTimestamp"`
		} `json:"metadata"`
		Spec struct {
			Vars              []kargoapi.Variable `json:"vars"`
			Steps             []json.RawMessage   `json:"steps"`
			PromotionTemplate *struct {
				Spec struct {
					Vars  []kargoapi.Variable `json:"vars"`
					Steps []json.RawMessage   `json:"steps"`
				} `json:"spec"`
			} `json:"promotionTemplate"`
		} `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(object, &peek); err != nil {
		return nil, fmt.Errorf("the object is not what Kargo defines: %w", err)
	}
	d := &document{base: "/spec/steps", ours: map[int]kargoapi.PromotionStep{}, deleted: peek.Metadata.DeletionTimestamp != nil}
	d.APIVersion, d.Name, d.Namespace = kargoapi.GroupVersion, peek.Metadata.Name, peek.Metadata.Namespace
	meta := kargoapi.ObjectMeta{Name: d.Name, Namespace: d.Namespace}
	list := peek.Spec.Steps
	if resource == "stages" {
		list = nil
		if peek.Spec.PromotionTemplate != nil {
			list = peek.Spec.PromotionTemplate.Spec.Steps
		}
	}
	steps, err := v.steps(d, list)
	if err != nil {
		return nil, err
	}
	switch resource {
	case "stages":
		d.Kind, d.base = kargoapi.KindStage, "/spec/promotionTemplate/spec/steps"
		stage := &kargoapi.Stage{ObjectMeta: meta, Spec: kargoapi.StageSpec{Vars: peek.Spec.Vars}}
		if t := peek.Spec.PromotionTemplate; t != nil {
			stage.Spec.PromotionTemplate = &kargoapi.PromotionTemplate{Spec: kargoapi.PromotionTemplateSpec{Vars: t.Spec.Vars, Steps: steps}}
		}
		d.Object = stage
	case "promotiontasks":
		d.Kind = kargoapi.KindPromotionTask
		d.Object = &kargoapi.PromotionTask{ObjectMeta: meta, Spec: kargoapi.PromotionTaskSpec{Vars: peek.Spec.Vars, Steps: steps}}
	default:
		d.Kind = kargoapi.KindClusterPromotionTask
		d.Object = &kargoapi.ClusterPromotionTask{ObjectMeta: meta, Spec: kargoapi.PromotionTaskSpec{Vars: peek.Spec.Vars, Steps: steps}}
	}
	d.JSON, err = json.Marshal(d.Object)
	return d, err
}

// steps decodes the steps to judge, and of the others what names them: that is
// all that other steps can refer to.
func (v *validator) steps(d *document, list []json.RawMessage) ([]kargoapi.PromotionStep, error) {
	out := make([]kargoapi.PromotionStep, len(list))
	for i, text := range list {
		var name struct {
			Uses string                           `json:"uses"`
			As   string                           `json:"as"`
			Task *kargoapi.PromotionTaskReference `json:"task"`
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &name); err != nil {
			return nil, fmt.Errorf("cannot read step %d: %w", i+1, err)
		}
		if _, ours := v.registry.Lookup(name.Uses); !ours {
			out[i] = kargoapi.PromotionStep{Uses: name.Uses, As: name.As, Task: name.Task}
			d.others = append(d.others, name.Uses)
			continue
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &out[i]); err != nil {
			return nil, fmt.Errorf("cannot read step %d (%s): %w", i+1, name.Uses, err)
		}
		d.ours[i] = out[i]
		d.texts = append(d.texts, text)
	}
	return out, nil
}

// verdict sorts lint's findings about our steps into those that refuse the
// document and those that are only mentioned.
func (d *document) verdict(findings []lint.Finding) verdict {
	var refused, mentioned []string
	for _, f := range findings {
		i, ok := d.step(f.Pointer)
		if !ok {
			continue
		}
		step := d.ours[i]
		text := fmt.Sprintf("%s (step %d %q, %s): %s", dotted(f.Pointer), i+1, step.Alias(i), step.Uses, f.Message)
		if f.Remedy != "" {
			text += "; " + f.Remedy
		}
		if d.refuses(f) {
			refused = append(refused, text)
		} else if f.Rule != "admission" { // of which Kargo itself speaks
			mentioned = append(mentioned, truncate(text, maxWarningLength))
		}
	}
	out := verdict{outcome: outcomeAllowed, warnings: mentioned[:min(len(mentioned), maxFindings)]}
	if len(refused) == 0 {
		return out
	}
	more := ""
	if n := len(refused) - maxFindings; n > 0 {
		refused, more = refused[:maxFindings], fmt.Sprintf("\nand %d more; `stepd lint` says them all", n)
	}
	out.outcome, out.code = outcomeDenied, http.StatusUnprocessableEntity
	out.message = fmt.Sprintf("%s %q has steps that cannot run:\n%s%s", d.Kind, d.Name, strings.Join(refused, "\n"), more)
	return out
}

// refuses tells whether a finding is certain without any other document.
func (d *document) refuses(f lint.Finding) bool {
	if f.Severity != lint.Error {
		return false
	}
	switch f.Rule {
	case "config", "expression":
		return true
	case "unverified":
		// A task may name a step of the Stage that uses it.
		return d.Kind == kargoapi.KindStage
	}
	return false
}

// step finds which of our steps a pointer leads into.
func (d *document) step(pointer string) (int, bool) {
	inside, ok := strings.CutPrefix(pointer, d.base+"/")
	if !ok {
		return 0, false
	}
	number, _, _ := strings.Cut(inside, "/")
	i, err := strconv.Atoi(number)
	if err != nil {
		return 0, false
	}
	_, ok = d.ours[i]
	return i, ok
}

// dotted turns a JSON pointer, "/spec/steps/0/as", into what people write,
// "spec.steps[0].as".
func dotted(pointer string) string {
	unescape := strings.NewReplacer("~1", "/", "~0", "~")
	var sb strings.Builder
	for _, token := range strings.Split(strings.TrimPrefix(pointer, "/"), "/") {
		if _, err := strconv.Atoi(token); err == nil {
			sb.WriteString("[" + token + "]")
			continue
		}
		sb.WriteString("." + unescape.Replace(token))
	}
	return strings.TrimPrefix(sb.String(), ".")
}
