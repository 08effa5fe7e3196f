package expr

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"
	"github.com/expr-lang/expr"
	"go.yaml.in/yaml/v3"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// functions returns the options that declare Kargo's functions with their Go
// signatures, which expr checks calls against at compile time
// (pkg/expressions/function/functions.go). They read e.scope when called. Those
// that find artifacts are declared, as in Kargo, to return structs although
// they return pointers: a nil one then fails when a field is read.
func (e *Evaluator) functions(set functionSet) []expr.Option {
	opts := []expr.Option{
		expr.Function("quote", one(quote), new(func(any) string)),
		expr.Function("unsafeQuote", one(unsafeQuote), new(func(any) string)),
		expr.Function("asYAML", one(asYAML), new(func(any) string)),
		expr.Function("asJSON", one(asJSON), new(func(any) string)),
		expr.Function("warehouse", text(warehouse), new(func(string) steps.FreightOrigin)),
		expr.Function("commitFrom", e.commitFrom,
			new(func(string) steps.GitCommit), new(func(string, steps.FreightOrigin) steps.GitCommit)),
		expr.Function("imageFrom", e.imageFrom,
			new(func(string) steps.Image), new(func(string, steps.FreightOrigin) steps.Image)),
		expr.Function("chartFrom", e.chartFrom,
			new(func(string) steps.Chart), new(func(string, string) steps.Chart),
			new(func(string, steps.FreightOrigin) steps.Chart), new(func(string, string, steps.FreightOrigin) steps.Chart)),
		expr.Function("artifactFrom", e.artifactFrom,
			new(func(string) *Artifact), new(func(string, steps.FreightOrigin) *Artifact)),
		expr.Function("configMap", text(e.configMap), new(func(string) map[string]string)),
		expr.Function("sharedConfigMap", text(e.sharedConfigMap), new(func(string) map[string]string)),
		expr.Function("secret", text(e.secret), new(func(string) map[string]string)),
		expr.Function("sharedSecret", text(e.sharedSecret), new(func(string) map[string]string)),
		expr.Function("freightMetadata", text(e.freightMetadata), new(func(string) map[string]any)),
		expr.Function("stageMetadata", text(e.stageMetadata), new(func(string) map[string]any)),
		expr.Function("semverDiff", semverDiff, new(func(string, string) string)),
		expr.Function("semverParse", text(semverParse), new(func(string) *semver.Version)),
		expr.Patch(statusComparison{}),
	}
	if e.now != nil {
		opts = append(opts, expr.Function("now", e.currentTime,
			new(func() time.Time), new(func(*time.Location) time.Time)))
	}
	if set == statusFunctions {
		opts = append(opts,
			expr.Function("always", none(func() bool { return true }), new(func() bool)),
			expr.Function("failure", none(e.failure), new(func() bool)),
			expr.Function("success", none(func() bool { return !e.failure() }), new(func() bool)),
			expr.Function("status", text(e.status), new(func(string) string)),
		)
	}
	return opts
}

type function = func(params ...any) (any, error)

func none[T any](f func() T) function {
	return func(params ...any) (any, error) {
		if len(params) != 0 {
			return nil, fmt.Errorf("expected 0 arguments, got %d", len(params))
		}
		return f(), nil
	}
}

func one(f func(any) (any, error)) function {
	return func(params ...any) (any, error) {
		if len(params) != 1 {
			return nil, fmt.Errorf("expected 1 argument, got %d", len(params))
		}
		return f(params[0])
	}
}

func text(f func(string) (any, error)) function {
	return one(func(param any) (any, error) {
		s, ok := param.(string)
		if !ok {
			return nil, fmt.Errorf("argument must be string, got %T", param)
		}
		return f(s)
	})
}

// The quoting functions put quotes around their text, which Type takes off
// again where they surround the whole template.

func quote(v any) (any, error) {
	if s, ok := v.(string); ok {
		return strconv.Quote(s), nil
	}
	return unsafeQuote(v)
}

func unsafeQuote(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("error marshaling value to JSON: %w", err)
	}
	return `"` + string(b) + `"`, nil
}

func asYAML(v any) (any, error) {
	b, err := yaml.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("error marshaling value to YAML: %w", err)
	}
	return `"` + string(b) + `"`, nil
}

func asJSON(v any) (any, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("error marshaling value to JSON: %w", err)
	}
	return `"` + buf.String() + `"`, nil
}

func warehouse(name string) (any, error) {
	if name == "" {
		return nil, errors.New("name must not be empty")
	}
	return steps.FreightOrigin{Kind: kargoapi.KindWarehouse, Name: name}, nil
}

func (e *Evaluator) configMap(name string) (any, error) {
	return e.read("configMap/"+name, func() (map[string]string, error) {
		return e.data.ConfigMap(e.ctx, e.scope.Project, name)
	})
}

func (e *Evaluator) sharedConfigMap(name string) (any, error) {
	return e.read("sharedConfigMap/"+name, func() (map[string]string, error) {
		return e.data.SharedConfigMap(e.ctx, name)
	})
}

func (e *Evaluator) secret(name string) (any, error) {
	return e.read("secret/"+name, func() (map[string]string, error) {
		m, err := e.data.Secret(e.ctx, e.scope.Project, name)
		return decoded(m), err
	})
}

func (e *Evaluator) sharedSecret(name string) (any, error) {
	return e.read("sharedSecret/"+name, func() (map[string]string, error) {
		m, err := e.data.SharedSecret(e.ctx, name)
		return decoded(m), err
	})
}

// read returns a copy of what get returns, an empty map for nil, and calls get
// once per step attempt and key.
func (e *Evaluator) read(key string, get func() (map[string]string, error)) (any, error) {
	if cached, ok := e.reads[key].(map[string]string); ok {
		return maps.Clone(cached), nil
	}
	m, err := get()
	if err != nil {
		return nil, err
	}
	if m == nil {
		m = map[string]string{}
	}
	e.reads[key] = m
	return maps.Clone(m), nil
}

func decoded(m map[string][]byte) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = string(v)
	}
	return out
}

func (e *Evaluator) freightMetadata(name string) (any, error) {
	if name == "" {
		return nil, errors.New("freight ref name must not be empty")
	}
	m, err := e.data.FreightMetadata(e.ctx, e.scope.Project, name)
	return metadata(m, err)
}

func (e *Evaluator) stageMetadata(name string) (any, error) {
	if name == "" {
		return nil, errors.New("stage name must not be empty")
	}
	m, err := e.data.StageMetadata(e.ctx, e.scope.Project, name)
	return metadata(m, err)
}

func metadata(m map[string]json.RawMessage, err error) (any, error) {
	if err != nil || len(m) == 0 {
		return nil, err
	}
	out := make(map[string]any, len(m))
	for k, raw := range m {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("cannot decode metadata %q: %w", k, err)
		}
		out[k] = v
	}
	return out, nil
}

func semverDiff(params ...any) (any, error) {
	if len(params) != 2 {
		return nil, fmt.Errorf("expected 2 arguments, got %d", len(params))
	}
	var v [2]*semver.Version
	for i, p := range params {
		s, ok := p.(string)
		if !ok {
			return nil, fmt.Errorf("%s argument must be string, got %T", ordinal[i], p)
		}
		var err error
		if v[i], err = semver.NewVersion(s); err != nil {
			return "Incomparable", nil //nolint:nilerr // a version that cannot be parsed is an answer here
		}
	}
	switch {
	case v[0].Major() != v[1].Major():
		return "Major", nil
	case v[0].Minor() != v[1].Minor():
		return "Minor", nil
	case v[0].Patch() != v[1].Patch():
		return "Patch", nil
	case v[0].Metadata() != v[1].Metadata():
		return "Metadata", nil
	}
	return "None", nil
}

func semverParse(s string) (any, error) {
	v, err := semver.NewVersion(s)
	if err != nil {
		return nil, fmt.Errorf("invalid semantic version: %w", err)
	}
	return v, nil
}

// currentTime replaces expr's now(), so that a run can be repeated.
func (e *Evaluator) currentTime(params ...any) (any, error) {
	switch len(params) {
	case 0:
		return e.now(), nil
	case 1:
		if tz, ok := params[0].(*time.Location); ok {
			return e.now().In(tz), nil
		}
	}
	return nil, fmt.Errorf("expected no argument or a timezone, got %d arguments", len(params))
}

// failure tells whether a step that matters has failed so far.
func (e *Evaluator) failure() bool { return HasFailures(e.scope.StepMetadata) }

// HasFailures tells whether any step Failed or Errored, other than those that
// continue on error.
func HasFailures(metas []kargoapi.StepExecutionMetadata) bool {
	for _, m := range metas {
		if !m.ContinueOnError && (m.Status == steps.Failed || m.Status == steps.Errored) {
			return true
		}
	}
	return false
}

// status returns the status of a step in the current step's own namespace.
func (e *Evaluator) status(alias string) (any, error) {
	if alias == "" {
		return nil, errors.New("argument must not be empty")
	}
	if i := strings.LastIndex(e.scope.Alias, "::"); i >= 0 {
		alias = e.scope.Alias[:i] + "::" + alias
	} else if strings.Contains(alias, "::") {
		return "", nil
	}
	for _, m := range e.scope.StepMetadata {
		if m.Alias == alias {
			return string(m.Status), nil
		}
	}
	return "", nil
}

var ordinal = [...]string{"first", "second", "third"}
