package builtin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/stepd/stepd/internal/yamledit"
	"github.com/stepd/stepd/steps"
)

// updatesConfig is the config of yaml-update, json-update and toml-update.
type updatesConfig struct {
	Path    string `json:"path"`
	Updates []struct {
		Key   string          `json:"key"`
		Value json.RawMessage `json:"value"`
	} `json:"updates"`
}

// YAMLUpdate is `yaml-update`: it sets scalars the way Kargo's line editor
// does, byte for byte, as long as that leaves the rest of the file intact. A
// change that Kargo would break the file with (in a flow collection, a block
// scalar, after several wide characters) is made by package yamledit instead.
func YAMLUpdate() steps.Registration { return stateless("yaml-update", runYAMLUpdate) }

func runYAMLUpdate(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[updatesConfig](sc)
	if err != nil {
		return failed(err)
	}
	file, err := within(sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	fail := func(err error) (steps.Result, error) {
		return errored(fmt.Errorf("values file update failed: error updating image references in values file %q: %w", cfg.Path, relativeTo(sc.WorkDir, err)))
	}
	src, err := os.ReadFile(file)
	if err != nil {
		return fail(fmt.Errorf("error reading file %q: %w", cfg.Path, err))
	}
	updates := make([]yamledit.Update, len(cfg.Updates))
	lines := make([]string, len(cfg.Updates))
	for i, u := range cfg.Updates {
		value, err := decodeValue(u.Value)
		if err != nil {
			return failed(err)
		}
		updates[i] = yamledit.Update{Key: u.Key, Value: value, Type: yamledit.AsGiven}
		lines[i] = "- " + u.Key + ": " + kargoYAMLValue(value)
	}
	out, err := updateYAML(ctx, sc.Log, src, cfg.Path, updates)
	if err != nil {
		return fail(err)
	}
	if err := os.WriteFile(file, out, 0o644); err != nil { //nolint:gosec // the mode applies to no file: it exists
		return fail(err)
	}
	return succeeded(map[string]any{"commitMessage": "Updated " + cfg.Path + "\n\n" + strings.Join(lines, "\n")})
}

// updateYAML edits as Kargo does where that does no damage.
func updateYAML(ctx context.Context, log *slog.Logger, src []byte, path string, updates []yamledit.Update) ([]byte, error) {
	out, err := updateLines(src, path, updates)
	if err != nil {
		return nil, err
	}
	written := map[string]string{}
	for _, u := range updates {
		written[u.Key] = kargoYAMLValue(u.Value)
	}
	if yamledit.SameExcept(src, out, written) {
		warnOfRetyping(log, out, path, updates)
		return out, nil
	}
	log.Warn("yaml-update of Kargo would damage this file; the values are set without that", slog.String("path", path))
	out, _, err = yamledit.Edit(ctx, src, 0, updates, yamledit.Options{File: path, SharedAnchors: true})
	return out, err
}

// decodeValue keeps numbers as they are written.
func decodeValue(raw json.RawMessage) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("cannot read a value of the step's config: %w: %w", steps.ErrConfig, err)
	}
	return v, nil
}

// maxLineLength is the longest line Kargo's line editor reads.
const maxLineLength = 1 << 20

// updateLines is Kargo's algorithm (v1.11.2, pkg/yaml): each line that holds
// one of the scalars is cut at the scalar's column and ends in the new value.
// Columns count characters but cut bytes; CR LF becomes LF; the last line ends
// in a line break.
func updateLines(src []byte, path string, updates []yamledit.Update) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(src, &doc); err != nil {
		return nil, &yamledit.SyntaxError{File: path, Err: err}
	}
	type change struct {
		column int
		value  string
	}
	changes := map[int]change{}
	for _, u := range updates {
		parts, err := yamledit.SplitKey(u.Key)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", u.Key, err)
		}
		// Kargo's words first: later expressions can look for them.
		switch n, err := yamledit.First(&doc, parts); {
		case err != nil:
			return nil, fmt.Errorf("%w: %w", err, explainMissing(src, path, u.Key))
		case n == nil:
			return nil, fmt.Errorf("key path not found: %w", explainMissing(src, path, u.Key))
		case n.Kind != yaml.ScalarNode:
			return nil, fmt.Errorf("key path does not address a scalar node: %w", explainMissing(src, path, u.Key))
		default:
			changes[n.Line] = change{n.Column, kargoYAMLValue(u.Value)}
		}
	}
	var out bytes.Buffer
	number := 0
	for line := range bytes.Lines(src) {
		number++
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(line) > maxLineLength {
			return nil, fmt.Errorf("line %d of %s is longer than %d bytes", number, path, maxLineLength)
		}
		if c, ok := changes[number]; ok && c.column-1 <= len(line) {
			line = line[:c.column-1]
			out.Write(line)
			if !bytes.HasSuffix(line, []byte(" ")) {
				out.WriteByte(' ')
			}
			out.WriteString(c.value)
		} else {
			out.Write(line)
		}
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

// explainMissing says where a path ends and which keys are near.
func explainMissing(src []byte, path, key string) error {
	_, err := yamledit.Get(src, 0, key, yamledit.Options{File: path})
	if err == nil { // it is there only by way of an alias
		return fmt.Errorf("%s: key %q: key path not found: an alias stands on it; set the key at the anchor", path, key)
	}
	return err
}

// kargoYAMLValue renders a value as Kargo does: a string that parses as a
// float, a Go bool or JSON is quoted, every other string is bare. Numbers
// differ from Kargo where it would write a whole number as 1e+06.
func kargoYAMLValue(v any) string {
	switch v := v.(type) {
	case string:
		if _, err := strconv.ParseFloat(v, 64); err == nil {
			return strconv.Quote(v)
		}
		if _, err := strconv.ParseBool(v); err == nil || json.Valid([]byte(v)) {
			return strconv.Quote(v)
		}
		return v
	case json.Number:
		return kargoNumber(v)
	case bool:
		return strconv.FormatBool(v)
	}
	text, err := json.Marshal(v) // JSON is YAML; Kargo prints Go syntax here
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

// kargoNumber writes whole numbers in full and others like Go's %v.
func kargoNumber(n json.Number) string {
	if i, err := n.Int64(); err == nil {
		return strconv.FormatInt(i, 10)
	}
	f, err := n.Float64()
	if err != nil {
		return n.String()
	}
	if f == math.Trunc(f) {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

// warnOfRetyping logs strings that Kargo writes bare and YAML reads as
// something else.
func warnOfRetyping(log *slog.Logger, out []byte, path string, updates []yamledit.Update) {
	for _, u := range updates {
		want, err := yamledit.Of(u.Value)
		if err != nil {
			continue
		}
		got, err := yamledit.Get(out, 0, u.Key, yamledit.Options{File: path})
		if want.Kind == yamledit.String && (err != nil || !got.Equal(want)) {
			log.Warn("yaml-update writes this string without quotes, as Kargo does, and YAML reads something else",
				slog.String("path", path), slog.String("key", u.Key), slog.String("wanted", want.String()))
		}
	}
}
