package sigverify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/verification"
)

var zeroTime time.Time

// Verified is a signature or attestation that was accepted. Every field is
// covered by a signature that was checked.
type Verified struct {
	// Candidate is the digest of the manifest it was found in.
	Candidate string
	verification.Signer
	// PredicateType is the in-toto predicate type; Cosign's own for plain
	// signatures in bundles, empty for other plain signatures.
	PredicateType string
	// Annotations are those inside the signature (cosign sign -a).
	Annotations map[string]string
	// DockerReference is the repository that a legacy payload names.
	DockerReference string

	plain     bool
	predicate map[string]any
}

// artifact is what candidates must have signed.
type artifact struct {
	digest   string // "sha256:…"
	manifest []byte
}

// verifier puts candidates through the checks.
type verifier struct {
	policy   *Policy
	trust    root.TrustedMaterial
	artifact artifact
	explain  func(Check)
}

// Check is one check of one candidate, for people who want to see them all.
type Check struct {
	// Candidate is what was checked; empty for checks of the whole.
	Candidate string `json:"candidate,omitempty"`
	// Name says what was checked.
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Evidence is what was found, or why it failed.
	Evidence string `json:"evidence"`
}

// verify decides about one candidate. It never panics: the parsers below it
// are many, and the input is hostile.
func (v *verifier) verify(ctx context.Context, c candidate) (out *Verified, err error) {
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, errors.New("it is malformed: a parser gave up on it")
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entry, err := oneLogEntry(c)
	if err != nil {
		return nil, err
	}
	content, err := c.bundle.VerificationContent()
	if err != nil {
		return nil, fmt.Errorf("its certificate or key is malformed: %s", ociart.Quote(err.Error()))
	}
	cert := content.Certificate()
	switch {
	case cert != nil && len(v.policy.Identities) == 0:
		return nil, errors.New("it is signed with a certificate, and only keys are named as signers")
	case cert == nil && len(v.policy.Keys) == 0:
		return nil, errors.New("it is signed with a key, and only identities are named as signers")
	case cert != nil:
		if err := oneName(cert); err != nil {
			return nil, err
		}
	}

	opts, err := v.options(c, entry, cert != nil)
	if err != nil {
		return nil, err
	}
	result, key, err := v.sigstore(c, opts, cert != nil)
	if err != nil {
		return nil, err
	}
	v.pass(c, "signature", "over "+v.artifact.digest)

	out = &Verified{Candidate: c.name}
	out.Format = string(c.format)
	if cert != nil {
		if err := v.identify(c, result, out); err != nil {
			return nil, err
		}
	} else {
		for _, pin := range v.policy.Pins {
			if !slices.Contains(pin.KeyIDs, key.ID) {
				return nil, fmt.Errorf("the operator's policy does not list the key %s for this repository", key.ID)
			}
		}
		out.KeyID = key.ID
		v.pass(c, "key", key.ID)
	}
	if err := v.logged(c, entry, opts.log, out); err != nil {
		return nil, err
	}
	if err := v.timed(c, result, out); err != nil {
		return nil, err
	}
	if err := v.content(c, result, out); err != nil {
		return nil, err
	}
	return out, nil
}

// oneLogEntry returns the only log entry, nil if there is none. More than one
// are refused: which of them would be the evidence?
func oneLogEntry(c candidate) (*tlog.Entry, error) {
	if n := len(c.bundle.GetVerificationMaterial().GetTlogEntries()); n > 1 {
		return nil, fmt.Errorf("it has %d log entries, expected at most one", n)
	}
	entries, err := c.bundle.TlogEntries()
	if err != nil {
		return nil, fmt.Errorf("its log entry is malformed: %s", ociart.Quote(err.Error()))
	}
	if len(entries) == 0 {
		return nil, nil
	}
	return entries[0], nil
}

// verifierOptions are what sigstore-go is asked to check.
type verifierOptions struct {
	list []verify.VerifierOption
	// log tells whether the log entry is verified.
	log bool
}

// options settles how log and time are proven. An entry in a log that the
// trusted root knows is verified even where none is required: a bad entry must
// fail (CVE-2022-36056).
func (v *verifier) options(c candidate, entry *tlog.Entry, keyless bool) (verifierOptions, error) {
	var o verifierOptions
	known := entry != nil && v.trust.RekorLogs()[hex.EncodeToString([]byte(entry.LogKeyID()))] != nil
	switch {
	case v.policy.RequireTransparencyLog && entry == nil:
		return o, errors.New("it has no transparency log entry, and requireTransparencyLog is on")
	case v.policy.RequireTransparencyLog && !known:
		return o, fmt.Errorf("its log entry is in a log that the trusted root does not know (log ID %s)", ociart.Quote(base64.StdEncoding.EncodeToString([]byte(entry.LogKeyID()))))
	}
	if o.log = known; o.log {
		o.list = append(o.list, verify.WithTransparencyLog(1))
	}
	stamps, err := c.bundle.Timestamps()
	if err != nil {
		return o, fmt.Errorf("its timestamps are malformed: %s", ociart.Quote(err.Error()))
	}
	timed := o.log && entry.HasInclusionPromise() || len(stamps) > 0 && len(v.trust.TimestampingAuthorities()) > 0
	switch {
	case v.policy.RequireTimestamp && len(stamps) == 0:
		return o, errors.New("it has no RFC 3161 timestamp, and requireTimestamp is on")
	case keyless && !timed:
		return o, errors.New("nothing proves when it was signed: it has neither a log's signed entry timestamp nor a timestamp of a trusted authority")
	case keyless, timed:
		o.list = append(o.list, verify.WithObserverTimestamps(1))
	default:
		o.list = append(o.list, verify.WithNoObserverTimestamps())
	}
	if v.policy.RequireTimestamp {
		// Beside the observer timestamps, so that a signed entry timestamp
		// cannot stand in for the authority's.
		o.list = append(o.list, verify.WithSignedTimestamps(1))
	}
	if keyless && v.policy.RequireSCT {
		o.list = append(o.list, verify.WithSignedCertificateTimestamps(1))
	}
	return o, nil
}

// sigstore runs sigstore-go: log entry, time, certificate chain, SCT and the
// signature itself over the artifact (or, for the legacy form, the payload).
// Identities are checked by identify, which can say why.
func (v *verifier) sigstore(c candidate, opts verifierOptions, keyless bool) (*verify.VerificationResult, Key, error) {
	if keyless {
		result, err := v.sigstoreWith(c, opts, v.trust, verify.WithoutIdentitiesUnsafe())
		return result, Key{}, err
	}
	var firstErr error
	for _, k := range v.policy.Keys {
		result, err := v.sigstoreWith(c, opts, root.TrustedMaterialCollection{v.trust, k.material()}, verify.WithKey())
		if err == nil {
			return result, k, nil
		}
		if firstErr == nil {
			firstErr = err
		}
	}
	if n := len(v.policy.Keys); n > 1 {
		return nil, Key{}, fmt.Errorf("none of the %d keys verifies it; the first: %w", n, firstErr)
	}
	return nil, Key{}, firstErr
}

func (v *verifier) sigstoreWith(c candidate, opts verifierOptions, trust root.TrustedMaterial, who verify.PolicyOption) (*verify.VerificationResult, error) {
	if c.envelope != nil {
		trust = envelopeStamps{trust, c.envelope}
	}
	sv, err := verify.NewVerifier(trust, opts.list...)
	if err != nil {
		return nil, fmt.Errorf("cannot set up the verification: %w", err)
	}
	var what verify.ArtifactPolicyOption
	switch {
	case c.payload != nil:
		what = verify.WithArtifact(bytes.NewReader(c.payload))
	case c.bundle.GetMessageSignature() != nil:
		what = verify.WithArtifact(bytes.NewReader(v.artifact.manifest))
	default:
		sum, err := hex.DecodeString(v.artifact.digest[len("sha256:"):])
		if err != nil {
			return nil, fmt.Errorf("cannot decode the digest: %w", err)
		}
		what = verify.WithArtifactDigest("sha256", sum)
	}
	result, err := sv.Verify(c.bundle, verify.NewPolicy(what, who))
	if err != nil {
		return nil, fmt.Errorf("sigstore verification: %s", ociart.Quote(err.Error()))
	}
	return result, nil
}

// identify matches the verified certificate against the identities.
func (v *verifier) identify(c candidate, result *verify.VerificationResult, out *Verified) error {
	if result.Signature == nil || result.Signature.Certificate == nil {
		return errors.New("it has no verified certificate")
	}
	cert := *result.Signature.Certificate
	v.pass(c, "certificate", "issued by "+ociart.Quote(cert.CertificateIssuer)+" within its validity")
	if v.policy.RequireSCT {
		v.pass(c, "SCT", "certificate logged in a trusted certificate transparency log")
	}
	who, err := oneOf(v.policy.Identities, cert)
	if err != nil {
		return err
	}
	v.pass(c, "identity", who.describe())
	for _, pin := range v.policy.Pins {
		if _, err := oneOf(pin.Identities, cert); err != nil {
			return fmt.Errorf("the operator's policy for this repository: %w", err)
		}
	}
	out.Subject, out.Issuer = cert.SubjectAlternativeName, cert.Issuer
	out.SourceRepository = firstOf(cert.SourceRepositoryURI, cert.GithubWorkflowRepository)
	out.SourceRef = firstOf(cert.SourceRepositoryRef, cert.GithubWorkflowRef)
	out.SourceCommit = firstOf(cert.SourceRepositoryDigest, cert.GithubWorkflowSHA)
	out.Workflow = firstOf(cert.BuildConfigURI, cert.GithubWorkflowName)
	out.RunURL = cert.RunInvocationURI
	return nil
}

// logged binds the verified log entry to this very signature and key
// (CVE-2022-23649, CVE-2026-22703) and takes the facts it proves. sigstore-go
// does so for Rekor v1, and for v2 by rebuilding the entry; this check does
// not depend on which of its ways was taken. The index counts only where a
// signed entry timestamp covers it.
func (v *verifier) logged(c candidate, entry *tlog.Entry, verified bool, out *Verified) error {
	if !verified {
		return nil
	}
	sig, err := c.bundle.SignatureContent()
	if err != nil {
		return errors.New("its signature is malformed")
	}
	if !bytes.Equal(entry.Signature(), sig.Signature()) {
		return errors.New("its log entry is about another signature")
	}
	content, err := c.bundle.VerificationContent()
	if err != nil {
		return errors.New("its certificate or key is malformed")
	}
	trust := v.trust
	for _, k := range v.policy.Keys {
		if k.ID == out.KeyID {
			trust = k.material()
		}
	}
	if !content.CompareKey(entry.PublicKey(), trust) {
		return errors.New("its log entry is about another key or certificate")
	}
	if digest, algorithm, ok := entry.GetHashedRekordDigest(); ok {
		if want := digestBy(algorithm, v.signedBytes(c)); want == nil || !bytes.Equal(digest, want) {
			return errors.New("its log entry is about other content")
		}
	}
	body := entry.TransparencyLogEntry().GetCanonicalizedBody()
	leaf := sha256.Sum256(append([]byte{0}, body...)) // RFC 6962 §2.1
	out.LogEntry = hex.EncodeToString(leaf[:])
	evidence := "leaf " + out.LogEntry + " proven by inclusion"
	if entry.HasInclusionPromise() {
		index := entry.LogIndex()
		out.LogIndex = &index
		evidence = fmt.Sprintf("index %d, leaf %s, signed entry timestamp", index, out.LogEntry)
	}
	v.pass(c, "transparency log", evidence)
	return nil
}

// signedBytes is what the signature is over.
func (v *verifier) signedBytes(c candidate) []byte {
	switch env := c.bundle.GetDsseEnvelope(); {
	case env != nil:
		return dsse.PAE(env.GetPayloadType(), env.GetPayload())
	case c.payload != nil:
		return c.payload
	default:
		return v.artifact.manifest
	}
}

// digestBy hashes by the algorithm names of Rekor v1 and v2; nil for others.
func digestBy(algorithm string, b []byte) []byte {
	switch algorithm {
	case "sha256", "SHA2_256":
		sum := sha256.Sum256(b)
		return sum[:]
	case "sha384", "SHA2_384":
		sum := sha512.Sum384(b)
		return sum[:]
	case "sha512", "SHA2_512":
		sum := sha512.Sum512(b)
		return sum[:]
	default:
		return nil
	}
}

// timed takes the proven time: an authority's if there is one, else the log's.
func (v *verifier) timed(c candidate, result *verify.VerificationResult, out *Verified) error {
	for _, ts := range result.VerifiedTimestamps {
		switch {
		case ts.Type == "TimestampAuthority" && out.TimeSource != "tsa":
			out.SignedAt, out.TimeSource = ts.Timestamp.UTC(), "tsa"
		case ts.Type == "Tlog" && out.TimeSource == "":
			out.SignedAt, out.TimeSource = ts.Timestamp.UTC(), "rekor-set"
		}
	}
	if v.policy.RequireTimestamp && out.TimeSource != "tsa" {
		return errors.New("no RFC 3161 timestamp of a trusted authority was verified")
	}
	// A timestamp that is there must verify, even beside a log's time.
	stamps, err := c.bundle.Timestamps()
	if err != nil {
		return errors.New("its timestamps are malformed")
	}
	if len(stamps) > 0 && len(v.trust.TimestampingAuthorities()) > 0 && out.TimeSource != "tsa" {
		return errors.New("its RFC 3161 timestamp is not one of a trusted authority for this signature")
	}
	if out.TimeSource != "" {
		v.pass(c, "time", out.SignedAt.Format(time.RFC3339)+" by "+out.TimeSource)
	}
	return nil
}

// content looks at what was signed: that it is about the artifact, and that it
// is the kind of statement it has to be.
func (v *verifier) content(c candidate, result *verify.VerificationResult, out *Verified) error {
	switch {
	case c.payload != nil:
		p, err := parsePayload(c.payload, v.artifact.digest)
		if err != nil {
			return err
		}
		out.plain = true
		out.DockerReference = p.Critical.Identity.DockerReference
		out.Annotations = stringValues(p.Optional)
	case result.Statement == nil:
		// A message signature is over the manifest's own bytes.
		out.plain = true
	default:
		if t := result.Statement.GetType(); t != "https://in-toto.io/Statement/v1" && t != "https://in-toto.io/Statement/v0.1" {
			return fmt.Errorf("its statement is %s, not an in-toto statement", ociart.Quote(t))
		}
		out.PredicateType = result.Statement.GetPredicateType()
		out.plain = out.PredicateType == signPredicateType
		out.predicate = result.Statement.GetPredicate().AsMap()
		hexDigest := v.artifact.digest[len("sha256:"):]
		found := false
		for _, s := range result.Statement.GetSubject() {
			if s.GetDigest()["sha256"] == hexDigest {
				found = true
				out.Annotations = stringValues(s.GetAnnotations().AsMap())
			}
		}
		if !found {
			return errors.New("its statement is about another digest")
		}
	}
	v.pass(c, "subject", v.artifact.digest)
	return nil
}

// signature tells why a verified candidate is not the plain signature the
// policy wants; nil if it is.
func (v *verifier) signature(out *Verified) error {
	if !out.plain {
		return fmt.Errorf("it is an attestation (predicate type %s), not a signature", ociart.Quote(out.PredicateType))
	}
	if want := v.policy.DockerReference; want != "" && out.DockerReference != want {
		if out.Format == string(Bundle) {
			return fmt.Errorf("a bundle names no repository, and dockerReference wants %s", ociart.Quote(want))
		}
		return fmt.Errorf("it names the repository %s, expected %s", ociart.Quote(out.DockerReference), ociart.Quote(want))
	}
	for k, want := range v.policy.SignedAnnotations {
		have, ok := out.Annotations[k]
		if !ok {
			return fmt.Errorf("it has no signed annotation %s", ociart.Quote(k))
		}
		if have != want {
			return fmt.Errorf("its signed annotation %s is %s, expected %s", ociart.Quote(k), ociart.Quote(have), ociart.Quote(want))
		}
	}
	return nil
}

func (v *verifier) pass(c candidate, name, evidence string) {
	if v.explain != nil {
		v.explain(Check{Candidate: c.name, Name: name, OK: true, Evidence: evidence})
	}
}

func stringValues(m map[string]any) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}
