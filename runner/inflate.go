package runner

import (
	"fmt"
	"strconv"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
)

// Task is a task that a step refers to.
type Task struct {
	Spec kargoapi.PromotionTaskSpec
	// Document is where the task was written; may be nil.
	Document *load.Document
}

// MissingVariableError says that nobody gives a value to a variable that a
// task requires.
type MissingVariableError struct{ Name string }

// Error implements error in Kargo's words.
func (e *MissingVariableError) Error() string {
	return fmt.Sprintf("missing value for variable %q", e.Name)
}

// TaskLookup finds the task of a kind (kargoapi.KindPromotionTask or
// KindClusterPromotionTask) and name. The error of a task that is not there
// should be a *NotFoundError.
type TaskLookup func(kind, name string) (*Task, error)

// Inflate replaces every step that refers to a task by the task's steps, and
// gives every step an alias (pkg/api/promotion.go). Variables are laid out in
// the order in which later ones win but not evaluated. vars are the
// promotion's own: they hide a task's defaults.
func Inflate(template []Step, vars []kargoapi.Variable, lookup TaskLookup) ([]Step, error) {
	given := namesWithValue(vars)
	inflated := make([]Step, 0, len(template))
	for i, s := range template {
		alias := s.Alias(i)
		if s.Task == nil {
			s.As = alias
			inflated = append(inflated, s)
			continue
		}
		taskSteps, err := inflateTask(s, alias, given, lookup)
		if err != nil {
			return nil, fmt.Errorf("inflate task steps for task %q (%q): %w", s.Task.Name, alias, err)
		}
		inflated = append(inflated, taskSteps...)
	}
	return inflated, nil
}

func inflateTask(ref Step, alias string, given map[string]bool, lookup TaskLookup) ([]Step, error) {
	kind := ref.Task.Kind
	switch kind {
	case "":
		kind = kargoapi.KindPromotionTask
	case kargoapi.KindPromotionTask, kargoapi.KindClusterPromotionTask:
	default:
		return nil, fmt.Errorf("unknown task reference kind %q", kind)
	}
	task, err := lookup(kind, ref.Task.Name)
	if err != nil {
		return nil, err
	}
	base, err := taskVars(task.Spec.Vars, ref.Vars, given)
	if err != nil {
		return nil, err
	}
	out := make([]Step, len(task.Spec.Steps))
	for j, s := range task.Spec.Steps {
		if s.As == "" {
			s.As = "step-" + strconv.Itoa(j+1)
		}
		s.As = alias + "::" + s.As
		// A fresh slice per step: Kargo shares one, so that the own vars of one
		// step can overwrite those of another.
		s.Vars = append(append(make([]kargoapi.Variable, 0, len(base)+len(s.Vars)), base...), s.Vars...)
		out[j] = Step{PromotionStep: s, Document: task.Document, Pointer: load.Pointer("spec", "steps", j)}
	}
	return out, nil
}

// taskVars returns what every step of a task starts with: the defaults that no
// promotion variable hides, then everything the reference passes.
func taskVars(declared, passed []kargoapi.Variable, given map[string]bool) ([]kargoapi.Variable, error) {
	byRef := namesWithValue(passed)
	var base []kargoapi.Variable
	for _, v := range declared {
		switch {
		case given[v.Name]:
		case v.Value != "":
			base = append(base, v)
		case !byRef[v.Name]:
			return nil, &MissingVariableError{v.Name}
		}
	}
	return append(base, passed...), nil
}

func namesWithValue(vars []kargoapi.Variable) map[string]bool {
	names := make(map[string]bool, len(vars))
	for _, v := range vars {
		if v.Value != "" {
			names[v.Name] = true
		}
	}
	return names
}
