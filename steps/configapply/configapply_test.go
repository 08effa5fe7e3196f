package configapply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/steps"
)

const values = "# compiled by config-compiler v3 — do not edit\r\n" +
	"region: us-east-2\r\n" +
	"image:\r\n" +
	"  repository: ghcr.io/acme/svc   # built by CI\r\n" +
	"  tag: placeholder # set at promotion\r\n" +
	"replicas: 3\r\n" +
	"env: {LOG: 'info', FLAG: \"on\"}\r\n"

type promotion struct {
	t      *testing.T
	dir    string
	ledger verification.Ledger
}

func newPromotion(t *testing.T) *promotion {
	t.Helper()
	p := &promotion{t: t, dir: t.TempDir(), ledger: &verification.Memory{}}
	p.write("config/values.yaml", values)
	return p
}

func (p *promotion) write(name, data string) {
	p.t.Helper()
	file := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *promotion) read(name string) string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(data)
}

func (p *promotion) verify(alias, digest string) {
	p.t.Helper()
	err := p.ledger.Put(p.t.Context(), verification.Key{Project: "demo", Promotion: "p-1", Alias: alias},
		verification.Record{Repository: "ghcr.io/acme/configs", LayerDigest: digest})
	if err != nil {
		p.t.Fatal(err)
	}
}

// run runs the step the way an engine does, schema first, and holds its output
// against the output schema.
func (p *promotion) run(cfg map[string]any) (steps.Result, error) {
	p.t.Helper()
	reg := New(Options{Ledger: p.ledger})
	schema, err := configschema.Compile(reg.ConfigSchema)
	if err != nil {
		p.t.Fatal(err)
	}
	if violations := schema.Validate(cfg); len(violations) > 0 {
		return steps.Result{Status: steps.Failed}, steps.Terminal(fmt.Errorf("%w: %s", steps.ErrConfig, configschema.Messages(violations)))
	}
	r, err := reg.New(steps.Capabilities{}).Run(p.t.Context(), &steps.Context{
		WorkDir: p.dir, Config: cfg, Alias: "task::apply", Project: "demo", Stage: "prd-us", Promotion: "p-1", Log: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		schema, err := configschema.Compile(reg.OutputSchema)
		if err != nil {
			p.t.Fatal(err)
		}
		if violations := schema.Validate(r.Output); len(violations) > 0 {
			p.t.Errorf("output: %s", configschema.Messages(violations))
		}
	}
	return r, err
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func TestApply(t *testing.T) {
	p := newPromotion(t)
	p.write("gitops/prd-us/values.yaml", "image: {tag: v0.9.0}\nreplicas: 7\n")
	p.verify("task::config", "sha256:"+digest(values))
	cfg := map[string]any{
		"inPath": "./config/values.yaml", "outPath": "./gitops/prd-us/values.yaml",
		"expect": map[string]any{"region": "us-east-2", "replicas": 3, "env.LOG": "info"},
		"updates": []any{
			map[string]any{"key": "image.tag", "value": "1.10"},
			map[string]any{"key": "replicas", "from": map[string]any{"path": "gitops/prd-us/values.yaml", "key": "replicas"}},
			map[string]any{"key": "env.FLAG", "value": "off"},
		},
		"schema":   map[string]any{"inline": map[string]any{"properties": map[string]any{"replicas": map[string]any{"minimum": 2}}}},
		"verified": "config",
	}
	r, err := p.run(cfg)
	if err != nil || r.Status != steps.Succeeded {
		t.Fatalf("%s, %v", r.Status, err)
	}
	want := strings.NewReplacer("tag: placeholder", `tag: "1.10"`, "replicas: 3", "replicas: 7", `FLAG: "on"`, `FLAG: "off"`).Replace(values)
	if diff := cmp.Diff(want, p.read("gitops/prd-us/values.yaml")); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	output := map[string]any{
		"path": "gitops/prd-us/values.yaml", "changed": true, "sha256": digest(want),
		"commitMessage": "Updated gitops/prd-us/values.yaml\n\n- image.tag: 1.10\n- replicas: 7\n- env.FLAG: off",
		"updates": []any{
			map[string]any{"key": "image.tag", "old": "placeholder", "new": "1.10", "created": false},
			map[string]any{"key": "replicas", "old": int64(3), "new": int64(7), "created": false},
			map[string]any{"key": "env.FLAG", "old": "on", "new": "off", "created": false},
		},
	}
	if diff := cmp.Diff(output, r.Output); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	if p.read("config/values.yaml") != values {
		t.Error("the input was changed")
	}

	// A retry finds everything as the first attempt left it.
	r, err = p.run(cfg)
	output["changed"] = false
	if diff := cmp.Diff(output, r.Output); err != nil || diff != "" {
		t.Errorf("retry: %v (-want +got):\n%s", err, diff)
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left behind in the work dir: %v, %v", entries, err)
	}
}

func TestApplyVariants(t *testing.T) {
	cases := map[string]struct {
		reason string
		config map[string]any
		want   string
	}{
		"copy":        {"no updates: the bytes as they are", map[string]any{}, values},
		"create":      {"createKeys", map[string]any{"createKeys": true, "updates": []any{map[string]any{"key": "image.digest", "value": "sha256:00"}}}, strings.Replace(values, "set at promotion\r\n", "set at promotion\r\n  digest: sha256:00\r\n", 1)},
		"value type":  {"valueType", map[string]any{"updates": []any{map[string]any{"key": "image.tag", "value": 5, "valueType": "number"}}}, strings.Replace(values, "placeholder", "5", 1)},
		"schema file": {"schema.path", map[string]any{"schema": map[string]any{"path": "config/schema.json"}}, values},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			p.write("config/schema.json", `{"required": ["region"], "properties": {"env": {"properties": {"FLAG": {"const": "on"}}}}}`)
			tc.config["inPath"], tc.config["outPath"] = "config/values.yaml", "new/dir/values.yaml"
			if r, err := p.run(tc.config); err != nil || r.Status != steps.Succeeded {
				t.Fatalf("%s: %s, %v", tc.reason, r.Status, err)
			}
			if diff := cmp.Diff(tc.want, p.read("new/dir/values.yaml")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
	t.Run("document", func(t *testing.T) {
		p := newPromotion(t)
		p.write("config/values.yaml", "a: x\n---\na: y\n")
		r, err := p.run(map[string]any{"inPath": "config/values.yaml", "outPath": "config/values.yaml", "document": 1, "expect": map[string]any{"a": "y"},
			"updates": []any{map[string]any{"key": "a", "value": "z"}}})
		if err != nil || p.read("config/values.yaml") != "a: x\n---\na: z\n" {
			t.Errorf("in place: %s, %v, %q", r.Status, err, p.read("config/values.yaml"))
		}
	})
}

func TestRefusals(t *testing.T) {
	set := func(key string, value any) []any { return []any{map[string]any{"key": key, "value": value}} }
	cases := map[string]struct {
		reason string
		config map[string]any
		is     error // nil: no sentinel is asked for
		text   string
	}{
		"wrong region":    {"one region's config in another's place", map[string]any{"expect": map[string]any{"region": "ca-central-1"}}, steps.ErrRefused, `config/values.yaml:2:9: region is "us-east-2", but this step expects "ca-central-1"`},
		"no region":       {"a config that does not say", map[string]any{"expect": map[string]any{"reigon": "x"}}, steps.ErrRefused, `did you mean "region"?`},
		"region type":     {"values are compared with their type", map[string]any{"expect": map[string]any{"replicas": "3"}}, steps.ErrRefused, "differ in type"},
		"changed file":    {"not what was verified", map[string]any{"verified": "other"}, steps.ErrRefused, "changed after it was verified"},
		"unknown alias":   {"nothing was verified under the alias", map[string]any{"verified": "nothing"}, steps.ErrRefused, `no verification is recorded for step "nothing"`},
		"number":          {"Kargo made a number of the tag", map[string]any{"updates": set("image.tag", 1.1)}, nil, "config/values.yaml:5:8: key \"image.tag\": the scalar is the string \"placeholder\", but the value is the number 1.1; wrap the expression in quote(…)"},
		"bool":            {"or a bool", map[string]any{"updates": set("image.tag", true)}, nil, "quote("},
		"missing key":     {"without createKeys", map[string]any{"updates": set("image.tga", "x")}, nil, `did you mean "image.tag"`},
		"no document":     {"the file has one", map[string]any{"document": 3, "updates": set("image.tag", "x")}, nil, "there is no document 3"},
		"none to copy":    {"nor without updates", map[string]any{"document": 3}, nil, "config/values.yaml: there is no document 3"},
		"not YAML":        {"even where it is only copied", map[string]any{"inPath": "config/broken.yaml"}, nil, "cannot parse config/broken.yaml: yaml: line 2"},
		"schema":          {"with the place in the file", map[string]any{"schema": map[string]any{"inline": map[string]any{"properties": map[string]any{"image": map[string]any{"properties": map[string]any{"tag": map[string]any{"pattern": "^v"}}}}}}}, nil, "out/values.yaml:5:8: image.tag: Does not match pattern '^v'"},
		"bad schema":      {"not a schema", map[string]any{"schema": map[string]any{"inline": map[string]any{"type": "nonsense"}}}, steps.ErrConfig, "schema"},
		"schema network":  {"references are not followed", map[string]any{"schema": map[string]any{"inline": map[string]any{"$ref": "http://127.0.0.1:1/x"}}}, steps.ErrConfig, "nothing is loaded"},
		"climbing in":     {"outside", map[string]any{"inPath": "../values.yaml"}, steps.ErrConfig, ".."},
		"climbing out":    {"outside", map[string]any{"outPath": "gitops/../../values.yaml"}, steps.ErrConfig, ".."},
		"absolute":        {"outside", map[string]any{"outPath": "/etc/values.yaml"}, steps.ErrConfig, "absolute"},
		"git":             {"git's own", map[string]any{"outPath": "gitops/.GIT/config"}, steps.ErrConfig, "git"},
		"git in":          {"git's own", map[string]any{"inPath": "gitops/.git/config"}, steps.ErrConfig, "git"},
		"symlink":         {"a link on the way", map[string]any{"outPath": "link/values.yaml"}, steps.ErrConfig, "link is a symlink"},
		"symlink in":      {"a link as the input", map[string]any{"inPath": "link/values.yaml"}, steps.ErrConfig, "symlink"},
		"directory":       {"a directory as the output", map[string]any{"outPath": "config"}, steps.ErrConfig, "not a regular file"},
		"from symlink":    {"a link as another file", map[string]any{"updates": []any{map[string]any{"key": "image.tag", "from": map[string]any{"path": "link/values.yaml", "key": "region"}}}}, steps.ErrConfig, "symlink"},
		"from missing":    {"no such key there", map[string]any{"updates": []any{map[string]any{"key": "image.tag", "from": map[string]any{"path": "config/values.yaml", "key": "x"}}}}, nil, "updates.0.from"},
		"from number":     {"a number of another file", map[string]any{"updates": []any{map[string]any{"key": "image.tag", "from": map[string]any{"path": "config/values.yaml", "key": "replicas"}}}}, nil, "quote("},
		"in place":        {"a retry would find the edited file", map[string]any{"verified": "config", "outPath": "config/values.yaml"}, steps.ErrConfig, "inPath"},
		"value and from":  {"exactly one", map[string]any{"updates": []any{map[string]any{"key": "a", "value": "x", "from": map[string]any{"path": "a", "key": "b"}}}}, steps.ErrConfig, "updates.0: Must validate one and only one schema (oneOf)"},
		"neither":         {"exactly one", map[string]any{"updates": []any{map[string]any{"key": "a"}}}, steps.ErrConfig, "updates.0: Must validate one and only one schema (oneOf)"},
		"null value":      {"null is no value", map[string]any{"updates": set("image.tag", nil)}, steps.ErrConfig, "updates.0.value: Invalid type"},
		"unknown setting": {"nothing is ignored", map[string]any{"force": true}, steps.ErrConfig, "Additional property force is not allowed"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			p.verify("config", "sha256:"+digest(values))
			p.verify("other", "sha256:"+digest("something else"))
			p.write("config/broken.yaml", "a:\n- [\n")
			if err := os.Symlink("config", filepath.Join(p.dir, "link")); err != nil {
				t.Fatal(err)
			}
			cfg := map[string]any{"inPath": "config/values.yaml", "outPath": "out/values.yaml"}
			for k, v := range tc.config {
				cfg[k] = v
			}
			r, err := p.run(cfg)
			if r.Status != steps.Failed || !steps.IsTerminal(err) {
				t.Fatalf("%s: %s, %v; want Failed and terminal", tc.reason, r.Status, err)
			}
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: %q does not say %q", tc.reason, err, tc.text)
			}
			for _, sentinel := range []error{steps.ErrRefused, steps.ErrConfig, steps.ErrConflict} {
				if got := errors.Is(err, sentinel); got != errors.Is(tc.is, sentinel) {
					t.Errorf("%s: errors.Is(%q, %v) is %v", tc.reason, err, sentinel, got)
				}
			}
			if _, err := os.Lstat(filepath.Join(p.dir, "out")); err == nil {
				t.Error("something was written")
			}
			if p.read("config/values.yaml") != values {
				t.Error("the input was changed")
			}
		})
	}
}

func TestErrors(t *testing.T) {
	p := newPromotion(t)
	r, err := p.run(map[string]any{"inPath": "none.yaml", "outPath": "out.yaml"})
	if r.Status != steps.Errored || steps.IsTerminal(err) || !errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), p.dir) {
		t.Errorf("a missing input: %s, %v", r.Status, err)
	}
	p.ledger = nil
	r, err = p.run(map[string]any{"inPath": "config/values.yaml", "outPath": "out.yaml", "verified": "config"})
	if r.Status != steps.Failed || !errors.Is(err, steps.ErrRefused) {
		t.Errorf("no ledger: %s, %v", r.Status, err)
	}
	p.ledger = &brokenLedger{}
	r, err = p.run(map[string]any{"inPath": "config/values.yaml", "outPath": "out.yaml", "verified": "config"})
	if r.Status != steps.Errored || errors.Is(err, steps.ErrRefused) || err == nil {
		t.Errorf("a ledger that cannot be read: %s, %v", r.Status, err)
	}
	if _, err := os.Lstat(filepath.Join(p.dir, "out.yaml")); err == nil {
		t.Error("something was written")
	}
}

type brokenLedger struct{ verification.Memory }

func (*brokenLedger) Get(context.Context, verification.Key) (verification.Record, error) {
	return verification.Record{}, errors.New("disk on fire")
}

func TestCanceled(t *testing.T) {
	p := newPromotion(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := New(Options{}).New(steps.Capabilities{}).Run(ctx, &steps.Context{
		WorkDir: p.dir, Config: map[string]any{"inPath": "config/values.yaml", "outPath": "out.yaml"}, Log: slog.New(slog.DiscardHandler)})
	if r.Status != steps.Errored || !errors.Is(err, context.Canceled) {
		t.Errorf("%s, %v", r.Status, err)
	}
	if _, err := os.Lstat(filepath.Join(p.dir, "out.yaml")); err == nil {
		t.Error("something was written")
	}
}
