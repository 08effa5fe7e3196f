package expr_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Cases that follow from Kargo's code (C) or expr's (E) only.
func TestConformanceByCode(t *testing.T) {
	failed := scope(func(s *expr.Scope) {
		s.Alias, s.StepMetadata = "b", []kargoapi.StepExecutionMetadata{{Alias: "a", Status: steps.Failed}, {Alias: "b"}}
	})
	runCases(t, []testCase{
		{"A29", "a tag that is a number", "${{ '1.10' }}", nil, 1.1},
		{"A31", "the whole text is typed", "1${{ 2 }}", nil, 12},
		{"A32", "quotes inside text are visible", "${{ quote('a') }}-${{ quote('b') }}", nil, `a"-"b`},
		{"A34", "no JSON value", "${{ 'nan' }}", nil, wantError("json: unsupported value: NaN")},
		{"B11", "no status functions in variables", "x", scope(func(s *expr.Scope) { s.PromotionVars = vars("v", "${{ success() }}") }),
			wantError(`error pre-processing promotion variable "v"`)},
		{"B11b", "nor in a step's", "x", scope(func(s *expr.Scope) { s.StepVars = vars("v", "${{ always() }}") }), wantError("always")},
		// The list has outputs.x give null. Real Kargo's answers show that outputs
		// is nil there and that a member of nil is an error (B7), so this is split.
		{"B12", "outputs is nil in a promotion's variables", "${{ vars.v }}", scope(func(s *expr.Scope) {
			s.PromotionVars, s.Outputs = vars("v", "${{ outputs?.x }}"), map[string]any{"x": map[string]any{"y": 1}}
		}), nil},
		{"B12b", "so that its members cannot be had", "x", scope(func(s *expr.Scope) {
			s.PromotionVars, s.Outputs = vars("v", "${{ outputs.x }}"), map[string]any{"x": map[string]any{"y": 1}}
		}), wantError("cannot fetch x from <nil>")},
		{"B14", "a status compares as a string; in Kargo this is false", "${{ stepMetas['a'].Status == 'Failed' }}", failed, true},
		{"B14b", "and can be converted, as Kargo needs it", "${{ string(stepMetas['a'].Status) == 'Failed' }}", failed, true},
		{"B14c", "not equal", "${{ stepMetas['a'].Status != 'Failed' }} ${{ 'Failed' == stepMetas.a?.Status }}", failed, "false true"},
		{"B14d", "a step that is not there has none", "${{ stepMetas.zip?.Status == nil }} ${{ nil == stepMetas.zip?.Status }} ${{ stepMetas.zip?.Status == '' }}",
			failed, "true true false"},
		{"B14e", "what fails in Kargo fails", "${{ stepMetas.a.Status in ['Failed'] }}", failed, wantError("reflect")},
		{"B14f", "in text it has quotes", "x-${{ stepMetas.a.Status }}", failed, `x-"Failed"`},
		{"B14g", "alone it has none", "${{ stepMetas.a.Status }}", failed, "Failed"},
		{"B14h", "a step's first attempt has none", "${{ stepMetas.b.Status }}", failed, ""},
		{"C4", "repositories are compared as written", "${{ imageFrom('docker.io/library/nginx') }}", nil, nil},
		{"C4b", "but for git", "${{ commitFrom('HTTPS://u@GIT.io/a/B/').ID }}", nil, "c0ffee"},
		{"C11", "three arguments need a chart name", "${{ chartFrom('u', '', warehouse('w')) }}", nil, wantError("second argument must be a non-empty string")},
		{"C29", "a key that is missing is empty, not nil", "${{ configMap('m').missing ?? 'd' }}", nil, ""},
		{"nil field", "reading a field of nothing", "${{ imageFrom('nope').Tag }}", nil, wantError("reflect: call of reflect.Value.Field on zero Value")},
		{"nil ok", "asking whether there is something", "${{ imageFrom('nope')?.Tag ?? 'x' }}-${{ imageFrom('nope') == nil }}", nil, "x-true"},
		{"origin", "a Warehouse in a variable is no origin any more", "${{ imageFrom('reg.io/app', vars.w) }}",
			scope(func(s *expr.Scope) { s.StepVars = vars("w", "${{ warehouse('goods') }}") }),
			wantError("second argument must be FreightOrigin, got map[string]interface {}")},
		{"explicit", "an origin spares the subscriptions", "${{ imageFrom('reg.io/app', warehouse('goods')).Tag }}", scope(requests()), "v3"},
		{"chart", "by repository, by name, with an origin", "${{ [chartFrom('oci://reg.io/charts/c').Version, chartFrom('https://charts.io', 'gate').Version, " +
			"chartFrom('https://charts.io', 'gate', warehouse('goods')).Version, chartFrom('oci://reg.io/charts/c', warehouse('goods')).Version] }}",
			nil, []any{"0.1.0", "4.5.6", "4.5.6", "0.1.0"}},
		{"stageMetadata", "a Stage's metadata", "${{ stageMetadata('prod').count }}", nil, 4},
		{"meta JSON", "a step's metadata as JSON", "${{ stepMetas.a }}", scope(func(s *expr.Scope) {
			at := time.Date(2026, 11, 22, 4, 4, 5, 999, time.FixedZone("CET", 3600))
			s.StepMetadata = []kargoapi.StepExecutionMetadata{{Alias: "a", Status: steps.Failed, StartedAt: &at, ErrorCount: 2}}
		}), map[string]any{"alias": "a", "status": "Failed", "startedAt": "2026-11-22T03:04:05Z", "errorCount": 2}},
		{"meta methods", "and its times are times", "${{ stepMetas.a.StartedAt.Format('15:04') }} ${{ stepMetas.a.StartedAt.Time.Year() }}",
			scope(func(s *expr.Scope) {
				at := time.Date(2026, 11, 22, 4, 4, 5, 0, time.UTC)
				s.StepMetadata = []kargoapi.StepExecutionMetadata{{Alias: "a", StartedAt: &at}}
			}), "04:04 2026"},
		{"meta time", "when a step started", "${{ stepMetas.a.StartedAt == nil }}", failed, true},
		{"task twice", "two separators are no task", "${{ task }}", scope(func(s *expr.Scope) { s.Alias = "p::q::r" }), nil},
	})
}

func TestArgumentChecks(t *testing.T) {
	s := func() *expr.Scope {
		return scope(func(s *expr.Scope) { s.StepVars = vars("n", "${{ 5 }}", "m", "${{ {'a': 1} }}") })
	}
	runCases(t, []testCase{
		{"none", "too few", "${{ imageFrom() }}", nil, wantError("not enough arguments to call imageFrom")},
		{"many", "too many", "${{ secret('a', 'b') }}", nil, wantError("too many arguments to call secret")},
		{"static", "wrong type, known when compiled", "${{ configMap(1) }}", nil, wantError("cannot use int as argument (type string) to call configMap")},
		{"first", "wrong type, known when run", "${{ imageFrom(vars.n) }}", s(), wantError("first argument must be string, got float64")},
		{"chart first", "of chartFrom", "${{ chartFrom(vars.n) }}", s(), wantError("first argument must be string, got float64")},
		{"chart second", "its second", "${{ chartFrom('a', vars.m) }}", s(), wantError("second argument must be string or FreightOrigin")},
		{"chart third", "its third", "${{ chartFrom('a', 'b', vars.m) }}", s(), wantError("third argument must be FreightOrigin")},
		{"semver", "of semverDiff", "${{ semverDiff('1', vars.n) }}", s(), wantError("second argument must be string, got float64")},
		{"one", "of a function with one argument", "${{ status(vars.n) }}", s(), wantError("argument must be string, got float64")},
	})
}

func contains(err error, part string) bool { return strings.Contains(err.Error(), part) }
