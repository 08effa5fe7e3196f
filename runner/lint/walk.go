package lint

import (
	"fmt"
	"sort"
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"

	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
)

// walker checks one expression's names.
type walker struct {
	*docLinter
	scope *scope
	where place
	// at and text are the template's, offset where the expression starts in it.
	at, text string
	offset   int
	// locals are names bound by let.
	locals []string
	// optional is how many ?. or ?? surround the node.
	optional int
	// guarded tells that the expression may look before it leaps.
	guarded bool
}

func (w *walker) report(n ast.Node, sev Severity, rule, remedy, format string, args ...any) {
	offset := w.offset
	if rest := w.text[min(w.offset, len(w.text)):]; n != nil {
		offset += byteOffset(rest, n.Location().From)
	}
	w.reportAt(sev, rule, w.doc.TextPosition(w.at, offset), w.at, remedy, format, args...)
}

func (w *walker) walk(n ast.Node) {
	switch n := n.(type) {
	case nil:
	case *ast.IdentifierNode:
		w.identifier(n)
	case *ast.MemberNode:
		w.member(n)
	case *ast.ChainNode:
		w.walk(n.Node)
	case *ast.CallNode:
		w.call(n)
	case *ast.BinaryNode:
		w.binary(n)
	case *ast.VariableDeclaratorNode:
		w.walk(n.Value)
		w.locals = append(w.locals, n.Name)
		w.walk(n.Expr)
		w.locals = w.locals[:len(w.locals)-1]
	default:
		for _, child := range children(n) {
			w.walk(child)
		}
	}
}

func children(n ast.Node) []ast.Node {
	switch n := n.(type) {
	case *ast.UnaryNode:
		return []ast.Node{n.Node}
	case *ast.SliceNode:
		return []ast.Node{n.Node, orNil(n.From), orNil(n.To)}
	case *ast.BuiltinNode:
		return n.Arguments
	case *ast.PredicateNode:
		return []ast.Node{n.Node}
	case *ast.ConditionalNode:
		return []ast.Node{n.Cond, n.Exp1, n.Exp2}
	case *ast.SequenceNode:
		return n.Nodes
	case *ast.ArrayNode:
		return n.Nodes
	case *ast.MapNode:
		return n.Pairs
	case *ast.PairNode:
		return []ast.Node{n.Key, n.Value}
	}
	return nil
}

// orNil keeps an absent node from being a typed nil.
func orNil(n ast.Node) ast.Node {
	if n == nil {
		return nil
	}
	return n
}

// roots are the names an expression can begin with.
func (w *walker) roots() []string {
	if w.where == promotionVariable {
		return []string{"ctx", "vars"}
	}
	if w.hasTask() {
		return []string{"ctx", "vars", "outputs", "stepMetas", "task"}
	}
	return []string{"ctx", "vars", "outputs", "stepMetas"}
}

// hasTask tells whether task.outputs is available: in tasks, and in steps whose
// alias looks like that of one.
func (w *walker) hasTask() bool {
	return w.scope.kind == inTask || w.where == referenceVariable || strings.Count(w.scope.alias, "::") == 1
}

func (w *walker) identifier(n *ast.IdentifierNode) {
	name := n.Value
	for _, known := range append(w.roots(), w.locals...) {
		if name == known {
			return
		}
	}
	switch name {
	case "null", "$env", "nil":
		return
	case "outputs", "stepMetas":
		w.report(n, Error, "unknown-variable", "use it in the step's own vars, if or config", "%s is not available in promotion variables: it is null here", name)
	case "task":
		w.report(n, Error, "unknown-variable", "use outputs['<alias>']", "task is only available to the steps of a task: it is null here")
	case "secrets":
		w.report(n, Error, "unknown-variable", "use secret('<name>').<key>", "there is no variable secrets: it is null")
	case "freight":
		w.report(n, Error, "unknown-variable", "use imageFrom(), commitFrom(), chartFrom() or ctx.targetFreight", "there is no variable freight: it is null")
	case "target":
		w.report(n, Warning, "unknown-variable", "", "target is null in Kargo %s", kargoVersion)
	case "true", "false":
	default:
		remedy := near(name, append(w.roots(), functionNames(w.where.statusFunctions())...))
		if contains(functionNames(w.where.statusFunctions()), name) {
			remedy = "call the function: " + name + "()"
		}
		if contains(w.scope.vars.names, name) {
			remedy = "write vars." + name
		}
		switch {
		case isExpression(w.at):
			remedy = undelimited
		case remedy == "":
			remedy = "text needs quotes: '" + name + "'"
		}
		w.report(n, Error, "unknown-variable", remedy, "there is no variable %s: it is null", name)
	}
}

// kargoVersion is the release whose language is checked.
const kargoVersion = "v1.11.2"

func (w *walker) binary(n *ast.BinaryNode) {
	if n.Operator == "??" {
		w.optional++
		w.walk(n.Left)
		w.optional--
		w.walk(n.Right)
		return
	}
	if n.Operator == "-" {
		if w.hyphenated(n) {
			return
		}
	}
	if n.Operator == "==" || n.Operator == "!=" {
		for _, side := range [][2]ast.Node{{n.Left, n.Right}, {n.Right, n.Left}} {
			if _, ok := side[1].(*ast.StringNode); ok && isStepStatus(side[0]) {
				w.report(n, Warning, "always-null", "write status('<alias>') or string(stepMetas['<alias>'].Status)",
					"in Kargo a step's Status is never equal to a string, so this comparison does not do what it says")
			}
		}
	}
	w.walk(n.Left)
	w.walk(n.Right)
}

func isStepStatus(n ast.Node) bool {
	m, ok := unchain(n).(*ast.MemberNode)
	if !ok || property(m) != "Status" {
		return false
	}
	inner, ok := unchain(m.Node).(*ast.MemberNode)
	return ok && identifierName(inner.Node) == "stepMetas"
}

// hyphenated recognises outputs.my-step, which is a subtraction, and says so.
func (w *walker) hyphenated(n *ast.BinaryNode) bool {
	var tail func(ast.Node) (string, bool)
	tail = func(x ast.Node) (string, bool) {
		switch x := unchain(x).(type) {
		case *ast.IdentifierNode:
			return x.Value, true
		case *ast.MemberNode:
			return tail(x.Node)
		case *ast.BinaryNode:
			if x.Operator == "-" {
				l, ok1 := tail(x.Left)
				r, ok2 := tail(x.Right)
				return l + "-" + r, ok1 && ok2
			}
		}
		return "", false
	}
	m, ok := unchain(leftmost(n)).(*ast.MemberNode)
	if !ok {
		return false
	}
	first := property(m)
	holder := identifierName(m.Node)
	switch {
	case holder == "outputs", holder == "stepMetas":
	case isTaskOutputs(m.Node):
		holder = "task.outputs"
	default:
		return false
	}
	var rest []string
	for x := ast.Node(n); ; {
		b, ok := unchain(x).(*ast.BinaryNode)
		if !ok || b.Operator != "-" {
			break
		}
		part, ok := tail(b.Right)
		if !ok {
			return false
		}
		rest = append([]string{part}, rest...)
		x = b.Left
	}
	alias := first + "-" + strings.Join(rest, "-")
	for _, a := range w.scope.aliases {
		if a.name == alias {
			w.report(m, Error, "unknown-output", fmt.Sprintf("write %s['%s']", holder, alias), "%s.%s is a subtraction", holder, alias)
			return true
		}
	}
	return false
}

func leftmost(n ast.Node) ast.Node {
	for {
		b, ok := unchain(n).(*ast.BinaryNode)
		if !ok {
			return n
		}
		n = b.Left
	}
}

func (w *walker) call(n *ast.CallNode) {
	if name := identifierName(n.Callee); name != "" {
		if name == "status" && len(n.Arguments) == 1 {
			if s, ok := n.Arguments[0].(*ast.StringNode); ok {
				w.stepReference(n, "status", s.Value)
			}
		}
		switch {
		case contains(w.locals, name) || contains(functionNames(w.where.statusFunctions()), name):
		case contains(functionNames(true), name):
			w.report(n, Error, "expression", "use it in `if` or `config`", "%s() is not available in variables", name)
		default:
			w.report(n, Error, "expression", near(name, functionNames(w.where.statusFunctions())), "there is no function %s", name)
		}
		w.freight(n, name)
	} else {
		w.walk(n.Callee)
	}
	for _, a := range n.Arguments {
		w.walk(a)
	}
}

func (w *walker) member(n *ast.MemberNode) {
	if _, ok := n.Property.(*ast.StringNode); !ok {
		w.walk(n.Property)
	}
	name := property(n)
	switch root := identifierName(n.Node); {
	case contains(w.locals, root):
	case root == "vars" && name != "":
		w.variable(n, name)
	case (root == "outputs" || root == "stepMetas") && name != "" && w.where != promotionVariable:
		w.stepReferenceIf(n, root, name)
	case root == "task" && name != "" && name != "outputs" && w.scope.kind == inTask:
		w.report(n, Error, "unknown-variable", "write task.outputs."+name, "task has nothing but outputs")
	case isTaskOutputs(n.Node) && name != "" && w.scope.kind == inTask:
		w.stepReferenceIf(n, "task.outputs", name)
	}
	w.context(n)
	w.structMember(n, name)
	w.outputMember(n, name)
	w.maybeSkipped(n)
	if n.Optional {
		w.optional++
		w.walk(n.Node)
		w.optional--
		return
	}
	w.walk(n.Node)
}

// structMember finds vars.img.Tag where img holds imageFrom(…): in a variable
// the keys are those of JSON (compat.md 3.5).
func (w *walker) structMember(n *ast.MemberNode, name string) {
	m, ok := unchain(n.Node).(*ast.MemberNode)
	if !ok || identifierName(m.Node) != "vars" {
		return
	}
	o := w.scope.vars.origin[property(m)]
	if want, ok := jsonNames[o.object][name]; ok && want != name {
		w.report(n, Error, "always-null", "write vars."+property(m)+"."+want,
			"vars.%s.%s is null: in a variable the result of %s() has JSON keys", property(m), name, o.object)
	}
}

// jsonNames maps Go field names to JSON keys of what functions return. The
// result of artifactFrom keeps its names in a variable (compat.md 12).
var jsonNames = map[string]map[string]string{ //nolint:gochecknoglobals // constant table
	"imageFrom":  {"RepoURL": "repoURL", "Tag": "tag", "Digest": "digest", "Annotations": "annotations"},
	"commitFrom": {"RepoURL": "repoURL", "ID": "id", "Branch": "branch", "Tag": "tag", "Message": "message", "Author": "author", "Committer": "committer"},
	"chartFrom":  {"RepoURL": "repoURL", "Name": "name", "Version": "version"},
}

func (w *walker) variable(n *ast.MemberNode, name string) {
	vars := w.scope.vars
	if _, ok := vars.origin[name]; ok {
		if w.where == taskVariable && vars.required[name] && !w.givenByStages(name) {
			w.report(n, Warning, "variable-order", "give it among the vars of the Stage or its promotion template, or compute this value in the steps",
				"vars.%s is null here when the step that refers to the task gives it: those variables are evaluated after the task's defaults", name)
		}
		return
	}
	switch {
	case w.where == taskVariable && w.scope.later[name] && w.givenByStages(name), w.givenByReferences(name):
	case w.scope.later[name]:
		w.report(n, Error, "variable-order", "move its declaration up", "vars.%s is declared later: it is null here", name)
	case w.optional > 0:
	case w.scope.kind == inTask && near(name, vars.names) == "":
		w.report(n, Warning, "unknown-variable", "declare it in spec.vars, so that using the task without it is an error",
			"vars.%s is not declared by the task: it is null unless the Stage has it", name)
	default:
		remedy := near(name, vars.names)
		if remedy == "" {
			remedy = "declare it in vars"
		}
		w.report(n, Error, "unknown-variable", remedy, "vars.%s is not declared: it is null", name)
	}
}

// givenByStages tells whether every Stage that uses the task gives it the
// variable early enough, among its own. It is false if there is no such Stage.
func (c *docLinter) givenByStages(name string) bool {
	used := false
	for _, d := range c.stages {
		stage, _ := load.As[*kargoapi.Stage](d)
		t := stage.Spec.PromotionTemplate.Spec
		for i := range t.Steps {
			if ref := t.Steps[i].Task; ref == nil || c.task(d, ref) != c.doc {
				continue
			}
			used = true
			if !gives(stage.Spec.Vars, name) && !gives(t.Vars, name) {
				return false
			}
		}
	}
	return used
}

// givenByReferences tells whether some Stage hands the task the variable.
func (c *docLinter) givenByReferences(name string) bool {
	for _, d := range c.stages {
		stage, _ := load.As[*kargoapi.Stage](d)
		for _, step := range stage.Spec.PromotionTemplate.Spec.Steps {
			if step.Task != nil && c.task(d, step.Task) == c.doc && (gives(step.Vars, name) || gives(stage.Spec.Vars, name) || gives(stage.Spec.PromotionTemplate.Spec.Vars, name)) {
				return true
			}
		}
	}
	return false
}

func gives(vars []kargoapi.Variable, name string) bool {
	for _, v := range vars {
		if v.Name == name && v.Value != "" {
			return true
		}
	}
	return false
}

// contextTree is what ctx holds (compat.md 3.6). What has no names below is text
// or a bool.
type contextTree map[string]contextTree

var contextFields = contextTree{ //nolint:gochecknoglobals // constant table
	"uiBaseUrl": nil, "project": nil, "stage": nil, "promotion": nil,
	"targetFreight": {"name": nil, "alias": nil, "origin": {"name": nil}},
	"meta":          {"promotion": {"actor": nil, "rollback": nil}, "step": {"alias": nil}},
}

// context checks the last name of ctx.….
func (w *walker) context(n *ast.MemberNode) {
	var path []string
	for x := ast.Node(n); ; {
		m, ok := unchain(x).(*ast.MemberNode)
		if !ok {
			if identifierName(x) != "ctx" || contains(w.locals, "ctx") {
				return
			}
			break
		}
		name := property(m)
		if name == "" {
			return
		}
		path = append([]string{name}, path...)
		x = m.Node
	}
	tree, what := contextFields, "ctx"
	for _, name := range path[:len(path)-1] {
		if tree = tree[name]; tree == nil {
			return // reported for the shorter path, or text
		}
		what += "." + name
	}
	name := path[len(path)-1]
	if _, ok := tree[name]; ok {
		return
	}
	names := make([]string, 0, len(tree))
	for k := range tree {
		names = append(names, k)
	}
	sort.Strings(names)
	remedy := near(name, names)
	if remedy == "" {
		remedy = "it has " + strings.Join(names, ", ")
	}
	w.report(n, Error, "unknown-variable", remedy, "%s has no %s: it is null", what, name)
}

func (w *walker) stepReferenceIf(n ast.Node, holder, alias string) {
	if w.where == taskVariable || w.where == referenceVariable {
		return // evaluated anew for every step of the task
	}
	w.stepReference(n, holder, alias)
}

// maybeSkipped finds outputs.x.y where step x may be skipped by its own condition:
// there is no outputs.x then, and looking into it is an error. A step that has a
// condition too is taken to know.
func (w *walker) maybeSkipped(n *ast.MemberNode) {
	m, ok := unchain(n.Node).(*ast.MemberNode)
	s := w.scope
	if !ok || n.Optional || w.guarded || w.where != inConfig && w.where != stepVariable || s.aliases[s.index].conditional {
		return
	}
	switch {
	case s.kind == inStage && identifierName(m.Node) == "outputs":
	case s.kind == inTask && isTaskOutputs(m.Node):
	default:
		return
	}
	if i, ok := s.byName[property(m)]; ok && i < s.index && s.aliases[i].conditional {
		w.report(n, Warning, "unknown-output", "write ?. or give this step the same condition",
			"step %q may be skipped by its `if`: it has no outputs then, and this is an error", s.aliases[i].name)
	}
}

// stepReference checks a reference to a step by alias.
func (w *walker) stepReference(n ast.Node, holder, alias string) {
	s := w.scope
	namespace, inner, nested := strings.Cut(alias, "::")
	sev := Error
	if w.optional > 0 || holder == "status" {
		sev = Warning
	}
	what := fmt.Sprintf("%s['%s']", holder, alias)
	if holder == "status" {
		what = fmt.Sprintf("status('%s')", alias)
	}
	if i, ok := s.byName[namespace]; nested && ok && s.aliases[i].isTask {
		if holder == "status" {
			w.report(n, sev, "unknown-output", "write string(stepMetas['"+alias+"'].Status)",
				"%s is always empty: status() does not see the steps of a task", what)
			return
		}
		w.innerReference(n, sev, what, s.aliases[i], inner, i)
		return
	}
	if s.namespaces[alias] {
		return // composed by a step whose alias looks like that of a task's
	}
	if i, ok := s.byName[alias]; ok && !nested {
		switch a := s.aliases[i]; {
		case a.isTask && holder != "outputs":
			w.report(n, sev, "unknown-output", "write "+statusOfTask(a),
				"%s: a reference to a task has no status of its own, its steps have", what)
		case s.kind == inTask && holder == "outputs":
			w.report(n, Warning, "unknown-output", "write task.outputs."+alias,
				"outputs['%s'] is a step of the Stage; the task's own step is found under task.outputs", alias)
		case i > s.index:
			w.report(n, sev, "unknown-output", "move the step up", "%s: step %q runs later", what, alias)
		case i == s.index && holder != "stepMetas" && holder != "status":
			w.report(n, sev, "unknown-output", "", "%s is this step's own output: it has none yet", what)
		case a.isTask && a.known && !a.composes && holder == "outputs":
			w.report(n, sev, "unknown-output", fmt.Sprintf("add a compose-output step to the task, or write outputs['%s::<step>']", alias),
				"%s: task %q composes no outputs", what, alias)
		}
		return
	}
	if s.kind == inTask && (holder == "outputs" || holder == "stepMetas") {
		return // a step of whichever Stage uses the task
	}
	names := s.names()
	remedy := near(alias, names)
	if remedy == "" && len(names) > 0 && len(names) <= 20 {
		remedy = "there is " + strings.Join(names, ", ")
	}
	w.report(n, sev, "unknown-output", remedy, "%s: there is no step %q", what, alias)
}

// statusOfTask is how a Stage asks what became of a task: its last step has been
// reached when the task is over.
func statusOfTask(a stepAlias) string {
	inner := "<step>"
	if len(a.inner) > 0 {
		inner = a.inner[len(a.inner)-1]
	}
	return "string(stepMetas['" + a.name + "::" + inner + "'].Status)"
}

func (w *walker) innerReference(n ast.Node, sev Severity, what string, a stepAlias, inner string, i int) {
	switch {
	case i >= w.scope.index:
		w.report(n, sev, "unknown-output", "move the step up", "%s: task %q runs later", what, a.name)
	case a.known && !contains(a.inner, inner):
		remedy := near(inner, a.inner)
		if remedy == "" {
			remedy = "it has " + strings.Join(a.inner, ", ")
		}
		w.report(n, sev, "unknown-output", remedy, "%s: task %q has no step %q", what, a.name, inner)
	}
}

// originOf tells what kind of value an expression has.
func (v *variables) originOf(n ast.Node) origin {
	switch n := unchain(n).(type) {
	case *ast.CallNode:
		if name := identifierName(n.Callee); jsonNames[name] != nil {
			return origin{object: name}
		} else if name == "quote" && len(n.Arguments) == 1 {
			o := v.originOf(n.Arguments[0])
			o.quoted = true
			return o
		}
	case *ast.BinaryNode:
		if n.Operator == "??" {
			if o := v.originOf(n.Left); o.version != "" {
				return o
			}
			return v.originOf(n.Right)
		}
	case *ast.ConditionalNode:
		if o := v.originOf(n.Exp1); o.version != "" {
			return o
		}
		return v.originOf(n.Exp2)
	case *ast.MemberNode:
		return v.originOfMember(n)
	}
	return origin{}
}

func (v *variables) originOfMember(n *ast.MemberNode) origin {
	name := property(n)
	if identifierName(n.Node) == "vars" {
		return v.origin[name]
	}
	if call, ok := unchain(n.Node).(*ast.CallNode); ok {
		f := identifierName(call.Callee)
		if versionLike[f+"."+name] {
			return origin{version: f + "(…)." + name}
		}
	}
	if m, ok := unchain(n.Node).(*ast.MemberNode); ok && identifierName(m.Node) == "vars" {
		if o := v.origin[property(m)]; o.object != "" {
			for goName, key := range jsonNames[o.object] {
				if key == name && versionLike[o.object+"."+goName] {
					return origin{version: o.object + "(…)." + goName}
				}
			}
		}
	}
	return origin{}
}

// versionLike are fields whose text may look like a number.
var versionLike = map[string]bool{ //nolint:gochecknoglobals // constant table
	"imageFrom.Tag": true, "commitFrom.Tag": true, "commitFrom.ID": true, "commitFrom.Branch": true,
	"chartFrom.Version": true, "artifactFrom.Version": true,
}

func unchain(n ast.Node) ast.Node {
	for {
		c, ok := n.(*ast.ChainNode)
		if !ok {
			return n
		}
		n = c.Node
	}
}

func identifierName(n ast.Node) string {
	if id, ok := unchain(n).(*ast.IdentifierNode); ok {
		return id.Value
	}
	return ""
}

// property returns the constant name of a member access, or "".
func property(n *ast.MemberNode) string {
	if s, ok := n.Property.(*ast.StringNode); ok {
		return s.Value
	}
	return ""
}

// callee returns the name of the function that an expression is a call of.
func callee(n ast.Node) string {
	if c, ok := n.(*ast.CallNode); ok {
		return identifierName(c.Callee)
	}
	return ""
}

func isTaskOutputs(n ast.Node) bool {
	m, ok := unchain(n).(*ast.MemberNode)
	return ok && identifierName(m.Node) == "task" && property(m) == "outputs"
}

func near(name string, names []string) string {
	if found := nearname.Nearest(name, names, 1); len(found) > 0 {
		return fmt.Sprintf("did you mean %s?", found[0])
	}
	return ""
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// functionNames lists Kargo's functions and expr's.
func functionNames(status bool) []string {
	names := []string{
		"quote", "unsafeQuote", "asYAML", "asJSON", "warehouse", "commitFrom", "imageFrom", "chartFrom", "artifactFrom",
		"configMap", "sharedConfigMap", "secret", "sharedSecret", "freightMetadata", "stageMetadata", "semverDiff", "semverParse",
	}
	if status {
		names = append(names, "success", "failure", "always", "status")
	}
	return append(names, builtin.Names...)
}
