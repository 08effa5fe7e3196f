// Package hostiletest runs the step oci-download-verified against every attack
// of internal/ociart/ocitest, for tests only. Each attack has a control: the
// same changes without the defect must be accepted.
package hostiletest

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/ociverified"
)

// Case is one form under attack.
type Case struct {
	// Target makes the artifact in a registry of its own, afresh each time.
	Target func(t *testing.T) *ocitest.Target
	// Verify is the config's verify block that accepts it.
	Verify map[string]any
	Trust  ociverified.TrustFiles
	// Only, if not nil, selects attacks.
	Only func(ocitest.Attack) bool
}

// Deadline is the step's; a run that takes longer hangs.
const Deadline = 30 * time.Second

// requestDeadline is what a request is given: little where the attack is to
// say nothing.
func requestDeadline(a ocitest.Attack) time.Duration {
	if a.Want == ocitest.Undecided {
		return 50 * time.Millisecond
	}
	return 10 * time.Second
}

// Run springs every attack that has a meaning for the case, and returns how
// many those were.
func Run(t *testing.T, c Case) int {
	t.Helper()
	baseline := c.run(t, c.Target(t), Deadline)
	if baseline.err != nil {
		t.Fatalf("without any attack: %v", baseline.err)
	}
	count := 0
	for _, a := range ocitest.Attacks() {
		if c.Only != nil && !c.Only(a) {
			continue
		}
		target := c.Target(t)
		if !a.Mount(t, target, true) {
			continue
		}
		count++
		t.Run(a.Name, func(t *testing.T) {
			c.check(t, a, baseline, c.run(t, target, requestDeadline(a)))

			control := c.Target(t)
			a.Mount(t, control, false)
			if got := c.run(t, control, Deadline); got.err != nil {
				t.Errorf("the control, with only this defect removed, is not accepted: %v", got.err)
			}
		})
	}
	return count
}

// outcome is what a run of the step came to.
type outcome struct {
	result steps.Result
	err    error
	files  []string
	ledger *verification.Memory
}

func key() verification.Key {
	return verification.Key{Project: "p", Promotion: "p.1.a", Alias: "config"}
}

func (c Case) run(t *testing.T, target *ocitest.Target, request time.Duration) outcome {
	t.Helper()
	out := outcome{ledger: &verification.Memory{}}
	reg := ociverified.New(ociverified.Options{
		Ledger: out.ledger, Trust: c.Trust, Deadline: Deadline,
		RegistryLimits: ociart.Limits{Request: request, Attempts: 2},
		Wait:           func(context.Context, time.Duration) error { return nil },
	})
	sc := &steps.Context{
		WorkDir: t.TempDir(), Alias: key().Alias, Project: key().Project, Promotion: key().Promotion, Log: slog.New(slog.DiscardHandler),
		Config: map[string]any{
			"imageRef": target.Host() + "/" + target.Repository + ":v1", "outPath": "config/values.yaml", "verify": c.Verify,
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*Deadline)
	defer cancel()
	out.result, out.err = reg.New(steps.Capabilities{}).Run(ctx, sc)
	err := filepath.WalkDir(sc.WorkDir, func(p string, _ fs.DirEntry, err error) error {
		if p != sc.WorkDir {
			out.files = append(out.files, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c Case) check(t *testing.T, a ocitest.Attack, baseline, got outcome) {
	t.Helper()
	if a.Want == ocitest.Harmless {
		if got.err != nil {
			t.Fatalf("%s: not accepted: %v", a.Trap, got.err)
		}
		if diff := cmp.Diff(baseline.result.Output["digest"], got.result.Output["digest"]); diff != "" {
			t.Errorf("%s: other facts than without the attack: %s", a.Trap, diff)
		}
		if diff := cmp.Diff(baseline.result.Output["signer"], got.result.Output["signer"]); diff != "" {
			t.Errorf("%s: other facts than without the attack: %s", a.Trap, diff)
		}
		return
	}
	if got.err == nil {
		t.Fatalf("%s: accepted", a.Trap)
	}
	if refused := errors.Is(got.err, steps.ErrRefused); refused != (a.Want == ocitest.Refused) {
		t.Errorf("%s: refused is %t: %v", a.Trap, refused, got.err)
	}
	if len(got.files) > 0 {
		t.Errorf("%s: something was written: %v", a.Trap, got.files)
	}
	if _, err := got.ledger.Get(t.Context(), key()); err == nil {
		t.Errorf("%s: it is in the ledger", a.Trap)
	}
}

// LongAfter verifies the case under a clock of the given year, which is the
// whole process's clock: certificates are judged at the proven signing time
// and at no other.
func LongAfter(t *testing.T, c Case, year int) {
	t.Helper()
	target := c.Target(t)
	workDir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC)))
		reg := ociverified.New(ociverified.Options{
			Ledger: &verification.Memory{}, Trust: c.Trust,
			Transports: &ociart.Transports{Wrap: func(http.RoundTripper) http.RoundTripper { return inMemory{target} }},
		})
		sc := &steps.Context{
			WorkDir: workDir, Alias: "config", Log: slog.New(slog.DiscardHandler),
			Config: map[string]any{
				"imageRef": target.Host() + "/" + target.Repository + ":v1", "outPath": "values.yaml", "verify": c.Verify,
			},
		}
		if _, err := reg.New(steps.Capabilities{}).Run(t.Context(), sc); err != nil {
			t.Errorf("in %d: %v", time.Now().Year(), err)
		}
	})
}

// inMemory answers requests from a handler without a connection, so that a
// synctest bubble sees no network.
type inMemory struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (m inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	m.handler.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}
