package runner

import (
	"errors"
	"fmt"
	"sort"

	"github.com/stepd/stepd/steps"
)

// Registry holds the kinds of step an engine can run. It does not change once
// it is made.
type Registry struct {
	byKind map[string]steps.Registration
	kinds  []string
}

// NewRegistry makes a Registry. It refuses a registration without a name or a
// factory, and two of the same name.
func NewRegistry(regs ...steps.Registration) (*Registry, error) {
	r := &Registry{byKind: make(map[string]steps.Registration, len(regs))}
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
		r.byKind[reg.Name] = reg
		r.kinds = append(r.kinds, reg.Name)
	}
	sort.Strings(r.kinds)
	return r, nil
}

// Lookup returns the registration of a kind of step.
func (r *Registry) Lookup(kind string) (steps.Registration, bool) {
	reg, ok := r.byKind[kind]
	return reg, ok
}

// Kinds returns the names of all kinds, sorted. The caller owns the slice.
func (r *Registry) Kinds() []string { return append([]string(nil), r.kinds...) }
