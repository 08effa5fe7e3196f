package sigverify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/cel-go/cel"

	"github.com/stepd/stepd/internal/ociart"
)

// AttestationSpec is a required attestation as written in a config.
type AttestationSpec struct {
	// PredicateType is the in-toto predicate type, exactly. Required.
	PredicateType string
	// BuilderID, SourceURI and SourceRef are read from SLSA provenance v1 and
	// v0.2; empty ones are not looked at.
	BuilderID, SourceURI, SourceRef string
	// MaxAge bounds the time since the proven signing time; zero does not.
	MaxAge time.Duration
	// CEL is an expression over the variable predicate; empty is none.
	CEL string
}

// Attestation is a compiled AttestationSpec.
type Attestation struct {
	spec    AttestationSpec
	program cel.Program
}

// maxEvaluationCost bounds what a CEL expression may do with a predicate.
const maxEvaluationCost = 1_000_000

// NewAttestation compiles spec.
func NewAttestation(spec AttestationSpec) (Attestation, error) {
	if spec.PredicateType == "" {
		return Attestation{}, errors.New("an attestation needs a predicateType")
	}
	if spec.PredicateType == signPredicateType {
		return Attestation{}, fmt.Errorf("%s is the predicate type of plain signatures: use requireSignature", signPredicateType)
	}
	if spec.MaxAge < 0 {
		return Attestation{}, errors.New("maxAge must not be negative")
	}
	a := Attestation{spec: spec}
	if spec.CEL == "" {
		return a, nil
	}
	env, err := cel.NewEnv(cel.Variable("predicate", cel.DynType))
	if err != nil {
		return Attestation{}, fmt.Errorf("cannot set up CEL: %w", err)
	}
	ast, issues := env.Compile(spec.CEL)
	if issues.Err() != nil {
		return Attestation{}, fmt.Errorf("the CEL expression is invalid: %w", issues.Err())
	}
	if t := ast.OutputType(); !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return Attestation{}, fmt.Errorf("the CEL expression yields %s, expected bool", t)
	}
	a.program, err = env.Program(ast, cel.CostLimit(maxEvaluationCost), cel.InterruptCheckFrequency(100))
	if err != nil {
		return Attestation{}, fmt.Errorf("the CEL expression is invalid: %w", err)
	}
	return a, nil
}

// check tells why a verified attestation does not satisfy the requirement; nil
// if it does.
func (a Attestation) check(ctx context.Context, v *Verified, now time.Time, limits Limits) error {
	if v.PredicateType != a.spec.PredicateType {
		return fmt.Errorf("its predicate type is %s, expected %s", ociart.Quote(v.PredicateType), ociart.Quote(a.spec.PredicateType))
	}
	p := provenanceOf(v.predicate)
	for _, c := range []struct {
		name, want string
		have       []string
	}{
		{"builder id", a.spec.BuilderID, p.builders},
		{"source", trimSource(a.spec.SourceURI), p.sources},
		{"source ref", a.spec.SourceRef, p.refs},
	} {
		if c.want != "" && !allEqual(c.have, c.want) {
			return fmt.Errorf("its %s is %s, expected %s", c.name, quoteList(c.have), ociart.Quote(c.want))
		}
	}
	if a.spec.MaxAge > 0 {
		if v.SignedAt.IsZero() {
			return errors.New("no signing time is proven, so maxAge cannot be checked")
		}
		if age := now.Sub(v.SignedAt); age > a.spec.MaxAge {
			return fmt.Errorf("it was signed %s ago, the most is %s", age.Round(time.Second), a.spec.MaxAge)
		}
	}
	if a.program == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limits.Evaluation)
	defer cancel()
	out, _, err := a.program.ContextEval(ctx, map[string]any{"predicate": v.predicate})
	if err != nil {
		return fmt.Errorf("the CEL expression failed: %s", ociart.Quote(err.Error()))
	}
	if ok, isBool := out.Value().(bool); !isBool || !ok {
		return errors.New("the CEL expression is not true for it")
	}
	return nil
}

// provenance are the facts of SLSA provenance that requirements look at. All
// places that state a fact are collected, and all must agree.
type provenance struct{ builders, sources, refs []string }

// provenanceOf reads SLSA provenance v1 (runDetails.builder.id,
// buildDefinition.externalParameters.workflow and the first resolved
// dependency) and v0.2 (builder.id, invocation.configSource).
func provenanceOf(predicate map[string]any) provenance {
	var p provenance
	add := func(list *[]string, v any) {
		if s, ok := v.(string); ok && s != "" {
			*list = append(*list, s)
		}
	}
	source := func(v any) {
		s, ok := v.(string)
		if !ok || s == "" {
			return
		}
		p.sources = append(p.sources, trimSource(s))
		if _, ref := cutRef(s); ref != "" {
			p.refs = append(p.refs, ref)
		}
	}
	add(&p.builders, at(predicate, "runDetails", "builder", "id"))
	add(&p.builders, at(predicate, "builder", "id"))
	source(at(predicate, "buildDefinition", "externalParameters", "workflow", "repository"))
	add(&p.refs, at(predicate, "buildDefinition", "externalParameters", "workflow", "ref"))
	source(at(predicate, "invocation", "configSource", "uri"))
	if len(p.sources) == 0 {
		if deps, ok := at(predicate, "buildDefinition", "resolvedDependencies").([]any); ok && len(deps) > 0 {
			if dep, ok := deps[0].(map[string]any); ok {
				source(dep["uri"])
			}
		}
	}
	return p
}

func at(v any, path ...string) any {
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}

// trimSource takes the spellings of one repository together:
// git+https://host/repo.git@ref is https://host/repo.
func trimSource(s string) string {
	uri, _ := cutRef(s)
	return strings.TrimSuffix(uri, ".git")
}

// cutRef splits the ref off an SPDX download location: git+https://host/repo@ref.
func cutRef(s string) (uri, ref string) {
	s = strings.TrimPrefix(s, "git+")
	authority := strings.Index(s, "://")
	if authority < 0 {
		return s, ""
	}
	path := strings.IndexByte(s[authority+3:], '/')
	i := strings.LastIndexByte(s, '@')
	if path < 0 || i < authority+3+path {
		return s, ""
	}
	return s[:i], s[i+1:]
}

func allEqual(list []string, want string) bool {
	for _, s := range list {
		if s != want {
			return false
		}
	}
	return len(list) > 0
}

func quoteList(list []string) string {
	if len(list) == 0 {
		return "not stated"
	}
	q := make([]string, 0, 3)
	for _, s := range list[:min(3, len(list))] {
		q = append(q, ociart.Quote(s))
	}
	return strings.Join(q, ", ")
}
