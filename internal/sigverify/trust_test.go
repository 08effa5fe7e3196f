package sigverify

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/steps"
)

// tufRepository writes a TUF repository that holds trustedRoot, valid for the
// given time, and returns its initial root.json.
func tufRepository(t *testing.T, dir string, trustedRoot []byte, valid time.Duration) []byte {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	expires := time.Now().Add(valid)
	_, private, err := ed25519.GenerateKey(nil)
	must(err)
	signer, err := signature.LoadSigner(private, crypto.Hash(0))
	must(err)
	key, err := metadata.KeyFromPublicKey(private.Public())
	must(err)

	must(os.MkdirAll(filepath.Join(dir, "targets"), 0o700))
	target := filepath.Join(dir, "trusted_root.json")
	must(os.WriteFile(target, trustedRoot, 0o600))
	info, err := (&metadata.TargetFiles{}).FromFile(target, "sha256")
	must(err)
	must(os.Rename(target, filepath.Join(dir, "targets", info.Hashes["sha256"].String()+".trusted_root.json")))

	root := metadata.Root(expires)
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		must(root.Signed.AddKey(key, role))
	}
	targets := metadata.Targets(expires)
	targets.Signed.Targets["trusted_root.json"] = info
	snapshot, timestamp := metadata.Snapshot(expires), metadata.Timestamp(expires)
	for _, sign := range []func() error{
		func() error { _, err := root.Sign(signer); return err },
		func() error { _, err := targets.Sign(signer); return err },
		func() error { _, err := snapshot.Sign(signer); return err },
		func() error { _, err := timestamp.Sign(signer); return err },
		func() error { return root.ToFile(filepath.Join(dir, "1.root.json"), false) },
		func() error { return targets.ToFile(filepath.Join(dir, "1.targets.json"), false) },
		func() error { return snapshot.ToFile(filepath.Join(dir, "1.snapshot.json"), false) },
		func() error { return timestamp.ToFile(filepath.Join(dir, "timestamp.json"), false) },
	} {
		must(sign())
	}
	rootJSON, err := os.ReadFile(filepath.Join(dir, "1.root.json"))
	must(err)
	return rootJSON
}

func TestTUFMirror(t *testing.T) {
	trustedRoot := readShared(t, "fixtures", "signatures", "trusted_root.json")
	dir, cache := t.TempDir(), t.TempDir()
	rootJSON := tufRepository(t, dir, trustedRoot, 24*time.Hour)
	down, requests := false, 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		if down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		http.FileServer(http.Dir(dir)).ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)

	get := func(mirror *TUF) error {
		tr, err := mirror.Mirror(t.Context(), srv.URL, rootJSON)
		if err == nil && len(tr.RekorLogs()) != 2 {
			t.Errorf("the trusted root has %d logs", len(tr.RekorLogs()))
		}
		return err
	}
	mirror := &TUF{CacheDir: cache}
	if err := get(mirror); err != nil {
		t.Fatalf("first use: %v", err)
	}
	before := requests
	if err := get(mirror); err != nil || requests != before {
		t.Errorf("second use, from memory: %v, %d requests", err, requests-before)
	}
	if err := get(&TUF{CacheDir: cache}); err != nil || requests != before {
		t.Errorf("another process, from disk: %v, %d requests", err, requests-before)
	}

	// The disk cache's day is over and the mirror is down: the metadata is
	// still valid, so it carries over.
	configs, err := filepath.Glob(filepath.Join(cache, "*", "127.0.0.1-*.json"))
	if err != nil || len(configs) != 1 {
		t.Fatalf("where the cache keeps its age: %v, %v", configs, err)
	}
	if err := os.WriteFile(configs[0], []byte(`{"lastTimestamp":"2000-01-01T00:00:00Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	down = true
	if err := get(&TUF{CacheDir: cache}); err != nil {
		t.Errorf("during an outage: %v", err)
	}
	if err := get(&TUF{CacheDir: t.TempDir()}); err == nil {
		t.Error("an outage with nothing cached succeeds")
	}
}

func TestTUFMirrorExpired(t *testing.T) {
	trustedRoot := readShared(t, "fixtures", "signatures", "trusted_root.json")
	dir := t.TempDir()
	rootJSON := tufRepository(t, dir, trustedRoot, -time.Hour)
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(srv.Close)
	if _, err := (&TUF{CacheDir: t.TempDir()}).Mirror(t.Context(), srv.URL, rootJSON); err == nil {
		t.Error("expired metadata is accepted")
	}
	other := tufRepository(t, t.TempDir(), trustedRoot, time.Hour)
	if _, err := (&TUF{CacheDir: t.TempDir()}).Mirror(t.Context(), srv.URL, other); err == nil {
		t.Error("metadata under another root is accepted")
	}
}

func TestParseTrustedRoot(t *testing.T) {
	const start = `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"`
	for name, raw := range map[string]string{
		"text": "hello", "nothing": "", "another type": `{"mediaType":"x"}`, "an unknown field": start + `,"x":1}`,
		"far too many logs": start + `,"tlogs":[` + strings.Repeat("{},", 1<<16) + `{}]}`,
	} {
		if _, err := ParseTrustedRoot([]byte(raw)); err == nil {
			t.Errorf("%s is a trusted root", name)
		}
	}
}

func TestTUFMirrorURL(t *testing.T) {
	for _, url := range []string{"http://tuf.example.com", "ftp://x", "https://user:pass@tuf.example.com", "", "https://"} {
		if _, err := (&TUF{CacheDir: t.TempDir()}).Mirror(t.Context(), url, nil); !errors.Is(err, steps.ErrConfig) {
			t.Errorf("%q: %v, want an error of the config, which no retry mends", url, err)
		}
	}
	for _, root := range []string{"", "hello", "{}", `{"signed":{"_type":"timestamp"},"signatures":[]}`} {
		if _, err := (&TUF{CacheDir: t.TempDir()}).Mirror(t.Context(), "https://tuf.example.com", []byte(root)); !errors.Is(err, steps.ErrConfig) {
			t.Errorf("the root %q: %v, want an error of the config", root, err)
		}
	}
}

// TestLongAfterExpiry verifies every keyless fixture under a clock decades
// after its certificates expired, and before they were issued: only the proven
// signing time counts. The whole process has that clock, not just this package.
func TestLongAfterExpiry(t *testing.T) {
	trustedRoot := readShared(t, "fixtures", "signatures", "trusted_root.json")
	for _, fixture := range []string{"kl-v2", "kl-v3-rekor2tsa"} {
		dir := sharedata.Path(t, "fixtures", "signatures", fixture)
		for _, year := range []int{2000, 2060} {
			reg := ocitest.New(t)
			reg.Layout(t, "r", dir)
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC)))
				p := NewPolicy()
				p.Identities = []Identity{identity(t, IdentitySpec{Issuer: fixtureIssuer, Subject: fixtureSubject})}
				if got := time.Now().Year(); got != year {
					t.Fatalf("the clock says %d", got)
				}
				_, err := verifyIn(t, reg, "r", trustedRoot, p, func(r *Request) { r.Now = time.Now() })
				if err != nil {
					t.Errorf("%s in %d: %v", fixture, year, err)
				}
			})
		}
	}
}

// inMemory answers requests from a handler without a connection, so that a
// synctest bubble sees no network.
type inMemory struct{ handler http.Handler }

func (m inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	m.handler.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

func transports(reg *ocitest.Registry) *ociart.Transports {
	return &ociart.Transports{Wrap: func(http.RoundTripper) http.RoundTripper { return inMemory{reg} }}
}

func TestRefusalsNameTheChecks(t *testing.T) {
	reg := ocitest.New(t)
	reg.Layout(t, "r", sharedata.Path(t, "fixtures", "signatures", "kl-v2"))
	p := NewPolicy()
	p.Identities = []Identity{identity(t, IdentitySpec{Issuer: fixtureIssuer, Subject: fixtureSubject})}
	var names []string
	_, err := verifyIn(t, reg, "r", readShared(t, "fixtures", "signatures", "trusted_root.json"), p, func(r *Request) {
		r.Explain = func(c Check) { names = append(names, c.Name) }
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names, " "); got != "signature certificate SCT identity transparency log time subject accepted" {
		t.Errorf("checks: %s", got)
	}
}
