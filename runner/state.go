package runner

import (
	"encoding/json"
	"fmt"
	"reflect"
)

// Outputs become state, and state is JSON: Kargo stores it in the Promotion
// between passes, and panics on anything else within one (it cannot deep copy
// an int). Here every output is brought into JSON shape when it is stored.

// shape returns v made of nil, bool, float64, int64, string, []any and
// map[string]any only. An int64 stays one, as in Kargo within a pass.
func shape(v any) (any, error) {
	switch v := v.(type) {
	case nil, bool, string, float64, int64:
		return v, nil
	case int:
		return float64(v), nil
	case map[string]any:
		if v == nil {
			return nil, nil
		}
		out := make(map[string]any, len(v))
		for k, item := range v {
			s, err := shape(item)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
			out[k] = s
		}
		return out, nil
	case []any:
		if v == nil {
			return nil, nil
		}
		out := make([]any, len(v))
		for i, item := range v {
			s, err := shape(item)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			out[i] = s
		}
		return out, nil
	}
	return reload(v)
}

// reload returns what is left of v after it was stored as JSON and read again.
func reload(v any) (any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("not a JSON value: %w", err)
	}
	var out any
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, err
	}
	return out, nil
}

// loadState returns the state as a new pass finds it. An output that was nil
// is a nil map, so that asking it for a key gives nil in every pass; in Kargo
// it is a nil map in the pass that made it and null, an error to ask, later.
func loadState(state map[string]any) (map[string]any, error) {
	out := make(map[string]any, len(state))
	for alias, output := range state {
		if isNil(output) {
			out[alias] = map[string]any(nil)
			continue
		}
		v, err := reload(output)
		if err != nil {
			return nil, fmt.Errorf("cannot read the state of step %q: %w", alias, err)
		}
		out[alias] = v
	}
	return out, nil
}

func isNil(v any) bool {
	if v == nil {
		return true
	}
	m := reflect.ValueOf(v)
	return m.Kind() == reflect.Map && m.IsNil()
}

// deepCopy copies JSON-shaped values, so that no step can change another's
// output. Nil maps stay nil.
func deepCopy(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if v == nil {
			return v
		}
		out := make(map[string]any, len(v))
		for k, item := range v {
			out[k] = deepCopy(item)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = deepCopy(item)
		}
		return out
	}
	return v
}
