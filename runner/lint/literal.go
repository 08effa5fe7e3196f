package lint

import (
	"encoding/json"

	"github.com/stepd/stepd/internal/sigverify"
	"github.com/stepd/stepd/internal/yamledit"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/load"
)

// keys checks the literal keys of steps that split them as yaml-update does.
func (c *docLinter) keys(uses string, config map[string]any, at string) {
	switch uses {
	case "yaml-update", "toml-update", "config-apply":
	default:
		return
	}
	updates, _ := config["updates"].([]any)
	for i, u := range updates {
		m, _ := u.(map[string]any)
		key, _ := m["key"].(string)
		if key == "" || expr.HasCode(key) {
			continue
		}
		if _, err := yamledit.SplitKey(key); err != nil {
			c.report(Error, "config", at+load.Pointer("config", "updates", i, "key"), "parts are separated by single dots; a dot in a key is written \\.", "key %q: %v", key, err)
		}
	}
}

// signers checks the literal parts of a verification policy with the verifier's
// own rules: expressions that strangers match, attestations that nothing can
// satisfy, keys that are none.
func (c *docLinter) signers(uses string, config map[string]any, at string) {
	if uses != "oci-download-verified" {
		return
	}
	verify, _ := config["verify"].(map[string]any)
	c.eachOf(verify, "identities", at, func(text []byte) error {
		var spec sigverify.IdentitySpec
		if err := json.Unmarshal(text, &spec); err != nil {
			return nil //nolint:nilerr // the schema says so
		}
		if (spec.Issuer == "") == (spec.IssuerRegExp == "") || (spec.Subject == "") == (spec.SubjectRegExp == "") {
			return nil // the schema says so
		}
		_, err := sigverify.NewIdentity(spec)
		return err
	})
	c.eachOf(verify, "attestations", at, func(text []byte) error {
		var spec struct{ PredicateType, BuilderID, SourceURI, SourceRef, CEL string }
		if err := json.Unmarshal(text, &spec); err != nil {
			return nil //nolint:nilerr // the schema says so
		}
		_, err := sigverify.NewAttestation(sigverify.AttestationSpec{
			PredicateType: spec.PredicateType, BuilderID: spec.BuilderID, SourceURI: spec.SourceURI, SourceRef: spec.SourceRef, CEL: spec.CEL,
		})
		return err
	})
	c.eachOf(verify, "keys", at, func(text []byte) error {
		var key struct{ PEM string }
		if err := json.Unmarshal(text, &key); err != nil || key.PEM == "" {
			return nil //nolint:nilerr // the schema says so
		}
		_, err := sigverify.ParseKey([]byte(key.PEM))
		return err
	})
	c.together(verify, at)
}

// together checks that the settings of a policy go together, as far as they
// are literal: that nothing is asked of a signature that need not be there.
func (c *docLinter) together(verify map[string]any, at string) {
	text, err := json.Marshal(verify)
	if err != nil {
		return
	}
	var spec struct {
		RequireSignature  *bool
		Attestations      []any
		SignedAnnotations map[string]string
		DockerReference   string
		Formats           []sigverify.Format
	}
	if json.Unmarshal(text, &spec) != nil || verify["identities"] == nil && verify["keys"] == nil {
		return // the schema says so
	}
	policy := sigverify.NewPolicy()
	policy.Keys = make([]sigverify.Key, 1) // who they are is checked above
	policy.Attestations = make([]sigverify.Attestation, len(spec.Attestations))
	policy.SignedAnnotations, policy.DockerReference = spec.SignedAnnotations, spec.DockerReference
	if spec.RequireSignature != nil {
		policy.RequireSignature = *spec.RequireSignature
	}
	for _, f := range spec.Formats {
		if f != sigverify.Bundle && f != sigverify.Legacy {
			return // the schema says so
		}
	}
	if spec.Formats != nil {
		policy.Formats = spec.Formats
	}
	if err := policy.Validate(); err != nil && len(policy.Formats) > 0 {
		c.report(Error, "config", at+load.Pointer("config", "verify"), "", "invalid oci-download-verified config: verify: %v", err)
	}
}

// eachOf checks those items of a list in verify that hold no expressions.
func (c *docLinter) eachOf(verify map[string]any, list, at string, check func(item []byte) error) {
	items, _ := verify[list].([]any)
	for i, item := range items {
		text, err := json.Marshal(item)
		if err != nil || expr.HasCode(string(text)) {
			continue
		}
		if err := check(text); err != nil {
			c.report(Error, "config", at+load.Pointer("config", "verify", list, i), "", "invalid oci-download-verified config: verify.%s.%d: %v", list, i, err)
		}
	}
}
