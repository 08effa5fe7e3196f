package runner

import (
	"errors"
	"slices"
	"strings"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/load"
)

// hints says what Kargo's wording of an error leaves out.
func hints(step *Step, err error) []string {
	if err == nil {
		return nil
	}
	var out []string
	add := func(at load.Position, parts ...string) {
		if at.Line > 0 {
			parts = append([]string{at.String()}, parts...)
		}
		if text := strings.Join(parts, ": "); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	if e, ok := errors.AsType[*guard.ConfigError](err); ok {
		for _, v := range e.Violations {
			pointer := v.Pointer
			if v.Property != "" {
				pointer += load.Pointer(v.Property)
			}
			parts := []string{v.Message}
			if v.Hint != "" {
				parts = append(parts, v.Hint)
			}
			add(step.Position("/config"+pointer), parts...)
		}
	}
	if e, ok := errors.AsType[*UnknownKindError](err); ok {
		if where := Elsewhere(e.Kind); where != "" {
			add(step.Position("/uses"), where)
		} else if len(e.Near) > 0 {
			add(step.Position("/uses"), "did you mean "+strings.Join(e.Near, ", ")+"?")
		}
	}
	if e, ok := errors.AsType[*expr.LocatedError](err); ok {
		remark := "this cannot be evaluated"
		if h, ok := errors.AsType[*expr.HintedError](err); ok {
			remark = h.Hint
		}
		add(step.Position(e.Pointer), remark)
	}
	if e, ok := errors.AsType[*expr.UnreadableConfigError](err); ok {
		add(step.Position("/config"), e.Error())
	}
	return out
}
