package kargoapi

// PromotionTask is a list of steps that Stages of one project share.
type PromotionTask struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata,omitzero"`
	Spec       PromotionTaskSpec `json:"spec"`
}

// ClusterPromotionTask is a PromotionTask that all projects share.
type ClusterPromotionTask struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata,omitzero"`
	Spec       PromotionTaskSpec `json:"spec"`
}

// PromotionTaskSpec is the content of both kinds of task.
type PromotionTaskSpec struct {
	// Vars declares the task's variables. One without a value is required;
	// one with a value has a default.
	Vars  []Variable      `json:"vars,omitempty"`
	Steps []PromotionStep `json:"steps,omitempty"`
}
