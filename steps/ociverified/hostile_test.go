package ociverified_test

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/steps/ociverified"
	"github.com/stepd/stepd/steps/ociverified/hostiletest"
)

// TestAttacks springs every attack on artifacts that real cosign signed. The
// forms that the fixtures lack are attacked in e2e/.
func TestAttacks(t *testing.T) {
	dir := sharedata.Path(t, "fixtures", "signatures")
	keyless := map[string]any{
		"identities": []any{map[string]any{
			"issuer":  "http://127.0.0.1:5556",
			"subject": "https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0",
		}},
		"trustedRoot": map[string]any{"path": "trusted_root.json"},
	}
	key := map[string]any{"keys": []any{map[string]any{"path": "cosign.pub"}}, "trustedRoot": map[string]any{"path": "trusted_root.json"}}
	keyNoLog := map[string]any{"keys": []any{map[string]any{"path": "cosign.pub"}}, "requireTransparencyLog": false}
	attestation := map[string]any{
		"keys": []any{map[string]any{"path": "cosign.pub"}}, "requireTransparencyLog": false, "requireSignature": false,
		"attestations": []any{map[string]any{"predicateType": "https://slsa.dev/provenance/v1"}},
	}
	forms := []struct {
		name   string
		form   ocitest.Target
		other  ocitest.Target
		verify map[string]any
	}{
		{"key-v2", ocitest.Target{Legacy: true}, ocitest.Target{Repository: "key-v2-rekor", Legacy: true}, keyNoLog},
		{"key-v2-rekor", ocitest.Target{Legacy: true, Log: "rekor1"}, ocitest.Target{Repository: "kl-v2", Legacy: true}, key},
		{"key-v3-rekor1", ocitest.Target{Log: "rekor1"}, ocitest.Target{Repository: "kl-v3-rekor2tsa"}, key},
		{"key-v3-att", ocitest.Target{Attestation: true}, ocitest.Target{Repository: "key-v3-rekor1"}, attestation},
		{"kl-v2", ocitest.Target{Legacy: true, Keyless: true, Log: "rekor1"}, ocitest.Target{Repository: "key-v2-rekor", Legacy: true}, keyless},
		{"kl-v3-rekor2tsa", ocitest.Target{Keyless: true, Log: "rekor2", Timestamp: true}, ocitest.Target{Repository: "kl-v3-nosct"}, keyless},
	}
	var total atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d attacks, each with its control", total.Load())
		if n := total.Load(); n < 60 && !t.Failed() {
			t.Errorf("%d attacks, want at least 60", n)
		}
	})
	for _, f := range forms {
		for _, api := range []bool{true, false} {
			// One form is enough to attack the fallback tag with.
			if f.form.Legacy && api || !f.form.Legacy && !api && f.name != "kl-v3-rekor2tsa" {
				continue
			}
			name := f.name
			if !f.form.Legacy && !api {
				name += ", fallback tag"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				total.Add(int64(hostiletest.Run(t, hostiletest.Case{
					Verify: f.verify,
					Trust:  ociverified.Below{Dir: dir},
					Target: func(t *testing.T) *ocitest.Target {
						reg := ocitest.New(t)
						reg.Referrers = api
						other := f.other
						other.Registry = reg
						other.Digest = reg.Layout(t, other.Repository, filepath.Join(dir, other.Repository))
						target := f.form
						target.Registry, target.Repository, target.Other = reg, f.name, &other
						target.Digest = reg.Layout(t, f.name, filepath.Join(dir, f.name))
						return &target
					},
				})))
			})
		}
	}
}
