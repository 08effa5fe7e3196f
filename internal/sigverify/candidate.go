package sigverify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/stepd/stepd/internal/ociart"
)

// candidate is something that claims to be a signature or attestation of the
// artifact. Nothing in it is trusted.
type candidate struct {
	// name says where it was found: a digest that we computed or asked for.
	name   string
	format Format
	bundle *bundle.Bundle
	// payload is what a message signature is over, when that is not the
	// artifact's manifest: the legacy format's simple signing payload.
	payload []byte
	// envelope is a legacy attestation as it was stored; nil for all others.
	envelope []byte
	// load, if not nil, is what is left to do for a large candidate, so that
	// only one of those is in memory at a time.
	load func(ctx context.Context) (candidate, error)
}

// Media types and annotations of Cosign (pkg/oci/static, pkg/types,
// specs/SIGNATURE_SPEC.md).
const (
	bundleMediaTypePrefix    = "application/vnd.dev.sigstore.bundle"
	simpleSigningMediaType   = "application/vnd.dev.cosign.simplesigning.v1+json"
	dsseEnvelopeMediaType    = "application/vnd.dsse.envelope.v1+json"
	signatureAnnotation      = "dev.cosignproject.cosign/signature"
	certificateAnnotation    = "dev.sigstore.cosign/certificate"
	rekorBundleAnnotation    = "dev.sigstore.cosign/bundle"
	timestampAnnotation      = "dev.sigstore.cosign/rfc3161timestamp"
	predicateTypeAnnotation  = "predicateType"
	bundlePredicateTypeHint  = "dev.sigstore.bundle.predicateType"
	inTotoPayloadType        = "application/vnd.in-toto+json"
	signPredicateType        = "https://sigstore.dev/cosign/sign/v1"
	legacyBundleMediaType    = "application/vnd.dev.sigstore.bundle+json;version=0.1"
	maxCertificateAnnotation = 64 << 10
)

// parseBundle reads a Sigstore bundle.
func parseBundle(raw []byte) (*bundle.Bundle, error) {
	if err := ociart.CheckValues(raw); err != nil {
		return nil, err
	}
	pb := &protobundle.Bundle{}
	if err := protojson.Unmarshal(raw, pb); err != nil {
		return nil, fmt.Errorf("it is not a valid Sigstore bundle: %s", ociart.Quote(err.Error()))
	}
	if err := bounds(pb); err != nil {
		return nil, err
	}
	b, err := bundle.NewBundle(pb)
	if err != nil {
		return nil, fmt.Errorf("it is not a valid Sigstore bundle: %s", ociart.Quote(err.Error()))
	}
	return b, nil
}

// maxEvidence is the size of a certificate, a timestamp or the body of a log
// entry, each of which is a few KiB.
const maxEvidence = 64 << 10

// bounds refuses what other parsers would make much of before anything in it is
// verified: a certificate of a hundred thousand names, a log entry or statement
// of a million values.
func bounds(pb *protobundle.Bundle) error {
	m := pb.GetVerificationMaterial()
	certificates := append([]*protocommon.X509Certificate{m.GetCertificate()}, m.GetX509CertificateChain().GetCertificates()...)
	for _, c := range certificates {
		if len(c.GetRawBytes()) > maxEvidence {
			return fmt.Errorf("its certificate is larger than %d bytes", maxEvidence)
		}
	}
	for _, e := range m.GetTlogEntries() {
		if len(e.GetCanonicalizedBody()) > maxEvidence {
			return fmt.Errorf("the body of its log entry is larger than %d bytes", maxEvidence)
		}
	}
	for _, ts := range m.GetTimestampVerificationData().GetRfc3161Timestamps() {
		if len(ts.GetSignedTimestamp()) > maxEvidence {
			return fmt.Errorf("its timestamp is larger than %d bytes", maxEvidence)
		}
	}
	if err := ociart.CheckValues(pb.GetDsseEnvelope().GetPayload()); err != nil {
		return fmt.Errorf("its statement: %w", err)
	}
	return nil
}

// parseLegacySignature makes a v0.1 bundle of a signature layer: there a log
// entry's signed timestamp without an inclusion proof is in order, which is
// all that Cosign v2 stores.
func parseLegacySignature(layer ocispec.Descriptor, payload []byte) (*bundle.Bundle, error) {
	sig, err := base64.StdEncoding.DecodeString(layer.Annotations[signatureAnnotation])
	if err != nil || len(sig) == 0 {
		return nil, errors.New("its layer carries no base64 signature")
	}
	sum := sha256.Sum256(payload)
	return legacyBundle(layer, &protobundle.Bundle{
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]},
			Signature:     sig,
		}},
	})
}

// parseLegacyAttestation makes a v0.1 bundle of an attestation layer, whose
// signature is inside the DSSE envelope.
func parseLegacyAttestation(layer ocispec.Descriptor, envelope []byte) (*bundle.Bundle, error) {
	var env struct {
		PayloadType string `json:"payloadType"`
		Payload     []byte `json:"payload"`
		Signatures  []struct {
			KeyID string `json:"keyid"`
			Sig   []byte `json:"sig"`
		} `json:"signatures"`
	}
	if err := ociart.CheckValues(envelope); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(envelope, &env); err != nil {
		return nil, fmt.Errorf("it is not a DSSE envelope: %s", ociart.Quote(err.Error()))
	}
	if len(env.Signatures) != 1 {
		return nil, fmt.Errorf("its envelope has %d signatures, expected one", len(env.Signatures))
	}
	return legacyBundle(layer, &protobundle.Bundle{
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload:     env.Payload,
			PayloadType: env.PayloadType,
			Signatures:  []*protodsse.Signature{{Sig: env.Signatures[0].Sig, Keyid: env.Signatures[0].KeyID}},
		}},
	})
}

func legacyBundle(layer ocispec.Descriptor, pb *protobundle.Bundle) (*bundle.Bundle, error) {
	material := &protobundle.VerificationMaterial{}
	if certPEM := layer.Annotations[certificateAnnotation]; certPEM != "" {
		der, err := certificateDER(certPEM)
		if err != nil {
			return nil, err
		}
		material.Content = &protobundle.VerificationMaterial_X509CertificateChain{
			X509CertificateChain: &protocommon.X509CertificateChain{Certificates: []*protocommon.X509Certificate{{RawBytes: der}}},
		}
	} else {
		material.Content = &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}}
	}
	if s := layer.Annotations[rekorBundleAnnotation]; s != "" {
		entry, err := parseRekorBundle(s)
		if err != nil {
			return nil, err
		}
		material.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	if s := layer.Annotations[timestampAnnotation]; s != "" && s != "null" {
		var ts struct{ SignedRFC3161Timestamp []byte }
		if err := json.Unmarshal([]byte(s), &ts); err != nil || len(ts.SignedRFC3161Timestamp) == 0 {
			return nil, errors.New("its timestamp annotation is malformed")
		}
		material.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: ts.SignedRFC3161Timestamp}},
		}
	}
	pb.MediaType = legacyBundleMediaType
	pb.VerificationMaterial = material
	if err := bounds(pb); err != nil {
		return nil, err
	}
	b, err := bundle.NewBundle(pb)
	if err != nil {
		return nil, fmt.Errorf("its annotations make no valid bundle: %s", ociart.Quote(err.Error()))
	}
	return b, nil
}

func certificateDER(certPEM string) ([]byte, error) {
	if len(certPEM) > maxCertificateAnnotation {
		return nil, errors.New("its certificate annotation is too large")
	}
	block, rest := pem.Decode([]byte(certPEM))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("its certificate annotation is not a PEM certificate")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("its certificate annotation holds more than one certificate")
	}
	return block.Bytes, nil
}

// parseRekorBundle reads Cosign's own form of a Rekor v1 entry with its signed
// entry timestamp.
func parseRekorBundle(s string) (*protorekor.TransparencyLogEntry, error) {
	var rb struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := json.Unmarshal([]byte(s), &rb); err != nil {
		return nil, errors.New("its log entry annotation is malformed")
	}
	logID, err := hex.DecodeString(rb.Payload.LogID)
	if err != nil || len(logID) == 0 || len(rb.SignedEntryTimestamp) == 0 {
		return nil, errors.New("its log entry annotation is malformed")
	}
	var body struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(rb.Payload.Body, &body); err != nil {
		return nil, errors.New("the body of its log entry is malformed")
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex:          rb.Payload.LogIndex,
		LogId:             &protocommon.LogId{KeyId: logID},
		KindVersion:       &protorekor.KindVersion{Kind: body.Kind, Version: body.APIVersion},
		IntegratedTime:    rb.Payload.IntegratedTime,
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: rb.SignedEntryTimestamp},
		CanonicalizedBody: rb.Payload.Body,
	}, nil
}

// simpleSigning is the payload of a legacy signature
// (cosign specs/SIGNATURE_SPEC.md).
type simpleSigning struct {
	Critical struct {
		Identity struct {
			DockerReference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			DockerManifestDigest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]any `json:"optional"`
}

// parsePayload reads a legacy payload and checks that it is about digest.
func parsePayload(payload []byte, digest string) (*simpleSigning, error) {
	var p simpleSigning
	if err := json.Unmarshal(payload, &p); err != nil {
		return nil, fmt.Errorf("the signed payload is not simple signing JSON: %s", ociart.Quote(err.Error()))
	}
	if t := p.Critical.Type; t != "cosign container image signature" && t != signPredicateType {
		return nil, fmt.Errorf("the signed payload's type is %s, not an image signature", ociart.Quote(t))
	}
	if d := p.Critical.Image.DockerManifestDigest; d != digest {
		return nil, fmt.Errorf("it signs another digest, %s", ociart.Quote(d))
	}
	return &p, nil
}

// bundleLayer finds the one bundle in a bundle manifest and checks that the
// manifest refers to the artifact. The manifest decides; what a listing says
// about it does not.
func bundleLayer(m *ocispec.Manifest, digest string) (ocispec.Descriptor, error) {
	switch {
	case m.Subject == nil:
		return ocispec.Descriptor{}, errors.New("its manifest refers to no subject")
	case string(m.Subject.Digest) != digest:
		return ocispec.Descriptor{}, fmt.Errorf("its manifest refers to another subject, %s", ociart.Quote(string(m.Subject.Digest)))
	case len(m.Layers) != 1:
		return ocispec.Descriptor{}, fmt.Errorf("its manifest has %d layers, expected one", len(m.Layers))
	case !strings.HasPrefix(m.Layers[0].MediaType, bundleMediaTypePrefix):
		return ocispec.Descriptor{}, fmt.Errorf("its layer is %s, not a Sigstore bundle", ociart.Quote(m.Layers[0].MediaType))
	}
	return m.Layers[0], nil
}
