package admission_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/kargo/admission"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/builtin"
)

// TestGoldenOverWire runs each promotion that real Kargo code has answered
// twice: as it is, and with all of its steps rewritten as if they were ours. The
// configs that steps are given, the steps' fates, the state and the files must
// be the same.
func TestGoldenOverWire(t *testing.T) {
	cases, err := filepath.Glob(filepath.Join(sharedata.Path(t, "kargo", "golden"), "cases", "*.yaml"))
	if err != nil || len(cases) == 0 {
		t.Fatalf("no golden cases: %v", err)
	}
	configs := 0
	for _, file := range cases {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			if reason, ok := differs[name]; ok {
				t.Skip(reason)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			native := &goldenRun{text: string(text)}
			if !native.run(t) {
				t.Skip("Kargo refuses this case before it runs")
			}
			over := &goldenRun{text: string(text), outputs: native.out.State}
			over.run(t)
			if d := cmp.Diff(native.configs, over.configs); d != "" {
				t.Errorf("configs (-native +wire):\n%s", d)
			}
			if d := cmp.Diff(native.fates(), over.fates()); d != "" {
				t.Errorf("steps (-native +wire):\n%s", d)
			}
			if d := cmp.Diff(native.state(t), over.state(t)); d != "" {
				t.Errorf("state (-native +wire):\n%s", d)
			}
			if d := cmp.Diff(native.files(t), over.files(t)); d != "" {
				t.Errorf("files (-native +wire):\n%s", d)
			}
			for _, list := range native.configs {
				configs += len(list)
			}
		})
	}
	if configs < 250 {
		t.Errorf("only %d configs were compared", configs)
	}
}

// TestExamplesOverWire does the same with the promotions that people copy first,
// whose steps are stood in for: each answers with the examples of its outputs.
func TestExamplesOverWire(t *testing.T) {
	for _, env := range []string{"dev", "stg", "prd-us", "prd-ca"} {
		var text []string
		for _, name := range []string{env + ".yaml", env + ".freight.yaml"} {
			b, err := os.ReadFile(filepath.Join("..", "..", "examples", "promotiontasks", name))
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, string(b))
		}
		native := &goldenRun{text: strings.Join(text, "\n---\n"), list: standIns(t)}
		if !native.run(t) {
			t.Fatalf("%s cannot be loaded", env)
		}
		over := &goldenRun{text: native.text, list: standIns(t), outputs: native.out.State}
		over.run(t)
		if native.out.Phase != kargoapi.PromotionSucceeded || len(native.configs) < 4 {
			t.Errorf("%s: %s after %d steps: %s", env, native.out.Phase, len(native.configs), native.out.Message)
		}
		if d := cmp.Diff(native.configs, over.configs); d != "" {
			t.Errorf("%s: configs (-native +wire):\n%s", env, d)
		}
		if d := cmp.Diff(native.fates(), over.fates()); d != "" {
			t.Errorf("%s: steps (-native +wire):\n%s", env, d)
		}
		if d := cmp.Diff(native.state(t), over.state(t)); d != "" {
			t.Errorf("%s: state (-native +wire):\n%s", env, d)
		}
	}
}

func standIns(t *testing.T) []steps.Registration {
	list := []steps.Registration{builtin.HTTP(httpedge.Live(&effects.Log{}))}
	for _, kind := range []string{"oci-download-verified", "config-apply", "atomic-commit", "argocd-update"} {
		reg := steps.Registration{Name: kind}
		reg.ConfigSchema, _ = schemas.Config(kind)
		var schema struct {
			Properties map[string]struct{ Examples []any }
		}
		if output, ok := schemas.Output(kind); ok {
			if err := json.Unmarshal(output, &schema); err != nil {
				t.Fatal(err)
			}
		}
		output := map[string]any{}
		for name, p := range schema.Properties {
			if output[name] = nil; len(p.Examples) > 0 {
				output[name] = p.Examples[0]
			}
		}
		reg.New = func(steps.Capabilities) steps.Runner {
			return steps.RunnerFunc(func(context.Context, *steps.Context) (steps.Result, error) {
				return steps.Result{Status: steps.Succeeded, Output: output}, nil
			})
		}
		list = append(list, reg)
	}
	return list
}

// differs says which cases cannot be the same, and why: they look at what Kargo
// knows of a step other than its config, outcome and output.
var differs = map[string]string{
	"028-odd-keys":                 "an output without a name, which http does not have",
	"092-task-null-vars-retry":     errorsAreCountedThere,
	"114-set-metadata":             noOutputIsEmpty,
	"144-continue-on-error":        messageIsOfHTTP,
	"145-continue-then-hard-fail":  erroredIsFailed,
	"147-error-threshold":          errorsAreCountedThere,
	"150-retry-if-not-reevaluated": erroredIsFailed,
	"155-step-metas":               messageIsOfHTTP,
	"159-output-nil-same-pass":     noOutputIsEmpty,
	"160-output-nil-after-reload":  noOutputIsEmpty,
	"169-health-of-errorcount":     errorsAreCountedThere,
	"274-toml-parse-int-then-step": "a whole number in an output is a float64 at once, not only after it was stored",
}

const (
	errorsAreCountedThere = "the sidecar counts errors: stepMetas[…].ErrorCount has lost answers only"
	erroredIsFailed       = "a step that is Errored has failed the http step"
	messageIsOfHTTP       = "the message has the words of the http step around it"
	noOutputIsEmpty       = "a step without outputs has an empty output instead of none"
)

// goldenRun is one run of a golden case.
type goldenRun struct {
	text string
	// list are the steps there are; nil is Kargo's own.
	list []steps.Registration
	// outputs is the state of a native run, whose keys say what outputs each
	// step has. With it, steps are rewritten.
	outputs map[string]any

	out     runner.Outcome
	workDir string
	mu      sync.Mutex
	// configs are what each step was given, by alias.
	configs  map[string][]map[string]any
	contexts map[string]*steps.Context
	errors   map[string]uint32
}

// run makes the run, unless the case is refused before it.
func (g *goldenRun) run(t *testing.T) bool {
	g.workDir = t.TempDir()
	g.configs, g.contexts, g.errors = map[string][]map[string]any{}, map[string]*steps.Context{}, map[string]uint32{}
	set, err := load.Bytes("case.yaml", []byte(writeFiles(t, g.text, g.workDir)))
	if err != nil {
		return false
	}
	o := runner.Options{PromotionName: "p-1"}
	if regexp.MustCompile(`(?m)^kind:\s*Promotion\s*$`).MatchString(g.text) {
		o.PromotionName = ""
	}
	resolved, err := runner.Resolve(set, o)
	if err != nil {
		return false
	}
	log := &effects.Log{}
	list := g.list
	if list == nil {
		list = builtin.Registrations(builtin.Edges{
			Git: gitremote.Live(log), HTTP: httpedge.Live(log), Downloads: httpedge.Live(log),
			ArgoCD: argocd.NewRecorder(log, true), Resources: resolved.Data,
		})
	}
	kinds := map[string]bool{}
	for i := range list {
		kinds[list[i].Name] = true
		list[i].New = g.recorded(list[i])
	}
	registry, err := runner.NewRegistry(list...)
	if err != nil {
		t.Fatal(err)
	}
	p := resolved.Promotion
	p.WorkDir = g.workDir
	if g.outputs != nil {
		server := httptest.NewServer(g.sidecar(t, registry))
		defer server.Close()
		for i := range p.Steps {
			if s := &p.Steps[i]; kinds[s.Uses] && rewritable(s.Uses, s.As) {
				g.rewrite(t, server.URL, &p, s)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	engine := &runner.Engine{Registry: registry, Data: resolved.Data, Clock: &fakeClock{now: time.Now()}}
	if g.out, err = engine.RunToCompletion(ctx, p); err != nil {
		t.Fatal(err)
	}
	return true
}

// rewritable tells which steps are treated as if they were ours: not http, which
// is what they become, and not those that have outputs beyond their own.
func rewritable(kind, alias string) bool {
	return kind != "http" && (kind != "compose-output" || !strings.Contains(alias, "::"))
}

func (g *goldenRun) rewrite(t *testing.T, url string, p *runner.Promotion, step *runner.Step) {
	output, _ := g.outputs[step.As].(map[string]any)
	r := &admission.Rewriter{SidecarURL: url, Key: signingKey, Kinds: map[string]admission.Kind{
		step.Uses: {Outputs: slices.Sorted(maps.Keys(output))},
	}}
	object, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"name": p.Name, "namespace": p.Project},
		"spec":     map[string]any{"steps": []any{step.PromotionStep}},
	})
	if err != nil {
		t.Fatal(err)
	}
	rewritten, changed, err := r.Rewrite(object)
	if err != nil {
		t.Logf("refused: %v", err)
		step.Uses, step.Config = "http", nil // which fails, too
		return
	}
	if !changed {
		t.Fatalf("step %q was not rewritten", step.As)
	}
	step.Config, step.Retry = nil, nil
	if err := json.Unmarshal(rewritten[0], &step.PromotionStep); err != nil {
		t.Fatal(err)
	}
}

// recorded wraps a step so that its config, or for http its context, is kept.
func (g *goldenRun) recorded(reg steps.Registration) func(steps.Capabilities) steps.Runner {
	return func(c steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			g.mu.Lock()
			if reg.Name != "http" {
				g.configs[sc.Alias] = append(g.configs[sc.Alias], sc.Config)
			} else {
				g.contexts[sc.Alias] = sc
			}
			g.mu.Unlock()
			return reg.New(c).Run(ctx, sc)
		})
	}
}

// sidecar runs the real step on the config that arrives.
func (g *goldenRun) sidecar(t *testing.T, registry *runner.Registry) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, wire.MaxRequest))
		if err != nil {
			t.Error(err)
		}
		claims, err := wire.Verify(publicKeys, strings.TrimPrefix(req.Header.Get(wire.HeaderToken), "Bearer "))
		if err != nil {
			t.Error(err)
		}
		received, err := wire.ParseRequest(body)
		if err != nil {
			t.Error(err)
		}
		config, skeleton, err := wire.DecodeConfig(received.Config)
		if skeleton != claims.Skeleton {
			t.Errorf("%s: skeleton %s, signed %s", claims.Alias, skeleton, claims.Skeleton)
		}
		if err != nil {
			answer(w, 200, wire.Answer{Status: steps.Failed, Message: err.Error()})
			return
		}
		g.mu.Lock()
		sc := *g.contexts[claims.Alias]
		g.mu.Unlock()
		sc.Config = config
		schema, err := registry.ConfigSchema(claims.Kind)
		if err != nil {
			t.Error(err)
		}
		reg, _ := registry.Lookup(claims.Kind)
		res, err := guard.Validated(reg.New(steps.Capabilities{}), claims.Kind, schema).Run(req.Context(), &sc)
		a := wire.Answer{Status: res.Status, Message: res.Message, Output: res.Output}
		if err != nil {
			a = g.failed(claims, err)
		}
		answer(w, 200, a)
	})
}

// failed counts an error as the sidecar does for the user's retry policy.
func (g *goldenRun) failed(claims wire.Claims, err error) wire.Answer {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.errors[claims.Alias]++
	if !steps.IsTerminal(err) && g.errors[claims.Alias] < max(1, claims.Retry.ErrorThreshold) {
		return wire.Answer{Status: steps.Running}
	}
	return wire.Answer{Status: steps.Failed, Message: err.Error()}
}

// fates lists the steps with their status. The http step can only fail.
func (g *goldenRun) fates() []string {
	var out []string
	for _, s := range g.out.Steps {
		out = append(out, s.Alias+" "+strings.ReplaceAll(string(s.Status), "Errored", "Failed"))
	}
	return out
}

// state is the state as Kargo stores it. The output of a step that fails is
// lost on the way: http has outputs only if it succeeds.
func (g *goldenRun) state(t *testing.T) map[string]any {
	state := maps.Clone(g.out.State)
	for _, s := range g.out.Steps {
		if s.Status != steps.Succeeded || len(s.Output) == 0 {
			delete(state, s.Alias)
		}
	}
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(bytes.ReplaceAll(text, []byte(g.workDir), []byte("$WORKDIR")), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (g *goldenRun) files(t *testing.T) map[string]string {
	files := map[string]string{}
	err := filepath.WalkDir(g.workDir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		}
		rel, _ := filepath.Rel(g.workDir, p)
		if !d.Type().IsRegular() {
			files[rel] = d.Type().String()
			return nil
		}
		text, err := os.ReadFile(p)
		files[rel] = strings.ReplaceAll(string(text), g.workDir, "$WORKDIR")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// writeFiles takes the `kind: Files` documents out of a case and writes what
// they list to root.
func writeFiles(t *testing.T, text, root string) string {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var kept []string
	for _, doc := range regexp.MustCompile(`(?m)^---\s*$`).Split(text, -1) {
		if !regexp.MustCompile(`(?m)^kind:\s*Files\s*$`).MatchString(doc) {
			kept = append(kept, doc)
			continue
		}
		set, err := load.Bytes("files", []byte(doc))
		must(err)
		m, _ := set.Documents[0].Object.(map[string]any)
		section := func(name string) map[string]any { s, _ := m[name].(map[string]any); return s }
		put := func(name string, content []byte) {
			p := filepath.Join(root, name)
			if strings.HasSuffix(name, "/") {
				must(os.MkdirAll(p, 0o755))
				return
			}
			must(os.MkdirAll(filepath.Dir(p), 0o755))
			mode := fs.FileMode(0o644)
			if s, ok := section("modes")[name].(string); ok {
				_, err := fmt.Sscanf(s, "%o", &mode)
				must(err)
			}
			must(os.WriteFile(p, content, mode))
			must(os.Chmod(p, mode))
		}
		for name, v := range section("data") {
			put(name, []byte(v.(string)))
		}
		for name, v := range section("binaryData") {
			b, err := base64.StdEncoding.DecodeString(v.(string))
			must(err)
			put(name, b)
		}
		for name, v := range section("symlinks") {
			p := filepath.Join(root, name)
			must(os.MkdirAll(filepath.Dir(p), 0o755))
			must(os.Symlink(v.(string), p))
		}
	}
	return strings.Join(kept, "\n---\n")
}
