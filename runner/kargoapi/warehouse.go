package kargoapi

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/stepd/stepd/steps"
)

// Warehouse is a source of Freight.
type Warehouse struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata,omitzero"`
	Spec       WarehouseSpec   `json:"spec"`
	Status     WarehouseStatus `json:"status,omitzero"`
}

// WarehouseSpec says what a Warehouse subscribes to.
type WarehouseSpec struct {
	Shard                   string                   `json:"shard,omitempty"`
	Interval                *Duration                `json:"interval,omitempty"`
	FreightCreationPolicy   string                   `json:"freightCreationPolicy,omitempty"`
	FreightCreationCriteria *FreightCreationCriteria `json:"freightCreationCriteria,omitempty"`
	// Subscriptions holds objects with exactly one key each; see
	// ParseSubscriptions.
	Subscriptions []json.RawMessage `json:"subscriptions,omitempty"`
}

// FreightCreationCriteria limit which Freight is made.
type FreightCreationCriteria struct {
	Expression string `json:"expression,omitempty"`
}

// Subscription is what a promotion needs to know of a subscription.
type Subscription struct {
	// Type is git, image, chart or the name of a generic subscription type.
	Type string
	// RepoURL is set for git, image and chart.
	RepoURL string
	// Name is a chart's name, or a generic subscription's own name.
	Name string
}

// ParseSubscriptions returns the Warehouse's subscriptions in order.
func (w *Warehouse) ParseSubscriptions() ([]Subscription, error) {
	subs := make([]Subscription, len(w.Spec.Subscriptions))
	for i, raw := range w.Spec.Subscriptions {
		var m map[string]struct {
			RepoURL string `json:"repoURL"`
			Name    string `json:"name"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, fmt.Errorf("cannot read subscription %d of Warehouse %q: %w", i, w.Name, err)
		}
		if len(m) != 1 {
			return nil, fmt.Errorf("subscription %d of Warehouse %q must have exactly one top-level key, has %d",
				i, w.Name, len(m))
		}
		for typ, s := range m {
			subs[i] = Subscription{Type: typ, RepoURL: s.RepoURL, Name: s.Name}
		}
	}
	return subs, nil
}

// WarehouseStatus is a Warehouse's status.
type WarehouseStatus struct {
	Conditions          []Condition          `json:"conditions,omitempty"`
	LastHandledRefresh  string               `json:"lastHandledRefresh,omitempty"`
	ObservedGeneration  int64                `json:"observedGeneration,omitempty"`
	LastFreightID       string               `json:"lastFreightID,omitempty"`
	DiscoveredArtifacts *DiscoveredArtifacts `json:"discoveredArtifacts,omitempty"`
}

// DiscoveredArtifacts is what a Warehouse found. Promotions do not read it.
type DiscoveredArtifacts struct {
	DiscoveredAt *time.Time        `json:"discoveredAt,omitempty"`
	Git          []json.RawMessage `json:"git,omitempty"`
	Images       []json.RawMessage `json:"images,omitempty"`
	Charts       []json.RawMessage `json:"charts,omitempty"`
	Results      []DiscoveryResult `json:"results,omitempty"`
}

// DiscoveryResult is what a generic subscription found.
type DiscoveryResult struct {
	Name               string                    `json:"name"`
	ArtifactReferences []steps.ArtifactReference `json:"artifactReferences,omitempty"`
}
