package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
)

// DefaultSharedNamespace is the namespace of Kargo's shared resources unless
// the environment variable SHARED_RESOURCES_NAMESPACE says otherwise.
const DefaultSharedNamespace = "kargo-shared-resources"

// DocumentData answers expression functions from documents. Metadata written
// during a run is laid over the documents', which stay as they are. It is safe
// for concurrent use.
type DocumentData struct {
	project string
	shared  string
	set     *load.Set
	// Missing, if set, is told once of every object that was asked for and is
	// not among the documents: functions take it for empty, as Kargo does. Set
	// it before use.
	Missing func(kind, namespace, name string)

	mu         sync.Mutex
	reported   map[[3]string]bool
	warehouses map[string]*kargoapi.Warehouse // by name; hides documents
	stages     map[string]map[string]json.RawMessage
	freight    map[string]map[string]json.RawMessage
	aliases    map[string]string // set during the run, by Freight name
	extra      []*kargoapi.Freight
}

// NewDocumentData returns the data of a set of documents. Namespaced documents
// that name no namespace belong to project. An empty sharedNamespace is
// DefaultSharedNamespace.
func NewDocumentData(set *load.Set, project, sharedNamespace string) *DocumentData {
	if sharedNamespace == "" {
		sharedNamespace = DefaultSharedNamespace
	}
	return &DocumentData{
		project: project, shared: sharedNamespace, set: set,
		warehouses: map[string]*kargoapi.Warehouse{},
		stages:     map[string]map[string]json.RawMessage{},
		freight:    map[string]map[string]json.RawMessage{},
		aliases:    map[string]string{},
		reported:   map[[3]string]bool{},
	}
}

// find returns the document object of a type; the last one wins, as the last
// of several applied objects does.
func find[T kargoapi.Object](d *DocumentData, namespace, name string) (found T, ok bool) {
	for _, doc := range load.Of[T](d.set) {
		ns := doc.Namespace
		if ns == "" {
			ns = d.project
		}
		if ns == namespace && doc.Name == name {
			found, ok = doc.Object.(T)
		}
	}
	return found, ok
}

func (d *DocumentData) missing(kind, namespace, name string) {
	if d.Missing == nil {
		return
	}
	key := [3]string{kind, namespace, name}
	d.mu.Lock()
	first := !d.reported[key]
	d.reported[key] = true
	d.mu.Unlock()
	if first {
		d.Missing(kind, namespace, name)
	}
}

// Warehouse implements expr.Data.
func (d *DocumentData) Warehouse(_ context.Context, project, name string) (*kargoapi.Warehouse, error) {
	if w, ok := d.warehouses[name]; ok && project == d.project {
		return w, nil
	}
	if w, ok := find[*kargoapi.Warehouse](d, project, name); ok {
		return w, nil
	}
	d.missing(kargoapi.KindWarehouse, project, name)
	return nil, nil
}

// SubscribedImages returns the repository of every image subscription of a
// Warehouse; of one that is not known there are none.
func (d *DocumentData) SubscribedImages(ctx context.Context, project, warehouse string) ([]string, error) {
	w, err := d.Warehouse(ctx, project, warehouse)
	if err != nil || w == nil {
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
func (d *DocumentData) ConfigMap(_ context.Context, namespace, name string) (map[string]string, error) {
	if cm, ok := find[*kargoapi.ConfigMap](d, namespace, name); ok {
		return maps.Clone(cm.Data), nil
	}
	d.missing(kargoapi.KindConfigMap, namespace, name)
	return nil, nil
}

// SharedConfigMap implements expr.Data.
func (d *DocumentData) SharedConfigMap(ctx context.Context, name string) (map[string]string, error) {
	return d.ConfigMap(ctx, d.shared, name)
}

// Secret implements expr.Data.
func (d *DocumentData) Secret(_ context.Context, namespace, name string) (map[string][]byte, error) {
	if s, ok := find[*kargoapi.Secret](d, namespace, name); ok {
		return s.Values(), nil
	}
	d.missing(kargoapi.KindSecret, namespace, name)
	return nil, nil
}

// SharedSecret implements expr.Data.
func (d *DocumentData) SharedSecret(_ context.Context, name string) (map[string][]byte, error) {
	s, ok := find[*kargoapi.Secret](d, d.shared, name)
	if ok && s.Labels[kargoapi.LabelCredentialType] == "generic" {
		return s.Values(), nil
	}
	d.missing(kargoapi.KindSecret, d.shared, name)
	return nil, nil
}

// FreightMetadata implements expr.Data.
func (d *DocumentData) FreightMetadata(_ context.Context, project, name string) (map[string]json.RawMessage, error) {
	var base map[string]json.RawMessage
	f := d.findFreight(project, name)
	if f != nil {
		base = f.Status.Metadata
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return overlaid(base, d.freight[name]), nil
}

// StageMetadata implements expr.Data.
func (d *DocumentData) StageMetadata(_ context.Context, project, name string) (map[string]json.RawMessage, error) {
	var base map[string]json.RawMessage
	if s, ok := find[*kargoapi.Stage](d, project, name); ok {
		base = s.Status.Metadata
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return overlaid(base, d.stages[name]), nil
}

// SetFreightMetadata lays values over a piece of Freight's status.metadata.
func (d *DocumentData) SetFreightMetadata(_ context.Context, project, name string, values map[string]json.RawMessage) error {
	if d.findFreight(project, name) == nil {
		return &NotFoundError{kargoapi.KindFreight, name}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.freight[name] = overlaid(d.freight[name], values)
	return nil
}

// SetStageMetadata lays values over a Stage's status.metadata.
func (d *DocumentData) SetStageMetadata(_ context.Context, project, name string, values map[string]json.RawMessage) error {
	if _, ok := find[*kargoapi.Stage](d, project, name); !ok {
		return &NotFoundError{kargoapi.KindStage, name}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stages[name] = overlaid(d.stages[name], values)
	return nil
}

// SetFreightAlias gives a piece of Freight another alias for this run. An
// alias belongs to one piece of Freight of a project.
func (d *DocumentData) SetFreightAlias(_ context.Context, project, name, newAlias string) error {
	if d.findFreight(project, name) == nil {
		return &NotFoundError{kargoapi.KindFreight, name}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	all := slices.Clone(d.extra)
	for _, doc := range load.Of[*kargoapi.Freight](d.set) {
		if f, ok := doc.Object.(*kargoapi.Freight); ok && (doc.Namespace == "" || doc.Namespace == project) {
			all = append(all, f)
		}
	}
	for _, f := range all {
		now, renamed := d.aliases[f.Name]
		if !renamed {
			now = alias(f)
		}
		if f.Name != name && now == newAlias {
			return fmt.Errorf("alias %q is already used by Freight %q", newAlias, f.Name)
		}
	}
	d.aliases[name] = newAlias
	return nil
}

func (d *DocumentData) findFreight(project, name string) *kargoapi.Freight {
	for _, f := range d.extra {
		if f.Name == name {
			return f
		}
	}
	f, _ := find[*kargoapi.Freight](d, project, name)
	return f
}

// NotFoundError says that an object of Kargo's API does not exist.
type NotFoundError struct{ Kind, Name string }

// Error implements error in the API server's words.
func (e *NotFoundError) Error() string {
	resource := strings.ToLower(e.Kind)
	if e.Kind != kargoapi.KindFreight { // which is its own plural
		resource += "s"
	}
	return fmt.Sprintf("%s.kargo.akuity.io %q not found", resource, e.Name)
}

func overlaid(base, over map[string]json.RawMessage) map[string]json.RawMessage {
	if len(base)+len(over) == 0 {
		return nil
	}
	out := maps.Clone(base)
	if out == nil {
		out = make(map[string]json.RawMessage, len(over))
	}
	maps.Copy(out, over)
	return out
}
