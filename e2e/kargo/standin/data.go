package standin

import (
	"context"
	"encoding/json"
	"maps"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
)

// data is what expressions and steps read from and write into the cluster.
// What is not there is empty, as in Kargo.
type data struct{ client client.Client }

func (d data) find(ctx context.Context, gvk schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	err := d.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, u)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return u, err
}

// Warehouse implements expr.Data.
func (d data) Warehouse(ctx context.Context, project, name string) (*kargoapi.Warehouse, error) {
	u, err := d.find(ctx, kargoKind(kargoapi.KindWarehouse), project, name)
	if u == nil || err != nil {
		return nil, err
	}
	return as[kargoapi.Warehouse](u)
}

// SubscribedImages implements builtin.Subscriptions.
func (d data) SubscribedImages(ctx context.Context, project, warehouse string) ([]string, error) {
	w, err := d.Warehouse(ctx, project, warehouse)
	if w == nil || err != nil {
		return nil, err
	}
	subscriptions, err := w.ParseSubscriptions()
	if err != nil {
		return nil, err
	}
	var repos []string
	for _, s := range subscriptions {
		if s.Type == "image" {
			repos = append(repos, s.RepoURL)
		}
	}
	return repos, nil
}

// ConfigMap implements expr.Data.
func (d data) ConfigMap(ctx context.Context, namespace, name string) (map[string]string, error) {
	u, err := d.find(ctx, coreKind(kargoapi.KindConfigMap), namespace, name)
	if u == nil || err != nil {
		return nil, err
	}
	cm, err := as[kargoapi.ConfigMap](u)
	if err != nil {
		return nil, err
	}
	return cm.Data, nil
}

// SharedConfigMap implements expr.Data.
func (d data) SharedConfigMap(ctx context.Context, name string) (map[string]string, error) {
	return d.ConfigMap(ctx, runner.DefaultSharedNamespace, name)
}

// Secret implements expr.Data.
func (d data) Secret(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	u, err := d.find(ctx, coreKind(kargoapi.KindSecret), namespace, name)
	if u == nil || err != nil {
		return nil, err
	}
	s, err := as[kargoapi.Secret](u)
	if err != nil {
		return nil, err
	}
	return s.Values(), nil
}

// SharedSecret implements expr.Data.
func (d data) SharedSecret(ctx context.Context, name string) (map[string][]byte, error) {
	u, err := d.find(ctx, coreKind(kargoapi.KindSecret), runner.DefaultSharedNamespace, name)
	if u == nil || err != nil || u.GetLabels()[kargoapi.LabelCredentialType] != "generic" {
		return nil, err
	}
	return d.Secret(ctx, runner.DefaultSharedNamespace, name)
}

// FreightMetadata implements expr.Data.
func (d data) FreightMetadata(ctx context.Context, project, name string) (map[string]json.RawMessage, error) {
	u, err := d.find(ctx, kargoKind(kargoapi.KindFreight), project, name)
	if u == nil || err != nil {
		return nil, err
	}
	f, err := as[kargoapi.Freight](u)
	if err != nil {
		return nil, err
	}
	return f.Status.Metadata, nil
}

// StageMetadata implements expr.Data.
func (d data) StageMetadata(ctx context.Context, project, name string) (map[string]json.RawMessage, error) {
	u, err := d.find(ctx, kargoKind(kargoapi.KindStage), project, name)
	if u == nil || err != nil {
		return nil, err
	}
	s, err := as[kargoapi.Stage](u)
	if err != nil {
		return nil, err
	}
	return s.Status.Metadata, nil
}

// SetStageMetadata implements builtin.Resources.
func (d data) SetStageMetadata(ctx context.Context, project, stage string, values map[string]json.RawMessage) error {
	return d.patch(ctx, kargoapi.KindStage, project, stage, values)
}

// SetFreightMetadata implements builtin.Resources.
func (d data) SetFreightMetadata(ctx context.Context, project, freight string, values map[string]json.RawMessage) error {
	return d.patch(ctx, kargoapi.KindFreight, project, freight, values)
}

// SetFreightAlias implements builtin.Resources.
func (d data) SetFreightAlias(ctx context.Context, project, freight, alias string) error {
	body, err := json.Marshal(map[string]any{
		"alias": alias, "metadata": map[string]any{"labels": map[string]string{kargoapi.LabelAlias: alias}},
	})
	if err != nil {
		return err
	}
	return d.client.Patch(ctx, object(kargoapi.KindFreight, project, freight), client.RawPatch(mergePatch, body))
}

func (d data) patch(ctx context.Context, kind, project, name string, values map[string]json.RawMessage) error {
	body, err := json.Marshal(map[string]any{"status": map[string]any{"metadata": maps.Clone(values)}})
	if err != nil {
		return err
	}
	return d.client.Status().Patch(ctx, object(kind, project, name), client.RawPatch(mergePatch, body))
}

const mergePatch = "application/merge-patch+json"

func object(kind, namespace, name string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(kargoKind(kind))
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}
