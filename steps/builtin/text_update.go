package builtin

import (
	"fmt"
	"os"
	"strings"

	"github.com/stepd/stepd/steps"
)

// setInText puts one value into the text of the file at path, and says how the
// commit message shows it.
type setInText func(text []byte, path, key string, value any) (edited []byte, shown string, err error)

// updateText is what json-update and toml-update share: the updates are applied
// in order, and the file is written only if all succeed. format names the kind
// of file in errors.
func updateText(sc *steps.Context, format string, set setInText) (steps.Result, error) {
	cfg, err := decodeConfig[updatesConfig](sc)
	if err != nil {
		return failed(err)
	}
	file, err := within(sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	fail := func(err error) (steps.Result, error) {
		return errored(relativeTo(sc.WorkDir, fmt.Errorf("%s file update failed: %w", format, err)))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fail(fmt.Errorf("error reading %s file %q: %w", format, cfg.Path, err))
	}
	lines := make([]string, len(cfg.Updates))
	for i, u := range cfg.Updates {
		value, err := decodeValue(u.Value)
		if err != nil {
			return failed(err)
		}
		var shown string
		if text, shown, err = set(text, cfg.Path, u.Key, value); err != nil {
			return fail(err)
		}
		lines[i] = "- " + u.Key + ": " + shown
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fail(fmt.Errorf("error writing %s file %q: %w", format, cfg.Path, err))
	}
	return succeeded(map[string]any{"commitMessage": "Updated " + cfg.Path + "\n\n" + strings.Join(lines, "\n")})
}
