package ociverified

import (
	"strings"
	"time"
	"unicode"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/verification"
)

// output is the step's output: every key, null when unknown.
func (a *Accepted) output(path string) map[string]any {
	annotations := map[string]any{}
	for k, v := range a.Annotations {
		annotations[k] = v
	}
	attestations := make([]any, 0, len(a.Attestations))
	for _, v := range a.Attestations {
		attestations = append(attestations, map[string]any{"predicateType": v.PredicateType, "signer": signerOutput(v.Signer)})
	}
	weakened := make([]any, 0, len(a.Weakened))
	for _, w := range a.Weakened {
		weakened = append(weakened, w)
	}
	return map[string]any{
		"digest":       a.Digest,
		"imageRef":     a.Repository + "@" + a.Digest,
		"tag":          orNull(a.Tag),
		"mediaType":    a.Layer.MediaType,
		"artifactType": orNull(a.ArtifactType),
		"size":         a.Layer.Size,
		"layerDigest":  a.LayerDigest,
		"path":         path,
		"annotations":  annotations,
		"signer":       signerOutput(a.Signer),
		"attestations": attestations,
		"weakened":     weakened,
	}
}

func signerOutput(s verification.Signer) map[string]any {
	out := map[string]any{
		"subject":          orNull(s.Subject),
		"issuer":           orNull(s.Issuer),
		"sourceRepository": orNull(s.SourceRepository),
		"sourceRef":        orNull(s.SourceRef),
		"sourceCommit":     orNull(s.SourceCommit),
		"workflow":         orNull(s.Workflow),
		"runURL":           orNull(s.RunURL),
		"logIndex":         nil,
		"signedAt":         nil,
		"timeSource":       orNull(s.TimeSource),
		"logEntry":         orNull(s.LogEntry),
		"format":           s.Format,
		"keyID":            orNull(s.KeyID),
	}
	if s.LogIndex != nil {
		out["logIndex"] = *s.LogIndex
	}
	if !s.SignedAt.IsZero() {
		out["signedAt"] = s.SignedAt.UTC().Format(time.RFC3339)
	}
	return out
}

// signedBy names the signer for messages.
func (a *Accepted) signedBy() string {
	if a.Signer.KeyID != "" {
		return "key " + a.Signer.KeyID
	}
	if strings.ContainsFunc(a.Signer.Subject, func(r rune) bool { return !unicode.IsGraphic(r) }) {
		return ociart.Quote(a.Signer.Subject)
	}
	return a.Signer.Subject
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}
