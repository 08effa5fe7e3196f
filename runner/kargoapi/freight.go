package kargoapi

import (
	"encoding/json"
	"time"

	"github.com/stepd/stepd/steps"
)

// Freight is a set of artifacts that are promoted together. It has no spec:
// its fields are at the top level.
type Freight struct {
	TypeMeta     `json:",inline"`
	ObjectMeta   `json:"metadata,omitzero"`
	Alias        string                    `json:"alias,omitempty"`
	DiscoveredAt *time.Time                `json:"discoveredAt,omitempty"`
	Origin       steps.FreightOrigin       `json:"origin"`
	Commits      []steps.GitCommit         `json:"commits,omitempty"`
	Images       []steps.Image             `json:"images,omitempty"`
	Charts       []steps.Chart             `json:"charts,omitempty"`
	Artifacts    []steps.ArtifactReference `json:"artifacts,omitempty"`
	Status       FreightStatus             `json:"status,omitzero"`
}

// Reference returns the Freight as a promotion sees it.
func (f *Freight) Reference() steps.FreightReference {
	return steps.FreightReference{
		Name:      f.Name,
		Origin:    f.Origin,
		Commits:   f.Commits,
		Images:    f.Images,
		Charts:    f.Charts,
		Artifacts: f.Artifacts,
	}
}

// FreightStatus is a Freight's status.
type FreightStatus struct {
	CurrentlyIn map[string]CurrentStage  `json:"currentlyIn,omitempty"`
	VerifiedIn  map[string]VerifiedStage `json:"verifiedIn,omitempty"`
	ApprovedFor map[string]ApprovedStage `json:"approvedFor,omitempty"`
	// Metadata is what freightMetadata() reads and set-metadata writes.
	Metadata map[string]json.RawMessage `json:"metadata,omitempty"`
}

// CurrentStage says since when Freight has been in a Stage.
type CurrentStage struct {
	Since *time.Time `json:"since,omitempty"`
}

// VerifiedStage says when Freight was verified in a Stage.
type VerifiedStage struct {
	VerifiedAt  *time.Time `json:"verifiedAt,omitempty"`
	LongestSoak *Duration  `json:"longestSoak,omitempty"`
}

// ApprovedStage says when Freight was approved for a Stage.
type ApprovedStage struct {
	ApprovedAt *time.Time `json:"approvedAt,omitempty"`
}

// FreightCollection is the Freight of a Stage, one piece per origin.
type FreightCollection struct {
	ID string `json:"id"`
	// Freight is keyed by origin, "Warehouse/<name>".
	Freight             map[string]steps.FreightReference `json:"items,omitempty"`
	VerificationHistory []VerificationInfo                `json:"verificationHistory,omitempty"`
}

// Steps returns the collection as steps see it.
func (c *FreightCollection) Steps() steps.FreightCollection {
	if c == nil {
		return steps.FreightCollection{}
	}
	return steps.FreightCollection{ID: c.ID, Freight: c.Freight}
}

// VerificationInfo is one verification of a FreightCollection.
type VerificationInfo struct {
	ID          string                `json:"id,omitempty"`
	Actor       string                `json:"actor,omitempty"`
	StartTime   *time.Time            `json:"startTime,omitempty"`
	Phase       string                `json:"phase,omitempty"`
	Message     string                `json:"message,omitempty"`
	AnalysisRun *AnalysisRunReference `json:"analysisRun,omitempty"`
	FinishTime  *time.Time            `json:"finishTime,omitempty"`
}

// AnalysisRunReference names an AnalysisRun and its phase.
type AnalysisRunReference struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Phase     string `json:"phase"`
}
