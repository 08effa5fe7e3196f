package wire_test

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
)

// generator makes random step configs out of what has been seen to go wrong.
type generator struct{ *rand.Rand }

func pick[T any](g generator, list ...T) T { return list[g.IntN(len(list))] }

func (g generator) object(depth int) map[string]any {
	out := map[string]any{}
	for range g.IntN(4) {
		out[g.key()] = g.value(depth)
	}
	return out
}

func (g generator) key() string {
	return pick(g, "a", "b", "key", "", "$", "$t", "$$t", "$x", "${{ 1 }}", "${%", "x y", "é", "\u2028", "\"", "\\", "a\nb", "0")
}

func (g generator) value(depth int) any {
	if depth > 0 {
		switch g.IntN(6) {
		case 0:
			return g.object(depth - 1)
		case 1:
			out := []any{}
			for range g.IntN(4) {
				out = append(out, g.value(depth-1))
			}
			return out
		case 2:
			return map[string]any{"$t": []any{g.text(), g.value(0), g.text()}}
		}
	}
	if g.IntN(4) == 0 {
		return pick[any](g, nil, true, false, 0, 1, 2, 3, -7, 1.5, 2.25, "", json.Number("-0"), json.Number("1.10"), json.Number("1e400"),
			json.Number("12345678901234567890"), json.Number("1E5"), json.Number("9007199254740993"), -3)
	}
	return g.template()
}

// template is a string of literal text and expressions.
func (g generator) template() string {
	var sb strings.Builder
	for range g.IntN(5) {
		if g.IntN(2) == 0 {
			sb.WriteString(g.text())
			continue
		}
		if g.IntN(60) == 0 { // as users mistype it
			sb.WriteString(pick(g, "${{", "${%", "${{}}", "${%%}", "${{ }}", "}}", "%}", "${{ x", "${{ 1 %}", "${{ 1 + }}", "${{ // }}", "${{ { }}"))
			continue
		}
		code := g.space() + g.code(2) + g.space()
		if g.IntN(2) == 0 {
			sb.WriteString("${{" + code + "}}")
		} else {
			sb.WriteString("${%" + code + "%}")
		}
	}
	return sb.String()
}

func (g generator) space() string {
	return pick(g, " ", " ", " ", "", "\n", "\t", "  ", " // x\n", " /* x */ ")
}

func (g generator) text() string {
	return pick(g, "", "a", "-", "\"", "\"", "\n", "\n", "1", "1.10", "true", "null", "nan", "{", "}", "[", "]", ",", ":", "{\"a\":", "0x1p4", "1e400",
		"\\", "\\n", "\\u0024", "$", "$$", "$t", "}}", "%}", "{{", "{%", "\t", "\r\n", "\x00", "\x1b", "\u0085", "\u2028", "\u00a0", "\ufeff",
		"é", "😀", "<&>", "'", "`", "~", "- x", "# x", "a: b", "---", "=", "!!binary", strings.Repeat("long ", 40))
}

func (g generator) code(depth int) string {
	if depth > 0 && g.IntN(2) == 0 {
		a, b := g.code(depth-1), g.code(depth-1)
		return pick(g,
			"quote("+a+")", "asYAML("+a+")", "asJSON("+a+")", "unsafeQuote("+a+")", "toJSON("+a+")", "("+a+")",
			"["+a+", "+b+"]", "{'k': "+a+", '$t': "+b+"}", a+" + "+b, a+" ?? "+b, a+" == "+b, a+";", a+"; // x\n", "true ? "+a+" : "+b,
			"let x = "+a+"; [x, "+b+"]", a+"; "+b, "["+a+"] | len()", "fromJSON(toJSON("+a+"))", a+" // "+b+"\n", "trim("+a+")", "{'a': {'b': "+a+"}}")
	}
	return pick(g, "1", "1.5", "-0.0", "9007199254740993", "1e308 * 10", "true", "nil", "null", "nosuch", "nosuch?.member",
		"'x'", `"y"`, "`raw \"`", "'1.10'", "'true'", "'nan'", `'{"a": [1]}'`, `'"q"'`, `"a\nb"`, `"\u0085 \u0085"`, `'é😀'`, "'}}'", "'%}'", "'${{ 1 }}'", "'$t'", "''",
		"vars.s", "vars.n", "vars.nl", "vars.q", "vars.json", "vars.obj", "vars.nel", "vars.one", "vars.odd", "ctx.project", "ctx.meta",
		"imageFrom('reg.io/app')", "imageFrom('reg.io/app').Tag", "imageFrom('nope')", "commitFrom('https://git.io/A/b.git').Message", "artifactFrom('cfg')",
		"warehouse('goods')", "secret('s')", "secret('s').k", "configMap('m').k", "semverParse('v1.2')", "now()", "1..3", "[]", "{}", "{'a': {'b': {}}}",
		"task.outputs.x", "outputs['t::x'].i", "stepMetas['t::a']", "status('x')", "success()", "failure()", pick(g, "groupBy([1,2], #)", "fromBase64('/w==')", "$env", "1)) + ((2", "1, 2", "#", "'", "\"", "(", "nosuch.member"))
}
