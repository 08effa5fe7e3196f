package expr

import (
	"fmt"
	"reflect"

	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/parser/lexer"
)

// Check compiles an expression, without its delimiters, exactly as evaluating
// it would, and returns its static type; nil where only a run can tell. inStep
// makes the functions available that `if` and config have beyond variables.
// The error is, or wraps, a *file.Error of expr with the place in the code.
func (e *Evaluator) Check(code string, inStep bool) (reflect.Type, error) {
	set := baseFunctions
	if inStep {
		set = statusFunctions
	}
	program, err := e.compile(code, set)
	if err != nil {
		return nil, err
	}
	t := program.Node().Type()
	if t == nil || t.Kind() == reflect.Interface {
		return nil, nil
	}
	return t, nil
}

// Parses tells whether code, without its delimiters, is an expression at all.
// What it calls need not exist: another version of Kargo may have it.
func Parses(code string) bool {
	if checkLength(code) != nil {
		return false
	}
	_, err := parser.Parse(code)
	return err == nil
}

// WithoutEnd returns an expression without the semicolon that may end it, and
// what follows that. expr allows one at the very end only, not before a bracket.
func WithoutEnd(code string) string {
	tokens, err := lexer.Lex(file.NewSource(code))
	if err != nil || len(tokens) < 2 { // the last is the end
		return code
	}
	last := tokens[len(tokens)-2]
	if !last.Is(lexer.Operator, ";") {
		return code
	}
	return string([]rune(code)[:last.From])
}

// MaxCode is the most bytes of one expression. expr's parser calls itself for
// every bracket, some kilobytes of stack each time, and running out of stack
// ends the process. Kargo has no such limit.
const MaxCode = 16 << 10

func checkLength(code string) error {
	if len(code) > MaxCode {
		return fmt.Errorf("an expression of %d bytes is longer than the %d that stepd compiles", len(code), MaxCode)
	}
	return nil
}
