package sidecar_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// TestAuthority changes one thing of a request that is accepted, and of the
// world it is for. Nothing may run then.
func TestAuthority(t *testing.T) {
	type world struct {
		*bench
		p *promotion
		r *http.Request
	}
	body := func(w *world, text string) { w.r.Body = io.NopCloser(strings.NewReader(text)) }
	rebody := func(w *world, edit func(*wire.Request)) {
		req := wire.Request{Attempt: w.p.at, Config: w.p.config}
		edit(&req)
		text, err := json.Marshal(req)
		if err != nil {
			w.t.Fatal(err)
		}
		body(w, string(text))
	}
	sign := func(w *world, key ed25519.PrivateKey, edit func(*wire.Claims)) string {
		c := w.p.claims
		edit(&c)
		token, err := wire.Sign(key, c)
		if err != nil {
			w.t.Fatal(err)
		}
		return token
	}
	use := func(w *world, token string) { w.r.Header.Set(wire.HeaderToken, wire.Bearer(token)) }
	same := func(*wire.Claims) {}
	// hold puts a token into the Promotion, as if the webhook had.
	hold := func(w *world, token string) {
		w.p.change(func(o *kargoapi.Promotion) { o.Spec.Steps[1].Config = stepConfig(token) })
	}

	for _, tc := range []struct {
		reason string
		change func(w *world)
		code   int
		status steps.Status
		says   string
	}{
		{"control: what Kargo sends is accepted", func(*world) {}, 200, steps.Succeeded, "ran"},

		// 1. The request.
		{"another method", func(w *world) { w.r.Method = http.MethodGet }, 405, steps.Failed, "POST"},
		{"another path", func(w *world) { w.r.URL.Path = "/" }, 404, steps.Failed, wire.PathPrefix},
		{"a browser", func(w *world) { w.r.Header.Set("Origin", "http://127.0.0.1") }, 403, steps.Failed, "browsers"},
		{"another content type", func(w *world) { w.r.Header.Set("Content-Type", "text/plain") }, 415, steps.Failed, wire.ContentType},
		{"a huge body", func(w *world) { body(w, strings.Repeat(" ", wire.MaxRequest+1)) }, 413, steps.Failed, "longer"},
		{"no JSON", func(w *world) { body(w, "<html>") }, 400, steps.Failed, "malformed"},
		{"an empty body", func(w *world) { body(w, "") }, 400, steps.Failed, "malformed"},
		{"two bodies", func(w *world) {
			text, _ := io.ReadAll(w.r.Body)
			body(w, string(text)+string(text))
		}, 400, steps.Failed, "not JSON"},
		{"no attempt", func(w *world) { body(w, `{"config":{"x":"y"}}`) }, 400, steps.Failed, "startedAt"},
		{"a config that is no object", func(w *world) { rebody(w, func(r *wire.Request) { r.Config = json.RawMessage(`[1]`) }) }, 400, steps.Failed, "no object"},

		// 2. The token.
		{"no token", func(w *world) { w.r.Header.Del(wire.HeaderToken) }, 401, steps.Failed, "no token"},
		{"two tokens", func(w *world) { w.r.Header.Add(wire.HeaderToken, wire.Bearer(w.p.token)) }, 401, steps.Failed, "no token"},
		{"another scheme", func(w *world) { w.r.Header.Set(wire.HeaderToken, "Basic "+w.p.token) }, 401, steps.Failed, "no token"},
		{"no token's shape", func(w *world) { use(w, "x.y.z") }, 401, steps.Failed, "not valid"},
		{"a token with other claims and the old signature", func(w *world) {
			other := strings.Split(sign(w, w.key, func(c *wire.Claims) { c.Alias = "before" }), ".")
			mine := strings.Split(w.p.token, ".")
			use(w, mine[0]+"."+other[1]+"."+mine[2])
		}, 401, steps.Failed, "signature"},
		{"a token that somebody else signed", func(w *world) {
			_, theirs, _ := ed25519.GenerateKey(nil)
			token := sign(w, theirs, same)
			hold(w, token)
			use(w, token)
		}, 401, steps.Failed, "unknown key"},
		{"a token of a key that was taken away", func(w *world) {
			public, _, _ := ed25519.GenerateKey(nil)
			w.keys = []ed25519.PublicKey{public}
		}, 401, steps.Failed, "unknown key"},
		{"the keys cannot be read now", func(w *world) { w.noKeys = errors.New("no directory") }, 200, steps.Running, "public keys"},
		{"control: a token of the previous key, besides a new one", func(w *world) {
			public, _, _ := ed25519.GenerateKey(nil)
			w.keys = append([]ed25519.PublicKey{public}, w.keys...)
		}, 200, steps.Succeeded, "ran"},

		// 3. The Promotion.
		{"the Promotion is gone", func(w *world) { delete(w.cluster.promotions, "acme/p1") }, 404, steps.Failed, "no Promotion"},
		{"the Promotion has not this step", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) { o.Spec.Steps = o.Spec.Steps[:1] })
		}, 404, steps.Failed, "no such step"},
		{"the step is not an http step", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) { o.Spec.Steps[1].Uses = "http-download" })
		}, 404, steps.Failed, "no such step"},
		{"two steps have the alias", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) { o.Spec.Steps = append(o.Spec.Steps, o.Spec.Steps[1]) })
		}, 404, steps.Failed, "no such step"},
		{"the step holds another token for the same claims", func(w *world) {
			hold(w, sign(w, w.key, func(c *wire.Claims) { c.IssuedAt = c.IssuedAt.Add(-time.Hour) }))
		}, 403, steps.Failed, "not the one of step"},
		{"the step holds the token among others", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) {
				o.Spec.Steps[1].Config = json.RawMessage(`{"headers":[{"name":"authorization","value":"Bearer ` + w.p.token + `"},{"name":"Authorization","value":"x"}]}`)
			})
		}, 403, steps.Failed, "not the one of step"},
		{"the step's author wrote it without a token", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) {
				o.Spec.Steps[1].Config = json.RawMessage(`{"url":"http://127.0.0.1:8651"}`)
			})
		}, 403, steps.Failed, "not the one of step"},
		{"a token of another Promotion, replayed", func(w *world) {
			other := w.promote("acme", "p2")
			delete(w.cluster.promotions, "acme/p2")
			use(w, other.token)
		}, 404, steps.Failed, "no Promotion"},
		{"a token of another alias", func(w *world) { use(w, sign(w, w.key, func(c *wire.Claims) { c.Alias = "before" })) }, 404, steps.Failed, "no such step"},
		{"the Promotion has succeeded", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) { o.Status.Phase = kargoapi.PromotionSucceeded })
		}, 409, steps.Failed, "Succeeded"},
		{"the Promotion has failed", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) { o.Status.Phase = kargoapi.PromotionFailed })
		}, 409, steps.Failed, "Failed"},
		{"the Promotion is being aborted", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) { o.Annotations[kargoapi.AnnotationAbort] = "terminate" })
		}, 200, steps.Running, "aborted"},
		{"the Promotion is being aborted by somebody", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) {
				o.Annotations[kargoapi.AnnotationAbort] = `{"action":"terminate","actor":"ada"}`
			})
		}, 200, steps.Running, "aborted"},
		{"control: an annotation that Kargo does not understand", func(w *world) {
			w.p.change(func(o *kargoapi.Promotion) { o.Annotations[kargoapi.AnnotationAbort] = "please" })
		}, 200, steps.Succeeded, "ran"},
		{"the Promotion is being deleted", func(w *world) {
			now := time.Now()
			w.p.change(func(o *kargoapi.Promotion) { o.DeletionTimestamp = &now })
		}, 409, steps.Failed, "deleted"},
		{"the API server does not answer", func(w *world) { w.cluster.down = errors.New("down") }, 200, steps.Running, "cannot ask"},
		{"the sidecar may not read Promotions", func(w *world) { w.cluster.down = &cluster.StatusError{Code: 403} }, 403, steps.Failed, "service account"},

		// 4. Kind and config.
		{"another kind in the path", func(w *world) { w.r.URL.Path = wire.PathPrefix + "other" }, 403, steps.Failed, "'other'"},
		{"a kind that this sidecar does not have", func(w *world) {
			token := sign(w, w.key, func(c *wire.Claims) { c.Kind = "newer" })
			hold(w, token)
			use(w, token)
			w.r.URL.Path = wire.PathPrefix + "newer"
		}, 404, steps.Failed, "older than the webhook"},
		{"another config", func(w *world) { rebody(w, func(r *wire.Request) { r.Config = json.RawMessage(`{"x":"z"}`) }) }, 403, steps.Failed, "not the one"},

		// 5. The project's key.
		{"no key", func(w *world) { w.r.Header.Del(wire.HeaderProjectKey) }, 403, steps.Failed, "key of project"},
		{"what Kargo sends without the Secret", func(w *world) { w.r.Header.Set(wire.HeaderProjectKey, "missing") }, 403, steps.Failed, "key of project"},
		{"two keys", func(w *world) { w.r.Header.Add(wire.HeaderProjectKey, projectKeyOf("acme")) }, 403, steps.Failed, "key of project"},
		{"the key of another project: a viewer of acme with Stage rights in evil", func(w *world) {
			w.r.Header.Set(wire.HeaderProjectKey, projectKeyOf("evil"))
		}, 403, steps.Failed, "key of project"},
		{"the project has no key", func(w *world) { delete(w.cluster.secrets, "acme/"+wire.ProjectKeySecret) }, 403, steps.Failed, "kubectl"},
		{"the project's key is short", func(w *world) {
			w.cluster.secrets["acme/"+wire.ProjectKeySecret] = kargoapi.Secret{Data: map[string][]byte{"key": []byte("short")}}
			w.r.Header.Set(wire.HeaderProjectKey, "short")
		}, 403, steps.Failed, "shorter than 32"},
		{"the project has no key, and the request none either", func(w *world) {
			delete(w.cluster.secrets, "acme/"+wire.ProjectKeySecret)
			w.r.Header.Set(wire.HeaderProjectKey, "")
		}, 403, steps.Failed, "kubectl"},
		{"the sidecar may not read the key", func(w *world) { w.cluster.noSecrets = &cluster.StatusError{Code: 403} }, 403, steps.Failed, "service account"},
		{"the key cannot be read now", func(w *world) { w.cluster.noSecrets = errors.New("down") }, 200, steps.Running, "project's key yet"},
		{"the key was changed since", func(w *world) {
			w.cluster.secrets["acme/"+wire.ProjectKeySecret] = kargoapi.Secret{Data: map[string][]byte{"key": []byte(strings.Repeat("n", 32))}}
		}, 403, steps.Failed, "key of project"},
		{"control: a key with white space around, as in Kargo's header", func(w *world) {
			w.cluster.secrets["acme/"+wire.ProjectKeySecret] = kargoapi.Secret{Data: map[string][]byte{"key": []byte(projectKeyOf("acme") + "\n")}}
		}, 200, steps.Succeeded, "ran"},

		// The attempt.
		{"it starts in the future", func(w *world) {
			rebody(w, func(r *wire.Request) { r.Attempt.StartedAt = time.Now().Add(time.Hour) })
		}, 400, steps.Failed, "future"},

		// 6. The work dir.
		{"no work dir", func(w *world) { w.p.loseWorkDir() }, 200, steps.Failed, "TMPDIR"},
		{"a symlink to a work dir", func(w *world) {
			w.p.loseWorkDir()
			other := w.promote("acme", "p2")
			if err := os.Symlink(other.workDir(), w.p.workDir()); err != nil {
				w.t.Fatal(err)
			}
		}, 200, steps.Failed, "no directory"},
		{"a file", func(w *world) {
			w.p.loseWorkDir()
			if err := os.WriteFile(w.p.workDir(), nil, 0o600); err != nil {
				w.t.Fatal(err)
			}
		}, 200, steps.Failed, "no directory"},
		{"a work dir of another user", func(w *world) {
			if err := os.Chown(w.p.workDir(), os.Getuid()+1, -1); err != nil {
				w.t.Skip("needs root")
			}
		}, 200, steps.Failed, "same user"},
		{"a UID that climbs", func(w *world) { w.p.change(func(o *kargoapi.Promotion) { o.UID = "../promotion-x" }) }, 400, steps.Failed, "UID"},
		{"a Promotion without a UID", func(w *world) { w.p.change(func(o *kargoapi.Promotion) { o.UID = "" }) }, 409, steps.Failed, "replaced"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				w := &world{bench: b, p: b.promote("acme", "p1")}
				w.r = w.p.request()
				tc.change(w)
				code, answer := b.send(w.r)
				if code != tc.code || answer.Status != tc.status || !strings.Contains(answer.Message, tc.says) {
					t.Errorf("answered %d, %s: %s\nwant %d, %s, …%s…", code, answer.Status, answer.Message, tc.code, tc.status, tc.says)
				}
				want := 0
				if tc.status == steps.Succeeded {
					want = 1
				}
				if b.attempts() != want {
					t.Errorf("the step ran %d times, want %d", b.attempts(), want)
				}
				for _, secret := range []string{w.p.token, projectKeyOf("acme"), projectKeyOf("evil")} {
					if strings.Contains(answer.Message+b.log.String(), secret) {
						t.Errorf("a secret is in the answer or the log")
					}
				}
			})
		})
	}
}

// TestViewerOfAnotherProject: whoever can read acme's Promotions has the token
// of one that runs, and with Stage rights in evil can make Kargo send it, with
// evil's key. It must not do anything in either project.
func TestViewerOfAnotherProject(t *testing.T) {
	b := newBench(t)
	victim := b.promote("acme", "p1")
	r := victim.request()
	r.Header.Set(wire.HeaderProjectKey, projectKeyOf("evil"))
	if code, answer := b.send(r); code != http.StatusForbidden || b.attempts() != 0 {
		t.Errorf("answered %d: %s; %d attempts", code, answer.Message, b.attempts())
	}
	// The key of acme's is not enough either, without its token.
	attacker := b.promote("evil", "p1")
	r = attacker.request()
	r.Header.Set(wire.HeaderProjectKey, projectKeyOf("acme"))
	if code, answer := b.send(r); code != http.StatusForbidden || b.attempts() != 0 {
		t.Errorf("answered %d: %s; %d attempts", code, answer.Message, b.attempts())
	}
	if a := attacker.post(); a.Status != steps.Succeeded {
		t.Errorf("control: evil's own step: %s", a.Message)
	}
	if a := victim.post(); a.Status != steps.Succeeded {
		t.Errorf("control: acme's own step: %s", a.Message)
	}
}

// TestWhatTheStepIsTold compares the step's context with the API object.
func TestWhatTheStepIsTold(t *testing.T) {
	b := newBench(t)
	b.cluster.stages["acme/prd"] = kargoapi.Stage{Spec: kargoapi.StageSpec{RequestedFreight: []kargoapi.FreightRequest{{Origin: steps.FreightOrigin{Kind: "Warehouse", Name: "w"}}}}}
	b.cluster.freight["acme/f1"] = kargoapi.Freight{ObjectMeta: kargoapi.ObjectMeta{Name: "f1"}, Alias: "frank", Images: []steps.Image{{RepoURL: "r", Tag: "v1"}}}
	told := make(chan *steps.Context, 1)
	p := b.promote("acme", "p1")
	b.does(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
		told <- sc
		return steps.Result{Status: steps.Succeeded}, nil
	})
	if a := p.post(); a.Status != steps.Succeeded {
		t.Fatal(a.Message)
	}
	sc := <-told
	for what, ok := range map[string]bool{
		"work dir": sc.WorkDir == p.workDir(), "config": sc.Config["x"] == "y", "alias": sc.Alias == "task::step",
		"project": sc.Project == "acme", "stage": sc.Stage == "prd", "promotion": sc.Promotion == "p1",
		"actor": sc.PromotionActor == "ada@example.com", "rollback": sc.Rollback,
		"freight": sc.TargetFreightRef.Name == "f1" && sc.TargetFreightAlias == "frank" && len(sc.TargetFreightRef.Images) == 1,
		"request": len(sc.FreightRequests) == 1 && sc.FreightRequests[0].Origin.Name == "w",
		"state":   sc.SharedState["before"] != nil,
	} {
		if !ok {
			t.Errorf("the %s is wrong: %+v", what, sc)
		}
	}
}
