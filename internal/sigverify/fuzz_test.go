package sigverify

import (
	"encoding/json"
	"regexp"
	"regexp/syntax"
	"slices"
	"testing"
	"unicode/utf8"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/stepd/stepd/internal/ociart/ocitest"
)

// nobody verifies with a policy that one key satisfies, which signed nothing
// here: whatever a fuzzer makes must be refused, and must not crash.
func nobody(tb testing.TB) *verifier {
	tb.Helper()
	key, err := ParseKey([]byte(fuzzKey))
	if err != nil {
		tb.Fatal(err)
	}
	p := NewPolicy()
	p.Keys = []Key{key}
	p.RequireTransparencyLog = false
	manifest := []byte(`{}`)
	return &verifier{policy: &p, trust: &root.BaseTrustedMaterial{}, artifact: artifact{digest: ocitest.Digest(manifest), manifest: manifest}}
}

const fuzzKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMAvwgXE7imntEkf/oIENmdEMw6PZ
tfkqAkvMoL+K52R/a9RR781o7zl813j7WNdqUq4l1ETyj9z2cDPo3HzFnA==
-----END PUBLIC KEY-----
`

func FuzzBundle(f *testing.F) {
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":""}},"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"AAAA"},"signature":"AAAA"}}`))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":""},"tlogEntries":[{"logIndex":"1","logId":{"keyId":"AA=="},"kindVersion":{"kind":"dsse","version":"0.0.1"},"canonicalizedBody":"e30="}]},"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AA=="}]}}`))
	v := nobody(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := parseBundle(raw)
		if err != nil {
			return
		}
		if _, err := v.verify(t.Context(), candidate{name: "fuzz", format: Bundle, bundle: b}); err == nil {
			t.Errorf("accepted %q", raw)
		}
	})
}

func FuzzLegacySignature(f *testing.F) {
	f.Add("MEUCIFCWAcD9", "", `{"SignedEntryTimestamp":"AAAA","Payload":{"body":"e30=","integratedTime":1,"logIndex":1,"logID":"00"}}`, `{"SignedRFC3161Timestamp":"AAAA"}`, []byte(`{}`))
	v := nobody(f)
	f.Fuzz(func(t *testing.T, sig, cert, rekor, stamp string, payload []byte) {
		layer := ocispec.Descriptor{Annotations: map[string]string{
			signatureAnnotation: sig, certificateAnnotation: cert, rekorBundleAnnotation: rekor, timestampAnnotation: stamp,
		}}
		b, err := parseLegacySignature(layer, payload)
		if err != nil {
			return
		}
		if _, err := v.verify(t.Context(), candidate{name: "fuzz", format: Legacy, bundle: b, payload: payload}); err == nil {
			t.Errorf("accepted %q over %q", sig, payload)
		}
	})
}

func FuzzLegacyAttestation(f *testing.F) {
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"","sig":"AAAA"}]}`))
	v := nobody(f)
	f.Fuzz(func(t *testing.T, envelope []byte) {
		b, err := parseLegacyAttestation(ocispec.Descriptor{}, envelope)
		if err != nil {
			return
		}
		if _, err := v.verify(t.Context(), candidate{name: "fuzz", format: Legacy, bundle: b, envelope: envelope}); err == nil {
			t.Errorf("accepted %q", envelope)
		}
	})
}

func FuzzPayload(f *testing.F) {
	const digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	f.Add([]byte(`{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":"` + digest + `"},"type":"cosign container image signature"},"optional":{"a":"b"}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		p, err := parsePayload(payload, digest)
		if err == nil && p.Critical.Image.DockerManifestDigest != digest {
			t.Errorf("%q is about another digest", payload)
		}
	})
}

// FuzzBundleManifest holds the rule that a bundle manifest is about its
// subject, whatever else it says.
func FuzzBundleManifest(f *testing.F) {
	const digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	f.Add([]byte(`{"subject":{"digest":"` + digest + `"},"layers":[{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m ocispec.Manifest
		if json.Unmarshal(raw, &m) != nil {
			return
		}
		if _, err := bundleLayer(&m, digest); err == nil && string(m.Subject.Digest) != digest {
			t.Errorf("accepted %q", raw)
		}
	})
}

// FuzzStrangers holds the analysis of expressions against the expressions
// themselves: what matches a stranger's name was seen coming.
func FuzzStrangers(f *testing.F) {
	f.Add(`https://github\.com/.*/x@.*`, "r/x", "heads/main")
	f.Add(`(?i)\bhttps://[^/]+/\w+/(a|b)*@refs/tags/v\d+$`, "a", "tags/v1")
	f.Add(`^https?://(github|gitlab)\.com/.{3,40}$`, "abc", "heads/x")
	f.Fuzz(func(t *testing.T, expr, middle, tail string) {
		if len(expr) > 200 || !utf8.ValidString(middle) || !utf8.ValidString(tail) {
			return
		}
		parsed, err := syntax.Parse(expr, syntax.Perl)
		if err != nil {
			return
		}
		re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
		if err != nil {
			return
		}
		prog, err := syntax.Compile(parsed.Simplify())
		if err != nil {
			return
		}
		prefixes := slices.Clone(strangersPrefixes)
		for _, forge := range forges {
			manyOwners(prog, forge, "@refs/")
			prefixes = append(prefixes, forge+strangersNames[0]+"/")
		}
		for _, prefix := range prefixes {
			if name := prefix + middle + "@refs/" + tail + "x"; re.MatchString(name) && !canContinue(prog, prefix, "@refs/") {
				t.Errorf("%q matches %q, which was not seen", expr, name)
			}
		}
	})
}
