package runner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

func TestConfigIsValidated(t *testing.T) {
	ran := false
	strict := steps.Registration{
		Name:         "strict",
		ConfigSchema: []byte(`{"type":"object","properties":{"path":{"type":"string"}},"required":["path"],"additionalProperties":false}`),
		New: func(steps.Capabilities) steps.Runner {
			return steps.RunnerFunc(func(context.Context, *steps.Context) (steps.Result, error) {
				ran = true
				return steps.Result{Status: steps.Succeeded}, nil
			})
		},
	}
	e := engine(t, strict)
	out, err := e.Run(t.Context(), promotion(t, "  - uses: strict\n    retry: {errorThreshold: 3}\n    config:\n      pth: x\n"))
	if err != nil || ran {
		t.Fatalf("ran %t, %v", ran, err)
	}
	s := out.Steps[0]
	if s.Status != steps.Failed || !strings.HasPrefix(s.Message, `step "step-1": invalid strict config: (root): `) {
		t.Errorf("%s %q", s.Status, s.Message)
	}
	if c, ok := errors.AsType[*guard.ConfigError](s.Err); !ok || !errors.Is(c, steps.ErrConfig) {
		t.Errorf("%v is no ConfigError", s.Err)
	}
	if hints := strings.Join(s.Hints, "\n"); !strings.Contains(hints, "steps.yaml:9:7: ") {
		t.Errorf("hints %q do not say where", hints)
	}
	out, _ = e.Run(t.Context(), promotion(t, "  - {uses: strict, config: {path: \"a\\x7fb\"}}\n  - {uses: strict, if: '${{ true }}'}\n  - {uses: strict, if: '${{ true }}', config: {path: a}}\n"))
	if got := statuses(out); got != "step-1=Failed step-2=Failed step-3=Succeeded" {
		t.Errorf("%s: a config Kargo cannot decode is null, an absent one is empty", got)
	}
	if !strings.Contains(out.Steps[0].Message, "given: null") || !strings.Contains(out.Steps[1].Message, "path is required") {
		t.Errorf("%q, %q", out.Steps[0].Message, out.Steps[1].Message)
	}
}

func TestBadSchemaIsTerminal(t *testing.T) {
	broken := testKinds()[0]
	broken.Name, broken.ConfigSchema = "broken", []byte(`{"type": 5}`)
	out, err := engine(t, broken).Run(t.Context(), promotion(t, "  - {uses: broken}\n"))
	if err != nil || out.Steps[0].Status != steps.Errored || !strings.Contains(out.Message, "config schema") {
		t.Errorf("%+v, %v", out.Steps, err)
	}
}

func TestSecretsStayOut(t *testing.T) {
	const secret = "hunter2-hunter2"
	leaky := steps.Registration{Name: "leaky", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Failed, Message: secret, Output: sc.Config},
				steps.Terminal(fmt.Errorf("login with %s: %w", secret, steps.ErrRefused))
		})
	}}
	set, err := load.Bytes("f", []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: demo}\nstringData: {k: "+secret+"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	e := engine(t, leaky)
	e.Data, e.Redactor = runner.NewDocumentData(set, "demo", ""), redact.New()
	p := promotion(t, "  - {uses: leaky, config: {k: \"${{ secret('s').k }}\"}}\n  - {uses: ok, if: \"${{ secret('s').k.nope }}\"}\n")
	out, err := e.Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range out.Steps {
		if strings.Contains(s.Message+fmt.Sprint(s.Err), secret) {
			t.Errorf("%s: the secret is in %q or %v", s.Alias, s.Message, s.Err)
		}
	}
	if strings.Contains(out.Message, secret) || !errors.Is(out.Steps[0].Err, steps.ErrRefused) || !steps.IsTerminal(out.Steps[0].Err) {
		t.Errorf("message %q, error %v", out.Message, out.Steps[0].Err)
	}
	if d := cmp.Diff(map[string]any{"k": secret}, out.State["step-1"]); d != "" {
		t.Errorf("what was asked for has to reach later steps: %s", d)
	}
}

func TestCapabilitiesAreGrantedAsDeclared(t *testing.T) {
	for _, tc := range []struct {
		reason   string
		declared []steps.Capability
		creds    bool
		user     bool
	}{
		{"none", nil, false, false},
		{"credentials", []steps.Capability{steps.AccessCredentials}, true, false},
		{"both", []steps.Capability{steps.AccessGitUser, steps.AccessCredentials, steps.TaskOutputPropagation}, true, true},
	} {
		var got steps.Capabilities
		probe := steps.Registration{Name: "probe", New: func(c steps.Capabilities) steps.Runner {
			got = c
			return steps.RunnerFunc(func(context.Context, *steps.Context) (steps.Result, error) {
				return steps.Result{Status: steps.Succeeded}, nil
			})
		}}
		probe.RequiredCapabilities = tc.declared
		e := engine(t, probe)
		e.Capabilities = steps.Capabilities{Credentials: nobody{}, GitUser: nobody{}}
		if _, err := e.Run(t.Context(), promotion(t, "  - {uses: probe}\n")); err != nil {
			t.Fatal(err)
		}
		if (got.Credentials != nil) != tc.creds || (got.GitUser != nil) != tc.user {
			t.Errorf("%s: got %+v", tc.reason, got)
		}
	}
}

type nobody struct{}

func (nobody) Get(context.Context, string, steps.CredentialType, string) (*steps.Credentials, error) {
	return nil, nil
}
func (nobody) GitUser(context.Context) (steps.GitUser, error) { return steps.GitUser{}, nil }

func TestStepContext(t *testing.T) {
	var got *steps.Context
	probe := steps.Registration{Name: "probe", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			got = sc
			sc.Log.Info("hello")
			return steps.Result{Status: steps.Succeeded}, nil
		})
	}}
	var logged bytes.Buffer
	e := engine(t, probe)
	e.Log = slog.New(slog.NewTextHandler(&logged, nil))
	p := promotion(t, "  - {uses: ok, as: first}\n  - {uses: probe, as: p, config: {i: 1, f: 1.5}}\n")
	p.Actor, p.Rollback, p.UIBaseURL, p.TargetFreightAlias = "ada", true, "https://ui", "otter"
	if _, err := e.Run(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	abs, err := filepath.Abs("steps.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got.ConfigFile != abs || got.WorkDir != p.WorkDir || got.Alias != "p" || got.Project != "demo" || got.Stage != "prod" ||
		got.Promotion != "p-1" || got.PromotionActor != "ada" || !got.Rollback || got.UIBaseURL != "https://ui" || got.TargetFreightAlias != "otter" {
		t.Errorf("got %+v", got)
	}
	if d := cmp.Diff(map[string]any{"i": 1, "f": 1.5}, got.Config); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]any{"first": map[string]any{"ran": "first"}}, got.SharedState); d != "" {
		t.Error(d)
	}
	if !strings.Contains(logged.String(), "step=p") {
		t.Errorf("log %q", logged.String())
	}
}

// watcher writes down what an Observer is told.
type watcher struct{ events []string }

func (w *watcher) StepStarted(i int, s *runner.Step) {
	w.events = append(w.events, fmt.Sprintf("start %d %s", i, s.As))
}

func (w *watcher) StepFinished(i int, s *runner.Step, o runner.StepOutcome) {
	w.events = append(w.events, fmt.Sprintf("end %d %s %s", i, s.As, o.Status))
}

func (w *watcher) StepWaiting(i int, s *runner.Step, o runner.StepOutcome, d time.Duration) {
	w.events = append(w.events, fmt.Sprintf("wait %d %s %s %s", i, s.As, o.Status, d))
}

func TestObserver(t *testing.T) {
	w := &watcher{}
	e := engine(t)
	e.Observer = w
	if _, err := e.RunToCompletion(t.Context(), promotion(t, "  - {uses: ok, as: a}\n  - {uses: err, as: b, retry: {errorThreshold: 2}}\n  - {uses: ok, as: c}\n")); err != nil {
		t.Fatal(err)
	}
	want := []string{"start 0 a", "end 0 a Succeeded", "start 1 b", "wait 1 b Errored 100ms", "start 1 b", "end 1 b Errored", "end 2 c Skipped"}
	if d := cmp.Diff(want, w.events); d != "" {
		t.Error(d)
	}
}

func TestRegistry(t *testing.T) {
	ok := testKinds()[0]
	for reason, bad := range map[string][]steps.Registration{
		"no name": {{New: ok.New}}, "no factory": {{Name: "x"}}, "twice": {ok, ok},
	} {
		if _, err := runner.NewRegistry(bad...); err == nil {
			t.Errorf("%s: accepted", reason)
		}
	}
	r, err := runner.NewRegistry(testKinds()...)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"compose"}, r.Near("composes")); d != "" {
		t.Error(d)
	}
	if reg, found := r.Lookup("compose"); !found || reg.DefaultErrorThreshold != 1 {
		t.Errorf("got %+v, %t", reg, found)
	}
	out, err := engine(t).Run(t.Context(), promotion(t, "  - {uses: composes}\n"))
	if err != nil || len(out.Steps[0].Hints) != 1 || out.Steps[0].Hints[0] != "steps.yaml:6:6: did you mean compose?" {
		t.Errorf("hints %q, %v", out.Steps[0].Hints, err)
	}
}

// What is no condition is told apart from what cannot be evaluated.
func TestConditionHints(t *testing.T) {
	for _, tc := range []struct{ reason, condition, want string }{
		{"plain text", "success()", "steps.yaml:6:16: write ${{ … }} around"},
		{"a number", "${{ 1 }}", "steps.yaml:6:16: a condition has to be true or false"},
		{"an error", "${{ nosuch.member }}", "steps.yaml:6:16: what is before the dot is null"},
	} {
		out, err := engine(t).Run(t.Context(), promotion(t, "  - {uses: ok, if: '"+tc.condition+"'}\n"))
		if err != nil || len(out.Steps[0].Hints) != 1 || !strings.HasPrefix(out.Steps[0].Hints[0], tc.want) {
			t.Errorf("%s: hints %q, %v", tc.reason, out.Steps[0].Hints, err)
		}
	}
}

func TestPromotionThatCannotRun(t *testing.T) {
	for _, tc := range []struct {
		reason string
		change func(*runner.Engine, *runner.Promotion)
	}{
		{"no work dir", func(_ *runner.Engine, p *runner.Promotion) { p.WorkDir = "relative" }},
		{"no such step", func(_ *runner.Engine, p *runner.Promotion) { p.StartFrom = 9 }},
		{"not inflated", func(_ *runner.Engine, p *runner.Promotion) { p.Steps[0].As = "" }},
		{"no registry", func(e *runner.Engine, _ *runner.Promotion) { e.Registry = nil }},
		{"state that is not JSON", func(_ *runner.Engine, p *runner.Promotion) { p.State = map[string]any{"a": func() {}} }},
	} {
		e, p := engine(t), promotion(t, "  - {uses: ok}\n")
		tc.change(e, &p)
		if out, err := e.RunToCompletion(t.Context(), p); err == nil || out.Phase != "" {
			t.Errorf("%s: %s, %v", tc.reason, out.Phase, err)
		}
	}
}
