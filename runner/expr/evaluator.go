package expr

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"
	"go.yaml.in/yaml/v3"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// Scope is everything expressions of one step can see.
type Scope struct {
	UIBaseURL string
	Project   string
	Stage     string
	Promotion string
	Actor     string
	Rollback  bool
	// Alias is the step's full alias, "task::step" inside a task.
	Alias string

	TargetFreight      steps.FreightReference
	TargetFreightAlias string
	FreightRequests    []kargoapi.FreightRequest
	Freight            steps.FreightCollection

	// PromotionVars are evaluated before StepVars, each in order.
	PromotionVars []kargoapi.Variable
	StepVars      []kargoapi.Variable

	// Outputs maps an alias to a map[string]any, which may be nil.
	Outputs map[string]any
	// StepMetadata has an entry per step reached so far, this one included.
	StepMetadata []kargoapi.StepExecutionMetadata
}

// Evaluator evaluates the templates of one promotion. Programs are compiled
// once and kept. It is not safe for concurrent use.
type Evaluator struct {
	data Data
	now  func() time.Time

	programs map[programKey]compiled
	options  map[functionSet][]expr.Option

	// What functions see during one evaluation.
	ctx   context.Context //nolint:containedctx // expr functions take no context; it is set for the duration of one call
	scope *Scope
	reads map[string]any
}

// functionSet selects the functions an expression may call.
type functionSet int

const (
	// baseFunctions are available everywhere.
	baseFunctions functionSet = iota
	// statusFunctions adds success, failure, always and status.
	statusFunctions
)

type programKey struct {
	code string
	set  functionSet
}

type compiled struct {
	program *vm.Program
	err     error
}

// NewEvaluator returns an Evaluator whose functions read data, and whose now()
// is the given one; nil is the system's clock.
func NewEvaluator(data Data, now func() time.Time) *Evaluator {
	return &Evaluator{
		data:     data,
		now:      now,
		programs: map[programKey]compiled{},
		options:  map[functionSet][]expr.Option{},
	}
}

// If evaluates the step's variables and then its condition, which has to
// yield a bool. It is for a condition that is not empty.
func (e *Evaluator) If(ctx context.Context, s *Scope, condition string) (bool, error) {
	defer e.enter(ctx, s)()
	env, err := e.stepEnv()
	if err != nil {
		return false, err
	}
	v, err := e.template(condition, env, statusFunctions)
	if err != nil {
		return false, &LocatedError{err, "/if"}
	}
	b, ok := v.(bool)
	if !ok {
		hint := "a condition has to be true or false; compare the value with something"
		if !HasCode(condition) {
			hint = "write ${{ … }} around the condition: this is plain text"
		}
		return false, &LocatedError{&HintedError{fmt.Errorf("expression must evaluate to a boolean, got %T", v), hint}, "/if"}
	}
	return b, nil
}

// Config evaluates the step's variables and then its config, which has to be
// a JSON object. Whole numbers in the result are int. A step without a config
// has an empty one, and its variables are not evaluated.
//
// UnreadableConfigError is returned, with a nil config, where Kargo would
// silently go on with no config.
func (e *Evaluator) Config(ctx context.Context, s *Scope, config json.RawMessage) (map[string]any, error) {
	if len(config) == 0 || string(config) == "null" {
		return map[string]any{}, nil
	}
	defer e.enter(ctx, s)()
	env, err := e.stepEnv()
	if err != nil {
		return nil, err
	}
	var in map[string]any
	if err := json.Unmarshal(config, &in); err != nil {
		return nil, fmt.Errorf("input is not valid JSON; are all expressions enclosed in quotes? %w", err)
	}
	out, err := e.walk(in, env, "")
	if err != nil {
		return nil, err
	}
	return Decode(out.(map[string]any))
}

// Decode is the last step of evaluating a config: its values are JSON types,
// out of templates that Type has typed, and become what a step is given. Whole
// numbers are int. A number that is not finite is an error, since JSON has none.
//
// Kargo decodes the evaluated JSON as YAML, and so must we: it decides which
// numbers are int, and it refuses some characters that JSON allows, which is
// an UnreadableConfigError.
func Decode(evaluated map[string]any) (map[string]any, error) {
	text, err := json.Marshal(evaluated)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := yaml.Unmarshal(text, &m); err != nil {
		return nil, &UnreadableConfigError{Err: err}
	}
	return m, nil
}

// UnreadableConfigError says that an evaluated config has something in it
// that Kargo's decoder refuses: a control character or a key over 1,024 bytes.
// Kargo ignores the error and runs the step without a config.
type UnreadableConfigError struct{ Err error }

// Error implements error.
func (e *UnreadableConfigError) Error() string {
	return "Kargo cannot decode the evaluated config and would run the step without one: " + e.Err.Error()
}

// Unwrap returns the decoder's error.
func (e *UnreadableConfigError) Unwrap() error { return e.Err }

// Template evaluates one template in an environment of the caller's. The
// status functions are available if the scope is not nil.
func (e *Evaluator) Template(ctx context.Context, s *Scope, template string, env map[string]any) (any, error) {
	set := statusFunctions
	if s == nil {
		s, set = &Scope{}, baseFunctions
	}
	defer e.enter(ctx, s)()
	return e.template(template, env, set)
}

func (e *Evaluator) enter(ctx context.Context, s *Scope) func() {
	e.ctx, e.scope, e.reads = ctx, s, map[string]any{}
	return func() { e.ctx, e.scope, e.reads = nil, nil, nil }
}

// stepEnv evaluates all variables and returns the environment of the step's
// `if` and config (pkg/promotion/evaluator.go Vars).
func (e *Evaluator) stepEnv() (map[string]any, error) {
	s := e.scope
	ctx := s.context()
	vars := make(map[string]any, len(s.PromotionVars)+len(s.StepVars))
	if err := e.addVars(vars, s.PromotionVars, map[string]any{"ctx": ctx, "vars": vars}); err != nil {
		return nil, err
	}
	env := map[string]any{
		"ctx":       ctx,
		"vars":      vars,
		"outputs":   s.Outputs,
		"stepMetas": stepMetas(s.StepMetadata),
	}
	if ns, ok := TaskNamespace(s.Alias); ok {
		env["task"] = map[string]any{"outputs": taskOutputs(s.Outputs, ns)}
	}
	if err := e.addVars(vars, s.StepVars, env); err != nil {
		return nil, err
	}
	return env, nil
}

func (e *Evaluator) addVars(vars map[string]any, list []kargoapi.Variable, env map[string]any) error {
	for _, v := range list {
		value, err := e.template(v.Value, env, baseFunctions)
		if err != nil {
			return fmt.Errorf("error pre-processing promotion variable %q: %w", v.Name, err)
		}
		vars[v.Name] = value
	}
	return nil
}

func (s *Scope) context() map[string]any {
	return map[string]any{
		"uiBaseUrl": s.UIBaseURL,
		"project":   s.Project,
		"promotion": s.Promotion,
		"stage":     s.Stage,
		"targetFreight": map[string]any{
			"name":   s.TargetFreight.Name,
			"alias":  s.TargetFreightAlias,
			"origin": map[string]any{"name": s.TargetFreight.Origin.Name},
		},
		"meta": map[string]any{
			"promotion": map[string]any{"actor": s.Actor, "rollback": s.Rollback},
			"step":      map[string]any{"alias": s.Alias},
		},
	}
}

// TaskNamespace returns the task part of an alias of the form "task::step".
func TaskNamespace(alias string) (string, bool) {
	parts := strings.Split(alias, "::")
	if len(parts) != 2 {
		return "", false
	}
	return parts[0], true
}

func taskOutputs(outputs map[string]any, namespace string) map[string]any {
	out := map[string]any{}
	for alias, output := range outputs {
		if short, ok := strings.CutPrefix(alias, namespace+"::"); ok {
			if ns, ok := TaskNamespace(alias); ok && ns == namespace {
				out[short] = output
			}
		}
	}
	return out
}

// StepMeta is a step's execution metadata as expressions see it: with Kargo's
// field names. Status is of a named string type as in Kargo, which shows: in
// text it has quotes, and the operator `in` fails. See statusComparison for
// what works here and not there.
type StepMeta struct {
	Alias           string       `json:"alias,omitempty"`
	StartedAt       *Time        `json:"startedAt,omitempty"`
	FinishedAt      *Time        `json:"finishedAt,omitempty"`
	ErrorCount      uint32       `json:"errorCount,omitempty"`
	Status          steps.Status `json:"status,omitempty"`
	Message         string       `json:"message,omitempty"`
	ContinueOnError bool         `json:"continueOnError,omitempty"`
}

// Time is a time.Time inside a struct, as Kubernetes' metav1.Time is.
type Time struct{ time.Time }

// MarshalJSON writes UTC with whole seconds, as Kubernetes does.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(t.UTC().Format(time.RFC3339))
}

func stepMetas(list []kargoapi.StepExecutionMetadata) map[string]any {
	metas := make(map[string]any, len(list))
	for _, m := range list {
		metas[m.Alias] = StepMeta{
			Alias:           m.Alias,
			StartedAt:       wrapTime(m.StartedAt),
			FinishedAt:      wrapTime(m.FinishedAt),
			ErrorCount:      m.ErrorCount,
			Status:          m.Status,
			Message:         m.Message,
			ContinueOnError: m.ContinueOnError,
		}
	}
	return metas
}

func wrapTime(t *time.Time) *Time {
	if t == nil {
		return nil
	}
	return &Time{*t}
}

// walk evaluates every string value, in the order of keys so that of several
// failures the same one is reported each time.
func (e *Evaluator) walk(v any, env map[string]any, at string) (any, error) {
	switch v := v.(type) {
	case string:
		x, err := e.template(v, env, statusFunctions)
		if err != nil {
			return nil, &LocatedError{err, "/config" + at}
		}
		return x, nil
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			x, err := e.walk(item, env, at+load.Pointer(i))
			if err != nil {
				return nil, err
			}
			out[i] = x
		}
		return out, nil
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		out := make(map[string]any, len(v))
		for _, k := range keys {
			x, err := e.walk(v[k], env, at+load.Pointer(k))
			if err != nil {
				return nil, err
			}
			out[k] = x
		}
		return out, nil
	}
	return v, nil
}

// forbiddenKeys may not be keys of an environment, where they would hide the
// functions of that name.
var forbiddenKeys = [...]string{"quote", "asYAML", "asJSON"}

func (e *Evaluator) template(template string, env map[string]any, set functionSet) (any, error) {
	if !HasCode(template) {
		return template, nil
	}
	for _, k := range forbiddenKeys {
		if _, ok := env[k]; ok {
			return nil, fmt.Errorf("%q is a forbidden key in the environment map", k)
		}
	}
	pieces, err := Scan(template)
	if err != nil {
		return nil, err
	}
	var sb strings.Builder
	for _, p := range pieces {
		if !p.Code {
			sb.WriteString(p.Text)
			continue
		}
		program, err := e.compile(p.Text, set)
		if err != nil {
			return nil, err
		}
		value, err := expr.Run(program, env)
		if err != nil {
			return nil, explain(err)
		}
		text, err := Text(value)
		if err != nil {
			return nil, err
		}
		sb.WriteString(text)
	}
	return Type(sb.String()), nil
}

func (e *Evaluator) compile(code string, set functionSet) (*vm.Program, error) {
	key := programKey{code, set}
	c, ok := e.programs[key]
	if !ok {
		if e.options[set] == nil {
			e.options[set] = e.functions(set)
		}
		if c.err = checkLength(code); c.err == nil {
			c.program, c.err = expr.Compile(code, e.options[set]...)
		}
		e.programs[key] = c
	}
	return c.program, c.err
}

// HintedError is an error with advice beside its text, which stays Kargo's.
type HintedError struct {
	Err  error
	Hint string
}

// Error implements error.
func (e *HintedError) Error() string { return e.Err.Error() }

// Unwrap returns the error without the hint.
func (e *HintedError) Unwrap() error { return e.Err }

// LocatedError is an error of a value that is written at a JSON pointer below
// its step, such as /config/path or /if.
type LocatedError struct {
	Err     error
	Pointer string
}

// Error implements error.
func (e *LocatedError) Error() string { return e.Err.Error() }

// Unwrap returns the error without its place.
func (e *LocatedError) Unwrap() error { return e.Err }

// explain adds to expr's wording of a common mistake what it leaves out.
func explain(err error) error {
	text := err.Error()
	switch {
	case strings.Contains(text, "on zero Value"):
		return &HintedError{err, "the function before the dot found nothing; use ?. and ?? where that may happen"}
	case strings.HasPrefix(text, "cannot fetch ") && strings.Contains(text, " from <nil>"):
		return &HintedError{err, "what is before the dot is null, as are the outputs of a step that was skipped; use ?. and ?? where that may happen"}
	}
	return err
}
