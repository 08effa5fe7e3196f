package expr_test

import (
	"strings"
	"testing"

	"github.com/stepd/stepd/runner/expr"
)

// What running real Kargo code showed, as far as no golden case in sight pins
// it (compatibility specification, section 12).
func TestCorrections(t *testing.T) {
	text := func(name, value string) *expr.Scope {
		return scope(func(s *expr.Scope) { s.StepVars = vars(name, value) })
	}
	runCases(t, []testCase{
		{"and", "a string that looks like a bool, with &&", "${{ vars.go && true }}", text("go", "true"), true},
		{"not", "and with !", "${{ !vars.go }}", text("go", "true"), wantError("")},
		{"dynamic", "== across types where one is not known", "${{ vars.s == 1 }}", text("s", "1"), false},
		{"groupBy", "indexing into groupBy", "${{ len(groupBy([1,2,1], #)[1]) }}", nil, 2},
		{"fromPairs", "and into fromPairs", "${{ fromPairs([['x', 7]])['x'] }}", nil, 7},
		{"zero", "negative zero in longer text", "a${{ -0.0 }}", nil, "a-0"},
		{"zero2", "and alone", "${{ -0.0 }}", nil, 0},
		{"leading zeros", "a version with leading zeros", "${{ quote(semverParse('01.2.3').String()) }}", nil, "1.2.3"},
		{"V", "an upper-case V", "${{ semverParse('V1.2.3') }}", nil, wantError("invalid semantic version")},
		{"space", "a space before it", "${{ semverParse(' 1.2.3') }}", nil, wantError("invalid semantic version")},
		{"four", "four parts", "${{ semverParse('1.2.3.4') }}", nil, wantError("invalid semantic version")},
		{"semver value", "a version as a value", "${{ semverParse('v1.2') }}", nil, "1.2.0"},
		{"asYAML struct", "a struct as YAML has lower-case Go names", "${{ asYAML(imageFrom('reg.io/app')) }}", nil,
			"repourl: reg.io/app\ntag: v3\ndigest: \"\"\nannotations: {}\n"},
		{"asJSON block", "two newlines at the end of a block", "${{ asJSON([1]) }}\n", nil, "[\n  1\n]\n\n"},
		{"artifact nil", "a member of an artifact that is not there", "${{ artifactFrom('nope').Version }}", nil, wantError("cannot get Version from <nil>")},
		{"artifact keys", "an artifact in a variable keeps its Go names", "${{ vars.a.SubscriptionName }}-${{ vars.a.subscriptionName }}",
			text("a", "${{ artifactFrom('cfg') }}"), "cfg-null"},
		{"twice", "text out of an expression is not evaluated again", "${{ vars.t + '{{ 1 }}' }}", text("t", "$"), wantError("")},
		{"twice2", "nor is a variable's", "${% vars.t + '{{ 1 }}' %}", text("t", "$"), "${{ 1 }}"},
		{"deep", "an expression that would exhaust the stack", "${{ " + strings.Repeat("(", 1<<20) + " }}", nil, wantError("is longer than")},
		{"overflow", "an integer beyond 2^53 loses digits", "${{ 9007199254740993 }}", nil, 9007199254740992},
	})
}
