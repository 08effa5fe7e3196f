package sidecar_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/kargo/sidecar"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

func TestEvents(t *testing.T) {
	signer := map[string]any{"subject": "https://github.com/acme/app/.github/workflows/release.yaml@refs/tags/v1", "issuer": "https://token.actions.githubusercontent.com"}
	for _, tc := range []struct {
		reason  string
		result  steps.Result
		err     error
		event   string
		warning bool
		says    []string
	}{
		{"an artifact was accepted", steps.Result{Status: steps.Succeeded, Output: map[string]any{
			"digest": "sha256:abc", "imageRef": "ghcr.io/acme/configs@sha256:abc", "signer": signer,
		}}, nil, sidecar.EventVerified, false, []string{"sha256:abc", "release.yaml@refs/tags/v1", "token.actions"}},
		{"accepted by key", steps.Result{Status: steps.Succeeded, Output: map[string]any{
			"digest": "sha256:abc", "imageRef": "r@sha256:abc", "signer": map[string]any{"keyID": "k1"},
		}}, nil, sidecar.EventVerified, false, []string{"key k1"}},
		{"a commit was pushed", steps.Result{Status: steps.Succeeded, Output: map[string]any{
			"commit": "0123", "branch": "main", "changed": true,
		}}, nil, sidecar.EventPushed, false, []string{"0123", "main"}},
		{"there was nothing to commit", steps.Result{Status: steps.Succeeded, Output: map[string]any{
			"commit": "0123", "branch": "main", "changed": false,
		}}, nil, "", false, nil},
		{"refused", steps.Result{Status: steps.Failed}, steps.Terminal(errors.Join(steps.ErrRefused, errors.New("no acceptable\nsignature"))),
			sidecar.EventRefused, true, []string{"task::step", "no acceptable"}},
		{"another failure", steps.Result{Status: steps.Failed}, steps.Terminal(errors.New("no file")), "", false, nil},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			b := newBench(t)
			b.does(func(context.Context, *steps.Context) (steps.Result, error) { return tc.result, tc.err })
			p := b.promote("acme", "p1")
			p.post()
			// The same once more, as after a lost answer and a lost work dir.
			p.loseWorkDir()
			p.makeWorkDir()
			p.post()
			if b.attempts() != 2 {
				t.Fatalf("%d attempts", b.attempts())
			}
			events := b.cluster.recorded()
			if tc.event == "" {
				if len(events) != 0 {
					t.Errorf("recorded %+v", events)
				}
				return
			}
			if len(events) != 1 {
				t.Fatalf("recorded %+v, want one event", events)
			}
			e := events[0]
			if e.Reason != tc.event || e.Warning != tc.warning || e.Namespace != "acme" || e.Promotion != "p1" || e.UID != p.uid {
				t.Errorf("recorded %+v", e)
			}
			for _, text := range tc.says {
				if !strings.Contains(e.Message, text) {
					t.Errorf("%q does not say %q", e.Message, text)
				}
			}
		})
	}
	t.Run("an event that cannot be recorded changes nothing", func(t *testing.T) {
		b := newBench(t)
		b.does(func(context.Context, *steps.Context) (steps.Result, error) {
			b.cluster.mu.Lock()
			defer b.cluster.mu.Unlock()
			b.cluster.down = errors.New("down")
			return steps.Result{Status: steps.Succeeded, Output: map[string]any{"commit": "0123", "changed": true}}, nil
		})
		if a := b.promote("acme", "p1").post(); a.Status != steps.Succeeded {
			t.Errorf("answered %s: %s", a.Status, a.Message)
		}
	})
}

type fixedCredentials struct{ steps.Credentials }

func (f fixedCredentials) Get(context.Context, string, steps.CredentialType, string) (*steps.Credentials, error) {
	c := f.Credentials
	return &c, nil
}

// TestSecretsStayInside: a step that says everything it knows, in every way it
// can, and what becomes of that.
func TestSecretsStayInside(t *testing.T) {
	const password, secret, key = "pa55word-of-git", "value-of-a-secret", "-----BEGIN KEY-----\nkey-material-1\n-----END KEY-----\n"
	for _, tc := range []struct {
		reason string
		status steps.Status
		err    error
	}{
		{"it succeeds", steps.Succeeded, nil},
		{"it fails", steps.Failed, steps.Terminal(errors.New("failed"))},
		{"it is refused", steps.Failed, steps.Terminal(steps.ErrRefused)},
		{"it panics", "", nil},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			b := newBench(t, func(o *sidecar.Options) {
				o.Capabilities.Credentials = fixedCredentials{steps.Credentials{Username: "git", Password: password, SSHPrivateKey: key}}
			})
			b.meta.RequiredCapabilities = []steps.Capability{steps.AccessCredentials}
			b.restart()
			b.cluster.secrets["acme/signing"] = kargoapi.Secret{Data: map[string][]byte{"key": []byte(secret)}}
			p := b.promote("acme", "p1")
			b.does(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
				caps, _ := ctx.Value(capsKey{}).(steps.Capabilities)
				creds, err := caps.Credentials.Get(ctx, sc.Project, steps.CredentialsGit, "https://git/x")
				if err != nil {
					return steps.Result{}, err
				}
				data, err := b.edges.Secrets.Secret(ctx, sc.Project, "signing")
				if err != nil {
					return steps.Result{}, err
				}
				all := strings.Join([]string{creds.Password, creds.SSHPrivateKey, string(data["key"]), p.token, projectKeyOf("acme")}, " / ")
				sc.Log.Info("all: "+all, "all", all)
				if tc.status == "" {
					panic(all)
				}
				err = tc.err
				if err != nil {
					err = errors.Join(err, errors.New(all))
					if steps.IsTerminal(tc.err) {
						err = steps.Terminal(err)
					}
				}
				return steps.Result{Status: tc.status, Message: all, Output: map[string]any{
					"commit": all, "changed": true, "nested": []any{map[string]any{"x": all}},
				}}, err
			})
			p.post()
			if b.attempts() != 1 {
				t.Fatal("the step did not run")
			}
			w := p.post() // the stored answer
			text := b.log.String() + w.Message
			for _, v := range w.Output {
				if s, ok := v.(string); ok {
					text += s
				}
			}
			for _, e := range b.cluster.recorded() {
				text += e.Message + e.Key
			}
			for _, f := range b.stored() {
				content, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				text += string(content)
			}
			for what, s := range map[string]string{
				"password": password, "secret": secret, "SSH key": "key-material-1", "token": p.token, "project key": projectKeyOf("acme"),
			} {
				if strings.Contains(text, s) {
					t.Errorf("the %s got out", what)
				}
			}
			if !strings.Contains(text, "***") {
				t.Error("nothing was masked: the test proves nothing")
			}
		})
	}
}

// TestSecretsOfTheProjectOnly: a step cannot read another project's Secret.
func TestSecretsOfTheProjectOnly(t *testing.T) {
	b := newBench(t)
	errs := make(chan error, 3)
	b.does(func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
		for _, project := range []string{"acme", "evil"} {
			_, err := b.edges.Secrets.Secret(ctx, project, "stepd-project-key")
			errs <- err
		}
		_, err := b.edges.Secrets.Secret(context.Background(), "acme", "stepd-project-key")
		errs <- err
		return steps.Result{Status: steps.Succeeded}, nil
	})
	b.promote("acme", "p1").post()
	if own, others, nobody := <-errs, <-errs, <-errs; own != nil || others == nil || nobody == nil {
		t.Errorf("the project's own: %v; another's: %v; outside of a step: %v", own, others, nobody)
	}
}

// TestSweep removes what is kept of Promotions that are over, and nothing else.
func TestSweep(t *testing.T) {
	for _, tc := range []struct {
		reason string
		happen func(b *bench, p *promotion)
		kept   bool
	}{
		{"control: it runs", func(*bench, *promotion) {}, true},
		{"it has succeeded", func(_ *bench, p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.Status.Phase = kargoapi.PromotionSucceeded })
		}, false},
		{"it was aborted", func(_ *bench, p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.Status.Phase = kargoapi.PromotionAborted })
		}, false},
		{"it is gone", func(b *bench, _ *promotion) { delete(b.cluster.promotions, "acme/p1") }, false},
		{"it was replaced", func(_ *bench, p *promotion) { p.change(func(o *kargoapi.Promotion) { o.UID = "other" }) }, false},
		{"the API server does not answer", func(b *bench, _ *promotion) { b.cluster.down = errors.New("down") }, true},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			b := newBench(t)
			p := b.promote("acme", "p1")
			mine := verification.Key{Project: "acme", Promotion: "p1", Alias: p.claims.Alias}
			theirs := verification.Key{Project: "acme", Promotion: "p2", Alias: p.claims.Alias}
			b.does(func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
				return steps.Result{Status: steps.Succeeded}, errors.Join(
					b.ledger.Put(ctx, mine, verification.Record{Digest: "sha256:1"}), b.ledger.Put(ctx, theirs, verification.Record{Digest: "sha256:2"}))
			})
			if a := p.post(); a.Status != steps.Succeeded {
				t.Fatal(a.Message)
			}
			tc.happen(b, p)
			if err := b.server.Sweep(t.Context()); (err != nil) != (b.cluster.down != nil) {
				t.Errorf("Sweep: %v", err)
			}
			if kept := len(b.stored()) == 1; kept != tc.kept {
				t.Errorf("the answer is kept: %t", kept)
			}
			if _, err := b.ledger.Get(t.Context(), mine); (err == nil) != tc.kept {
				t.Errorf("its verification: %v", err)
			}
			if _, err := b.ledger.Get(t.Context(), theirs); err != nil {
				t.Errorf("another Promotion's verification: %v", err)
			}
		})
	}
}
