package lint

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/stepd/stepd/runner/expr"
)

// place is where a template is written, which decides what it can see
// (compat.md 3.6).
type place int

const (
	promotionVariable place = iota
	taskVariable
	stepVariable
	// referenceVariable is given to a task: its steps evaluate it.
	referenceVariable
	inCondition
	inConfig
)

// statusFunctions tells whether success(), failure(), always() and status() can
// be called.
func (p place) statusFunctions() bool { return p == inCondition || p == inConfig }

// compiler compiles expressions as the engine does, each text once.
type compiler struct {
	evaluator *expr.Evaluator
	known     map[codeKey]code
}

type codeKey struct {
	text   string
	status bool
}

type code struct {
	tree ast.Node
	typ  reflect.Type // nil if unknown
	err  *file.Error
}

func newCompiler() *compiler {
	return &compiler{evaluator: expr.NewEvaluator(nil, nil), known: map[codeKey]code{}}
}

func (c *compiler) compile(text string, status bool) code {
	key := codeKey{text, status}
	if out, ok := c.known[key]; ok {
		return out
	}
	var out code
	typ, err := c.evaluator.Check(text, status)
	if err == nil {
		out.typ = typ
		// Compiling rewrites the tree, so that what was written is gone.
		if tree, perr := parser.Parse(text); perr == nil {
			out.tree = tree.Node
		}
	} else if !errors.As(err, &out.err) {
		out.err = &file.Error{Message: err.Error()}
	}
	c.known[key] = out
	return out
}

// template checks a string that may hold expressions and returns what is known
// of its value.
func (c *docLinter) template(text, at string, s *scope, where place) origin {
	c.oneBrace(text, at)
	if !expr.HasCode(text) {
		if i := strings.Index(text, "{{"); i >= 0 && strings.Contains(text[i:], "}}") && looksLikeKargo(text[i:]) {
			c.reportAt(Warning, "unevaluated", c.doc.TextPosition(at, i), at, "write ${{ … }}", "{{ … }} is plain text for Kargo")
		}
		return origin{}
	}
	pieces, err := expr.Scan(text)
	if err != nil {
		remedy := "close it; an expression ends at the first closing delimiter, also inside quotes"
		if n := c.doc.Find(at); n != nil && n.LineComment != "" {
			remedy = "put the value in quotes: to YAML, a comment begins at the #"
		}
		c.reportAt(Error, "expression", c.doc.ValuePosition(at), at, remedy, "%v", err)
		return origin{}
	}
	c.emptyExpression(text, at)
	whole := wholeExpression(pieces)
	var value origin
	for _, p := range pieces {
		if !p.Code {
			continue
		}
		out := c.compiled(p, at, where)
		if out.tree == nil {
			continue
		}
		(&walker{docLinter: c, scope: s, where: where, at: at, text: text, offset: p.Offset, guarded: decides(out.tree)}).walk(out.tree)
		c.visibleQuotes(out.tree, at, whole)
		if whole {
			value = s.vars.originOf(out.tree)
		}
	}
	return value
}

// wholeExpression tells whether a template is one expression and white space.
func wholeExpression(pieces []expr.Piece) bool {
	codes := 0
	for _, p := range pieces {
		switch {
		case p.Code:
			codes++
		case strings.TrimSpace(p.Text) != "":
			return false
		}
	}
	return codes == 1
}

// looksLikeKargo tells whether a {{ … }} was probably meant for Kargo: Helm and
// Go templates begin with a dot or a keyword.
func looksLikeKargo(text string) bool {
	inner := strings.TrimSpace(strings.TrimPrefix(text, "{{"))
	for _, p := range []string{"vars.", "ctx.", "outputs.", "outputs[", "task.outputs", "imageFrom(", "commitFrom(", "chartFrom(", "quote("} {
		if strings.HasPrefix(inner, p) {
			return true
		}
	}
	return false
}

// oneBrace finds ${ … } that was probably meant for Kargo. Names of shells' own
// variables begin otherwise.
var oneBrace = regexp.MustCompile(`\$\{ *(?:(?:vars|ctx|outputs|task\.outputs)[.\[]|(?:image|commit|chart|artifact)From\(|(?:quote|secret|configMap)\()`)

func (c *docLinter) oneBrace(text, at string) {
	if m := oneBrace.FindStringIndex(text); m != nil {
		c.reportAt(Warning, "unevaluated", c.doc.TextPosition(at, m[0]), at, "write ${{ … }}", "${ … } is plain text for Kargo")
	}
}

func (c *docLinter) emptyExpression(text, at string) {
	for _, empty := range []string{"${{}}", "${%%}"} {
		if i := strings.Index(text, empty); i >= 0 {
			c.reportAt(Warning, "empty-expression", c.doc.TextPosition(at, i), at, "remove it",
				"an empty expression ends evaluation: all text after it stays as it is")
		}
	}
}

// compiled compiles a piece and reports what is wrong with it.
func (c *docLinter) compiled(p expr.Piece, at string, where place) code {
	out := c.code.compile(p.Text, where.statusFunctions())
	if out.err == nil {
		return out
	}
	var remedy string
	switch {
	case strings.TrimSpace(p.Text) == "":
		remedy = "remove it"
	case strings.Count(p.Text, "'")%2 == 1, strings.Count(p.Text, `"`)%2 == 1, strings.Count(p.Text, "{") > strings.Count(p.Text, "}"):
		remedy = "an expression ends at the first }}, also inside quotes; ${% … %} can hold }}"
	default:
		remedy = fieldRemedy(p.Text)
	}
	c.reportAt(Error, "expression", c.doc.TextPosition(at, p.Offset+byteOffset(p.Text, out.err.From)), at, remedy, "cannot compile the expression: %s", strings.TrimSpace(out.err.Message))
	return out
}

// fieldRemedy names the field that is meant where an artifact has none of the
// name.
func fieldRemedy(text string) string {
	tree, err := parser.Parse(text)
	if err != nil {
		return ""
	}
	remedy := ""
	ast.Walk(&tree.Node, visitor(func(n ast.Node) {
		m, ok := n.(*ast.MemberNode)
		if !ok {
			return
		}
		fields := artifactFields[callee(unchain(m.Node))]
		name := property(m)
		if len(fields) == 0 || name == "" || contains(fields, name) {
			return
		}
		remedy = "it has " + strings.Join(fields, ", ")
		for _, f := range fields {
			if strings.EqualFold(f, name) {
				remedy = "write ." + f
			}
		}
	}))
	return remedy
}

// artifactFields are the names an artifact's fields have in expressions
// (compat.md 1.6).
var artifactFields = map[string][]string{ //nolint:gochecknoglobals // constant table
	"imageFrom":    {"RepoURL", "Tag", "Digest", "Annotations"},
	"commitFrom":   {"RepoURL", "ID", "Branch", "Tag", "Message", "Author", "Committer"},
	"chartFrom":    {"RepoURL", "Name", "Version"},
	"artifactFrom": {"ArtifactType", "SubscriptionName", "Version", "Metadata"},
}

// byteOffset turns an offset in runes, as expr counts, into one in bytes.
func byteOffset(s string, runes int) int {
	n := 0
	for i := range s {
		if n == runes {
			return i
		}
		n++
	}
	return len(s)
}

// visibleQuotes warns where the quotes of quote() are not taken off again.
func (c *docLinter) visibleQuotes(tree ast.Node, at string, whole bool) {
	name := callee(tree)
	switch name {
	case "quote", "asYAML", "asJSON", "unsafeQuote":
	default:
		return
	}
	if !whole {
		c.reportAt(Warning, "quoting", c.doc.ValuePosition(at), at, "call it on the whole text, ${{ "+name+"('…' + …) }}, or leave it out: longer text is a string anyway",
			"%s() adds quotes that are only removed where the expression is the whole value; here they stay visible", name)
		return
	}
	call := tree.(*ast.CallNode)
	if _, ok := call.Arguments[0].(*ast.StringNode); ok && name == "unsafeQuote" {
		c.reportAt(Warning, "quoting", c.doc.ValuePosition(at), at, "use quote()", "unsafeQuote() of a string leaves visible quotes")
	}
}

// condition checks an `if`.
func (c *docLinter) condition(text, at string, s *scope) {
	if !expr.HasCode(text) {
		c.reportAt(Error, "condition", c.doc.ValuePosition(at), at, "write ${{ … }} around it", "`if` must yield a bool, but %q is plain text", text)
		return
	}
	c.template(text, at, s, inCondition)
	pieces, err := expr.Scan(text)
	if err != nil {
		return
	}
	if !wholeExpression(pieces) {
		c.reportAt(Warning, "condition", c.doc.ValuePosition(at), at, "put the whole condition into one expression", "the text around the expressions becomes part of the condition")
		return
	}
	i := slices.IndexFunc(pieces, func(p expr.Piece) bool { return p.Code })
	out := c.code.compile(pieces[i].Text, true)
	switch {
	case out.tree == nil:
	case out.typ != nil && out.typ.Kind() == reflect.Func: // reported already: it is not called
	case out.typ != nil && neverBool(out.typ):
		c.reportAt(Error, "condition", c.doc.ValuePosition(at), at, "compare it with something", "`if` must yield a bool, not %s", kindName(out.typ))
	case s.index > 0 && !asksForStatus(out.tree):
		c.reportAt(Warning, "condition", c.doc.ValuePosition(at), at, "write success() && … (or always() && … if that is meant)",
			"an `if` takes the place of the check for success: this step also runs after an earlier one failed")
	}
}

// alwaysRuns tells whether a condition is just always().
func (c *docLinter) alwaysRuns(condition string) bool {
	pieces, err := expr.Scan(condition)
	if err != nil || !wholeExpression(pieces) {
		return false
	}
	i := slices.IndexFunc(pieces, func(p expr.Piece) bool { return p.Code })
	return callee(c.code.compile(pieces[i].Text, true).tree) == "always"
}

// decides tells whether an expression evaluates parts of itself only under some
// condition.
func decides(n ast.Node) bool {
	found := false
	ast.Walk(&n, visitor(func(n ast.Node) {
		switch n := n.(type) {
		case *ast.ConditionalNode:
			found = true
		case *ast.BinaryNode:
			switch n.Operator {
			case "&&", "||", "and", "or":
				found = true
			}
		}
	}))
	return found
}

// neverBool tells whether no value of a type is a bool, nor text that reads like
// one.
func neverBool(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Interface, reflect.Pointer:
		return false
	}
	return true
}

// asksForStatus tells whether a condition looks at the outcome of other steps, or
// is the constant false.
func asksForStatus(n ast.Node) bool {
	if b, ok := n.(*ast.BoolNode); ok {
		return !b.Value
	}
	found := false
	ast.Walk(&n, visitor(func(n ast.Node) {
		switch n := n.(type) {
		case *ast.CallNode:
			switch identifierName(n.Callee) {
			case "success", "failure", "always", "status":
				found = true
			}
		case *ast.IdentifierNode:
			found = found || n.Value == "stepMetas"
		}
	}))
	return found
}

type visitor func(ast.Node)

// Visit implements ast.Visitor.
func (v visitor) Visit(n *ast.Node) { v(*n) }

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int, reflect.Int64, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return fmt.Sprintf("a %s", t)
}
