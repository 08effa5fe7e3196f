package standin

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

func application() *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "argoproj.io", Version: "v1alpha1", Kind: "Application"})
	return u
}

// applications stands in for Argo CD's controller: an operation that is asked
// for succeeds at once, at the revision it names. Nothing is deployed.
type applications struct{ client client.Client }

// Reconcile implements reconcile.Reconciler.
func (a applications) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	app := application()
	if err := a.client.Get(ctx, req.NamespacedName, app); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	operation, asked, err := unstructured.NestedMap(app.Object, "operation")
	annotations := app.GetAnnotations()
	_, refresh := annotations["argocd.argoproj.io/refresh"]
	if err != nil || !asked && !refresh {
		return reconcile.Result{}, err
	}
	before := app.DeepCopy()
	delete(annotations, "argocd.argoproj.io/refresh")
	app.SetAnnotations(annotations)
	now := time.Now().UTC().Format(time.RFC3339)
	status, _, _ := unstructured.NestedMap(app.Object, "status")
	if status == nil {
		status = map[string]any{}
	}
	status["reconciledAt"] = now
	status["health"] = map[string]any{"status": "Healthy"}
	if asked {
		result := map[string]any{}
		sync, _, _ := unstructured.NestedMap(operation, "sync")
		for _, key := range []string{"revision", "revisions", "source", "sources"} {
			if v, ok := sync[key]; ok {
				result[key] = v
			}
		}
		status["operationState"] = map[string]any{
			"phase": "Succeeded", "message": "successfully synced", "operation": operation,
			"startedAt": now, "finishedAt": now, "syncResult": result,
		}
		status["sync"] = map[string]any{"status": "Synced", "revision": result["revision"]}
		delete(app.Object, "operation")
	}
	app.Object["status"] = status
	return reconcile.Result{}, a.client.Patch(ctx, app, client.MergeFrom(before))
}
