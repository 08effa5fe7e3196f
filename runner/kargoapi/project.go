package kargoapi

import "encoding/json"

// Project is a project; its namespace has the same name.
type Project struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata,omitzero"`
	Status     ProjectStatus `json:"status,omitzero"`
}

// ProjectStatus is a Project's status.
type ProjectStatus struct {
	Conditions []Condition     `json:"conditions,omitempty"`
	Stats      json.RawMessage `json:"stats,omitempty"`
}

// ProjectConfig is a project's configuration. Promotions read nothing of it.
type ProjectConfig struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata,omitzero"`
	Spec       ProjectConfigSpec `json:"spec,omitzero"`
	Status     ConfigStatus      `json:"status,omitzero"`
}

// ProjectConfigSpec is the content of a ProjectConfig.
type ProjectConfigSpec struct {
	PromotionPolicies []PromotionPolicy `json:"promotionPolicies,omitempty"`
	WebhookReceivers  []json.RawMessage `json:"webhookReceivers,omitempty"`
	StageLinks        []Link            `json:"stageLinks,omitempty"`
	FreightLinks      []Link            `json:"freightLinks,omitempty"`
}

// PromotionPolicy governs automatic promotion to Stages.
type PromotionPolicy struct {
	Stage                string                   `json:"stage,omitempty"`
	StageSelector        *PromotionPolicySelector `json:"stageSelector,omitempty"`
	AutoPromotionEnabled bool                     `json:"autoPromotionEnabled,omitempty"`
	AutoRollback         *AutoRollback            `json:"autoRollback,omitempty"`
}

// PromotionPolicySelector selects Stages by name or labels.
type PromotionPolicySelector struct {
	Name          string `json:"name,omitempty"`
	LabelSelector `json:",inline"`
}

// AutoRollback says which outcomes roll a Stage back.
type AutoRollback struct {
	OnPromotion    []string `json:"onPromotion,omitempty"`
	OnVerification []string `json:"onVerification,omitempty"`
}

// Link is a link that the UI shows.
type Link struct {
	Title       string `json:"title"`
	URL         string `json:"url"`
	Description string `json:"description,omitempty"`
	If          string `json:"if,omitempty"`
}

// ClusterConfig is the configuration of a whole Kargo installation.
type ClusterConfig struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata,omitzero"`
	Spec       ClusterConfigSpec `json:"spec,omitzero"`
	Status     ConfigStatus      `json:"status,omitzero"`
}

// ClusterConfigSpec is the content of a ClusterConfig.
type ClusterConfigSpec struct {
	GitClient        *GitClient        `json:"gitClient,omitempty"`
	WebhookReceivers []json.RawMessage `json:"webhookReceivers,omitempty"`
	StageLinks       []Link            `json:"stageLinks,omitempty"`
	FreightLinks     []Link            `json:"freightLinks,omitempty"`
}

// GitClient is the system's git identity.
type GitClient struct {
	Name  string `json:"name"`
	Email string `json:"email"`
	// SigningKeySecret names a Secret in the system namespace whose key
	// signingKey holds the key.
	SigningKeySecret *LocalObjectReference `json:"signingKeySecret,omitempty"`
}

// ConfigStatus is the status of a ProjectConfig or ClusterConfig.
type ConfigStatus struct {
	Conditions         []Condition       `json:"conditions,omitempty"`
	LastHandledRefresh string            `json:"lastHandledRefresh,omitempty"`
	ObservedGeneration int64             `json:"observedGeneration,omitempty"`
	WebhookReceivers   []WebhookReceiver `json:"webhookReceivers,omitempty"`
}

// WebhookReceiver is where a webhook receiver listens.
type WebhookReceiver struct {
	Name string `json:"name,omitempty"`
	Path string `json:"path,omitempty"`
	URL  string `json:"url,omitempty"`
}
