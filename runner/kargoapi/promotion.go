package kargoapi

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/stepd/stepd/steps"
)

// Variable is one item of any vars list. Its value is always text; it may
// hold expressions.
type Variable struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
}

// PromotionStep is a step as written in a Stage, a task or a Promotion.
type PromotionStep struct {
	// Uses is the kind of step to run; exclusive with Task.
	Uses string `json:"uses,omitempty"`
	// Task refers to a task whose steps take this step's place.
	Task *PromotionTaskReference `json:"task,omitempty"`
	// As is the step's alias.
	As string `json:"as,omitempty"`
	// If is an expression template that must yield a bool.
	If string `json:"if,omitempty"`
	// ContinueOnError is a pointer because admission rules ask for presence.
	ContinueOnError *bool               `json:"continueOnError,omitempty"`
	Retry           *PromotionStepRetry `json:"retry,omitempty"`
	Vars            []Variable          `json:"vars,omitempty"`
	// Config is any JSON; it has to be an object by the time it is evaluated.
	Config json.RawMessage `json:"config,omitempty"`
}

// Continues tells whether a failure of the step leaves the promotion's
// outcome alone.
func (s *PromotionStep) Continues() bool { return s.ContinueOnError != nil && *s.ContinueOnError }

// Alias returns the step's alias: As, or a default made of the zero-based
// index i of the list the step is written in ("step-1", "task-1").
func (s *PromotionStep) Alias(i int) string {
	switch {
	case s.As != "":
		return s.As
	case s.Task != nil:
		return "task-" + strconv.Itoa(i+1)
	}
	return "step-" + strconv.Itoa(i+1)
}

// PromotionTaskReference names a task.
type PromotionTaskReference struct {
	Name string `json:"name"`
	// Kind is PromotionTask (also when empty) or ClusterPromotionTask.
	Kind string `json:"kind,omitempty"`
}

// PromotionStepRetry is a step's own retry policy.
type PromotionStepRetry struct {
	// Timeout counts from the step's first start. Nil leaves it to the step's
	// default; zero and less never time out.
	Timeout *Duration `json:"timeout,omitempty"`
	// ErrorThreshold is how many errors end the step; zero leaves it to the
	// step's default.
	ErrorThreshold uint32 `json:"errorThreshold,omitempty"`
}

// Promotion is a request to bring Freight into a Stage, and its progress.
type Promotion struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata,omitzero"`
	Spec       PromotionSpec   `json:"spec"`
	Status     PromotionStatus `json:"status,omitzero"`
}

// Actor returns who created the Promotion: "email:ada@example.com" in the
// annotation is ada@example.com; anything but two parts is taken as it is.
func (p *Promotion) Actor() string {
	annotation := p.Annotations[AnnotationCreateActor]
	if annotation == ActorUnknown {
		return ""
	}
	if parts := strings.Split(annotation, ":"); len(parts) == 2 {
		return parts[1]
	}
	return annotation
}

// IsRollback tells whether the Promotion is a chosen rollback.
func (p *Promotion) IsRollback() bool { return p.Annotations[AnnotationRollback] == "true" }

// AbortRequested tells whether somebody asked Kargo to stop the Promotion
// (api/v1alpha1/annotations.go, AbortPromotionRequest).
func (p *Promotion) AbortRequested() bool {
	const terminate = "terminate"
	request := p.Annotations[AnnotationAbort]
	if request == terminate {
		return true
	}
	var object struct {
		Action string `json:"action"`
	}
	return json.Unmarshal([]byte(request), &object) == nil && object.Action == terminate
}

// PromotionSpec is what to promote where, and by which steps.
type PromotionSpec struct {
	Stage   string               `json:"stage"`
	Freight string               `json:"freight,omitempty"`
	Origin  *steps.FreightOrigin `json:"origin,omitempty"`
	Vars    []Variable           `json:"vars,omitempty"`
	Steps   []PromotionStep      `json:"steps,omitempty"`
}

// PromotionPhase is how far a Promotion is.
type PromotionPhase string

// Phases; all but Pending and Running are terminal.
const (
	PromotionPending   PromotionPhase = "Pending"
	PromotionRunning   PromotionPhase = "Running"
	PromotionSucceeded PromotionPhase = "Succeeded"
	PromotionFailed    PromotionPhase = "Failed"
	PromotionErrored   PromotionPhase = "Errored"
	PromotionAborted   PromotionPhase = "Aborted"
)

// Terminal tells whether nothing more will happen.
func (p PromotionPhase) Terminal() bool {
	switch p {
	case PromotionSucceeded, PromotionFailed, PromotionErrored, PromotionAborted:
		return true
	}
	return false
}

// PromotionStatus is a Promotion's progress.
type PromotionStatus struct {
	LastHandledRefresh    string                  `json:"lastHandledRefresh,omitempty"`
	Phase                 PromotionPhase          `json:"phase,omitempty"`
	Message               string                  `json:"message,omitempty"`
	Freight               *steps.FreightReference `json:"freight,omitempty"`
	FreightCollection     *FreightCollection      `json:"freightCollection,omitempty"`
	HealthChecks          []HealthCheckStep       `json:"healthChecks,omitempty"`
	StartedAt             *time.Time              `json:"startedAt,omitempty"`
	FinishedAt            *time.Time              `json:"finishedAt,omitempty"`
	CurrentStep           int64                   `json:"currentStep,omitempty"`
	StepExecutionMetadata []StepExecutionMetadata `json:"stepExecutionMetadata,omitempty"`
	// State is an object: alias to output.
	State json.RawMessage `json:"state,omitempty"`
}

// HealthCheckStep is a health check that a step left behind for the Stage.
type HealthCheckStep struct {
	Uses   string          `json:"uses"`
	Config json.RawMessage `json:"config,omitempty"`
}

// StepExecutionMetadata is the record of one step's execution. Expressions
// see it, under its Go field names, as stepMetas['alias'].
type StepExecutionMetadata struct {
	Alias           string       `json:"alias,omitempty"`
	StartedAt       *time.Time   `json:"startedAt,omitempty"`
	FinishedAt      *time.Time   `json:"finishedAt,omitempty"`
	ErrorCount      uint32       `json:"errorCount,omitempty"`
	Status          steps.Status `json:"status,omitempty"`
	Message         string       `json:"message,omitempty"`
	ContinueOnError bool         `json:"continueOnError,omitempty"`
}
