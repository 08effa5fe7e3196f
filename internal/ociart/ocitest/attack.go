package ocitest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Target is a signed artifact under attack: what tag v1 of Repository points
// to, signed in one form.
type Target struct {
	*Registry
	Repository string
	Digest     string
	// Legacy, Attestation, Keyless, Log ("", "rekor1", "rekor2") and Timestamp
	// describe the form of its only signature or attestation.
	Legacy, Attestation, Keyless, Timestamp bool
	Log                                     string
	// Other holds a different artifact in the same form, by the same signer.
	Other *Target
}

// Verdict is what an attack must come to.
type Verdict int

// The verdicts.
const (
	// Refused: the artifact was looked at and refused.
	Refused Verdict = iota
	// Undecided: an error that is not a refusal, and not an acceptance.
	Undecided
	// Harmless: accepted as if there were no attack, with the same facts.
	Harmless
)

// Attack is one trap. Mount springs it; with defect false it does all the same
// work and leaves out the defect, so that what remains must be accepted. It
// reports false where the attack has no meaning for the target's form.
type Attack struct {
	Name string
	// Trap says what it is after: a trap of the design, or an advisory.
	Trap  string
	Want  Verdict
	Mount func(tb testing.TB, t *Target, defect bool) bool
}

// Attacks lists every attack.
func Attacks() []Attack {
	return slices.Concat(signatureAttacks(), evidenceAttacks(), containerAttacks(), registryAttacks())
}

// tag is the tag of the target's legacy signatures or attestations.
func (t *Target) tag() string {
	suffix := ".sig"
	if t.Attestation {
		suffix = ".att"
	}
	return t.fallback() + suffix
}

func (t *Target) fallback() string { return strings.Replace(t.Digest, ":", "-", 1) }

// signature returns the manifest that holds the target's only signature.
func (t *Target) signature(tb testing.TB) ocispec.Manifest {
	tb.Helper()
	raw := t.Get(t.Repository, t.tag())
	if !t.Legacy {
		index := t.referrers(t.Repository, t.Digest)
		if len(index.Manifests) != 1 {
			tb.Fatalf("%s has %d referrers, expected one", t.Repository, len(index.Manifests))
		}
		raw = t.Get(t.Repository, string(index.Manifests[0].Digest))
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		tb.Fatalf("the signature of %s: %v", t.Repository, err)
	}
	return m
}

// replace puts manifests in the place of the target's only signature.
func (t *Target) replace(tb testing.TB, manifests ...ocispec.Manifest) {
	tb.Helper()
	if t.Legacy {
		t.Manifest(t.Repository, t.tag(), JSON(tb, manifests[0]))
		return
	}
	for _, old := range t.referrers(t.Repository, t.Digest).Manifests {
		t.Delete(t.Repository, string(old.Digest))
	}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	index.SchemaVersion = 2
	for _, m := range manifests {
		raw := JSON(tb, m)
		d := t.Manifest(t.Repository, "", raw)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(d), Size: int64(len(raw)), ArtifactType: bundleType})
	}
	t.listed = &index
	t.Manifest(t.Repository, t.fallback(), JSON(tb, index))
}

const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// content is the blob of the signature's only layer.
func (t *Target) content(m ocispec.Manifest) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.blobs[string(m.Layers[0].Digest)])
}

// withContent is m with another blob.
func (t *Target) withContent(m ocispec.Manifest, b []byte) ocispec.Manifest {
	m.Layers = slices.Clone(m.Layers)
	old := m.Layers[0]
	m.Layers[0] = t.Blob(old.MediaType, b)
	m.Layers[0].Annotations = maps.Clone(old.Annotations)
	return m
}

// object is a JSON object that attacks change in place.
type object = map[string]any

// editBundle changes the target's bundle; false for other forms.
func editBundle(edit func(t *Target, bundle object)) func(testing.TB, *Target, bool) bool {
	return func(tb testing.TB, t *Target, defect bool) bool {
		if t.Legacy {
			return false
		}
		m := t.signature(tb)
		b := object{}
		if err := json.Unmarshal(t.content(m), &b); err != nil {
			tb.Fatal(err)
		}
		if defect {
			edit(t, b)
		}
		t.replace(tb, t.withContent(m, JSON(tb, b)))
		return true
	}
}

// editLegacy changes the annotations of the target's legacy layer; false for
// other forms.
func editLegacy(edit func(tb testing.TB, t *Target, annotations map[string]string)) func(testing.TB, *Target, bool) bool {
	return func(tb testing.TB, t *Target, defect bool) bool {
		if !t.Legacy {
			return false
		}
		m := t.withContent(t.signature(tb), t.content(t.signature(tb)))
		if defect {
			edit(tb, t, m.Layers[0].Annotations)
		}
		t.replace(tb, m)
		return true
	}
}

// when limits an attack to some forms.
func when(applies func(*Target) bool, mount func(testing.TB, *Target, bool) bool) func(testing.TB, *Target, bool) bool {
	return func(tb testing.TB, t *Target, defect bool) bool {
		return applies(t) && mount(tb, t, defect)
	}
}

func logged(t *Target) bool  { return t.Log != "" }
func rekor1(t *Target) bool  { return t.Log == "rekor1" }
func rekor2(t *Target) bool  { return t.Log == "rekor2" }
func stamped(t *Target) bool { return t.Timestamp }
func keyless(t *Target) bool { return t.Keyless }

func material(b object) object { return b["verificationMaterial"].(object) }
func entries(b object) []any   { return material(b)["tlogEntries"].([]any) }
func entry(b object) object    { return entries(b)[0].(object) }
func envelope(b object) object { return b["dsseEnvelope"].(object) }

// flip changes the last but a few bits of base64 bytes.
func flip(v any) string {
	b, _ := base64.StdEncoding.DecodeString(v.(string))
	b[len(b)-3] ^= 1
	return base64.StdEncoding.EncodeToString(b)
}

// otherBundle is the bundle of the other artifact.
func otherBundle(t *Target) object {
	b := object{}
	m := ocispec.Manifest{}
	for _, d := range t.referrers(t.Other.Repository, t.Other.Digest).Manifests {
		_ = json.Unmarshal(t.Get(t.Other.Repository, string(d.Digest)), &m)
	}
	_ = json.Unmarshal(t.content(m), &b)
	return b
}

// signatureAttacks change what is signed, or the signature.
func signatureAttacks() []Attack {
	return []Attack{
		{"flipped signature", "a signature that does not verify", Refused, editBundle(func(_ *Target, b object) {
			s := envelope(b)["signatures"].([]any)[0].(object)
			s["sig"] = flip(s["sig"])
		})},
		{"flipped payload", "content that was not signed", Refused, editBundle(func(_ *Target, b object) {
			envelope(b)["payload"] = flip(envelope(b)["payload"])
		})},
		{"another payload", "the digest inside is rewritten", Refused, editBundle(func(t *Target, b object) {
			p, _ := base64.StdEncoding.DecodeString(envelope(otherBundle(t))["payload"].(string))
			p = bytes.ReplaceAll(p, []byte(strings.TrimPrefix(t.Other.Digest, "sha256:")), []byte(strings.TrimPrefix(t.Digest, "sha256:")))
			p = append(p, ' ')
			envelope(b)["payload"] = base64.StdEncoding.EncodeToString(p)
		})},
		{"another payload type", "CVE-2022-35929: the payload type is part of what is signed", Refused, editBundle(func(_ *Target, b object) {
			envelope(b)["payloadType"] = "application/json"
		})},
		{"two signatures in the envelope", "DSSE allows several, a bundle one", Refused, editBundle(func(_ *Target, b object) {
			s := envelope(b)["signatures"].([]any)
			envelope(b)["signatures"] = append(s, s[0])
		})},
		{"no signature in the envelope", "nothing to verify must not verify", Refused, editBundle(func(_ *Target, b object) {
			envelope(b)["signatures"] = []any{}
		})},
		{"transplanted, subject rewritten", "a signature copied from another digest", Refused, func(tb testing.TB, t *Target, defect bool) bool {
			from := t
			if defect {
				from = t.Other
			}
			m := from.signature(tb)
			if m.Subject != nil {
				m.Subject = &ocispec.Descriptor{MediaType: m.Subject.MediaType, Digest: digest.Digest(t.Digest), Size: m.Subject.Size}
			}
			t.replace(tb, m)
			return true
		}},
		{"flipped signature annotation", "a signature that does not verify", Refused, when(func(t *Target) bool { return !t.Attestation }, editLegacy(func(_ testing.TB, _ *Target, a map[string]string) {
			a["dev.cosignproject.cosign/signature"] = flip(a["dev.cosignproject.cosign/signature"])
		}))},
		{"no signature annotation", "nothing to verify must not verify", Refused, when(func(t *Target) bool { return !t.Attestation }, editLegacy(func(_ testing.TB, _ *Target, a map[string]string) {
			delete(a, "dev.cosignproject.cosign/signature")
		}))},
		{"garbage signature annotation", "no parser crashes", Refused, when(func(t *Target) bool { return !t.Attestation }, editLegacy(func(_ testing.TB, _ *Target, a map[string]string) {
			a["dev.cosignproject.cosign/signature"] = "%%%"
		}))},
		{"legacy payload of another digest", "the payload's own digest counts", Refused, func(tb testing.TB, t *Target, defect bool) bool {
			if !t.Legacy {
				return false
			}
			m, b := t.signature(tb), t.content(t.signature(tb))
			if defect {
				b = bytes.ReplaceAll(b, []byte("sha256:"), []byte("sha256:0"))
				if t.Attestation {
					b = bytes.Replace(b, []byte(`"payload":"`), []byte(`"payload":"AAAA`), 1)
				}
			}
			t.replace(tb, t.withContent(m, b))
			return true
		}},
	}
}

// evidenceAttacks change what proves the signature: certificate, log entry,
// timestamp.
func evidenceAttacks() []Attack {
	rekorAnnotation := func(edit func(rb object)) func(testing.TB, *Target, map[string]string) {
		return func(tb testing.TB, _ *Target, a map[string]string) {
			rb := object{}
			if err := json.Unmarshal([]byte(a["dev.sigstore.cosign/bundle"]), &rb); err != nil {
				tb.Fatal(err)
			}
			edit(rb)
			a["dev.sigstore.cosign/bundle"] = string(JSON(tb, rb))
		}
	}
	legacyFrom := func(key string) func(testing.TB, *Target, map[string]string) {
		return func(tb testing.TB, t *Target, a map[string]string) {
			a[key] = t.Other.signature(tb).Layers[0].Annotations[key]
		}
	}
	return []Attack{
		{"another certificate", "the certificate is not of this signature's key", Refused, when(keyless, editBundle(func(t *Target, b object) {
			material(b)["certificate"] = material(otherBundle(t))["certificate"]
		}))},
		{"X.509 chain in a v0.3 bundle", "only a leaf is allowed there", Refused, when(keyless, editBundle(func(_ *Target, b object) {
			m := material(b)
			m["x509CertificateChain"] = object{"certificates": []any{m["certificate"]}}
			delete(m, "certificate")
		}))},
		{"garbage certificate", "no parser crashes", Refused, when(keyless, editBundle(func(_ *Target, b object) {
			material(b)["certificate"] = object{"rawBytes": "AAAA"}
		}))},
		{"key hint instead of the certificate", "a signature by nobody in particular", Refused, when(keyless, editBundle(func(_ *Target, b object) {
			m := material(b)
			delete(m, "certificate")
			m["publicKey"] = object{"hint": ""}
		}))},
		{"no log entry", "requireTransparencyLog is on", Refused, when(logged, editBundle(func(_ *Target, b object) {
			delete(material(b), "tlogEntries")
		}))},
		{"two log entries", "which of them would be the evidence?", Refused, when(logged, editBundle(func(_ *Target, b object) {
			material(b)["tlogEntries"] = append(entries(b), entries(b)[0])
		}))},
		{"forty log entries", "CVE-2024-29903: caps", Refused, when(logged, editBundle(func(_ *Target, b object) {
			material(b)["tlogEntries"] = slices.Repeat(entries(b), 40)
		}))},
		{"another signature's log entry", "CVE-2022-23649, CVE-2026-22703", Refused, when(logged, editBundle(func(t *Target, b object) {
			material(b)["tlogEntries"] = entries(otherBundle(t))
		}))},
		{"log of nobody", "a log that the trusted root does not know", Refused, when(logged, editBundle(func(_ *Target, b object) {
			entry(b)["logId"] = object{"keyId": base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))}
		}))},
		{"flipped inclusion proof root", "CVE-2022-36056: a bad entry must fail", Refused, when(rekor1, editBundle(func(_ *Target, b object) {
			p := entry(b)["inclusionProof"].(object)
			p["rootHash"] = flip(p["rootHash"])
		}))},
		{"flipped checkpoint signature", "CVE-2022-36056: a bad entry must fail", Refused, when(logged, editBundle(func(_ *Target, b object) {
			c := entry(b)["inclusionProof"].(object)["checkpoint"].(object)
			s := strings.TrimSpace(c["envelope"].(string))
			i := strings.LastIndexByte(s, ' ')
			c["envelope"] = s[:i+1] + flip(s[i+1:]) + "\n"
		}))},
		{"no inclusion proof", "a v0.3 bundle needs one", Refused, when(logged, editBundle(func(_ *Target, b object) {
			delete(entry(b), "inclusionProof")
		}))},
		{"flipped signed entry timestamp", "the log did not say so", Refused, when(rekor1, editBundle(func(_ *Target, b object) {
			p := entry(b)["inclusionPromise"].(object)
			p["signedEntryTimestamp"] = flip(p["signedEntryTimestamp"])
		}))},
		{"forged integrated time, Rekor v1", "the signed entry timestamp covers it", Refused, when(rekor1, editBundle(func(_ *Target, b object) {
			entry(b)["integratedTime"] = "1795306140"
		}))},
		{"forged log index, Rekor v1", "the signed entry timestamp covers it", Refused, when(rekor1, editBundle(func(_ *Target, b object) {
			entry(b)["logIndex"] = "123456789"
		}))},
		{"forged log index, Rekor v2", "the inclusion proof is at another index", Refused, when(rekor2, editBundle(func(_ *Target, b object) {
			entry(b)["logIndex"] = "123456789"
		}))},
		{"forged index in the proof, Rekor v2", "nobody signs it, so it must not be reported", Harmless, when(rekor2, editBundle(func(_ *Target, b object) {
			entry(b)["inclusionProof"].(object)["logIndex"] = "123456789"
		}))},
		{"forged root hash in the proof, Rekor v2", "the checkpoint's root counts", Harmless, when(rekor2, editBundle(func(_ *Target, b object) {
			p := entry(b)["inclusionProof"].(object)
			p["rootHash"] = flip(p["rootHash"])
		}))},
		{"forged integrated time, Rekor v2", "nobody signs it, so it must not be reported", Harmless, when(rekor2, editBundle(func(_ *Target, b object) {
			at := int64(1)
			if c, ok := material(b)["certificate"].(object); ok {
				der, _ := base64.StdEncoding.DecodeString(c["rawBytes"].(string))
				if cert, err := x509.ParseCertificate(der); err == nil {
					at = cert.NotBefore.Unix() + 30
				}
			}
			entry(b)["integratedTime"] = strconv.FormatInt(at, 10)
		}))},
		{"integrated time long after the certificate", "what contradicts the certificate is refused", Refused, when(func(t *Target) bool { return t.Keyless && t.Log == "rekor2" }, editBundle(func(_ *Target, b object) {
			entry(b)["integratedTime"] = "4000000000"
		}))},
		{"flipped log body", "the entry is not the one that was logged", Refused, when(logged, editBundle(func(_ *Target, b object) {
			entry(b)["canonicalizedBody"] = flip(entry(b)["canonicalizedBody"])
		}))},
		{"garbage log body", "no parser crashes", Refused, when(logged, editBundle(func(_ *Target, b object) {
			entry(b)["canonicalizedBody"] = base64.StdEncoding.EncodeToString([]byte(`{"kind":"dsse","apiVersion":"0.0.1","spec":{"signatures":[]}}`))
		}))},
		{"flipped timestamp", "the authority did not say so", Refused, when(stamped, editBundle(func(_ *Target, b object) {
			s := stamps(b)[0].(object)
			s["signedTimestamp"] = flip(s["signedTimestamp"])
		}))},
		{"no timestamp", "the time has to be proven", Refused, when(stamped, editBundle(func(_ *Target, b object) {
			delete(material(b), "timestampVerificationData")
		}))},
		{"another signature's timestamp", "a timestamp is over a signature", Refused, when(stamped, editBundle(func(t *Target, b object) {
			material(b)["timestampVerificationData"] = material(otherBundle(t))["timestampVerificationData"]
		}))},
		{"forty timestamps", "CVE-2024-29903: caps", Refused, when(stamped, editBundle(func(_ *Target, b object) {
			material(b)["timestampVerificationData"].(object)["rfc3161Timestamps"] = slices.Repeat(stamps(b), 40)
		}))},

		{"another certificate, legacy", "the certificate is not of this signature's key", Refused, when(keyless, editLegacy(legacyFrom("dev.sigstore.cosign/certificate")))},
		{"two certificates, legacy", "the leaf and nothing else", Refused, when(keyless, editLegacy(func(_ testing.TB, _ *Target, a map[string]string) {
			c := a["dev.sigstore.cosign/certificate"]
			a["dev.sigstore.cosign/certificate"] = strings.TrimSpace(c) + "\n" + c
		}))},
		{"no certificate, legacy", "a signature by nobody in particular", Refused, when(keyless, editLegacy(func(_ testing.TB, _ *Target, a map[string]string) {
			delete(a, "dev.sigstore.cosign/certificate")
		}))},
		{"no log entry, legacy", "requireTransparencyLog is on", Refused, when(logged, editLegacy(func(_ testing.TB, _ *Target, a map[string]string) {
			delete(a, "dev.sigstore.cosign/bundle")
		}))},
		{"another signature's log entry, legacy", "CVE-2022-23649", Refused, when(logged, editLegacy(legacyFrom("dev.sigstore.cosign/bundle")))},
		{"garbage log entry, legacy", "no parser crashes", Refused, when(logged, editLegacy(func(_ testing.TB, _ *Target, a map[string]string) {
			a["dev.sigstore.cosign/bundle"] = `{"SignedEntryTimestamp":"AAAA","Payload":{"body":"e30=","logID":"00"}}`
		}))},
		{"flipped signed entry timestamp, legacy", "CVE-2022-36056: a bad entry must fail", Refused, when(logged, editLegacy(rekorAnnotation(func(rb object) {
			rb["SignedEntryTimestamp"] = flip(rb["SignedEntryTimestamp"])
		})))},
		{"forged integrated time, legacy", "the signed entry timestamp covers it", Refused, when(logged, editLegacy(rekorAnnotation(func(rb object) {
			rb["Payload"].(object)["integratedTime"] = 1795306140
		})))},
		{"forged log index, legacy", "the signed entry timestamp covers it", Refused, when(logged, editLegacy(rekorAnnotation(func(rb object) {
			rb["Payload"].(object)["logIndex"] = 123456789
		})))},
		{"garbage timestamp, legacy", "no parser crashes", Refused, when(stamped, editLegacy(func(_ testing.TB, _ *Target, a map[string]string) {
			a["dev.sigstore.cosign/rfc3161timestamp"] = `{"SignedRFC3161Timestamp":"AAAA"}`
		}))},
		{"another signature's timestamp, legacy", "a timestamp is over a signature", Refused, when(stamped, editLegacy(legacyFrom("dev.sigstore.cosign/rfc3161timestamp")))},
	}
}

func stamps(b object) []any {
	return material(b)["timestampVerificationData"].(object)["rfc3161Timestamps"].([]any)
}

// containerAttacks change how the signature is stored.
func containerAttacks() []Attack {
	manifest := func(edit func(t *Target, m *ocispec.Manifest)) func(testing.TB, *Target, bool) bool {
		return func(tb testing.TB, t *Target, defect bool) bool {
			m := t.signature(tb)
			m.Layers = slices.Clone(m.Layers)
			if defect {
				edit(t, &m)
			}
			t.replace(tb, m)
			return true
		}
	}
	bundles := func(t *Target) bool { return !t.Legacy }
	raw := func(change func(b []byte) []byte) func(testing.TB, *Target, bool) bool {
		return func(tb testing.TB, t *Target, defect bool) bool {
			m := t.signature(tb)
			b := t.content(m)
			if defect {
				b = change(b)
			}
			t.replace(tb, t.withContent(m, b))
			return true
		}
	}
	junk := func(n int) func(testing.TB, *Target, bool) bool {
		return func(tb testing.TB, t *Target, defect bool) bool {
			good := t.signature(tb)
			if !defect {
				n := 20
				t.pile(tb, good, n)
				return true
			}
			t.pile(tb, good, n)
			return true
		}
	}
	return []Attack{
		{"subject is another digest", "the referrer is of something else", Refused, when(bundles, func(tb testing.TB, t *Target, defect bool) bool {
			m := t.signature(tb)
			if defect {
				m.Subject = &ocispec.Descriptor{MediaType: m.Subject.MediaType, Digest: digest.Digest(t.Other.Digest), Size: m.Subject.Size}
			}
			t.replace(tb, m)
			return true
		})},
		{"no subject", "the referrer is of nothing", Refused, when(bundles, manifest(func(_ *Target, m *ocispec.Manifest) { m.Subject = nil }))},
		{"two layers", "which of them would be the bundle?", Refused, when(bundles, manifest(func(_ *Target, m *ocispec.Manifest) {
			m.Layers = append(m.Layers, m.Layers[0])
		}))},
		{"no layers", "nothing to verify must not verify", Refused, manifest(func(_ *Target, m *ocispec.Manifest) { m.Layers = []ocispec.Descriptor{} })},
		{"another layer type", "the media type says what it is", Refused, manifest(func(_ *Target, m *ocispec.Manifest) { m.Layers[0].MediaType = "text/plain" })},
		{"claims 10 GiB", "sizes are checked before fetching", Refused, manifest(func(_ *Target, m *ocispec.Manifest) { m.Layers[0].Size = 10 << 30 })},
		{"claims less than it is", "sizes are checked while reading", Refused, manifest(func(_ *Target, m *ocispec.Manifest) { m.Layers[0].Size -= 5 })},
		{"claims a negative size", "sizes are checked before fetching", Refused, manifest(func(_ *Target, m *ocispec.Manifest) { m.Layers[0].Size = -1 })},
		{"sha512 layer", "one digest algorithm", Refused, manifest(func(_ *Target, m *ocispec.Manifest) {
			m.Layers[0].Digest = digest.Digest("sha512:" + strings.Repeat("0", 128))
		})},
		{"path as a digest", "digests go into URLs", Refused, manifest(func(_ *Target, m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../../../etc/passwd" })},
		{"layer that is gone", "a dangling signature is none", Refused, manifest(func(_ *Target, m *ocispec.Manifest) {
			m.Layers[0].Digest = digest.Digest("sha256:" + strings.Repeat("0", 64))
		})},
		{"an index in place of the signature", "an index where a manifest was expected", Refused, func(tb testing.TB, t *Target, defect bool) bool {
			if !defect {
				return true
			}
			index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
			index.SchemaVersion = 2
			index.Subject = &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(t.Digest), Size: 1}
			b := JSON(tb, index)
			if t.Legacy {
				t.Manifest(t.Repository, t.tag(), b)
				return true
			}
			d := t.Manifest(t.Repository, "", b)
			list := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.Digest(d), Size: int64(len(b)), ArtifactType: bundleType}}}
			list.SchemaVersion = 2
			t.listed = &list
			t.Manifest(t.Repository, t.fallback(), JSON(tb, list))
			return true
		}},
		{"truncated", "no parser crashes", Refused, raw(func(b []byte) []byte { return b[:len(b)/2] })},
		{"empty", "no parser crashes", Refused, raw(func([]byte) []byte { return []byte{} })},
		{"deeply nested", "no parser exhausts the stack", Refused, raw(func([]byte) []byte {
			return []byte(strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000))
		})},
		{"a million zeros", "no parser exhausts the memory", Refused, raw(func([]byte) []byte {
			return []byte("[" + strings.Repeat("0,", 250_000) + "0]")
		})},
		{"a hundred thousand log entries", "no parser exhausts the memory", Refused, editBundle(func(_ *Target, b object) {
			material(b)["tlogEntries"] = slices.Repeat([]any{object{}}, 100_000)
		})},
		{"a log entry of two hundred thousand values", "no parser exhausts the memory", Refused, when(logged, editBundle(func(_ *Target, b object) {
			body := `{"apiVersion":"0.0.1","kind":"dsse","spec":{"signatures":[{}` + strings.Repeat(",{}", 200_000) + `]}}`
			entry(b)["canonicalizedBody"] = base64.StdEncoding.EncodeToString([]byte(body))
		}))},
		{"a statement of a hundred thousand values", "no parser exhausts the memory", Refused, editBundle(func(_ *Target, b object) {
			body := `{"_type":"https://in-toto.io/Statement/v1","subject":[{}` + strings.Repeat(",{}", 100_000) + `]}`
			envelope(b)["payload"] = base64.StdEncoding.EncodeToString([]byte(body))
		})},
		{"a certificate of a hundred thousand bytes", "no parser exhausts the memory", Refused, when(keyless, editBundle(func(_ *Target, b object) {
			material(b)["certificate"] = object{"rawBytes": strings.Repeat("AAAA", 33_000)}
		}))},
		{"a hundred thousand layers", "no parser exhausts the memory", Refused, manifest(func(_ *Target, m *ocispec.Manifest) {
			m.Layers = append(m.Layers, make([]ocispec.Descriptor, 100_000)...)
		})},
		{"larger than a bundle may be", "caps", Refused, raw(func(b []byte) []byte {
			return append(b, bytes.Repeat([]byte(" "), 8<<20)...)
		})},
		{"unknown bundle version", "what is not understood is not accepted", Refused, editBundle(func(_ *Target, b object) {
			b["mediaType"] = "application/vnd.dev.sigstore.bundle.v9.9+json"
		})},
		{"unknown bundle field", "what is not understood is not accepted", Refused, editBundle(func(_ *Target, b object) { b["extra"] = true })},
		{"sixty junk candidates before it", "junk does not hide it", Harmless, junk(60)},
		{"a hundred junk candidates before it", "caps", Refused, junk(100)},
	}
}

// pile stores n worthless signatures before the good one.
func (t *Target) pile(tb testing.TB, good ocispec.Manifest, n int) {
	tb.Helper()
	if t.Legacy {
		m := good
		m.Layers = nil
		for i := range n {
			l := t.Blob(good.Layers[0].MediaType, fmt.Appendf(nil, `{"junk":%d}`, i))
			l.Annotations = good.Layers[0].Annotations
			m.Layers = append(m.Layers, l)
		}
		m.Layers = append(m.Layers, good.Layers...)
		t.replace(tb, m)
		return
	}
	var all []ocispec.Manifest
	for i := range n {
		all = append(all, t.withContent(good, fmt.Appendf(nil, `{"junk":%d}`, i)))
	}
	t.replace(tb, append(all, good)...)
}

// registryAttacks are answers that no honest registry gives, one per kind of
// request.
func registryAttacks() []Attack {
	var out []Attack
	// The good answer is what the registry itself gives.
	on := func(name, trap string, want Verdict, what string, answer func(t *Target, w http.ResponseWriter, r *http.Request, n int) bool) {
		out = append(out, Attack{name + ", " + what, trap, want, func(tb testing.TB, t *Target, defect bool) bool {
			if t.Legacy && what == "referrer" {
				return false
			}
			match := t.matcher(tb, what)
			n := 0
			t.Hijack = func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !defect || !match(r) {
					return false
				}
				n++
				return answer(t, w, r, n)
			}
			return true
		}})
	}
	for _, what := range []string{"manifest", "listing", "signature", "referrer", "layer"} {
		// Something that the registry says about a candidate is a reason
		// against the candidate; about the artifact it is a refusal as well.
		on("redirect loop", "redirects are bounded", Refused, what, func(_ *Target, w http.ResponseWriter, r *http.Request, _ int) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		})
		on("redirect to another scheme", "only HTTP", Refused, what, func(_ *Target, w http.ResponseWriter, _ *http.Request, _ int) bool {
			w.Header().Set("Location", "gopher://127.0.0.1/")
			w.WriteHeader(http.StatusFound)
			return true
		})
		on("compressed", "nothing is decompressed", Refused, what, func(_ *Target, w http.ResponseWriter, _ *http.Request, _ int) bool {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte{0x1f, 0x8b})
			return true
		})
		on("never ends", "slow bodies end at the deadline", Undecided, what, func(_ *Target, w http.ResponseWriter, r *http.Request, _ int) bool {
			_, _ = w.Write([]byte("{"))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		})
		on("fails", "an error is never taken for unsigned", Undecided, what, func(_ *Target, w http.ResponseWriter, _ *http.Request, _ int) bool {
			w.WriteHeader(http.StatusBadGateway)
			return true
		})
		on("busy, then good", "429 with Retry-After", Harmless, what, func(_ *Target, w http.ResponseWriter, _ *http.Request, n int) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		on("fails, then good", "5xx is tried again", Harmless, what, func(_ *Target, w http.ResponseWriter, _ *http.Request, n int) bool {
			if n > 1 {
				return false
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		})
		if what != "listing" {
			on("other bytes", "digests are computed", Refused, what, func(_ *Target, w http.ResponseWriter, _ *http.Request, _ int) bool {
				_, _ = w.Write([]byte(`{"schemaVersion":2}`))
				return true
			})
		}
		on("endless", "sizes are checked while reading", Refused, what, func(_ *Target, w http.ResponseWriter, r *http.Request, _ int) bool {
			chunk := bytes.Repeat([]byte(" "), 64<<10)
			for r.Context().Err() == nil {
				if _, err := w.Write(chunk); err != nil {
					break
				}
			}
			return true
		})
	}
	for n := 2; n <= 6; n++ {
		out = append(out, Attack{fmt.Sprintf("tag moved before request %d", n), "a tag is looked at once", Harmless, func(_ testing.TB, t *Target, defect bool) bool {
			t.Hijack = func(i int, _ http.ResponseWriter, _ *http.Request) bool {
				if defect && i == n {
					t.Manifest(t.Repository, "v1", t.Get(t.Other.Repository, t.Other.Digest))
				}
				return false
			}
			return true
		}})
	}
	out = append(out,
		Attack{"artifact is an index", "an index where a manifest was expected", Refused, func(tb testing.TB, t *Target, defect bool) bool {
			if defect {
				t.Manifest(t.Repository, "v1", JSON(tb, object{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{}}))
			}
			return true
		}},
		Attack{"artifact is both manifest and index", "CVE-2021-41190", Refused, func(tb testing.TB, t *Target, defect bool) bool {
			if defect {
				t.Manifest(t.Repository, "v1", JSON(tb, object{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "manifests": []any{}, "layers": []any{}}))
			}
			return true
		}},
		Attack{"tag points at another signed artifact's bytes", "only the digest counts", Refused, func(_ testing.TB, t *Target, defect bool) bool {
			if defect {
				raw := bytes.Replace(t.Get(t.Repository, t.Digest), []byte(`"schemaVersion":2`), []byte(`"schemaVersion": 2`), 1)
				t.Manifest(t.Repository, "v1", raw)
			}
			return true
		}},
		Attack{"listing has no end", "pages are bounded", Refused, func(_ testing.TB, t *Target, defect bool) bool {
			if t.Legacy || !t.Referrers {
				return false
			}
			t.Hijack = func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !defect || !strings.Contains(r.URL.Path, "/referrers/") {
					return false
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
				w.Header().Set("Link", "<"+r.URL.Path+"?again>; rel=\"next\"")
				_, _ = w.Write([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
				return true
			}
			return true
		}},
		Attack{"signature on the second page", "pages are followed", Harmless, func(_ testing.TB, t *Target, defect bool) bool {
			if t.Legacy || !t.Referrers {
				return false
			}
			t.Hijack = func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !defect || !strings.Contains(r.URL.Path, "/referrers/") || r.URL.RawQuery != "" {
					return false
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
				w.Header().Set("Link", "<"+r.URL.Path+"?page=2>; rel=\"next\"")
				_, _ = w.Write([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
				return true
			}
			return true
		}},
		Attack{"listing hides behind a web page", "200 with something else is no listing", Refused, func(_ testing.TB, t *Target, defect bool) bool {
			if t.Legacy {
				return false
			}
			t.Hijack = func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !defect || !strings.Contains(r.URL.Path, "/referrers/") {
					return false
				}
				_, _ = w.Write([]byte("<html>"))
				return true
			}
			return true
		}},
	)
	return out
}

// matcher recognises the requests for one thing.
func (t *Target) matcher(tb testing.TB, what string) func(*http.Request) bool {
	tb.Helper()
	m := t.signature(tb)
	var artifact ocispec.Manifest
	if err := json.Unmarshal(t.Get(t.Repository, t.Digest), &artifact); err != nil {
		tb.Fatal(err)
	}
	suffix := map[string]string{
		"manifest":  "/manifests/v1",
		"signature": "/blobs/" + string(m.Layers[0].Digest),
		"layer":     "/blobs/" + string(artifact.Layers[0].Digest),
	}[what]
	switch what {
	case "listing":
		switch {
		case t.Legacy:
			suffix = "/manifests/" + t.tag()
		case t.Referrers:
			suffix = "/referrers/" + t.Digest
		default:
			suffix = "/manifests/" + t.fallback()
		}
	case "referrer":
		index := t.referrers(t.Repository, t.Digest)
		suffix = "/manifests/" + string(index.Manifests[0].Digest)
	}
	return func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, suffix) }
}
