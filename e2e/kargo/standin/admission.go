package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
)

// Admission is Kargo's webhook for Promotions, CREATE and UPDATE: on CREATE it
// gives the Promotion its name, the Stage's vars and steps with tasks inflated,
// and says who created it; on UPDATE it refuses another spec. To be registered
// in a configuration named kargo.
func Admission(c client.Reader) http.Handler {
	h, err := admission.StandaloneWebhook(&admission.Webhook{Handler: promotions{c}}, admission.StandaloneOptions{})
	if err != nil { // only for metrics, which there are none of
		panic(err)
	}
	return h
}

type promotions struct{ client client.Reader }

// Handle implements admission.Handler.
func (h promotions) Handle(ctx context.Context, req admission.Request) admission.Response {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(req.Object.Raw); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if req.Operation == admissionv1.Update {
		old := &unstructured.Unstructured{}
		if err := old.UnmarshalJSON(req.OldObject.Raw); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		if !equality.Semantic.DeepEqual(u.Object["spec"], old.Object["spec"]) {
			return admission.Denied("spec is immutable")
		}
		return admission.Allowed("")
	}
	u.SetNamespace(req.Namespace)
	if err := h.complete(ctx, u, req.UserInfo.Username); err != nil {
		return admission.Denied(err.Error())
	}
	b, err := u.MarshalJSON()
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, b)
}

// complete makes a Promotion what it is when it is stored.
func (h promotions) complete(ctx context.Context, u *unstructured.Unstructured, user string) error {
	p, err := as[kargoapi.Promotion](u)
	if err != nil {
		return err
	}
	_, stage, err := read[kargoapi.Stage](ctx, h.client, kargoKind(kargoapi.KindStage), u.GetNamespace(), p.Spec.Stage)
	if err != nil {
		return fmt.Errorf("could not find Stage %q in namespace %q: %w", p.Spec.Stage, u.GetNamespace(), err)
	}
	if stage.Spec.PromotionTemplate == nil || len(stage.Spec.PromotionTemplate.Spec.Steps) == 0 {
		return fmt.Errorf("Stage %q in namespace %q defines no promotion steps", p.Spec.Stage, u.GetNamespace()) //nolint:staticcheck // Kargo's words
	}
	if p.Spec.Freight == "" {
		return errors.New("the stand-in needs spec.freight")
	}
	t := stage.Spec.PromotionTemplate.Spec
	spec := p.Spec
	spec.Vars = append(append([]kargoapi.Variable(nil), stage.Spec.Vars...), t.Vars...)
	template := make([]runner.Step, len(t.Steps))
	for i, s := range t.Steps {
		template[i] = runner.Step{PromotionStep: s}
	}
	inflated, err := runner.Inflate(template, spec.Vars, h.lookup(ctx, u.GetNamespace()))
	if err != nil {
		return fmt.Errorf("failed to inflate Promotion steps: %w", err)
	}
	spec.Steps = make([]kargoapi.PromotionStep, len(inflated))
	for i, s := range inflated {
		spec.Steps[i] = s.PromotionStep
	}
	if u.Object["spec"], err = untyped(spec); err != nil {
		return err
	}
	u.SetGenerateName("")
	u.SetName(runner.PromotionName(p.Spec.Stage, p.Spec.Freight, time.Now()))
	annotations := u.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[kargoapi.AnnotationCreateActor] = "kubernetes:" + user
	u.SetAnnotations(annotations)
	return nil
}

func (h promotions) lookup(ctx context.Context, namespace string) runner.TaskLookup {
	return func(kind, name string) (*runner.Task, error) {
		ns := namespace
		if kind == kargoapi.KindClusterPromotionTask {
			ns = ""
		}
		// Both kinds have the same spec.
		_, task, err := read[kargoapi.PromotionTask](ctx, h.client, kargoKind(kind), ns, name)
		if apierrors.IsNotFound(err) {
			return nil, &runner.NotFoundError{Kind: kind, Name: name}
		}
		if err != nil {
			return nil, err
		}
		return &runner.Task{Spec: task.Spec}, nil
	}
}

// actor reads what complete wrote: what follows the only colon, or all of it.
func actor(annotation string) string {
	if parts := strings.Split(annotation, ":"); len(parts) == 2 {
		return parts[1]
	}
	return annotation
}

// abort tells whether a Promotion is to be aborted, and by whom.
func abort(annotations map[string]string) (by string, wanted bool) {
	switch value := annotations[annotationAbort]; value {
	case "":
		return "", false
	case "terminate":
		return "", true
	default:
		var request struct{ Action, Actor string }
		if err := json.Unmarshal([]byte(value), &request); err != nil || request.Action != "terminate" {
			return "", false
		}
		return request.Actor, true
	}
}

const annotationAbort = "kargo.akuity.io/abort"
