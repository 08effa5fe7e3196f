package lint

import (
	"strings"

	"github.com/expr-lang/expr/ast"

	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
)

// subscriptions returns those of all Warehouses a Stage requests Freight of, or
// nil if one of them is not among the documents.
func (c *docLinter) subscriptions(stage *kargoapi.Stage) []kargoapi.Subscription {
	subs := []kargoapi.Subscription{}
	for _, r := range stage.Spec.RequestedFreight {
		w := c.warehouse(r.Origin.Name)
		if w == nil {
			return nil
		}
		parsed, err := w.ParseSubscriptions()
		if err != nil {
			return nil // reported where the Warehouse is
		}
		subs = append(subs, parsed...)
	}
	return subs
}

func (c *docLinter) warehouse(name string) *kargoapi.Warehouse {
	var found *kargoapi.Warehouse
	for _, d := range load.Of[*kargoapi.Warehouse](c.set) {
		if d.Name == name && (d.Namespace == c.doc.Namespace || d.Namespace == "") && (found == nil || d.File == c.doc.File) {
			found, _ = load.As[*kargoapi.Warehouse](d)
		}
	}
	return found
}

// freight checks that imageFrom() and its kin ask for something the Stage's
// Warehouses subscribe to (compat.md 3.7). Without an origin nothing else can be
// found, even if it is in the Freight.
func (w *walker) freight(n *ast.CallNode, function string) {
	typ := map[string]string{"imageFrom": "image", "commitFrom": "git", "chartFrom": "chart", "artifactFrom": "artifact"}[function]
	if typ == "" || w.scope.subscriptions == nil || len(n.Arguments) != 1 {
		return
	}
	want, ok := w.literalText(n.Arguments[0])
	if !ok || want == "" {
		return
	}
	var names []string
	for _, s := range w.scope.subscriptions {
		name := s.RepoURL
		if typ == "artifact" {
			if s.Type == "git" || s.Type == "image" || s.Type == "chart" {
				continue
			}
			name = s.Name
		} else if s.Type != typ {
			continue
		}
		if name == want || typ == "git" && repourl.Git(name) == repourl.Git(want) {
			return
		}
		names = append(names, name)
	}
	remedy := ""
	switch found := nearname.Nearest(want, names, 1); {
	case len(found) > 0:
		remedy = "did you mean " + found[0] + "?"
		if typ != "git" {
			remedy += " It is compared as text"
		}
	case len(names) > 0:
		remedy = "there is " + strings.Join(names, ", ")
	}
	sev := Error
	if w.optional > 0 {
		sev = Warning
	}
	w.report(n, sev, "unknown-freight", remedy, "%s('%s') finds nothing: no Warehouse of this Stage subscribes to it", function, want)
}

// literalText returns the value of an argument that is a literal or a variable that
// holds one.
func (w *walker) literalText(n ast.Node) (string, bool) {
	switch n := unchain(n).(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.MemberNode:
		if identifierName(n.Node) == "vars" {
			v, ok := w.scope.vars.literal[property(n)]
			return v, ok
		}
	}
	return "", false
}
