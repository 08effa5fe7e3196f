package runner

import (
	"time"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// Promotion is everything the engine has to know of one promotion.
type Promotion struct {
	Project   string
	Stage     string
	Name      string
	Actor     string
	Rollback  bool
	UIBaseURL string
	// WorkDir is an existing absolute directory.
	WorkDir string

	// Vars are the promotion's variables, in order; see Inflate.
	Vars []kargoapi.Variable
	// Steps are inflated: each has an alias and none refers to a task.
	Steps []Step

	FreightRequests    []kargoapi.FreightRequest
	Freight            steps.FreightCollection
	TargetFreight      steps.FreightReference
	TargetFreightAlias string

	// StartFrom is the index of the first step to look at. With StepMetadata
	// and State it continues an earlier pass.
	StartFrom    int
	StepMetadata []kargoapi.StepExecutionMetadata
	// State maps an alias to the step's output.
	State        map[string]any
	HealthChecks []steps.HealthCheck

	// errs continues the step errors of earlier passes in this process.
	errs map[string]error
}

// Step is an inflated step and where it was written.
type Step struct {
	kargoapi.PromotionStep
	// Document is the document the step was written in: the task's, for a step
	// that came out of a task. Nil if it was not loaded from a document.
	Document *load.Document
	// Pointer is the JSON pointer of the step in Document.
	Pointer string
}

// Position returns where a part of the step was written, given as a JSON
// pointer relative to the step, such as "/config/path".
func (s *Step) Position(pointer string) load.Position {
	if s.Document == nil {
		return load.Position{}
	}
	return s.Document.Position(s.Pointer + pointer)
}

// Outcome is where a promotion stands after the engine worked on it.
type Outcome struct {
	Phase   kargoapi.PromotionPhase
	Message string
	// Steps has one entry per step that was reached, in order.
	Steps []StepOutcome
	// State maps an alias to the step's output. It is JSON-shaped: nil, bool,
	// float64, string, []any and map[string]any.
	State        map[string]any
	StepMetadata []kargoapi.StepExecutionMetadata
	HealthChecks []steps.HealthCheck
	// CurrentStep is the index to start from in the next pass.
	CurrentStep int
	// RetryAfter, in phase Running, is when the step that is not finished asks
	// to be called again; nil leaves it to the caller.
	RetryAfter *time.Duration

	errs map[string]error
}

// StepOutcome is what is known of one step.
type StepOutcome struct {
	Alias  string
	Uses   string
	Status steps.Status
	// Message is Kargo's wording of the outcome.
	Message string
	// StartedAt and FinishedAt are nil where Kargo leaves them unset, as for a
	// step that was skipped.
	StartedAt  *time.Time
	FinishedAt *time.Time
	ErrorCount uint32
	// Output is nil if the step did not run or returned none.
	Output map[string]any
	// Err is the error of the last attempt in this process, for errors.Is and
	// errors.As; nil if there was none.
	Err error
	// Hints are remarks for the user beside Kargo's Message: where in which file
	// a violation is, names that may have been meant.
	Hints []string
}

// Observer is told what happens while it happens. Its methods are called one
// at a time, from the goroutine that runs the engine.
type Observer interface {
	// StepStarted is called before each attempt to run a step.
	StepStarted(index int, step *Step)
	// StepFinished is called once a step is over: it has run, was skipped, or
	// could not be run.
	StepFinished(index int, step *Step, outcome StepOutcome)
	// StepWaiting is called when an attempt ended and there will be another.
	StepWaiting(index int, step *Step, outcome StepOutcome, wait time.Duration)
}
