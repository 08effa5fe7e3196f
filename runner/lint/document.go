package lint

import (
	"bytes"
	"cmp"
	"fmt"
	"sort"
	"strings"

	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
)

// taskDocument checks a PromotionTask or ClusterPromotionTask.
func (c *docLinter) taskDocument(spec kargoapi.PromotionTaskSpec) {
	s := &scope{kind: inTask, vars: newVariables()}
	c.variables(spec.Vars, "/spec/vars", s, taskVariable)
	c.steps(spec.Steps, "/spec/steps", s)
}

// stageDocument checks a Stage and its promotion template.
func (c *docLinter) stageDocument(stage *kargoapi.Stage) {
	s := &scope{kind: inStage, vars: newVariables(), subscriptions: c.subscriptions(stage)}
	c.variables(stage.Spec.Vars, "/spec/vars", s, promotionVariable)
	if stage.Spec.PromotionTemplate == nil {
		return // a control flow Stage
	}
	t := stage.Spec.PromotionTemplate.Spec
	c.variables(t.Vars, "/spec/promotionTemplate/spec/vars", s, promotionVariable)
	c.steps(t.Steps, "/spec/promotionTemplate/spec/steps", s)
}

// variables checks a vars list and declares what is in it.
func (c *docLinter) variables(list []kargoapi.Variable, base string, s *scope, where place) {
	s.later = map[string]bool{}
	for _, v := range list {
		s.later[v.Name] = true
	}
	for i, v := range list {
		at := base + load.Pointer(i)
		delete(s.later, v.Name)
		o := c.template(v.Value, at+"/value", s, where)
		if o.version != "" && !o.quoted {
			c.becomesNumber(o.version, at+"/value", v.Name)
		}
		o.quoted = false // its text is typed anew where the variable is used
		s.vars.declare(v, o)
	}
	s.later = nil
}

// steps checks a list of steps, in order.
func (c *docLinter) steps(list []kargoapi.PromotionStep, base string, s *scope) {
	s.list(c.aliases(list))
	for i := range list {
		step, at := &list[i], base+load.Pointer(i)
		s.index, s.alias = i, step.Alias(i)
		c.alias(step, at)
		switch {
		case step.Uses != "":
			c.step(step, at, s)
		case step.Task != nil && s.kind == inStage:
			c.taskReference(step, at, s)
		}
	}
}

// aliases lists what the outputs of the steps are found under.
func (c *docLinter) aliases(list []kargoapi.PromotionStep) []stepAlias {
	out := make([]stepAlias, len(list))
	for i := range list {
		step := &list[i]
		a := stepAlias{name: step.Alias(i), uses: step.Uses, conditional: step.If != "" && !c.alwaysRuns(step.If)}
		if step.Task != nil {
			a.isTask = true
			if d := c.task(c.doc, step.Task); d != nil {
				spec := taskSpec(d)
				a.known = true
				for j := range spec.Steps {
					a.inner = append(a.inner, spec.Steps[j].Alias(j))
					a.composes = a.composes || spec.Steps[j].Uses == "compose-output"
				}
			}
		}
		out[i] = a
	}
	return out
}

func taskSpec(d *load.Document) kargoapi.PromotionTaskSpec {
	switch o := d.Object.(type) {
	case *kargoapi.PromotionTask:
		return o.Spec
	case *kargoapi.ClusterPromotionTask:
		return o.Spec
	}
	return kargoapi.PromotionTaskSpec{}
}

// alias warns about aliases that expressions cannot reach, or that mean more
// than their author may know.
func (c *docLinter) alias(step *kargoapi.PromotionStep, at string) {
	at += "/as"
	if expr.HasCode(step.As) {
		c.report(Warning, "unevaluated", at, "use a fixed alias", "aliases are never evaluated")
	}
	if namespace, _, ok := strings.Cut(step.As, "::"); ok {
		c.report(Warning, "alias", at, "use another separator", "an alias with :: makes Kargo treat the step as part of task %q", namespace)
	}
	switch step.As {
	case "Get", "Set", "ToJSON":
		c.report(Warning, "alias", at, "use another alias", "in Kargo outputs.%s is a method, so the outputs of this step cannot be read", step.As)
	}
}

// taskReference checks a step of a Stage that refers to a task.
func (c *docLinter) taskReference(step *kargoapi.PromotionStep, at string, s *scope) {
	given := map[string]bool{}
	local := s.withVars()
	c.variables(step.Vars, at+"/vars", local, referenceVariable)
	for _, v := range step.Vars {
		given[v.Name] = given[v.Name] || v.Value != ""
	}
	d := c.task(c.doc, step.Task)
	if d == nil {
		if len(c.tasks) > 0 {
			c.report(Warning, "unknown-task", at+"/task/name", c.nearTasks(step.Task), "task %q is not among the given documents", step.Task.Name)
		}
		return
	}
	if u := newUnread(d.Unread); u.names || u.values {
		return // its defaults may be what could not be read
	}
	c.undeclared(step.Vars, at+"/vars", d)
	for _, v := range taskSpec(d).Vars {
		if v.Value == "" && !given[v.Name] && !s.vars.nonEmpty[v.Name] {
			c.report(Error, "admission", at+"/task", "add it to the step's vars, or to those of the Stage",
				"missing value for variable %q of task %q", v.Name, step.Task.Name)
		}
	}
}

// undeclared warns about variables handed to a task that neither declares nor
// uses them: a misspelt name leaves the task's default in place without a word.
func (c *docLinter) undeclared(vars []kargoapi.Variable, at string, task *load.Document) {
	var names []string
	for _, v := range taskSpec(task).Vars {
		names = append(names, v.Name)
	}
	for i, v := range vars {
		if contains(names, v.Name) || bytes.Contains(task.JSON, []byte("vars."+v.Name)) || bytes.Contains(task.JSON, []byte("vars['"+v.Name)) {
			continue
		}
		c.report(Warning, "unknown-variable", at+load.Pointer(i)+"/name", near(v.Name, names), "task %q has no variable %q: the value is not used", task.Name, v.Name)
	}
}

// nearTasks says which task may have been meant.
func (c *docLinter) nearTasks(ref *kargoapi.PromotionTaskReference) string {
	var names, elsewhere []string
	kind := cmp.Or(ref.Kind, kargoapi.KindPromotionTask)
	for k := range c.tasks {
		switch {
		case k.name != ref.Name:
			names = append(names, k.name)
		case k.kind != kind && k.namespace != "" && k.namespace != c.doc.Namespace: // of no use either way
		case k.kind != kind:
			return "there is a " + k.kind + " of that name: write kind: " + k.kind
		default:
			elsewhere = append(elsewhere, fmt.Sprintf("%q", k.namespace))
		}
	}
	if len(elsewhere) > 0 {
		sort.Strings(elsewhere)
		return "one of that name is in namespace " + strings.Join(elsewhere, ", ") + ", where a Stage of another cannot use it"
	}
	sort.Strings(names)
	if near := nearname.Nearest(ref.Name, names, 2); len(near) > 0 {
		return "did you mean " + strings.Join(near, " or ") + "?"
	}
	return ""
}

// step checks a step that runs.
func (c *docLinter) step(step *kargoapi.PromotionStep, at string, s *scope) {
	local := s.withVars()
	c.variables(step.Vars, at+"/vars", local, stepVariable)
	if step.If != "" {
		c.condition(step.If, at+"/if", local)
	}
	c.config(step, at, local)
}
