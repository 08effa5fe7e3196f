package builtin

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/tidwall/sjson"

	"github.com/stepd/stepd/steps"
)

// JSONUpdate is `json-update`: it sets scalars in a JSON file by the path
// syntax of tidwall/sjson, creating what is missing and leaving the rest of the
// text alone. Like Kargo it does not check that the file is JSON.
func JSONUpdate() steps.Registration { return stateless("json-update", runJSONUpdate) }

func runJSONUpdate(_ context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[updatesConfig](sc)
	if err != nil {
		return failed(err)
	}
	file, err := within(sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	fail := func(format string, args ...any) (steps.Result, error) {
		return errored(relativeTo(sc.WorkDir, fmt.Errorf("JSON file update failed: "+format, args...)))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fail("error reading JSON file %q: %w", cfg.Path, err)
	}
	lines := make([]string, len(cfg.Updates))
	for i, u := range cfg.Updates {
		value, err := decodeValue(u.Value)
		if err != nil {
			return failed(err)
		}
		var shown string
		switch v := value.(type) {
		case string:
			shown = strconv.Quote(v)
		case bool:
			shown = strconv.FormatBool(v)
		case json.Number:
			f, err := v.Float64()
			if err != nil {
				return fail("value for key %q: %w", u.Key, err)
			}
			shown = fmt.Sprint(f) // 1e+06, as Kargo prints it
			value = f
			if n, err := v.Int64(); err == nil {
				value = n // the file gets every digit
			}
		default:
			return fail("value for key %q is not a scalar type", u.Key)
		}
		lines[i] = "- " + u.Key + ": " + shown
		if text, err = sjson.SetBytes(text, u.Key, value); err != nil {
			return fail("error setting key %q in JSON file: %w", u.Key, err)
		}
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fail("error writing JSON file %q: %w", cfg.Path, err)
	}
	return succeeded(map[string]any{"commitMessage": "Updated " + cfg.Path + "\n\n" + strings.Join(lines, "\n")})
}
