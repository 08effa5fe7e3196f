package steps

import (
	"encoding/json"
	"sort"
)

// The types below mirror Kargo's Freight types (api/v1alpha1 freight_types.go,
// stage_types.go). Expressions see their Go field names; JSON has the keys.

// FreightOrigin names what produced a piece of Freight.
type FreightOrigin struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// String returns "Kind/name", the key used in a FreightCollection.
func (o FreightOrigin) String() string { return o.Kind + "/" + o.Name }

// FreightRequest is one entry of a Stage's requestedFreight.
type FreightRequest struct {
	Origin  FreightOrigin   `json:"origin"`
	Sources json.RawMessage `json:"sources,omitempty"`
}

// GitCommit is a commit in a piece of Freight.
type GitCommit struct {
	RepoURL   string `json:"repoURL,omitempty"`
	ID        string `json:"id,omitempty"`
	Branch    string `json:"branch,omitempty"`
	Tag       string `json:"tag,omitempty"`
	Message   string `json:"message,omitempty"`
	Author    string `json:"author,omitempty"`
	Committer string `json:"committer,omitempty"`
}

// Image is a container image in a piece of Freight.
type Image struct {
	RepoURL     string            `json:"repoURL,omitempty"`
	Tag         string            `json:"tag,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Chart is a Helm chart in a piece of Freight.
type Chart struct {
	RepoURL string `json:"repoURL,omitempty"`
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
}

// ArtifactReference is a generic artifact in a piece of Freight.
type ArtifactReference struct {
	ArtifactType     string          `json:"artifactType,omitempty"`
	SubscriptionName string          `json:"subscriptionName,omitempty"`
	Version          string          `json:"version,omitempty"`
	Metadata         json.RawMessage `json:"metadata,omitempty"`
}

// FreightReference is a piece of Freight as a promotion sees it.
type FreightReference struct {
	Name      string              `json:"name,omitempty"`
	Origin    FreightOrigin       `json:"origin,omitzero"`
	Commits   []GitCommit         `json:"commits,omitempty"`
	Images    []Image             `json:"images,omitempty"`
	Charts    []Chart             `json:"charts,omitempty"`
	Artifacts []ArtifactReference `json:"artifacts,omitempty"`
}

// FreightCollection maps an origin's String to the Freight from it.
type FreightCollection struct {
	ID      string                      `json:"id,omitempty"`
	Freight map[string]FreightReference `json:"items,omitempty"`
}

// References returns the Freight ordered by origin.
func (c FreightCollection) References() []FreightReference {
	keys := make([]string, 0, len(c.Freight))
	for k := range c.Freight {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	refs := make([]FreightReference, len(keys))
	for i, k := range keys {
		refs[i] = c.Freight[k]
	}
	return refs
}
