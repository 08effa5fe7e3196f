package lint

import (
	"strings"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
)

// scope is what expressions at one place of a document can see.
type scope struct {
	kind scopeKind
	vars *variables
	// later holds the names of variables declared after this place.
	later map[string]bool
	// aliases are the steps of the list, index and alias the current one.
	aliases []stepAlias
	index   int
	alias   string
	// byName finds the first step of an alias; namespaces are what stands
	// before :: in aliases.
	byName     map[string]int
	namespaces map[string]bool
	// subscriptions are those of the Warehouses a Stage requests Freight of;
	// nil if not all of them are among the documents.
	subscriptions []kargoapi.Subscription
}

type scopeKind int

const (
	// inTask is a task by itself: who uses it, and with which variables, is
	// not known.
	inTask scopeKind = iota
	inStage
)

// list makes steps those of the scope.
func (s *scope) list(steps []stepAlias) {
	s.aliases, s.byName, s.namespaces = steps, map[string]int{}, map[string]bool{}
	for i, a := range steps {
		if _, again := s.byName[a.name]; !again {
			s.byName[a.name] = i
		}
		if namespace, _, ok := strings.Cut(a.name, "::"); ok {
			s.namespaces[namespace] = true
		}
	}
}

// names are the aliases of all steps.
func (s *scope) names() []string {
	names := make([]string, len(s.aliases))
	for i, a := range s.aliases {
		names[i] = a.name
	}
	return names
}

// withVars returns a copy whose variables can be added to.
func (s *scope) withVars() *scope {
	c := *s
	c.vars = s.vars.clone()
	return &c
}

// stepAlias is where the outputs of a step are found.
type stepAlias struct {
	name string
	// uses is the kind of step; empty for a reference to a task.
	uses string
	// isTask is set for a reference to a task; known if the task is among the
	// documents, and then inner are its steps and composes tells whether it
	// has outputs of its own.
	isTask, known, composes bool
	inner                   []string
	// conditional is set for a step with an `if` of its own, by which it may be
	// skipped.
	conditional bool
}

// variables are those declared so far.
type variables struct {
	// origin says what kind of text a variable holds.
	origin map[string]origin
	// nonEmpty holds those with a value; required those of a task without one.
	nonEmpty, required map[string]bool
	names              []string
	// literal holds the values of variables without expressions.
	literal map[string]string
}

func newVariables() *variables {
	return &variables{origin: map[string]origin{}, nonEmpty: map[string]bool{}, required: map[string]bool{}, literal: map[string]string{}}
}

func (v *variables) declare(x kargoapi.Variable, o origin) {
	if _, again := v.origin[x.Name]; !again {
		v.names = append(v.names, x.Name)
	}
	v.origin[x.Name] = o
	delete(v.literal, x.Name)
	if !expr.HasCode(x.Value) {
		v.literal[x.Name] = x.Value
	}
	v.nonEmpty[x.Name] = x.Value != ""
	v.required[x.Name] = x.Value == ""
}

func (v *variables) clone() *variables {
	c := newVariables()
	for k, x := range v.origin {
		c.origin[k] = x
	}
	for k, x := range v.nonEmpty {
		c.nonEmpty[k] = x
	}
	for k, x := range v.required {
		c.required[k] = x
	}
	for k, x := range v.literal {
		c.literal[k] = x
	}
	c.names = append(c.names, v.names...)
	return c
}

// origin is what is known of the value of a variable or expression.
type origin struct {
	// version is set for tags, versions and commit ids: text that may look like
	// a number. It names the source, "imageFrom(…).Tag".
	version string
	// quoted tells that quote() keeps it text.
	quoted bool
	// object is set for the result of a *From() function: "imageFrom".
	object string
}
