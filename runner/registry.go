package runner

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/steps"
)

// Registry holds the kinds of step an engine can run. It does not change once
// it is made and is safe for concurrent use.
type Registry struct {
	byKind map[string]*registered
	kinds  []string
}

type registered struct {
	steps.Registration
	// schema compiles the config schema when it is first needed: a promotion
	// uses few of the kinds there are.
	schema func() (*configschema.Schema, error)
}

// NewRegistry makes a Registry. It refuses a registration without a name or a
// factory, and two of the same name.
func NewRegistry(regs ...steps.Registration) (*Registry, error) {
	r := &Registry{byKind: make(map[string]*registered, len(regs))}
	for _, reg := range regs {
		switch _, dup := r.byKind[reg.Name]; {
		case reg.Name == "":
			return nil, errors.New("cannot register a step without a name")
		case reg.New == nil:
			return nil, fmt.Errorf("cannot register step %q: it has no factory", reg.Name)
		case dup:
			return nil, fmt.Errorf("cannot register step %q twice", reg.Name)
		}
		if reg.DefaultErrorThreshold == 0 {
			reg.DefaultErrorThreshold = 1
		}
		r.byKind[reg.Name] = &registered{reg, sync.OnceValues(func() (*configschema.Schema, error) {
			if reg.ConfigSchema == nil {
				return nil, nil
			}
			s, err := configschema.Compile(reg.ConfigSchema)
			if err != nil {
				return nil, fmt.Errorf("cannot use the config schema of step %q: %w", reg.Name, err)
			}
			return s, nil
		})}
		r.kinds = append(r.kinds, reg.Name)
	}
	sort.Strings(r.kinds)
	return r, nil
}

// Lookup returns the registration of a kind of step.
func (r *Registry) Lookup(kind string) (steps.Registration, bool) {
	reg, ok := r.byKind[kind]
	if !ok {
		return steps.Registration{}, false
	}
	return reg.Registration, true
}

// ConfigSchema returns the compiled config schema of a kind of step; nil for
// an unknown kind and for one that accepts any config.
func (r *Registry) ConfigSchema(kind string) (*configschema.Schema, error) {
	reg, ok := r.byKind[kind]
	if !ok {
		return nil, nil
	}
	return reg.schema()
}

// Kinds returns the names of all kinds, sorted. The caller owns the slice.
func (r *Registry) Kinds() []string { return append([]string(nil), r.kinds...) }

// Near returns up to three kinds that resemble an unknown one, best first.
func (r *Registry) Near(kind string) []string { return nearname.Nearest(kind, r.kinds, 3) }

// Elsewhere says which version or edition of Kargo has a step that stepd does
// not have, and what does its work here; "" if none is known (compat.md 5).
func Elsewhere(kind string) string {
	switch kind {
	case "tar":
		return "Kargo has it only after v1.11"
	case "github-push":
		return "Kargo v1.11 has it, stepd does not: use git-push, or atomic-commit"
	case "helm-update-image":
		return "Kargo removed it: use yaml-update on the values file"
	case "git-overwrite":
		return "Kargo removed it: use git-clear and copy"
	case "kargo-render":
		return "Kargo removed it: use helm-template or kustomize-build"
	case "hcl-update", "jfrog-evidence", "jira", "send-message", "get-user-input", "record-audit-event", "wait-for-approval":
		return "only the commercial edition of Kargo has it"
	}
	for _, prefix := range []string{"gh-", "gha-", "snow-", "tf-"} {
		if strings.HasPrefix(kind, prefix) {
			return "only the commercial edition of Kargo has it"
		}
	}
	return ""
}
