package builtin

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/tidwall/sjson"

	"github.com/stepd/stepd/steps"
)

// JSONUpdate is `json-update`: it sets scalars in a JSON file by the path
// syntax of tidwall/sjson, creating what is missing and leaving the rest of the
// text alone. Like Kargo it does not check that the file is JSON.
func JSONUpdate() steps.Registration { return stateless("json-update", runJSONUpdate) }

func runJSONUpdate(_ context.Context, sc *steps.Context) (steps.Result, error) {
	return updateText(sc, "JSON", setJSON)
}

func setJSON(text []byte, _, key string, value any) (edited []byte, shown string, err error) {
	switch v := value.(type) {
	case string:
		shown = strconv.Quote(v)
	case bool:
		shown = strconv.FormatBool(v)
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			return nil, "", fmt.Errorf("value for key %q: %w", key, err)
		}
		shown = fmt.Sprint(f) // 1e+06, as Kargo prints it
		value = f
		if n, err := v.Int64(); err == nil {
			value = n // the file gets every digit
		}
	default:
		return nil, "", fmt.Errorf("value for key %q is not a scalar type", key)
	}
	if edited, err = sjson.SetBytes(text, key, value); err != nil {
		return nil, "", fmt.Errorf("error setting key %q in JSON file: %w", key, err)
	}
	return edited, shown, nil
}
