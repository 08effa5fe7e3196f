package runner

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// Admit returns why Kargo would refuse a Stage, PromotionTask,
// ClusterPromotionTask, Promotion or Freight when it is applied: the rules of the CRDs
// (patterns, CEL) and of the validating webhooks, as far as they matter to a
// promotion. Documents of other kinds are accepted.
func Admit(d *load.Document) load.Errors {
	a := &admission{doc: d}
	switch o := d.Object.(type) {
	case *kargoapi.Stage:
		a.stage(o)
	case *kargoapi.PromotionTask:
		a.name(o.Name)
		a.task(o.Spec)
	case *kargoapi.ClusterPromotionTask:
		a.name(o.Name)
		a.task(o.Spec)
	case *kargoapi.Promotion:
		// Having neither is left to whoever runs it: there may be one Freight only.
		if o.Spec.Freight != "" && o.Spec.Origin != nil {
			a.refuse("/spec/origin", "leave it out: the Freight is named", "exactly one of freight or origin must be set")
		}
	case *kargoapi.Freight:
		a.name(o.Name)
		a.origin("/origin", o.Origin)
	}
	return a.errs
}

type admission struct {
	doc  *load.Document
	errs load.Errors
}

func (a *admission) refuse(pointer, remedy, format string, args ...any) {
	a.errs = append(a.errs, &load.Error{
		Position: a.doc.Position(pointer), Pointer: pointer, Message: fmt.Sprintf(format, args...), Remedy: remedy,
	})
}

var (
	variableName = regexp.MustCompile(`^[a-zA-Z_]\w*$`)
	resourceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	// reservedAlias matches the aliases that steps get by default.
	reservedAlias = regexp.MustCompile(`^(step|task)-\d+$`)
)

func (a *admission) name(name string) {
	if name == "" {
		a.refuse("/metadata", "", "metadata.name is required")
	}
}

func (a *admission) stage(s *kargoapi.Stage) {
	a.name(s.Name)
	a.vars("/spec/vars", s.Spec.Vars)
	if len(s.Spec.RequestedFreight) == 0 {
		a.refuse("/spec/requestedFreight", "", "a Stage must request Freight from at least one origin")
	}
	seen := map[steps.FreightOrigin]bool{}
	for i, r := range s.Spec.RequestedFreight {
		at := load.Pointer("spec", "requestedFreight", i, "origin")
		a.origin(at, r.Origin)
		if seen[r.Origin] {
			a.refuse(at, "", "freight with origin %s requested multiple times", r.Origin)
		}
		seen[r.Origin] = true
	}
	if s.Spec.PromotionTemplate == nil {
		return
	}
	t := s.Spec.PromotionTemplate.Spec
	a.vars("/spec/promotionTemplate/spec/vars", t.Vars)
	const at = "/spec/promotionTemplate/spec/steps"
	a.aliases(at, t.Steps)
	for i, step := range t.Steps {
		a.step(at+load.Pointer(i), step)
		a.templateStep(at+load.Pointer(i), step)
	}
}

func (a *admission) origin(at string, o steps.FreightOrigin) {
	switch {
	case o.Kind != kargoapi.KindWarehouse:
		a.refuse(at, "", "origin.kind must be %q, not %q", kargoapi.KindWarehouse, o.Kind)
	case o.Name == "":
		a.refuse(at, "", "origin.name is required")
	}
}

func (a *admission) task(spec kargoapi.PromotionTaskSpec) {
	a.vars("/spec/vars", spec.Vars)
	if len(spec.Steps) == 0 {
		a.refuse("/spec/steps", "", "a task must have at least one step")
	}
	a.aliases("/spec/steps", spec.Steps)
	for i, step := range spec.Steps {
		at := load.Pointer("spec", "steps", i)
		a.step(at, step)
		if step.Uses == "" || step.Task != nil {
			a.refuse(at, "tasks cannot be nested",
				"PromotionTask step must have uses set and must not reference another task")
		}
	}
}

// step checks what holds for a step anywhere.
func (a *admission) step(at string, s kargoapi.PromotionStep) {
	a.vars(at+"/vars", s.Vars)
	if s.Task != nil {
		if len(s.Task.Name) > 253 || !resourceName.MatchString(s.Task.Name) {
			a.refuse(at+"/task/name", "", "task.name %q is not a resource name", s.Task.Name)
		}
		switch s.Task.Kind {
		case "", kargoapi.KindPromotionTask, kargoapi.KindClusterPromotionTask:
		default:
			a.refuse(at+"/task/kind", "", "task.kind must be %s or %s, not %q",
				kargoapi.KindPromotionTask, kargoapi.KindClusterPromotionTask, s.Task.Kind)
		}
	}
}

// templateStep checks what holds for a step of a Stage: it may refer to a
// task, and then carries nothing but an alias and variables.
func (a *admission) templateStep(at string, s kargoapi.PromotionStep) {
	if (s.Uses != "") == (s.Task != nil) {
		a.refuse(at, "", "PromotionTemplate step must have exactly one of uses or task set")
		return
	}
	if s.Task == nil {
		return
	}
	const remedy = "put it on the steps of the task"
	if s.ContinueOnError != nil {
		a.refuse(at+"/continueOnError", remedy, "PromotionTemplate step referencing a task cannot set continueOnError")
	}
	if s.Retry != nil {
		a.refuse(at+"/retry", remedy, "PromotionTemplate step referencing a task cannot set retry")
	}
	if s.If != "" {
		a.refuse(at+"/if", remedy, "PromotionTemplate step referencing a task cannot set if")
	}
	if len(s.Config) > 0 && string(s.Config) != "null" {
		a.refuse(at+"/config", "pass values as vars", "PromotionTemplate step referencing a task cannot set config")
	}
}

func (a *admission) vars(at string, vars []kargoapi.Variable) {
	for i, v := range vars {
		if !variableName.MatchString(v.Name) {
			a.refuse(at+load.Pointer(i, "name"), "use letters, digits and _, not starting with a digit",
				"%q is not a variable name", v.Name)
		}
	}
}

func (a *admission) aliases(at string, list []kargoapi.PromotionStep) {
	first := map[string]int{}
	for i, s := range list {
		alias := strings.TrimSpace(s.As)
		if alias == "" {
			continue
		}
		if j, dup := first[alias]; dup {
			a.refuse(at+load.Pointer(i, "as"), "", "step alias %q duplicates that of step %d", alias, j+1)
			continue
		}
		first[alias] = i
		if reservedAlias.MatchString(alias) {
			a.refuse(at+load.Pointer(i, "as"), "choose a name that is not step-N or task-N", "step alias %q is reserved", alias)
		}
	}
}
