package expr

import "github.com/expr-lang/expr/ast"

// statusComparison makes `stepMetas['x'].Status == 'Failed'` true where the
// step has failed. In Kargo it never is: the status is of a type of its own,
// and values of different types are not equal to expr. Only == and != are
// mended; what fails loudly in Kargo fails here too.
type statusComparison struct{}

// Visit implements ast.Visitor.
func (statusComparison) Visit(node *ast.Node) {
	cmp, ok := (*node).(*ast.BinaryNode)
	if !ok || cmp.Operator != "==" && cmp.Operator != "!=" {
		return
	}
	if _, isNil := cmp.Left.(*ast.NilNode); !isNil && isStatus(cmp.Right) {
		asString(&cmp.Right)
	}
	if _, isNil := cmp.Right.(*ast.NilNode); !isNil && isStatus(cmp.Left) {
		asString(&cmp.Left)
	}
}

// isStatus tells whether a node is stepMetas….Status.
func isStatus(node ast.Node) bool {
	if chain, ok := node.(*ast.ChainNode); ok {
		node = chain.Node
	}
	member, ok := node.(*ast.MemberNode)
	if !ok {
		return false
	}
	if field, ok := member.Property.(*ast.StringNode); !ok || field.Value != "Status" {
		return false
	}
	step, ok := member.Node.(*ast.MemberNode)
	if !ok {
		return false
	}
	root, ok := step.Node.(*ast.IdentifierNode)
	return ok && root.Value == "stepMetas"
}

func asString(node *ast.Node) {
	ast.Patch(node, &ast.BuiltinNode{Name: "string", Arguments: []ast.Node{*node}})
}
