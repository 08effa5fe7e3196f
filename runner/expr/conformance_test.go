package expr_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// The cases of the conformance list, by their numbers, that follow from tests
// of Kargo v1.11.2. Those that follow from its code, or from expr's, are in
// conformance_code_test.go, so that a disagreement is investigated rather than
// assumed.

// A: templates and typing.
func TestConformanceTemplates(t *testing.T) {
	runCases(t, []testCase{
		{"A1", "without delimiters nothing is retyped", "17", nil, "17"},
		{"A2", "a number", "${{ 20 + 1 }}", nil, 21},
		{"A4", "a string", "${{ 'a' + 'b' }}", nil, "ab"},
		{"A6", "several expressions in one value", "${{ vars.who }}/${{ vars.n }}",
			scope(func(s *expr.Scope) { s.StepVars = vars("who", "x", "n", "${{ 5 }}") }), "x/5"},
		{"A7", "an object", "${{ vars.m }}",
			scope(func(s *expr.Scope) { s.StepVars = vars("m", "${{ {'k': 'v'} }}") }), map[string]any{"k": "v"}},
		{"A9", "a string that looks like null is null", `${{ "null" }}`, nil, nil},
		{"A11a", "quote keeps a bool a string", "${{ quote(false) }}", nil, "false"},
		{"A11b", "quote keeps a number a string", "${{ quote(7) }}", nil, "7"},
		{"A12", "quote keeps an object a string", "${{ quote({'a': 1}) }}", nil, `{"a":1}`},
		{"A14", "unsafeQuote quotes twice", "${{ unsafeQuote('abc') }}", nil, `"abc"`},
		{"A16", "asJSON indents and sorts", "${{ asJSON({'b':1,'a':2}) }}", nil, "{\n  \"a\": 2,\n  \"b\": 1\n}\n"},
		{"A17", "asYAML(nil) stays a string", "${{ asYAML(nil) }}", nil, "null\n"},
		{"A19", "a block scalar keeps its newline", "${{ quote(42) }}\n", nil, "42\n"},
		{"A21", "a closing delimiter in a string ends the expression", "${{ '{{.x}}' }}", nil, wantError("literal not terminated")},
		{"A22", "unless it is of the other kind", "${% '{{.x}}' %}", nil, "{{.x}}"},
		{"A24", "no closing delimiter", "x ${{ y", nil, wantError("unclosed expression")},
	})
}

func TestConformanceForbiddenKeys(t *testing.T) {
	for _, key := range []string{"quote", "asYAML", "asJSON"} { // A26
		_, err := evaluator(t).Template(t.Context(), nil, "${{ 1 }}", map[string]any{key: 1})
		if err == nil || !cmp.Equal(err.Error(), `"`+key+`" is a forbidden key in the environment map`) {
			t.Errorf("A26: key %s gives %v", key, err)
		}
	}
}

func TestConformanceConfig(t *testing.T) {
	for _, tc := range []struct {
		id, reason, config string
		want               map[string]any
	}{
		{"A27", "nested values are evaluated", `{"a":{"b":["${{ 1+1 }}"]}}`, map[string]any{"a": map[string]any{"b": []any{2}}}},
		{"A27b", "keys are not, and other values pass", `{"${{ 1 }}":true,"n":null,"f":1.5}`, map[string]any{"${{ 1 }}": true, "n": nil, "f": 1.5}},
	} {
		got, err := evaluator(t).Config(t.Context(), scope(), json.RawMessage(tc.config))
		if err != nil {
			t.Errorf("%s %s: %v", tc.id, tc.reason, err)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s %s (-want +got):\n%s", tc.id, tc.reason, d)
		}
	}
}

// B: variables and scopes.
func TestConformanceVariables(t *testing.T) {
	promotionVars := func(list ...string) *expr.Scope {
		return scope(func(s *expr.Scope) { s.PromotionVars = vars(list...) })
	}
	runCases(t, []testCase{
		{"B1", "a variable without an expression is retyped when it is used", "${{ vars.n }}", promotionVars("n", "42"), 42},
		{"B2", "a variable may use an earlier one", "${{ vars.b }}", promotionVars("a", "x", "b", "${{ vars.a == 'x' }}"), true},
		{"B4", "so may a step's", "${{ vars.v2 }}",
			scope(func(s *expr.Scope) { s.StepVars = vars("v1", "a", "v2", "${{ vars.v1 + 'b' }}") }), "ab"},
		{"B6", "a task's outputs are known by their short aliases", "${{ vars.o }}", scope(func(s *expr.Scope) {
			s.Alias, s.StepVars = "t::two", vars("o", "${{ task.outputs.one.f }}")
			s.Outputs = map[string]any{"t::one": map[string]any{"f": "z"}, "u::one": map[string]any{"f": "no"}}
		}), "z"},
		{"B7a", "a member of nil in a promotion's variable", "x", promotionVars("v", "${{ nosuch.member }}"),
			wantError(`error pre-processing promotion variable "v": cannot fetch member from <nil>`)},
		{"B7b", "and in a step's", "x", scope(func(s *expr.Scope) { s.StepVars = vars("v", "${{ nosuch.member }}") }),
			wantError(`error pre-processing promotion variable "v": cannot fetch member from <nil>`)},
		{"B9", "all of ctx", "${{ ctx }}", nil, map[string]any{
			"uiBaseUrl": "https://ui", "project": "demo", "stage": "prod", "promotion": "p-1",
			"targetFreight": map[string]any{"name": "f", "alias": "brave-otter", "origin": map[string]any{"name": "goods"}},
			"meta":          map[string]any{"promotion": map[string]any{"actor": "ada", "rollback": true}, "step": map[string]any{"alias": "a"}},
		}},
	})
}

// C: functions.
func TestConformanceFunctions(t *testing.T) {
	metas := func(alias string, list ...kargoapi.StepExecutionMetadata) *expr.Scope {
		return scope(func(s *expr.Scope) { s.Alias, s.StepMetadata = alias, list })
	}
	ok := func(alias string) kargoapi.StepExecutionMetadata {
		return kargoapi.StepExecutionMetadata{Alias: alias, Status: steps.Succeeded}
	}
	runCases(t, []testCase{
		{"C1", "an origin needs a name", "${{ warehouse('') }}", nil, wantError("name must not be empty")},
		{"C2", "an image's tag", "${{ imageFrom('reg.io/app').Tag }}", nil, "v3"},
		{"C6a", "two Warehouses subscribe", "${{ imageFrom('reg.io/app') }}", scope(requests("goods", "twin")),
			wantError("multiple requested Freight could potentially provide a container image from repository reg.io/app")},
		{"C6b", "one Warehouse subscribes twice", "${{ imageFrom('reg.io/twice') }}", scope(requests("twin")), wantError("multiple requested Freight")},
		{"C7", "a Warehouse that does not exist", "${{ imageFrom('reg.io/app') }}", scope(requests("gone")),
			wantError(`Warehouse "gone" not found in namespace "demo"`)},
		{"C9a", "a chart nobody subscribes to is an error", "${{ chartFrom('oci://r/c') }}", nil,
			wantError("chart from repo oci://r/c not found in referenced Freight")},
		{"C9b", "by name", "${{ chartFrom('https://charts.io', 'x') }}", nil,
			wantError(`chart "x" from repo https://charts.io not found in referenced Freight`)},
		{"C12a", "an artifact's metadata", "${{ artifactFrom('cfg').Metadata.x }}", nil, 1},
		{"C12b", "absent metadata is empty", "${{ artifactFrom('bare').Metadata }}", nil, map[string]any{}},
		{"C14", "any Secret of the project", "${{ secret('plain') }}", nil, map[string]any{"k": "v"}},
		{"C16", "a ConfigMap and a Secret of one name", "${{ configMap('m').k }} ${{ secret('m').k }} ${{ sharedConfigMap('m').k }}", nil,
			"from-configmap from-secret shared"},
		{"C17a", "Freight metadata", "${{ freightMetadata('f') }}", nil, map[string]any{"a": map[string]any{"b": 1}}},
		{"C17b", "of Freight that does not exist", "${{ freightMetadata('gone') }}", nil, nil},
		{"C17c", "of Freight without a name", "${{ freightMetadata('') }}", nil, wantError("freight ref name must not be empty")},
		{"C19", "semverDiff", "${{ [" +
			"semverDiff('1.0.0','2.0.0'), semverDiff('1.0.0','1.1.0'), semverDiff('1.0.0','1.0.1'), semverDiff('1.0.0+a','1.0.0+b')," +
			"semverDiff('1.0.0','1.0.0'), semverDiff('1.0.0-a','1.0.0-b'), semverDiff('x','1.0.0'), semverDiff('v1.0.0','v2.0.0')] }}", nil,
			[]any{"Major", "Minor", "Patch", "Metadata", "None", "None", "Incomparable", "Major"}},
		{"C21", "not a version", "${{ semverParse('nope') }}", nil, wantError("invalid semantic version")},
		{"C22", "status of a step", "${{ status('a') }}", metas("b", ok("a"), ok("b")), "Succeeded"},
		{"C24", "status looks in its own task only", "${{ status('a') }}", metas("t::x", ok("a"), ok("u::a")), ""},
		{"C24b", "and finds its own task's", "${{ status('a') }}", metas("t::x", ok("t::a")), "Succeeded"},
		{"C24c", "the top level sees no task's", "${{ status('t::a') }}", metas("b", ok("t::a")), ""},
		{"C26", "status of no step", "${{ status('') }}", nil, wantError("argument must not be empty")},
		{"C27", "nothing has failed yet", "${{ [success(), failure(), always()] }}", nil, []any{true, false, true}},
		{"C27b", "a failure that is continued from does not count", "${{ failure() }}",
			metas("b", kargoapi.StepExecutionMetadata{Alias: "a", Status: steps.Failed, ContinueOnError: true}), false},
		{"C27c", "nor do Skipped and Aborted", "${{ failure() }}",
			metas("b", kargoapi.StepExecutionMetadata{Alias: "a", Status: steps.Aborted}, kargoapi.StepExecutionMetadata{Alias: "c", Status: steps.Skipped}), false},
		{"sharedSecret", "only labelled as generic", "${{ sharedSecret('gen').k }}/${{ len(sharedSecret('unlabelled')) }}", nil, "shared/0"},
	})
}

// E24: conditions.
func TestConformanceIf(t *testing.T) {
	for _, tc := range []struct {
		id, reason, in string
		want           bool
		err            string
	}{
		{"E24", "text is no condition", "yes please", false, "expression must evaluate to a boolean, got string"},
		{"E24b", "not even true, without delimiters", "true", false, "expression must evaluate to a boolean, got string"},
		{"E24c", "a number is none", "${{ 1 }}", false, "expression must evaluate to a boolean, got float64"},
		{"E24d", "text in an expression is retyped", "${{ 'true' }}", true, ""},
		{"E24e", "white space is no condition", "  ", false, "got string"},
		{"E24f", "a condition", "${{ ctx.stage == 'dev' }}", false, ""},
	} {
		got, err := evaluator(t).If(t.Context(), scope(), tc.in)
		if tc.err == "" && (err != nil || got != tc.want) || tc.err != "" && (err == nil || !contains(err, tc.err)) {
			t.Errorf("%s %s: got %t, %v", tc.id, tc.reason, got, err)
		}
	}
}
