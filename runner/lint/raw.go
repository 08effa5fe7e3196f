package lint

import (
	"errors"
	"reflect"
	"strings"

	exprlang "github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/load"
)

// expressions checks settings that are expressions themselves, without
// delimiters, and that see neither Kargo's functions nor its variables
// (compat.md 5.14, 5.20).
func (c *docLinter) expressions(uses string, config map[string]any, at string) {
	r := raw{docLinter: c, http: uses == "http"}
	switch uses {
	case "yaml-parse", "json-parse", "toml-parse", "http":
	default:
		return
	}
	if r.http {
		for _, name := range []string{"successExpression", "failureExpression"} {
			r.check(config[name], at+"/config/"+name, true)
		}
		r.check(config["errorExpression"], at+"/config/errorExpression", false)
	}
	outputs, _ := config["outputs"].([]any)
	for i, o := range outputs {
		m, _ := o.(map[string]any)
		r.check(m["fromExpression"], at+load.Pointer("config", "outputs", i, "fromExpression"), false)
	}
}

// isExpression tells whether the value at a pointer is such a setting.
func isExpression(at string) bool {
	for _, name := range []string{"/config/successExpression", "/config/failureExpression", "/config/errorExpression", "/fromExpression"} {
		if strings.HasSuffix(at, name) {
			return true
		}
	}
	return false
}

// undelimited is what to do where a template stands for such an expression: it
// is evaluated too early, before there is anything to look at.
const undelimited = "write it without ${{ … }}: this setting is an expression itself, evaluated later"

// raw checks expressions without delimiters.
type raw struct {
	*docLinter
	// http tells that there is nothing but response.
	http bool
}

func (r raw) check(v any, at string, condition bool) {
	text, ok := v.(string)
	if !ok || expr.HasCode(text) {
		return
	}
	report := func(offset int, rule, remedy, format string, args ...any) {
		r.reportAt(Error, rule, r.doc.TextPosition(at, byteOffset(text, offset)), at, remedy, format, args...)
	}
	program, err := exprlang.Compile(text)
	if err != nil {
		var e *file.Error
		if !errors.As(err, &e) {
			e = &file.Error{Message: err.Error()}
		}
		report(e.From, "expression", "", "cannot compile the expression: %s", strings.TrimSpace(e.Message))
		return
	}
	if typ := program.Node().Type(); condition && typ != nil && typ.Kind() != reflect.Bool && typ.Kind() != reflect.Interface {
		report(0, "condition", "compare it with something", "this must yield a bool, not %s", kindName(typ))
	}
	tree, err := parser.Parse(text)
	if err != nil {
		return
	}
	var locals []string
	ast.Walk(&tree.Node, visitor(func(n ast.Node) {
		if d, ok := n.(*ast.VariableDeclaratorNode); ok {
			locals = append(locals, d.Name)
		}
	}))
	ast.Walk(&tree.Node, visitor(func(n ast.Node) {
		from := n.Location().From
		switch n := n.(type) {
		case *ast.CallNode:
			name := identifierName(n.Callee)
			if name == "" || contains(locals, name) {
				return
			}
			remedy := near(name, builtin.Names)
			if contains(functionNames(true), name) {
				remedy = "the functions of Kargo are not available here; use them in ${{ … }}, which is evaluated before"
			}
			report(from, "expression", remedy, "there is no function %s", name)
		case *ast.IdentifierNode:
			if r.http && n.Value != "response" && n.Value != "$env" && !contains(locals, n.Value) && !calls(tree.Node, n) {
				report(from, "unknown-variable", "there is nothing but response", "there is no variable %s: it is null", n.Value)
			}
		case *ast.MemberNode:
			if name := property(n); r.http && identifierName(n.Node) == "response" && name != "" && !contains(responseFields[:], name) {
				report(from, "unknown-variable", near(name, responseFields[:]), "response has no %s: it is null", name)
			}
		}
	}))
}

var responseFields = [...]string{"status", "header", "headers", "body"}

// calls tells whether an identifier is what some call calls.
func calls(tree ast.Node, id *ast.IdentifierNode) bool {
	found := false
	ast.Walk(&tree, visitor(func(n ast.Node) {
		if c, ok := n.(*ast.CallNode); ok && c.Callee == ast.Node(id) {
			found = true
		}
	}))
	return found
}
