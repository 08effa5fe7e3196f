// Package configapply is the step config-apply: it puts a compiled config at
// its path in the gitops tree with some keys set, refuses a config that is not
// the one that was verified or not the one for this place, and keeps every
// byte nobody asked to change.
//
// How YAML is edited belongs in internal/yamledit, which paths are safe in
// internal/fsroot. Committing belongs to atomic-commit.
package configapply

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stepd/stepd/internal/fsroot"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/internal/yamledit"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
)

// Kind is the name of the step in `uses`.
const Kind = "config-apply"

// Options are the step's edges.
type Options struct {
	// Ledger is where `verified` looks. Without one, `verified` is refused.
	Ledger verification.Ledger
}

// New describes the step. Its outcomes: Failed and terminal for whatever a user
// has to mend, with an error that wraps steps.ErrRefused for an input that is
// not the verified one or not the expected one, and steps.ErrConfig for a path
// that is refused; Errored for I/O.
func New(o Options) steps.Registration {
	r := steps.Registration{
		Name: Kind,
		New: func(steps.Capabilities) steps.Runner {
			return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
				output, err := apply(ctx, o.Ledger, sc)
				if err != nil {
					return outcome(err)
				}
				return steps.Result{Status: steps.Succeeded, Output: output}, nil
			})
		},
	}
	r.ConfigSchema, _ = schemas.Config(Kind)
	r.OutputSchema, _ = schemas.Output(Kind)
	return r
}

// maxFile bounds every file that is read, in bytes.
const maxFile = 16 << 20

// config is schemas/config-apply.json.
type config struct {
	InPath     string         `json:"inPath"`
	OutPath    string         `json:"outPath"`
	Updates    []update       `json:"updates"`
	CreateKeys bool           `json:"createKeys"`
	Document   json.Number    `json:"document"`
	Schema     *schemaSource  `json:"schema"`
	Expect     map[string]any `json:"expect"`
	Verified   string         `json:"verified"`
}

type update struct {
	Key       string             `json:"key"`
	Value     any                `json:"value"`
	From      *origin            `json:"from"`
	ValueType yamledit.ValueType `json:"valueType"`
}

type origin struct {
	Path string `json:"path"`
	Key  string `json:"key"`
}

// apply does the step's work. Errors that are not mentioned at New are I/O.
func apply(ctx context.Context, ledger verification.Ledger, sc *steps.Context) (map[string]any, error) {
	cfg, document, err := decode(sc.Config)
	if err != nil {
		return nil, err
	}
	in, err := fsroot.Clean(cfg.InPath)
	if err != nil {
		return nil, fmt.Errorf("inPath: %w", err)
	}
	out, err := fsroot.Clean(cfg.OutPath)
	if err != nil {
		return nil, fmt.Errorf("outPath: %w", err)
	}
	if in == out && cfg.Verified != "" {
		return nil, fmt.Errorf("%w: outPath must not be inPath when `verified` is set, or a retry would find the edited file in place of the verified one", steps.ErrConfig)
	}
	root, err := fsroot.Open(sc.WorkDir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // nothing depends on it

	text, err := root.ReadFile(in, maxFile)
	if err != nil {
		return nil, fmt.Errorf("inPath: %w", err)
	}
	if cfg.Verified != "" {
		if err := checkVerified(ctx, ledger, sc, cfg.Verified, in, text); err != nil {
			return nil, err
		}
	}
	if err := checkExpected(text, in, document, cfg.Expect); err != nil {
		return nil, err
	}
	updates, err := resolve(ctx, root, cfg.Updates)
	if err != nil {
		return nil, err
	}
	edited, changes, err := yamledit.Edit(ctx, text, document, updates, yamledit.Options{File: in, CreateKeys: cfg.CreateKeys})
	if err != nil {
		return nil, err
	}
	if cfg.Schema != nil {
		if err := cfg.Schema.check(root, edited, out, document); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	old, err := root.ReadFile(out, maxFile)
	changed := err != nil || !bytes.Equal(old, edited)
	if changed {
		if err := root.WriteFile(out, edited); err != nil {
			return nil, fmt.Errorf("outPath: %w", err)
		}
	}
	sum := sha256.Sum256(edited)
	return map[string]any{
		"path":          out,
		"changed":       changed,
		"sha256":        hex.EncodeToString(sum[:]),
		"updates":       report(changes),
		"commitMessage": commitMessage(out, changes),
	}, nil
}

// decode reads the config, which the schema has accepted. Numbers keep their
// text.
func decode(raw map[string]any) (cfg config, document int, err error) {
	text, err := json.Marshal(raw)
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		d.DisallowUnknownFields()
		err = d.Decode(&cfg)
	}
	if err == nil && cfg.Document != "" {
		var n float64
		n, err = cfg.Document.Float64() // 1.0 is an integer to JSON Schema
		document = int(n)
	}
	if err != nil {
		return cfg, 0, fmt.Errorf("cannot read the step's config: %w: %w", steps.ErrConfig, err)
	}
	return cfg, document, nil
}

// checkVerified holds the input against what oci-download-verified recorded.
func checkVerified(ctx context.Context, ledger verification.Ledger, sc *steps.Context, alias, in string, text []byte) error {
	if ledger == nil {
		return fmt.Errorf("%w: `verified` is set, but this engine keeps no record of verifications", steps.ErrRefused)
	}
	record, err := verification.Find(ctx, ledger, sc.Project, sc.Promotion, sc.Alias, alias)
	var absent *verification.NotFoundError
	if errors.As(err, &absent) {
		return fmt.Errorf("%w: %w", steps.ErrRefused, err)
	}
	if err != nil {
		return fmt.Errorf("cannot read the verification of step %q: %w", alias, err)
	}
	sum := sha256.Sum256(text)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != record.LayerDigest {
		return fmt.Errorf("%w: %s is %s, but step %q verified %s of %s: the file was changed after it was verified, or inPath names another file",
			steps.ErrRefused, in, got, alias, record.LayerDigest, record.Repository)
	}
	return nil
}

// checkExpected refuses a config that was made for another place.
func checkExpected(text []byte, in string, document int, expect map[string]any) error {
	keys := make([]string, 0, len(expect))
	for k := range expect {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, key := range keys {
		want, err := yamledit.Of(expect[key])
		if err != nil {
			return fmt.Errorf("expect: key %q: %w: %w", key, steps.ErrConfig, err)
		}
		got, err := yamledit.Get(text, document, key, yamledit.Options{File: in})
		if err != nil {
			return fmt.Errorf("%w: the config does not have what `expect` asks for: %w", steps.ErrRefused, err)
		}
		if got.Equal(want) {
			continue
		}
		hint := ""
		if got.Kind != want.Kind {
			hint = fmt.Sprintf(" (%s and %s differ in type; quote(…) keeps the text of an expression)", got.Kind, want.Kind)
		}
		parts, err := yamledit.SplitKey(key)
		if err != nil {
			return fmt.Errorf("expect: key %q: %w: %w", key, steps.ErrConfig, err)
		}
		line, column := yamledit.Position(text, document, parts)
		return fmt.Errorf("%w: %s:%d:%d: %s is %s, but this step expects %s%s: the config was made for another place",
			steps.ErrRefused, in, line, column, key, got, want, hint)
	}
	return nil
}

// resolve looks up the values that come from other files.
func resolve(ctx context.Context, root *fsroot.Root, updates []update) ([]yamledit.Update, error) {
	resolved := make([]yamledit.Update, len(updates))
	for i, u := range updates {
		resolved[i] = yamledit.Update{Key: u.Key, Value: u.Value, Type: u.ValueType}
		if u.From == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		text, err := root.ReadFile(u.From.Path, maxFile)
		if err != nil {
			return nil, fmt.Errorf("updates.%d.from: %w", i, err)
		}
		value, err := yamledit.Get(text, 0, u.From.Key, yamledit.Options{File: u.From.Path})
		if err != nil {
			return nil, fmt.Errorf("updates.%d.from: %w", i, err)
		}
		resolved[i].Value = value
	}
	return resolved, nil
}

// outcome tells what a user has to mend from what may pass.
func outcome(err error) (steps.Result, error) {
	var (
		path   *fsroot.PathError
		large  *fsroot.TooLargeError
		key    *yamledit.Error
		syntax *yamledit.SyntaxError
	)
	switch {
	case errors.As(err, &path):
		err = fmt.Errorf("%w: %w", steps.ErrConfig, err)
	case errors.Is(err, steps.ErrConfig), errors.Is(err, steps.ErrRefused),
		errors.As(err, &large), errors.As(err, &key), errors.As(err, &syntax), errors.Is(err, errSchema):
	default:
		return steps.Result{Status: steps.Errored}, err
	}
	return steps.Result{Status: steps.Failed}, steps.Terminal(err)
}

func report(changes []yamledit.Change) []any {
	list := make([]any, len(changes))
	for i, c := range changes {
		list[i] = map[string]any{"key": c.Key, "old": c.Old.Value(), "new": c.New.Value(), "created": c.Created}
	}
	return list
}

// commitMessage has the form of Kargo's yaml-update, but for values that do
// not fit on a line: these are quoted.
func commitMessage(path string, changes []yamledit.Change) string {
	var b strings.Builder
	b.WriteString("Updated " + path)
	for i, c := range changes {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "\n- %s: %s", c.Key, oneLine(c.New))
	}
	return b.String()
}

func oneLine(s yamledit.Scalar) string {
	if s.Kind == yamledit.String && s.Text != "" && !strings.ContainsFunc(s.Text, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 }) {
		return s.Text
	}
	return s.String()
}
