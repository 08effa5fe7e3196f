package sigverify

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sort"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/steps"
)

// Request is one artifact to verify.
type Request struct {
	// Manifest is the artifact's manifest, hashed.
	Manifest *ociart.Manifest
	// Artifact names it in messages.
	Artifact string
	// Signatures is the repository in which its signatures are.
	Signatures *ociart.Repository
	Policy     *Policy
	// Trust may be nil if the policy needs no trusted root.
	Trust root.TrustedMaterial
	// Now is the time against which maxAge is measured. Nothing else is:
	// certificates are checked at the proven signing time.
	Now    time.Time
	Limits Limits
	// Explain, if not nil, is told each check in order.
	Explain func(Check)
}

// Verdict is an acceptance.
type Verdict struct {
	// Signature is the accepted plain signature; nil if none was required.
	Signature *Verified
	// Attestations are the accepted ones, in the policy's order.
	Attestations []*Verified
	// Rejected are the candidates that were looked at on the way and refused.
	Rejected []Rejection
}

// Signer is who answers for the artifact: the signature's signer, or the first
// attestation's where no signature was required.
func (v *Verdict) Signer() *Verified {
	if v.Signature != nil {
		return v.Signature
	}
	return v.Attestations[0]
}

// Rejection is a candidate and why it was refused. Text that somebody else
// wrote is quoted and bounded in both.
type Rejection struct {
	Candidate string `json:"candidate"`
	Format    Format `json:"format"`
	Reason    string `json:"reason"`
}

// RefusedError says that no acceptable signature, or not every required
// attestation, was found. It is steps.ErrRefused.
type RefusedError struct {
	// Artifact is what was to be verified, by digest.
	Artifact string
	// Missing are the requirements that nothing satisfied.
	Missing []string
	// Expected says who may sign; empty when that is not why it was refused.
	Expected string
	// Signed tells that a signature was accepted, and what was signed is not what
	// was asked for.
	Signed bool
	// Rejected are the candidates that were found.
	Rejected []Rejection
	// Remedy says what to change.
	Remedy string
}

// maxReasons is how many rejections a message spells out; Detail has all.
const maxReasons = 5

// Error is one paragraph: what was asked, what was found, why each candidate
// was refused, and what to change.
func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "refused %s: no acceptable %s", e.Artifact, strings.Join(e.Missing, " and no acceptable "))
	if e.Expected != "" {
		fmt.Fprintf(&b, " by %s", e.Expected)
	}
	switch {
	case e.Signed:
		b.WriteString("; its signature is acceptable, but it is not the artifact that was asked for")
	case e.Expected != "":
		e.candidates(&b)
	}
	if e.Remedy != "" {
		b.WriteString(". " + e.Remedy)
	}
	return b.String()
}

func (e *RefusedError) candidates(b *strings.Builder) {
	switch n := len(e.Rejected); n {
	case 0:
		b.WriteString("; nothing was found that is signed for this digest")
	case 1:
		b.WriteString("; 1 candidate was found and refused")
	default:
		fmt.Fprintf(b, "; %d candidates were found and refused", n)
	}
	for i, r := range e.Rejected {
		if i == maxReasons {
			fmt.Fprintf(b, "; and %d more", len(e.Rejected)-i)
			break
		}
		fmt.Fprintf(b, "; %s (%s): %s", r.Candidate, r.Format, r.Reason)
	}
}

// Is makes it steps.ErrRefused.
func (e *RefusedError) Is(target error) bool { return target == steps.ErrRefused }

// Detail implements steps.Detailer.
func (e *RefusedError) Detail() map[string]any {
	rejected := make([]any, 0, len(e.Rejected))
	for _, r := range e.Rejected {
		rejected = append(rejected, map[string]any{"candidate": r.Candidate, "format": string(r.Format), "reason": r.Reason})
	}
	missing := make([]any, 0, len(e.Missing))
	for _, m := range e.Missing {
		missing = append(missing, m)
	}
	return map[string]any{"artifact": e.Artifact, "missing": missing, "expected": e.Expected, "rejected": rejected, "remedy": e.Remedy}
}

// Verify decides about an artifact. It answers with a Verdict, a
// *RefusedError, or an error that says that no decision could be made, such as
// a registry that fails: that is never taken for "unsigned".
func Verify(ctx context.Context, r Request) (*Verdict, error) {
	if err := r.Policy.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", steps.ErrConfig, err)
	}
	trust := r.Trust
	if trust == nil {
		trust = &root.BaseTrustedMaterial{}
	}
	s := &search{
		Request:  r,
		limits:   r.Limits.withDefaults(),
		verifier: &verifier{policy: r.Policy, trust: trust, artifact: artifact{r.Manifest.Digest, r.Manifest.Raw}, explain: r.Explain},
		verdict:  &Verdict{Attestations: make([]*Verified, len(r.Policy.Attestations))},
	}
	return s.run(ctx)
}

// search goes through the sources until everything required is found.
type search struct {
	Request
	limits   Limits
	verifier *verifier
	verdict  *Verdict
	// seen counts the candidates that were looked at.
	seen        int
	overflow    bool
	unavailable error
}

func (s *search) run(ctx context.Context) (*Verdict, error) {
	d := &discovery{repo: s.Signatures, digest: s.Manifest.Digest, limits: s.limits, bundleManifest: bundleManifestLimit}
	for _, src := range d.sources(s.Policy) {
		leads, err := src.list(ctx)
		if err != nil {
			if errors.Is(err, ociart.ErrIntegrity) {
				s.reject("the listing of "+string(src.format)+" signatures", src.format, err)
				continue
			}
			return nil, fmt.Errorf("cannot list the signatures of %s: %w", s.Artifact, err)
		}
		rank(leads, s.Policy)
		done, err := s.look(ctx, leads)
		if err != nil {
			return nil, err
		}
		if done {
			return s.verdict, nil
		}
	}
	if s.unavailable != nil {
		return nil, fmt.Errorf("cannot read the signatures of %s: %w", s.Artifact, s.unavailable)
	}
	return nil, s.refused()
}

// bundleManifestLimit is the size of one bundle's manifest, which has one layer.
const bundleManifestLimit = 1 << 20

// look looks at leads: the first by itself, since it usually suffices, the
// others in batches.
func (s *search) look(ctx context.Context, leads []lead) (done bool, err error) {
	for size := 1; len(leads) > 0; size = s.limits.Concurrent {
		room := s.limits.Candidates - s.seen
		if room <= 0 {
			s.overflow = true
			return false, nil
		}
		batch := leads[:min(size, room, len(leads))]
		leads = leads[len(batch):]
		s.seen += len(batch)
		for _, f := range fetchAll(ctx, batch) {
			if err := ctx.Err(); err != nil {
				return false, fmt.Errorf("cannot verify %s: %w", s.Artifact, context.Cause(ctx))
			}
			if s.consider(ctx, f) {
				return true, nil
			}
		}
	}
	return false, nil
}

// consider verifies one candidate and says whether everything required is now
// there.
func (s *search) consider(ctx context.Context, f fetched) bool {
	if f.err == nil && f.candidate.load != nil {
		// What the last large candidate took is given back before the next is
		// fetched: left to its own pace the collector would let several add up.
		// Signatures of this size are rare, and mostly meant to hurt.
		debug.FreeOSMemory()
		f = fetchOne(ctx, f.lead, f.candidate.load)
	}
	var unavailable *unavailableError
	if errors.As(f.err, &unavailable) {
		s.unavailable = f.err
		return false
	}
	name, format := f.lead.name, f.lead.format
	if f.err != nil {
		s.reject(name, format, f.err)
		return false
	}
	v, err := s.verifier.verify(ctx, f.candidate)
	if err != nil {
		s.reject(name, format, err)
		return false
	}
	s.match(ctx, f.candidate, v)
	return s.complete()
}

// match gives a verified candidate to the requirements that it satisfies, and
// rejects it if there are none.
func (s *search) match(ctx context.Context, c candidate, v *Verified) {
	used := false
	var reasons []string
	if s.Policy.RequireSignature && s.verdict.Signature == nil {
		if err := s.verifier.signature(v); err != nil {
			reasons = append(reasons, err.Error())
		} else {
			s.verdict.Signature, used = v, true
			s.verifier.pass(c, "accepted", "as the signature")
		}
	}
	if !v.plain {
		for i, a := range s.Policy.Attestations {
			if s.verdict.Attestations[i] != nil {
				continue
			}
			if err := a.check(ctx, v, s.Now, s.limits); err != nil {
				reasons = append(reasons, fmt.Sprintf("for attestations[%d]: %s", i, err))
				continue
			}
			s.verdict.Attestations[i], used = v, true
			s.verifier.pass(c, "accepted", fmt.Sprintf("as attestations[%d], %s", i, v.PredicateType))
		}
	} else if !s.Policy.RequireSignature {
		reasons = append(reasons, "it is a plain signature, and attestations are required")
	}
	if !used {
		if len(reasons) == 0 {
			reasons = append(reasons, "nothing that is still required is satisfied by it")
		}
		s.reject(v.Candidate, Format(v.Format), errors.New(strings.Join(reasons, "; ")))
	}
}

func (s *search) complete() bool {
	if s.Policy.RequireSignature && s.verdict.Signature == nil {
		return false
	}
	for _, a := range s.verdict.Attestations {
		if a == nil {
			return false
		}
	}
	return true
}

func (s *search) reject(name string, f Format, err error) {
	s.verdict.Rejected = append(s.verdict.Rejected, Rejection{Candidate: name, Format: f, Reason: bounded(err.Error())})
	if s.Explain != nil {
		s.Explain(Check{Candidate: name, Name: "refused", Evidence: bounded(err.Error())})
	}
}

// bounded cuts a reason. Its foreign parts are quoted already; what is left to
// do is to keep it printable and short.
func bounded(s string) string {
	const limit = 600
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r <= 0x9f || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

func (s *search) refused() error {
	e := &RefusedError{Artifact: s.Artifact, Rejected: s.verdict.Rejected, Expected: s.expected()}
	if s.Policy.RequireSignature && s.verdict.Signature == nil {
		e.Missing = append(e.Missing, "signature")
	}
	for i, a := range s.verdict.Attestations {
		if a == nil {
			e.Missing = append(e.Missing, "attestation "+ociart.Quote(s.Policy.Attestations[i].spec.PredicateType))
		}
	}
	switch {
	case s.overflow:
		e.Remedy = fmt.Sprintf("More than %d candidates refer to it: remove the junk, or keep signatures in a repository of their own (signatureRepository)", s.limits.Candidates)
	case len(e.Rejected) == 0:
		e.Remedy = "Sign it by digest (cosign sign), or name the repository that holds its signatures (signatureRepository)"
	default:
		e.Remedy = "Have it signed by one of those expected, or correct verify if the signer is right and the policy is not"
	}
	return e
}

// expected says who may sign, shortly.
func (s *search) expected() string {
	var who []string
	for _, id := range s.Policy.Identities {
		who = append(who, id.describe())
	}
	for _, k := range s.Policy.Keys {
		who = append(who, "key "+k.ID)
	}
	sort.Strings(who)
	const most = 3
	if len(who) > most {
		who = append(who[:most], fmt.Sprintf("%d others", len(who)-most))
	}
	return strings.Join(who, " or ")
}
