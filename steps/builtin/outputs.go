package builtin

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"

	"github.com/expr-lang/expr"
)

// outputExpression names an output and says how to get it from a document.
type outputExpression struct {
	Name           string `json:"name"`
	FromExpression string `json:"fromExpression"`
}

// extractOutputs evaluates expressions in the expr language, without ${{ }},
// on a document. The document is the environment: its keys are names, and $env
// is the whole of it.
func extractOutputs(document any, outputs []outputExpression) (map[string]any, error) {
	extracted := make(map[string]any, len(outputs))
	for _, o := range outputs {
		program, err := expr.Compile(o.FromExpression)
		if err != nil {
			return nil, fmt.Errorf("failed to extract outputs: error compiling expression %q: %w", o.FromExpression, err)
		}
		value, err := expr.Run(program, document)
		if err == nil {
			value, err = jsonShaped(value)
		}
		if err != nil {
			return nil, fmt.Errorf("failed to extract outputs: error evaluating expression %q: %w", o.FromExpression, err)
		}
		extracted[o.Name] = value
	}
	return extracted, nil
}

// jsonShaped returns v in the types an output may have: nil, bool, float64,
// int64, string, []any, map[string]any. Kargo stores other Go types as they
// are and panics at the next step. What has no such shape of its own counts as
// what encoding/json makes of it.
func jsonShaped(v any) (any, error) {
	switch v := v.(type) {
	case nil, bool, string, int64:
		return v, nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v is not a JSON number", v)
		}
		return v, nil
	case json.Marshaler:
		return throughJSON(v)
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return r.Int(), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if r.Uint() > math.MaxInt64 {
			return float64(r.Uint()), nil
		}
		return int64(r.Uint()), nil
	case reflect.Float32:
		return jsonShaped(r.Float())
	case reflect.Slice, reflect.Array:
		list := make([]any, r.Len())
		for i := range list {
			e, err := jsonShaped(r.Index(i).Interface())
			if err != nil {
				return nil, err
			}
			list[i] = e
		}
		return list, nil
	case reflect.Map:
		object := make(map[string]any, r.Len())
		for _, k := range r.MapKeys() {
			e, err := jsonShaped(r.MapIndex(k).Interface())
			if err != nil {
				return nil, err
			}
			object[fmt.Sprint(k.Interface())] = e
		}
		return object, nil
	}
	return throughJSON(v)
}

func throughJSON(v any) (any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out any
	err = json.Unmarshal(text, &out)
	return out, err
}
