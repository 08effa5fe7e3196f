package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/steps"
)

// memory is the resources of one project: Stage prod, Freight f and, under
// their names, the repositories that Warehouses subscribe to.
type memory map[string]string

func (m memory) set(what, name, known string, values any) error {
	if name != known {
		return errors.New("not found")
	}
	text, err := json.Marshal(values)
	m[what] = string(text)
	return err
}

func (m memory) SubscribedImages(_ context.Context, _, warehouse string) ([]string, error) {
	return strings.Fields(m[warehouse]), nil
}

func (m memory) SetStageMetadata(_ context.Context, project, stage string, values map[string]json.RawMessage) error {
	return m.set("Stage", project+"/"+stage, "demo/prod", values)
}

func (m memory) SetFreightMetadata(_ context.Context, project, freight string, values map[string]json.RawMessage) error {
	return m.set("Freight", project+"/"+freight, "demo/f", values)
}

func (m memory) SetFreightAlias(_ context.Context, project, freight, alias string) error {
	return m.set("alias", project+"/"+freight, "demo/f", alias)
}

func TestMetadata(t *testing.T) {
	p := newPromotion(t)
	store := memory{}
	edge := Logged(store, p.log, false)
	update := func(kind, name string, values config) config {
		return config{"kind": kind, "name": name, "values": values}
	}
	p.must(SetMetadata(edge), config{"updates": []any{
		update("Stage", "prod", config{"a": 1, "b": nil}), update("Freight", "f", config{"c": []any{"x"}}),
	}})
	p.must(SetFreightAlias(edge), config{"name": "f", "alias": "release-7"})
	if diff := cmp.Diff(memory{"Stage": `{"a":1,"b":null}`, "Freight": `{"c":["x"]}`, "alias": `"release-7"`}, store); diff != "" {
		t.Errorf("set (-want +got):\n%s", diff)
	}
	var logged []string
	for _, r := range p.log.Requests() {
		logged = append(logged, fmt.Sprint(r.Kind, " ", r.Target, " ", r.Done))
	}
	if diff := cmp.Diff([]string{"metadata Stage/prod false", "metadata Freight/f false", "freight-alias Freight/f false"}, logged); diff != "" {
		t.Errorf("logged (-want +got):\n%s", diff)
	}

	p.log = &effects.Log{}
	r, err := p.run(SetMetadata(edge), config{"updates": []any{update("Stage", "nope", config{"a": 1})}})
	outcome{steps.Errored, false, "error getting Stage: not found"}.check(t, "no such Stage", r, err)
	r, err = p.run(SetFreightAlias(edge), config{"name": "nope", "alias": "a"})
	outcome{steps.Errored, false, "not found"}.check(t, "no such Freight", r, err)
	r, err = p.run(SetMetadata(edge), config{"updates": []any{update("Warehouse", "w", config{"a": 1})}})
	outcome{steps.Failed, true, "kind"}.check(t, "neither Stage nor Freight", r, err)
	if n := len(p.log.Requests()); n != 0 {
		t.Errorf("%d effects logged of what failed", n)
	}
}
