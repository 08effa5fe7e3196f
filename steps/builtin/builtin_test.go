package builtin

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/steps"
)

// promotion is one promotion's work dir and state, for tests.
type promotion struct {
	t       *testing.T
	dir     string
	caps    steps.Capabilities
	log     *effects.Log
	state   map[string]any
	freight steps.FreightCollection
	// requests is what the Stage asks for.
	requests []steps.FreightRequest
	name     string
}

func newPromotion(t *testing.T) *promotion {
	t.Helper()
	return &promotion{t: t, dir: t.TempDir(), log: &effects.Log{}, state: map[string]any{}, name: "prod.01arz3ndektsv4rrffq69g5fav.3b1f0c9"}
}

type config = map[string]any

// run runs a step the way an engine does: schema first.
func (p *promotion) run(reg steps.Registration, cfg config) (steps.Result, error) {
	p.t.Helper()
	schema, err := configschema.Compile(reg.ConfigSchema)
	if err != nil {
		p.t.Fatalf("schema of %s: %v", reg.Name, err)
	}
	if violations := schema.Validate(cfg); len(violations) > 0 {
		return steps.Result{Status: steps.Failed},
			steps.Terminal(fmt.Errorf("invalid %s config: %s", reg.Name, configschema.Messages(violations)))
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	return reg.New(p.caps).Run(ctx, &steps.Context{
		WorkDir: p.dir, Config: cfg, Alias: reg.Name, Project: "demo", Stage: "prod",
		Promotion: p.name, PromotionActor: "admin", SharedState: p.state, Freight: p.freight, FreightRequests: p.requests, Log: slog.New(slog.DiscardHandler),
	})
}

// must runs a step that has to succeed and returns its output.
func (p *promotion) must(reg steps.Registration, cfg config) map[string]any {
	p.t.Helper()
	r, err := p.run(reg, cfg)
	if err != nil || r.Status != steps.Succeeded {
		p.t.Fatalf("%s: %s, %v", reg.Name, r.Status, err)
	}
	return r.Output
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

func (p *promotion) exists(name string) bool {
	_, err := os.Lstat(filepath.Join(p.dir, name))
	return err == nil
}

// outcome is how an attempt of a step ended.
type outcome struct {
	status   steps.Status
	terminal bool
	// text is in the error; empty means that there is none.
	text string
}

func (o outcome) check(t *testing.T, reason string, r steps.Result, err error) {
	t.Helper()
	if r.Status != o.status {
		t.Errorf("%s: status %s, want %s (%v)", reason, r.Status, o.status, err)
	}
	if (err != nil) != (o.text != "") || err != nil && !strings.Contains(err.Error(), o.text) {
		t.Errorf("%s: error %v, want one with %q", reason, err, o.text)
	}
	if steps.IsTerminal(err) != o.terminal {
		t.Errorf("%s: terminal is %v, want %v (%v)", reason, steps.IsTerminal(err), o.terminal, err)
	}
}

// exec runs a program the tests look at results with.
func exec(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	cmd := osexec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull)
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}
