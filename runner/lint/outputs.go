package lint

import (
	"encoding/json"
	"sort"
	"strings"

	"github.com/expr-lang/expr/ast"
)

// outputSchema is what is looked at of the schema of a step's output.
type outputSchema struct {
	Properties map[string]*outputSchema `json:"properties"`
	// Closed is false where the schema forbids other properties, nil where it does
	// not say.
	Closed json.RawMessage `json:"additionalProperties"`

	Ref   string                   `json:"$ref"`
	AnyOf []*outputSchema          `json:"anyOf"`
	OneOf []*outputSchema          `json:"oneOf"`
	Defs  map[string]*outputSchema `json:"$defs"`
}

// at is the schema of a member; nil if nothing is known of it. The only
// alternative with members is the one that is meant: the other is null.
func (root *outputSchema) at(s *outputSchema, name string) *outputSchema {
	member := root.resolved(s.Properties[name])
	if member == nil {
		return nil
	}
	for _, a := range append(member.AnyOf, member.OneOf...) {
		a = root.resolved(a)
		if a == nil || len(a.Properties) == 0 {
			continue
		}
		if len(member.Properties) > 0 {
			return nil
		}
		member = a
	}
	return member
}

func (root *outputSchema) resolved(s *outputSchema) *outputSchema {
	if s == nil || s.Ref == "" {
		return s
	}
	name, _ := strings.CutPrefix(s.Ref, "#/$defs/")
	return root.Defs[name]
}

// outputMember finds outputs.x.y where the step x has no output y: it is null.
func (w *walker) outputMember(n *ast.MemberNode, name string) {
	i, path, ok := w.outputOf(n.Node)
	if !ok || name == "" || w.where == taskVariable || w.where == referenceVariable {
		return
	}
	step := w.scope.aliases[i]
	root := w.output(step.uses)
	schema := root
	for _, p := range path {
		if schema != nil {
			schema = root.at(schema, p)
		}
	}
	if schema == nil || len(schema.Properties) == 0 || schema.Properties[name] != nil {
		return
	}
	sev := Warning // a newer Kargo may have it
	switch string(schema.Closed) {
	case "false":
		if w.optional == 0 && !n.Optional {
			sev = Error
		}
	case "":
	default:
		return
	}
	names := make([]string, 0, len(schema.Properties))
	for p := range schema.Properties {
		names = append(names, p)
	}
	sort.Strings(names)
	remedy := near(name, names)
	if remedy == "" {
		remedy = "it has " + strings.Join(names, ", ")
	}
	w.report(n, sev, "unknown-output", remedy, "step %q (%s) has no output %s: it is null", step.name, step.uses, strings.Join(append(path, name), "."))
}

// outputOf resolves outputs.alias.a.b to the step, by its place, and the names
// behind it.
func (w *walker) outputOf(n ast.Node) (step int, path []string, ok bool) {
	m, ok := unchain(n).(*ast.MemberNode)
	if !ok || property(m) == "" {
		return 0, nil, false
	}
	name, s := property(m), w.scope
	if s.kind == inStage && identifierName(m.Node) == "outputs" && !contains(w.locals, "outputs") || s.kind == inTask && isTaskOutputs(m.Node) {
		step, ok = s.byName[name]
		return step, nil, ok && !s.aliases[step].isTask
	}
	step, path, ok = w.outputOf(m.Node)
	return step, append(path, name), ok
}

// output is the output schema of a kind of step; nil if it is not known.
func (c *docLinter) output(kind string) *outputSchema {
	if s, ok := c.outputs[kind]; ok {
		return s
	}
	var s *outputSchema
	if reg, ok := c.Registry.Lookup(kind); ok && len(reg.OutputSchema) > 0 {
		s = &outputSchema{}
		if err := json.Unmarshal(reg.OutputSchema, s); err != nil {
			s = nil // a schema in a form that says nothing here
		}
	}
	c.outputs[kind] = s
	return s
}
