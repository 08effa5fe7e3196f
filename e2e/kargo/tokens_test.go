package kargo_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// TestRequestsThatMustNotBeServed sends the sidecar requests like one that it
// would serve, each wrong in one way. None is served, and the Promotion that
// they are about goes on as if nothing had happened.
func TestRequestsThatMustNotBeServed(t *testing.T) {
	p := newProject(t)
	p.needsStepd(t)
	p.stage(t, "prd-us", p.deploys(sandbox.RegionUS, nil))
	p.stage(t, "prd-ca", p.deploys(sandbox.RegionCA, nil))
	held := p.holdStep(t, "deploy::commit")
	promotion, other := p.promote(t, "prd-us"), p.promote(t, "prd-ca")
	p.heldAt(t, promotion, "deploy::commit")
	p.heldAt(t, other, "deploy::commit")
	genuine := p.lastCall(t, promotion, "deploy::commit")
	claims := p.claims(t, genuine)
	webhookKey := p.stepd.privateKey(t)
	_, strangerKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(key ed25519.PrivateKey, change func(*wire.Claims)) string {
		c := claims
		change(&c)
		token, err := wire.Sign(key, c)
		if err != nil {
			t.Fatal(err)
		}
		return wire.Bearer(token)
	}
	token := genuine.Header.Get("Authorization")
	parts := strings.Split(token, ".")
	config := p.lastCall(t, promotion, "deploy::config")
	const anyCode = 0

	for _, tc := range []struct {
		name, reason string
		code         int
		change       func(c *call)
	}{
		{"no-token", "nobody vouches for it", 401, func(c *call) { c.Header.Del("Authorization") }},
		{"garbage", "that is no token", 401, func(c *call) { c.Header.Set("Authorization", "Bearer "+rand.Text()) }},
		{"unsigned", "a JWS without a signature", 401, func(c *call) {
			c.Header.Set("Authorization", "Bearer "+base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"stepd-step"}`))+"."+parts[1]+".")
		}},
		{"forged", "signed with a key that is not the webhook's", 401, func(c *call) {
			c.Header.Set("Authorization", signed(strangerKey, func(*wire.Claims) {}))
		}},
		{"tampered", "other claims under the webhook's signature", 401, func(c *call) {
			payload, _ := json.Marshal(claims)
			payload = bytes.Replace(payload, []byte(promotion), []byte(other), 1)
			c.Header.Set("Authorization", parts[0]+"."+base64.RawURLEncoding.EncodeToString(payload)+"."+parts[2])
		}},
		{"two-tokens", "which of them?", 401, func(c *call) { c.Header.Add("Authorization", token) }},
		{"never-issued", "the webhook's key, but not the token that the Promotion holds", 403, func(c *call) {
			c.Header.Set("Authorization", signed(webhookKey, func(c *wire.Claims) { c.IssuedAt = c.IssuedAt.Add(time.Hour) }))
		}},
		{"other-promotion", "the webhook's key, for another Promotion, but not the token that it holds", 403, func(c *call) {
			c.Header.Set("Authorization", signed(webhookKey, func(c *wire.Claims) { c.Promotion, c.IssuedAt = other, c.IssuedAt.Add(time.Hour) }))
		}},
		{"no-such-promotion", "there is none of that name", 404, func(c *call) {
			c.Header.Set("Authorization", signed(webhookKey, func(c *wire.Claims) { c.Promotion = "prd-us.nothing.here" }))
		}},
		{"other-project", "nor in that project", 404, func(c *call) {
			c.Header.Set("Authorization", signed(webhookKey, func(c *wire.Claims) { c.Namespace = "default" }))
		}},
		{"no-such-step", "it has no step of that alias", 404, func(c *call) {
			c.Header.Set("Authorization", signed(webhookKey, func(c *wire.Claims) { c.Alias = "deploy::more" }))
		}},
		{"kargos-step", "the step is Kargo's own", 404, func(c *call) {
			c.Header.Set("Authorization", signed(webhookKey, func(c *wire.Claims) { c.Alias = "deploy::copy" }))
		}},
		{"other-kind", "the token is for a commit", 403, func(c *call) { c.Path = wire.PathPrefix + "config-apply" }},
		{"other-step", "the token is for the download", anyCode, func(c *call) {
			c.Header.Set("Authorization", config.Header.Get("Authorization"))
		}},
		{"other-config", "the config's literals are not those that were signed", 403, func(c *call) {
			c.Body = bytes.Replace(c.Body, []byte(`"main"`), []byte(`"release"`), 1)
		}},
		{"no-project-key", "who sends it could read the Promotion, but not the project's Secrets", 403, func(c *call) {
			c.Header.Del(wire.HeaderProjectKey)
		}},
		{"wrong-project-key", "likewise", 403, func(c *call) { c.Header.Set(wire.HeaderProjectKey, rand.Text()+rand.Text()) }},
		{"missing-project-key", "what Kargo sends if there is no such Secret", 403, func(c *call) { c.Header.Set(wire.HeaderProjectKey, "missing") }},
		{"future", "an attempt that starts tomorrow", 400, func(c *call) {
			c.Body = reattempt(t, c.Body, time.Now().Add(24*time.Hour))
		}},
		{"browser", "a page that the operator looks at", 403, func(c *call) { c.Header.Set("Origin", "https://evil.example") }},
		{"form", "what a page may send without asking", 415, func(c *call) { c.Header.Set("Content-Type", "text/plain") }},
		{"huge", "more than any config", 413, func(c *call) { c.Body = append(c.Body, bytes.Repeat([]byte(" "), wire.MaxRequest)...) }},
		{"no-body", "nothing", 400, func(c *call) { c.Body = nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := genuine
			c.Header, c.Body = genuine.Header.Clone(), bytes.Clone(genuine.Body)
			tc.change(&c)
			code, got := p.stepd.send(t, c)
			if code == http.StatusOK || tc.code != anyCode && code != tc.code || got.Status != steps.Failed || got.Message == "" {
				t.Errorf("%s: want HTTP %d and Failed with a reason, got %d %+v", tc.reason, tc.code, code, got)
			}
			if got.Output != nil {
				t.Errorf("%s: there is an output: %v", tc.reason, got.Output)
			}
		})
	}
	p.nothingPushed(t)

	held.open()
	p.succeed(t, promotion)
	p.succeed(t, other)
	t.Run("replayed", func(t *testing.T) {
		if code, got := p.stepd.send(t, genuine); code != http.StatusConflict || got.Status != steps.Failed {
			t.Errorf("the Promotion is over: want HTTP 409 and Failed, got %d %+v", code, got)
		}
	})
	p.oneCommitEach(t, promotion, other)
}

// TestViewerOfAnotherProject is somebody who may make Stages and promote in a
// project of their own, and may look at the Promotions of another, tokens
// included. They get nothing out of that.
func TestViewerOfAnotherProject(t *testing.T) {
	victim, own := newProject(t), newProject(t)
	victim.needsStepd(t)
	victim.stage(t, "prd-us", victim.deploys(sandbox.RegionUS, nil))
	held := victim.holdStep(t, "deploy::commit")
	target := victim.promote(t, "prd-us")
	victim.heldAt(t, target, "deploy::commit")

	mallory := "mallory@" + own.name
	victim.grant(t, mallory, `[{apiGroups: [kargo.akuity.io], resources: ["*"], verbs: [get, list, watch]}]`)
	own.grant(t, mallory, `[{apiGroups: [kargo.akuity.io], resources: ["*"], verbs: [get, list, watch, create, update, patch, promote]}]`)
	as, err := own.as(mallory)
	if err != nil {
		t.Fatal(err)
	}
	u := kind(kargoVersion, "Promotion", victim.name, target)
	if err := as.Get(t.Context(), clientKey(u), u); err != nil {
		t.Fatalf("the viewer cannot view: %v", err)
	}
	var stolen *kargoapi.PromotionStep
	seen := promotionOf(t, u)
	for i := range seen.Spec.Steps {
		if seen.Spec.Steps[i].As == "deploy::commit" {
			stolen = &seen.Spec.Steps[i]
		}
	}
	if stolen == nil || stolen.Uses != "http" {
		t.Fatalf("the viewer sees no rewritten step in %+v", seen.Spec.Steps)
	}
	if err := as.Get(t.Context(), clientKey(kind("v1", "Secret", victim.name, "stepd-project-key")), kind("v1", "Secret", victim.name, "stepd-project-key")); !refused(err) {
		t.Fatalf("the viewer reads Secrets: %v", err)
	}

	// The step as it stands, and with what they know of their own project.
	step, err := json.Marshal([]any{map[string]any{"uses": "http", "as": stolen.As, "config": stolen.Config}})
	if err != nil {
		t.Fatal(err)
	}
	before := len(victim.stepd.front.received(victim.name))
	held.open() // the sidecar itself shall answer
	victim.stepd.front.intercept(victim.name, func(w http.ResponseWriter, c call) bool {
		if c.Header.Get(wire.HeaderProjectKey) != victim.key {
			return false // mallory's
		}
		answer(w, http.StatusOK, `{"status":"Running","message":"held","output":null}`)
		return true
	})
	stage := own.stageObject(t, "theft", nil, string(step))
	if err := as.Create(t.Context(), stage); err != nil {
		t.Fatalf("cannot make a Stage in one's own project: %v", err)
	}
	attempt := own.promotion("theft")
	if err := as.Create(t.Context(), attempt); err != nil {
		t.Fatalf("cannot promote in one's own project: %v", err)
	}
	got := own.finish(t, attempt.GetName())
	if got.Status.Phase != kargoapi.PromotionFailed || !strings.Contains(got.Status.Message, "does not hold the key of project") {
		t.Errorf("want Failed for want of the project's key, got %s", describe(got))
	}
	if n := len(victim.stepd.front.received(victim.name)); n == before {
		t.Error("the stolen step never called the sidecar: the test proves nothing")
	}
	victim.nothingPushed(t)

	victim.stepd.front.intercept(victim.name, nil)
	victim.succeed(t, target)
	victim.oneCommitEach(t, target)
}

// TestNoProjectKey promotes in a project without the Secret, and with one that
// could be guessed: the step is refused, with the remedy.
func TestNoProjectKey(t *testing.T) {
	for name, key := range map[string]string{"absent": "", "short": "hunter2"} {
		t.Run(name, func(t *testing.T) {
			p := newProject(t)
			secret := kind("v1", "Secret", p.name, "stepd-project-key")
			if err := p.client.Delete(t.Context(), secret); err != nil {
				t.Fatal(err)
			}
			if key != "" {
				secret.Object["stringData"] = map[string]any{"key": key}
				p.create(t, secret)
			}
			p.stage(t, "prd-us", p.deploys(sandbox.RegionUS, nil))
			got := p.finish(t, p.promote(t, "prd-us"))
			if got.Status.Phase != kargoapi.PromotionFailed || !strings.Contains(got.Status.Message, "kubectl -n "+p.name+" create secret generic stepd-project-key") {
				t.Errorf("want Failed with the command that makes the key, got %s", describe(got))
			}
			p.nothingPushed(t)
		})
	}
}

// grant lets a user do things in the project's namespace. rules are YAML.
func (p *project) grant(t *testing.T, user, rules string) {
	t.Helper()
	var list []any
	if err := yaml.Unmarshal([]byte(rules), &list); err != nil {
		t.Fatal(err)
	}
	role := kind("rbac.authorization.k8s.io/v1", "Role", p.name, "granted")
	role.Object["rules"] = list
	p.create(t, role)
	binding := kind("rbac.authorization.k8s.io/v1", "RoleBinding", p.name, "granted")
	binding.Object["roleRef"] = map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "granted"}
	binding.Object["subjects"] = []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}}
	p.create(t, binding)
}

// lastCall is the last request for a step.
func (p *project) lastCall(t *testing.T, promotion, alias string) call {
	t.Helper()
	calls := p.stepd.front.received(p.name)
	for i := len(calls) - 1; i >= 0; i-- {
		if calls[i].Promotion == promotion && calls[i].Alias == alias {
			return calls[i]
		}
	}
	t.Fatalf("no request for step %s of %s", alias, promotion)
	return call{}
}

// claims are those of a request's token.
func (p *project) claims(t *testing.T, c call) wire.Claims {
	t.Helper()
	public, _ := p.stepd.privateKey(t).Public().(ed25519.PublicKey)
	claims, err := wire.Verify([]ed25519.PublicKey{public}, strings.TrimPrefix(c.Header.Get("Authorization"), "Bearer "))
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// privateKey is what the webhook signs with.
func (s *stepd) privateKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	text, err := os.ReadFile(s.path("keys", "signing.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(ed25519.PrivateKey)
}

// send sends a request to the sidecar itself.
func (s *stepd) send(t *testing.T, c call) (int, wire.Answer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wire.RequestTimeout)
	defer cancel()
	s.front.mu.Lock()
	target := s.front.target.String()
	s.front.mu.Unlock()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target+c.Path, bytes.NewReader(c.Body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = c.Header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var a wire.Answer
	if err := json.Unmarshal(body, &a); err != nil {
		t.Errorf("the answer is not JSON: %v\n%s", err, body)
	}
	return resp.StatusCode, a
}

// reattempt gives a request another start.
func reattempt(t *testing.T, body []byte, at time.Time) []byte {
	t.Helper()
	var r map[string]any
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	r["attempt"] = map[string]any{"startedAt": at.UTC().Format(time.RFC3339), "errorCount": 0}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(fmt.Errorf("cannot encode the request: %w", err))
	}
	return b
}
