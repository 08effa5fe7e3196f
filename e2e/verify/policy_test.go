package verify_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/registry/distribution"
	"github.com/stepd/stepd/e2e/sigstore"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/ociverified"
)

// TestPoliciesOnRealSignatures holds what a policy can ask for against what
// real cosign signs, each with its opposite.
func TestPoliciesOnRealSignatures(t *testing.T) {
	stack, err := sigstore.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stack.Close)
	with := registry.Start(registry.WithReferrers())
	t.Cleanup(with.Close)
	without := registry.Start(distribution.New(t.Context()))
	t.Cleanup(without.Close)

	bundle := sigstore.Form{Cosign: 3, Log: sigstore.RekorV1}
	rekor2 := sigstore.Form{Cosign: 3, Log: sigstore.RekorV2, Timestamp: true}
	legacy := sigstore.Form{Cosign: 2, Legacy: true, Log: sigstore.RekorV1}
	attest := sigstore.Form{Cosign: 3, Attest: true, Log: sigstore.RekorV1}
	legacyAttest := sigstore.Form{Cosign: 2, Legacy: true, Attest: true, Log: sigstore.RekorV1}
	release := workflow.Run{Issuer: stack.Issuer(), Repository: "acme/svc-config", Ref: "refs/tags/v1.2.0"}
	reusing := release
	reusing.Workflow = "acme/workflows/.github/workflows/sign.yaml"
	stranger := reusing
	stranger.Repository = "evil/svc-config"

	type signature struct {
		form sigstore.Form
		run  workflow.Run
		opts sigstore.SignOptions
	}
	one := func(f sigstore.Form) []signature { return []signature{{f, release, sigstore.SignOptions{}}} }
	annotated := sigstore.SignOptions{Annotations: map[string]string{"environment": "prd"}}
	provenance := map[string]any{"predicateType": sigstore.SLSA}
	with1 := func(m map[string]any, k string, v any) map[string]any {
		out := map[string]any{k: v}
		for k, v := range m {
			out[k] = v
		}
		return out
	}

	tests := map[string]struct {
		reason string
		signed []signature
		run    workflow.Run
		verify map[string]any
		claims map[string]any
		// refused is part of the refusal; empty for an acceptance.
		refused string
	}{
		"signed annotation, bundle":            {reason: "cosign sign -a", signed: []signature{{bundle, release, annotated}}, verify: map[string]any{"signedAnnotations": map[string]any{"environment": "prd"}}},
		"signed annotation, legacy":            {reason: "cosign sign -a", signed: []signature{{legacy, release, annotated}}, verify: map[string]any{"signedAnnotations": map[string]any{"environment": "prd"}}},
		"another signed annotation, bundle":    {reason: "exact", signed: []signature{{bundle, release, annotated}}, verify: map[string]any{"signedAnnotations": map[string]any{"environment": "stg"}}, refused: "environment"},
		"another signed annotation, legacy":    {reason: "exact", signed: []signature{{legacy, release, annotated}}, verify: map[string]any{"signedAnnotations": map[string]any{"environment": "stg"}}, refused: "environment"},
		"no signed annotation":                 {reason: "must be there", signed: one(bundle), verify: map[string]any{"signedAnnotations": map[string]any{"environment": "prd"}}, refused: "no signed annotation"},
		"the second of two":                    {reason: "one acceptable signature suffices", signed: []signature{{bundle, release, sigstore.SignOptions{}}, {bundle, release, annotated}}, verify: map[string]any{"signedAnnotations": map[string]any{"environment": "prd"}}},
		"docker reference":                     {reason: "the payload names the repository", signed: one(legacy), verify: map[string]any{"dockerReference": "REPOSITORY"}},
		"another docker reference":             {reason: "a signature copied from another repository", signed: one(legacy), verify: map[string]any{"dockerReference": "ghcr.io/x/y"}, refused: "names the repository"},
		"docker reference, bundle":             {reason: "a bundle names none", signed: one(bundle), verify: map[string]any{"dockerReference": "REPOSITORY"}, refused: "names no repository"},
		"bundle beside legacy":                 {reason: "either will do", signed: append(one(bundle), one(legacy)...)},
		"legacy after strangers' bundles":      {reason: "no bundle will do, so legacy is asked for", signed: []signature{{bundle, stranger, sigstore.SignOptions{}}, {legacy, release, sigstore.SignOptions{}}}},
		"only bundles asked for":               {reason: "formats", signed: one(legacy), verify: map[string]any{"formats": []any{"bundle"}}, refused: "nothing was found"},
		"reusable workflow, caller pinned":     {reason: "the subject is the called workflow", signed: []signature{{rekor2, reusing, sigstore.SignOptions{}}}, run: reusing, claims: map[string]any{"sourceRepository": "https://github.com/acme/svc-config"}},
		"reusable workflow, somebody else":     {reason: "the subject is the same", signed: []signature{{rekor2, stranger, sigstore.SignOptions{}}}, run: reusing, claims: map[string]any{"sourceRepository": "https://github.com/acme/svc-config"}, refused: "sourceRepository"},
		"every claim":                          {reason: "all at once", signed: one(rekor2), claims: map[string]any{"sourceRepository": "acme/svc-config", "sourceRepositoryOwner": "acme", "sourceRef": "refs/tags/v1.2.0", "trigger": "push", "runnerEnvironment": "github-hosted", "sourceCommit": strings.Repeat("c", 40)}},
		"another trigger":                      {reason: "exact", signed: one(rekor2), claims: map[string]any{"trigger": "pull_request_target"}, refused: "trigger"},
		"signature and provenance":             {reason: "both", signed: append(one(bundle), one(attest)...), verify: map[string]any{"attestations": []any{provenance}}},
		"signature and provenance, legacy":     {reason: "both", signed: append(one(legacy), one(legacyAttest)...), verify: map[string]any{"attestations": []any{provenance}}},
		"signature, provenance missing":        {reason: "each listed one must be there", signed: one(bundle), verify: map[string]any{"attestations": []any{provenance}}, refused: "attestation"},
		"provenance, signature missing":        {reason: "in addition to a plain signature", signed: one(attest), verify: map[string]any{"attestations": []any{provenance}}, refused: "no acceptable signature"},
		"provenance alone":                     {reason: "when that is what is asked", signed: one(attest), verify: map[string]any{"attestations": []any{provenance}, "requireSignature": false}},
		"provenance by a stranger":             {reason: "the same signers", signed: append(one(bundle), signature{attest, stranger, sigstore.SignOptions{}}), verify: map[string]any{"attestations": []any{provenance}}, refused: "attestation"},
		"provenance of another source":         {reason: "conditions", signed: append(one(bundle), one(attest)...), verify: map[string]any{"attestations": []any{with1(provenance, "sourceURI", "https://github.com/acme/other")}}, refused: "source"},
		"provenance, CEL":                      {reason: "conditions", signed: append(one(bundle), one(attest)...), verify: map[string]any{"attestations": []any{with1(provenance, "cel", `has(predicate.buildDefinition) && has(predicate.runDetails)`)}}},
		"provenance, CEL that is false":        {reason: "conditions", signed: append(one(bundle), one(attest)...), verify: map[string]any{"attestations": []any{with1(provenance, "cel", `has(predicate.nothing)`)}}, refused: "CEL"},
		"provenance passed off as a signature": {reason: "cosign verify accepts it", signed: one(attest), refused: "is an attestation"},
		"timestamp demanded, only a log":       {reason: "requireTimestamp", signed: one(bundle), verify: map[string]any{"requireTimestamp": true}, refused: "RFC 3161"},
		"log demanded, only a timestamp":       {reason: "requireTransparencyLog", signed: one(sigstore.Form{Cosign: 3, Timestamp: true}), refused: "transparency log"},
	}
	i := 0
	for name, tt := range tests {
		reg := []*registry.Server{with, without}[i%2]
		i++
		t.Run(name, func(t *testing.T) {
			repository := reg.Host() + "/acme/policies" + strings.NewReplacer(" ", "-", ",", "", "'", "").Replace("/"+strings.ToLower(name))
			m, err := artifact.Push(t.Context(), repository, artifact.Config{Service: "svc", Version: "v1.2.0", Region: "prd-us-east-2", Values: []byte("a: b\n")})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range tt.signed {
				if err := stack.Sign(t.Context(), s.form, s.run, repository+"@"+m.Digest.String(), s.opts); err != nil {
					t.Fatal(err)
				}
			}
			run := tt.run
			if run.Repository == "" {
				run = release
			}
			identity := map[string]any{"issuer": run.Issuer, "subject": run.Subject()}
			if tt.claims != nil {
				identity["claims"] = tt.claims
			}
			verify := map[string]any{"identities": []any{identity}, "trustedRoot": map[string]any{"path": stack.TrustedRoot}}
			for k, v := range tt.verify {
				if v == "REPOSITORY" {
					v = repository
				}
				verify[k] = v
			}
			step := ociverified.New(ociverified.Options{Trust: ociverified.BesideConfig{}, Ledger: &verification.Memory{}})
			_, err = step.New(steps.Capabilities{}).Run(t.Context(), &steps.Context{
				WorkDir: t.TempDir(), Alias: "config", Log: slog.New(slog.DiscardHandler),
				Config: map[string]any{"imageRef": repository + ":svc-v1.2.0-prd-us-east-2", "outPath": "values.yaml", "verify": verify},
			})
			switch {
			case tt.refused == "" && err != nil:
				t.Errorf("%s: %v", tt.reason, err)
			case tt.refused != "" && !errors.Is(err, steps.ErrRefused):
				t.Errorf("%s: %v, want a refusal", tt.reason, err)
			case tt.refused != "" && !strings.Contains(err.Error(), tt.refused):
				t.Errorf("%s: %v does not mention %q", tt.reason, err, tt.refused)
			}
		})
	}
}
