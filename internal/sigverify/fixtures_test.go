package sigverify

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/steps"
)

const (
	fixtureSubject = "https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0"
	fixtureIssuer  = "http://127.0.0.1:5556"
)

func readShared(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(sharedata.Path(t, elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fixtureKey(t testing.TB, name string) Key {
	t.Helper()
	k, err := ParseKey(readShared(t, "fixtures", "signatures", name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func identity(t testing.TB, spec IdentitySpec) Identity {
	t.Helper()
	id, err := NewIdentity(spec)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// verifyIn verifies what tag v1 of a repository of a test registry points to.
func verifyIn(t testing.TB, reg *ocitest.Registry, repository string, trustedRoot []byte, policy Policy, change func(*Request)) (*Verdict, error) {
	t.Helper()
	client, err := ociart.New(ociart.Options{Transports: transports(reg)})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := ociart.ParseReference(reg.Host() + "/" + repository + ":v1")
	if err != nil {
		t.Fatal(err)
	}
	repo := client.Repository(ref)
	manifest, err := repo.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	req := Request{Manifest: manifest, Artifact: ref.Name() + "@" + manifest.Digest, Signatures: repo, Policy: &policy,
		Now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	if trustedRoot != nil {
		if req.Trust, err = ParseTrustedRoot(trustedRoot); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(&req)
	}
	return Verify(t.Context(), req)
}

func TestFixtures(t *testing.T) {
	trustedRoot := readShared(t, "fixtures", "signatures", "trusted_root.json")
	keyless := func(p *Policy) {
		p.Identities = []Identity{identity(t, IdentitySpec{Issuer: fixtureIssuer, Subject: fixtureSubject})}
	}
	key := func(name string) func(*Policy) {
		return func(p *Policy) { p.Keys = []Key{fixtureKey(t, name)} }
	}
	slsa := func(spec AttestationSpec) func(*Policy) {
		return func(p *Policy) {
			a, err := NewAttestation(spec)
			if err != nil {
				t.Fatal(err)
			}
			p.Attestations = append(p.Attestations, a)
		}
	}
	noLog := func(p *Policy) { p.RequireTransparencyLog = false }
	noSCT := func(p *Policy) { p.RequireSCT = false }
	noSignature := func(p *Policy) { p.RequireSignature = false }

	tests := map[string]struct {
		reason   string
		fixture  string
		policy   []func(*Policy)
		format   Format
		time     string
		index    bool
		refused  string
		requests int
	}{
		"key, legacy, no log": {
			reason: "allowed when it says so", fixture: "key-v2", policy: []func(*Policy){key("cosign.pub"), noLog}, format: Legacy,
		},
		"key, legacy, no log, strict": {
			reason: "a log is required by default", fixture: "key-v2", policy: []func(*Policy){key("cosign.pub")}, refused: "no transparency log entry",
		},
		"key, legacy, log": {
			reason: "strict defaults", fixture: "key-v2-rekor", policy: []func(*Policy){key("cosign.pub")}, format: Legacy, time: "rekor-set", index: true,
		},
		"key, bundle, log": {
			reason: "strict defaults", fixture: "key-v3-rekor1", policy: []func(*Policy){key("cosign.pub")}, format: Bundle, time: "rekor-set", index: true,
		},
		"key, wrong, legacy": {
			reason: "another key", fixture: "key-v2-rekor", policy: []func(*Policy){key("other.pub")}, refused: "sigstore verification",
		},
		"key, wrong, bundle": {
			reason: "another key", fixture: "key-v3-rekor1", policy: []func(*Policy){key("other.pub")}, refused: "sigstore verification",
		},
		"key, one of two": {
			reason: "several keys: one suffices", fixture: "key-v3-rekor1", policy: []func(*Policy){func(p *Policy) {
				p.Keys = []Key{fixtureKey(t, "other.pub"), fixtureKey(t, "cosign.pub")}
			}}, format: Bundle, time: "rekor-set", index: true,
		},
		"keyless, legacy": {
			reason: "expired certificate, proven time", fixture: "kl-v2", policy: []func(*Policy){keyless}, format: Legacy, time: "rekor-set", index: true,
		},
		"keyless, Rekor v2 and TSA": {
			reason: "no index and no integrated time are signed", fixture: "kl-v3-rekor2tsa", policy: []func(*Policy){keyless}, format: Bundle, time: "tsa",
		},
		"keyless, TSA demanded": {
			reason: "it has one", fixture: "kl-v3-rekor2tsa", policy: []func(*Policy){keyless, func(p *Policy) { p.RequireTimestamp = true }}, format: Bundle, time: "tsa",
		},
		"keyless, TSA demanded and absent": {
			reason: "a signed entry timestamp is not one", fixture: "kl-v2", policy: []func(*Policy){keyless, func(p *Policy) { p.RequireTimestamp = true }}, refused: "no RFC 3161 timestamp",
		},
		"keyless, no SCT": {
			reason: "refused by default", fixture: "kl-v3-nosct", policy: []func(*Policy){keyless}, refused: "SCT",
		},
		"keyless, no SCT, allowed": {
			reason: "the control: only that defect", fixture: "kl-v3-nosct", policy: []func(*Policy){keyless, noSCT}, format: Bundle, time: "tsa",
		},
		"look-alike": {
			reason: "acme/svc-config-evil is not acme/svc-config", fixture: "kl-lookalike", policy: []func(*Policy){keyless}, refused: "svc-config-evil",
		},
		"look-alike, expression": {
			reason: "expressions are anchored for the user", fixture: "kl-lookalike", policy: []func(*Policy){func(p *Policy) {
				p.Identities = []Identity{identity(t, IdentitySpec{Issuer: fixtureIssuer, SubjectRegExp: `https://github\.com/acme/svc-config`})}
			}}, refused: "svc-config-evil",
		},
		"keyless policy, key signature": {
			reason: "a key is not an identity", fixture: "key-v3-rekor1", policy: []func(*Policy){keyless}, refused: "only identities are named",
		},
		"key policy, keyless signature": {
			reason: "an identity is not a key", fixture: "kl-v2", policy: []func(*Policy){key("cosign.pub")}, refused: "only keys are named",
		},
		"attestation is no signature": {
			reason: "cosign verify accepts this", fixture: "key-v3-att", policy: []func(*Policy){key("cosign.pub"), noLog}, refused: "is an attestation",
		},
		"attestation alone": {
			reason: "when that is what is asked", fixture: "key-v3-att",
			policy: []func(*Policy){key("cosign.pub"), noLog, noSignature, slsa(AttestationSpec{PredicateType: "https://slsa.dev/provenance/v1"})}, format: Bundle,
		},
		"attestation of another type": {
			reason: "the type is exact", fixture: "key-v3-att",
			policy:  []func(*Policy){key("cosign.pub"), noLog, noSignature, slsa(AttestationSpec{PredicateType: "https://slsa.dev/provenance/v0.2"})},
			refused: "predicate type",
		},
		"only bundles": {
			reason: "formats are what the policy says", fixture: "kl-v2",
			policy: []func(*Policy){keyless, func(p *Policy) { p.Formats = []Format{Bundle} }}, refused: "nothing was found",
		},
		"another issuer": {
			reason: "issuer and subject", fixture: "kl-v2", policy: []func(*Policy){func(p *Policy) {
				p.Identities = []Identity{identity(t, IdentitySpec{Issuer: "https://token.actions.githubusercontent.com", Subject: fixtureSubject})}
			}}, refused: "the issuer is",
		},
		"claims": {
			reason: "they are in the certificate", fixture: "kl-v2", policy: []func(*Policy){func(p *Policy) {
				p.Identities = []Identity{identity(t, IdentitySpec{Issuer: fixtureIssuer, Subject: fixtureSubject,
					Claims: Claims{SourceRepository: "https://github.com/acme/svc-config", SourceRef: "refs/tags/v1.2.0", Trigger: "push"}})}
			}}, format: Legacy, time: "rekor-set", index: true,
		},
		"another claim": {
			reason: "claims are exact", fixture: "kl-v2", policy: []func(*Policy){func(p *Policy) {
				p.Identities = []Identity{identity(t, IdentitySpec{Issuer: fixtureIssuer, Subject: fixtureSubject,
					Claims: Claims{SourceRepository: "https://github.com/acme/other"}})}
			}}, refused: "sourceRepository",
		},
	}
	for name, tt := range tests {
		for _, api := range []bool{false, true} {
			t.Run(name+map[bool]string{false: ", tags", true: ", API"}[api], func(t *testing.T) {
				reg := ocitest.New(t)
				reg.Referrers = api
				reg.Layout(t, "devex/configs", sharedata.Path(t, "fixtures", "signatures", tt.fixture))
				p := NewPolicy()
				for _, change := range tt.policy {
					change(&p)
				}
				verdict, err := verifyIn(t, reg, "devex/configs", trustedRoot, p, nil)
				if tt.refused != "" {
					var refused *RefusedError
					if !errors.As(err, &refused) || !errors.Is(err, steps.ErrRefused) {
						t.Fatalf("%s: err = %v, want a refusal", tt.reason, err)
					}
					if !strings.Contains(err.Error(), tt.refused) {
						t.Errorf("%s: %v does not mention %q", tt.reason, err, tt.refused)
					}
					return
				}
				if err != nil {
					t.Fatalf("%s: %v", tt.reason, err)
				}
				s := verdict.Signer()
				if diff := cmp.Diff([]any{string(tt.format), tt.time, tt.index}, []any{s.Format, s.TimeSource, s.LogIndex != nil}); diff != "" {
					t.Errorf("%s: format, time source, index: %s", tt.reason, diff)
				}
				if (tt.time == "") != s.SignedAt.IsZero() {
					t.Errorf("%s: signed at %s by %q", tt.reason, s.SignedAt, s.TimeSource)
				}
			})
		}
	}
}
