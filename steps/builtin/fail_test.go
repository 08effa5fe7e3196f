package builtin

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/steps"
)

// Conformance F34.
func TestF34Fail(t *testing.T) {
	for _, tc := range []struct {
		reason string
		config config
		text   string
	}{
		{"with a message", config{"message": "nope"}, "failed: nope"},
		{"without", config{}, "failed"},
		{"an empty message is no message", config{"message": ""}, "message: String length must be greater than or equal to 1"},
	} {
		r, err := newPromotion(t).run(Fail(), tc.config)
		outcome{steps.Failed, true, tc.text}.check(t, tc.reason, r, err)
	}
}

func TestComposeOutput(t *testing.T) {
	p := newPromotion(t)
	cfg := config{"x": 1, "y": []any{"two", nil}}
	if diff := cmp.Diff(cfg, p.must(ComposeOutput(), cfg)); diff != "" {
		t.Errorf("output (-config +output):\n%s", diff)
	}
	r, err := p.run(ComposeOutput(), config{})
	outcome{steps.Failed, true, "(root): Must have at least 1 properties"}.check(t, "nothing to output", r, err)
}

func TestEveryStepHasASchema(t *testing.T) {
	for _, reg := range Registrations(Edges{}) {
		if len(reg.ConfigSchema) == 0 {
			t.Errorf("%s has no config schema", reg.Name)
		}
	}
}
