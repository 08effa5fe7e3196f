package kargoapi

import (
	"encoding/json"
	"time"

	"github.com/stepd/stepd/steps"
)

// Stage is a place Freight is promoted to.
type Stage struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata,omitzero"`
	Spec       StageSpec   `json:"spec"`
	Status     StageStatus `json:"status,omitzero"`
}

// StageSpec says what a Stage accepts and how it promotes.
type StageSpec struct {
	Shard             string             `json:"shard,omitempty"`
	Vars              []Variable         `json:"vars,omitempty"`
	RequestedFreight  []FreightRequest   `json:"requestedFreight,omitempty"`
	PromotionTemplate *PromotionTemplate `json:"promotionTemplate,omitempty"`
	Verification      *Verification      `json:"verification,omitempty"`
}

// FreightRequest asks for the Freight of one origin.
type FreightRequest struct {
	Origin  steps.FreightOrigin `json:"origin"`
	Sources FreightSources      `json:"sources,omitzero"`
}

// FreightSources says where requested Freight may come from.
type FreightSources struct {
	Direct               bool                  `json:"direct,omitempty"`
	Stages               []string              `json:"stages,omitempty"`
	RequiredSoakTime     *Duration             `json:"requiredSoakTime,omitempty"`
	AvailabilityStrategy string                `json:"availabilityStrategy,omitempty"`
	AutoPromotionOptions *AutoPromotionOptions `json:"autoPromotionOptions,omitempty"`
}

// AutoPromotionOptions refine automatic promotion.
type AutoPromotionOptions struct {
	SelectionPolicy string `json:"selectionPolicy,omitempty"`
}

// PromotionTemplate is what a Stage's Promotions are made from.
type PromotionTemplate struct {
	Spec PromotionTemplateSpec `json:"spec"`
}

// PromotionTemplateSpec is the content of a PromotionTemplate.
type PromotionTemplateSpec struct {
	Vars  []Variable      `json:"vars,omitempty"`
	Steps []PromotionStep `json:"steps,omitempty"`
}

// Verification says how Freight is verified after a promotion.
type Verification struct {
	AnalysisTemplates   []AnalysisTemplateReference `json:"analysisTemplates,omitempty"`
	AnalysisRunMetadata *AnalysisRunMetadata        `json:"analysisRunMetadata,omitempty"`
	Args                []AnalysisRunArgument       `json:"args,omitempty"`
}

// AnalysisTemplateReference names an AnalysisTemplate.
type AnalysisTemplateReference struct {
	Name string `json:"name"`
	Kind string `json:"kind,omitempty"`
}

// AnalysisRunMetadata is put on AnalysisRuns.
type AnalysisRunMetadata struct {
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// AnalysisRunArgument is an argument of an AnalysisRun.
type AnalysisRunArgument struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// StageStatus is a Stage's status.
type StageStatus struct {
	Conditions                  []Condition                  `json:"conditions,omitempty"`
	LastHandledRefresh          string                       `json:"lastHandledRefresh,omitempty"`
	FreightHistory              []*FreightCollection         `json:"freightHistory,omitempty"`
	FreightSummary              string                       `json:"freightSummary,omitempty"`
	Health                      *Health                      `json:"health,omitempty"`
	ObservedGeneration          int64                        `json:"observedGeneration,omitempty"`
	CurrentPromotion            *PromotionReference          `json:"currentPromotion,omitempty"`
	LastPromotion               *PromotionReference          `json:"lastPromotion,omitempty"`
	AutoPromotionEnabled        bool                         `json:"autoPromotionEnabled,omitempty"`
	AutoPromotionHolds          map[string]AutoPromotionHold `json:"autoPromotionHolds,omitempty"`
	EffectiveAutoPromotionHolds map[string]AutoPromotionHold `json:"effectiveAutoPromotionHolds,omitempty"`
	// Metadata is what stageMetadata() reads and set-metadata writes.
	Metadata map[string]json.RawMessage `json:"metadata,omitempty"`
}

// AutoPromotionHold stops automatic promotion from one origin.
type AutoPromotionHold struct {
	Origin        steps.FreightOrigin `json:"origin"`
	FreightName   string              `json:"freightName"`
	PromotionName string              `json:"promotionName,omitempty"`
	Actor         string              `json:"actor,omitempty"`
	CreatedAt     *time.Time          `json:"createdAt,omitempty"`
}

// Health is a Stage's health.
type Health struct {
	Status string          `json:"status,omitempty"`
	Issues []string        `json:"issues,omitempty"`
	Config json.RawMessage `json:"config,omitempty"`
	Output json.RawMessage `json:"output,omitempty"`
}

// PromotionReference is a Promotion as a Stage remembers it.
type PromotionReference struct {
	Name       string                  `json:"name"`
	Freight    *steps.FreightReference `json:"freight,omitempty"`
	Status     *PromotionStatus        `json:"status,omitempty"`
	FinishedAt *time.Time              `json:"finishedAt,omitempty"`
}
