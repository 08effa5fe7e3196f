package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/registry/distribution"
	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/e2e/sigstore"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
)

// maxRequests is how many requests to the registry one verification with its
// download may take, with the referrers API or without.
const maxRequests = 6

// TestEveryFormOfRealCosign signs with real cosign, both majors, in every form
// they have, and runs the step on it: once for the signer, and once for
// somebody who did not sign. The registry alternates between one with the
// referrers API and one without.
func TestEveryFormOfRealCosign(t *testing.T) {
	s := startSandbox(t)
	stack, err := sigstore.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stack.Close)
	without := registry.Start(distribution.New(t.Context()))
	t.Cleanup(without.Close)
	registries := []*registry.Server{s.Registry, without}
	run := sandbox.Release()
	run.Issuer = stack.Issuer()

	for i, form := range sigstore.Forms() {
		reg := registries[i%len(registries)]
		t.Run(form.String(), func(t *testing.T) {
			repository := reg.Host() + "/forms/" + form.String()
			config := sandbox.Config(sandbox.RegionUS)
			manifest, err := artifact.Push(t.Context(), repository, config)
			if err != nil {
				t.Fatal(err)
			}
			if err := stack.Sign(t.Context(), form, run, repository+"@"+manifest.Digest.String(), sigstore.SignOptions{}); err != nil {
				t.Fatal(err)
			}
			stranger := run
			stranger.Repository += "-evil"
			for _, tc := range []struct {
				name, key string
				identity  workflow.Run
				code      int
			}{
				{"signer", stack.PublicKey, run, 0},
				{"stranger", stack.OtherKey, stranger, 3},
			} {
				task := verifyTask(t, repository+":"+config.Tag(), form, stack, tc.key, tc.identity)
				reg.Reset()
				r, err := s.Command(t.Context(), "run", "-f", task, "-o", "json")
				if err != nil {
					t.Fatal(err)
				}
				if n := len(reg.Requests()); n > maxRequests {
					t.Errorf("%s: %d requests, at most %d are wanted: %v", tc.name, n, maxRequests, reg.Requests())
				}
				if r.Code != tc.code {
					t.Errorf("%s: exit code %d, want %d\n%s%s", tc.name, r.Code, tc.code, r.Stderr, r.Stdout)
				}
			}
		})
	}
}

// verifyTask writes a PromotionTask whose only step accepts one form of
// signature by one signer.
func verifyTask(t *testing.T, ref string, form sigstore.Form, stack *sigstore.Stack, key string, run workflow.Run) string {
	t.Helper()
	format := "bundle"
	if form.Legacy {
		format = "legacy"
	}
	verify := map[string]any{
		"formats":     []string{format},
		"trustedRoot": map[string]string{"path": stack.TrustedRoot},
	}
	if form.Key {
		verify["keys"] = []any{map[string]string{"path": key}}
	} else {
		verify["identities"] = []any{map[string]any{
			"issuer": run.Issuer, "subject": run.Subject(),
			"claims": map[string]string{"sourceRepository": "https://github.com/" + run.Repository, "sourceCommit": run.Commit, "trigger": "push"},
		}}
	}
	if form.Log == sigstore.NoLog {
		verify["requireTransparencyLog"] = false
	}
	if form.Timestamp {
		verify["requireTimestamp"] = true
	}
	if form.Attest {
		verify["requireSignature"] = false
		attestation := map[string]string{
			"predicateType": sigstore.SLSA, "sourceURI": "https://github.com/" + sandbox.Source, "sourceRef": sandbox.Release().Ref,
			"builderID": sandbox.Release().Subject(),
		}
		if form.Log != sigstore.NoLog || form.Timestamp {
			attestation["maxAge"] = "1h" // needs a proven time
		}
		verify["attestations"] = []any{attestation}
	}
	b, err := json.Marshal(map[string]any{
		"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "PromotionTask",
		"metadata": map[string]string{"name": "verify", "namespace": "devex-kargo"},
		"spec": map[string]any{"steps": []any{map[string]any{
			"uses": "oci-download-verified", "as": "config",
			"config": map[string]any{"imageRef": ref, "outPath": "values.yaml", "verify": verify},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "task.yaml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
