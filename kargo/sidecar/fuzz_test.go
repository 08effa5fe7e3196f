package sidecar_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/kargo/sidecar"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/steps"
)

// FuzzRequest sends anything, of somebody who has neither the token nor the
// key, and of the token's holder. All is answered so that Kargo's criteria can
// judge it; nothing runs without both, and nothing but the config of the token.
func FuzzRequest(f *testing.F) {
	good := `{"attempt":{"startedAt":"2026-01-01T00:00:00Z","errorCount":0},"config":{"x":"y"}}`
	f.Add("/v1/steps/probe", "token", "key", good)
	f.Add("/v1/steps/other", "Bearer x.y.z", "", good)
	f.Add("/v1/steps/../steps/probe", "", "missing", `{`)
	f.Add("/v1/steps/probe", "token", "key", strings.Replace(good, `"y"`, `{"$t":["","a",""]}`, 1))
	f.Add("/v1/steps/probe", "token", "key", strings.Replace(good, `"y"`, `"y","$$z":[1e99,{"$t":["",["[1]"],""]}]`, 1))
	b := newBench(f, func(o *sidecar.Options) { o.Log = nil })
	p := b.promote("acme", "p1", func(c *wire.Claims) { c.Retry.Timeout = 20 * 365 * 24 * time.Hour })
	control := p.request()
	control.Body = io.NopCloser(strings.NewReader(good))
	if _, a := b.send(control); a.Status != steps.Succeeded {
		f.Fatalf("control: %s", a.Message)
	}
	f.Fuzz(func(t *testing.T, path, token, key, body string) {
		b.t = t
		r := p.request()
		r.URL.Path = path
		r.Body = io.NopCloser(strings.NewReader(body))
		authentic := token == "token" && key == "key"
		if token != "token" {
			r.Header[http.CanonicalHeaderKey(wire.HeaderToken)] = []string{token}
		}
		if key != "key" {
			r.Header[http.CanonicalHeaderKey(wire.HeaderProjectKey)] = []string{key}
		}
		before := b.attempts()
		_, a := b.send(r)
		ran := b.attempts() > before || a.Status == steps.Succeeded
		if ran && (!authentic || path != wire.PathPrefix+kindProbe) {
			t.Errorf("%q %q %q %q ran: %+v", path, token, key, body, a)
		}
		if a.Status == steps.Running {
			t.Errorf("%q %q %q %q is to come again: %s", path, token, key, body, a.Message)
		}
	})
}

// FuzzPublicKeys reads anything as keys.
func FuzzPublicKeys(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := sidecar.ParsePublicKeys(text)
		if (err == nil) != (len(keys) > 0) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		for _, k := range keys {
			if len(k) != 32 {
				t.Errorf("a key of %d bytes", len(k))
			}
		}
	})
}
