package standin

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/stepd/stepd/internal/argocd"
)

func application() *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "argoproj.io", Version: "v1alpha1", Kind: "Application"})
	return u
}

// applications stands in for Argo CD's controller: an operation that is asked
// for succeeds at once, at what the source's targetRevision is then. Nothing is
// deployed.
type applications struct {
	client client.Client
	// done has Kargo look at a Promotion again, as it does when an Application
	// that it waits for changes.
	done func(namespace, promotion string)
}

// Reconcile implements reconcile.Reconciler.
func (a applications) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	app := application()
	if err := a.client.Get(ctx, req.NamespacedName, app); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	operation, asked, err := unstructured.NestedMap(app.Object, "operation")
	annotations := app.GetAnnotations()
	_, refresh := annotations[refreshAnnotation]
	if err != nil || !asked && !refresh {
		return reconcile.Result{}, err
	}
	before := app.DeepCopy()
	delete(annotations, refreshAnnotation)
	app.SetAnnotations(annotations)
	now := time.Now().UTC().Format(time.RFC3339)
	status, _, _ := unstructured.NestedMap(app.Object, "status")
	if status == nil {
		status = map[string]any{}
	}
	status["reconciledAt"] = now
	status["health"] = map[string]any{"status": "Healthy"}
	if asked {
		revision, err := targetRevision(ctx, app)
		if err != nil {
			return reconcile.Result{}, err
		}
		status["operationState"] = map[string]any{
			"phase": "Succeeded", "message": "successfully synced", "operation": operation,
			"startedAt": now, "finishedAt": now, "syncResult": map[string]any{"revision": revision},
		}
		status["sync"] = map[string]any{"status": "Synced", "revision": revision}
		delete(app.Object, "operation")
	}
	app.Object["status"] = status
	if err := a.client.Patch(ctx, app, client.MergeFrom(before)); err != nil {
		return reconcile.Result{}, err
	}
	project, _, _ := strings.Cut(annotations[argocd.AuthorizedStageAnnotation], ":")
	info, _, _ := unstructured.NestedSlice(operation, "info")
	for _, i := range info {
		if i, _ := i.(map[string]any); i["name"] == argocd.PromotionInfo {
			promotion, _ := i["value"].(string)
			a.done(project, promotion)
		}
	}
	return reconcile.Result{}, nil
}

const refreshAnnotation = "argocd.argoproj.io/refresh"

// targetRevision is the commit that an Application with one git source is to
// be synced to.
func targetRevision(ctx context.Context, app *unstructured.Unstructured) (string, error) {
	repo, _, _ := unstructured.NestedString(app.Object, "spec", "source", "repoURL")
	target, _, _ := unstructured.NestedString(app.Object, "spec", "source", "targetRevision")
	if len(target) == 40 {
		return target, nil
	}
	out, err := exec.CommandContext(ctx, "git", "ls-remote", "--", repo, "refs/heads/"+target).Output()
	commit, _, ok := strings.Cut(string(out), "\t")
	if err != nil || !ok {
		return "", fmt.Errorf("cannot read branch %q of %s: %w", target, repo, err)
	}
	return commit, nil
}
