package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
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
	if err := checkIndices(text, key); err != nil {
		return nil, "", fmt.Errorf("error setting key %q in JSON file: %w", key, err)
	}
	if edited, err = sjson.SetBytes(text, key, value); err != nil {
		return nil, "", fmt.Errorf("error setting key %q in JSON file: %w", key, err)
	}
	return edited, shown, nil
}

// maxJSONIndex is the largest index of an array that is created or filled up:
// sjson pads the array with nulls up to it.
const maxJSONIndex = 100_000

// checkIndices refuses a path with a larger index, unless it is the key of an
// object that is there.
func checkIndices(text []byte, path string) error {
	at := 0
	for part := range strings.SplitSeq(path, ".") {
		n, err := strconv.ParseUint(part, 10, 64)
		if (err == nil && n > maxJSONIndex || errors.Is(err, strconv.ErrRange)) && !isJSONObject(text, path[:max(at-1, 0)]) {
			return fmt.Errorf("index %s is larger than %d; for the key of an object write :%s", part, maxJSONIndex, part)
		}
		at += len(part) + 1
	}
	return nil
}

func isJSONObject(text []byte, path string) bool {
	if path == "" {
		return gjson.ParseBytes(text).IsObject()
	}
	return gjson.GetBytes(text, path).IsObject()
}
