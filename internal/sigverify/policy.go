package sigverify

import (
	"errors"
	"fmt"
	"time"

	"github.com/stepd/stepd/internal/ociart"
)

// Format is a form in which Cosign stores signatures.
type Format string

// The forms: bundles are Cosign v3's default (and v2's --new-bundle-format),
// found by referrers; legacy is Cosign v2's, found by tag.
const (
	Bundle Format = "bundle"
	Legacy Format = "legacy"
)

// Policy is what has to be proven about an artifact. The zero value accepts
// nothing. Make one with NewPolicy, which has the strict defaults, and call
// Validate when it is complete.
type Policy struct {
	// Identities and Keys are who may sign; one of any suffices.
	Identities []Identity
	Keys       []Key

	// RequireTransparencyLog demands a verified entry in a trusted log.
	RequireTransparencyLog bool
	// RequireTimestamp demands an RFC 3161 timestamp of a trusted authority.
	// Keyless signatures need a proven time in any case.
	RequireTimestamp bool
	// RequireSCT demands that signing certificates were logged.
	RequireSCT bool
	// RequireSignature demands a plain signature besides the attestations.
	RequireSignature bool

	// Formats are the forms that are looked for.
	Formats []Format
	// SignedAnnotations must be in the signature itself.
	SignedAnnotations map[string]string
	// DockerReference must be the repository that the signed payload names.
	DockerReference string
	// Attestations must all be there.
	Attestations []Attestation

	// Pins narrow who may sign: each of them must accept the signer as well.
	Pins []Pin
}

// Pin is somebody else's list of signers, an operator's, that a policy is held
// to besides its own.
type Pin struct {
	Identities []Identity
	// KeyIDs are base64(sha256(DER SPKI)).
	KeyIDs []string
}

// NewPolicy returns a policy with the strict defaults and nobody to trust.
func NewPolicy() Policy {
	return Policy{
		RequireTransparencyLog: true,
		RequireSCT:             true,
		RequireSignature:       true,
		Formats:                []Format{Bundle, Legacy},
	}
}

// Validate finds settings that would let through what nobody named signed.
func (p *Policy) Validate() error {
	switch {
	case len(p.Identities) == 0 && len(p.Keys) == 0:
		return errors.New("verify needs identities or keys: somebody must be named as the signer")
	case !p.RequireSignature && len(p.Attestations) == 0:
		return errors.New("requireSignature: false needs at least one entry in attestations")
	case !p.RequireSignature && len(p.SignedAnnotations) > 0:
		return errors.New("signedAnnotations are those of a plain signature: they cannot be had with requireSignature: false (cel looks into an attestation)")
	case !p.RequireSignature && p.DockerReference != "":
		return errors.New("dockerReference is what a plain signature names: it cannot be had with requireSignature: false")
	case len(p.Formats) == 0:
		return errors.New("formats must not be empty")
	case p.DockerReference != "" && !p.wants(Legacy):
		return errors.New("dockerReference needs the format legacy: a bundle names no repository")
	}
	for _, f := range p.Formats {
		if f != Bundle && f != Legacy {
			return fmt.Errorf("unknown format %s", ociart.Quote(string(f)))
		}
	}
	for i, id := range p.Identities {
		if id.match == nil {
			return fmt.Errorf("identities[%d] names nobody", i)
		}
	}
	return nil
}

// NeedsTrustedRoot tells whether anything in the policy is proven by
// certificate authorities, logs or timestamp authorities.
func (p *Policy) NeedsTrustedRoot() bool {
	return len(p.Identities) > 0 || p.RequireTransparencyLog || p.RequireTimestamp
}

// Weakened lists the settings that gave up a check, as they are written in a
// config.
func (p *Policy) Weakened() []string {
	out := []string{}
	if !p.RequireTransparencyLog {
		out = append(out, "requireTransparencyLog: false")
	}
	if !p.RequireSCT && len(p.Identities) > 0 {
		out = append(out, "requireSCT: false")
	}
	if !p.RequireSignature {
		out = append(out, "requireSignature: false")
	}
	return out
}

func (p *Policy) wants(f Format) bool {
	for _, g := range p.Formats {
		if f == g {
			return true
		}
	}
	return false
}

// Limits bounds what candidates can cost. The zero value of a field is its
// default.
type Limits struct {
	// Candidates is how many signatures and attestations are looked at; 64.
	Candidates int
	// Bundle is the size of a bundle or of a legacy attestation; 8 MiB.
	Bundle int64
	// Payload is the size of a legacy signature's payload; 1 MiB.
	Payload int64
	// Concurrent is how many candidates are fetched at a time; 4.
	Concurrent int
	// Evaluation is the deadline of one CEL expression; 1 s.
	Evaluation time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Candidates == 0 {
		l.Candidates = 64
	}
	if l.Bundle == 0 {
		l.Bundle = 8 << 20
	}
	if l.Payload == 0 {
		l.Payload = 1 << 20
	}
	if l.Concurrent == 0 {
		l.Concurrent = 4
	}
	if l.Evaluation == 0 {
		l.Evaluation = time.Second
	}
	return l
}
