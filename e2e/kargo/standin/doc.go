// Package standin stands in for Kargo v1.11 in a cluster that has only its
// CustomResourceDefinitions: an admission webhook that leaves a Promotion as
// Kargo's does, and a controller that works on Promotions as Kargo's does, with
// stepd's own engine in place of Kargo's. That the engine answers as Kargo's
// is for the golden cases to say, which its users must run first.
//
// Where Kargo's ways are hard on a step (a status that is stored only when the
// engine returns, steps that run again after a work dir is lost, times cut to
// the second), they are kept. Left out: Warehouses finding Freight, Freight
// being verified for a Stage, several origins in one Stage, shards, health.
//
// It also stands in for Argo CD's controller, as far as argocd-update sees it.
package standin

import (
	"context"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/stepd/stepd/runner/kargoapi"
)

// kargoKind is a kind of Kargo's API.
func kargoKind(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: kargoapi.Group, Version: "v1alpha1", Kind: kind}
}

// coreKind is a kind of Kubernetes' own.
func coreKind(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Version: "v1", Kind: kind}
}

// read gets an object as what it is in the API and as T.
func read[T any](ctx context.Context, c client.Reader, gvk schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, *T, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, u); err != nil {
		return nil, nil, err
	}
	t, err := as[T](u)
	return u, t, err
}

// as decodes an object.
func as[T any](u *unstructured.Unstructured) (*T, error) {
	b, err := u.MarshalJSON()
	if err != nil {
		return nil, err
	}
	t := new(T)
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("cannot read %s %s/%s: %w", u.GetKind(), u.GetNamespace(), u.GetName(), err)
	}
	return t, nil
}

// untyped is v in the form that unstructured objects have.
func untyped(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, err
	}
	return runtime.DeepCopyJSONValue(normalised(out)), nil
}

// normalised makes whole numbers integers, as the API has them.
func normalised(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = normalised(e)
		}
	case []any:
		for i, e := range v {
			v[i] = normalised(e)
		}
	case float64:
		if i := int64(v); float64(i) == v {
			return i
		}
	}
	return v
}
