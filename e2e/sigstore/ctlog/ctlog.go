// Package ctlog is a stand-in for a certificate transparency log: it signs
// real signed certificate timestamps (RFC 6962 section 3.2) but keeps no
// Merkle tree, which no verifier of an embedded timestamp looks at.
package ctlog

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/tls"
)

// Log signs timestamps with one key.
type Log struct {
	key *ecdsa.PrivateKey
	id  [sha256.Size]byte
}

// New makes a log with a fresh P-256 key.
func New() (*Log, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make the key of the certificate log: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("cannot encode the key of the certificate log: %w", err)
	}
	return &Log{key: key, id: sha256.Sum256(der)}, nil
}

// PublicKey is the key that the timestamps verify with.
func (l *Log) PublicKey() crypto.PublicKey { return l.key.Public() }

// ID is the log's id: the SHA-256 of its public key.
func (l *Log) ID() []byte { return l.id[:] }

// AddPreChain signs a timestamp for the precertificate that chain starts with,
// DER encoded and followed by its issuers.
func (l *Log) AddPreChain(_ context.Context, chain []ct.ASN1Cert) (*ct.SignedCertificateTimestamp, error) {
	now := uint64(time.Now().UnixMilli())
	leaf, err := ct.MerkleTreeLeafFromRawChain(chain, ct.PrecertLogEntryType, now)
	if err != nil {
		return nil, fmt.Errorf("cannot read the precertificate: %w", err)
	}
	sct := ct.SignedCertificateTimestamp{
		SCTVersion: ct.V1,
		LogID:      ct.LogID{KeyID: l.id},
		Timestamp:  now,
	}
	input, err := ct.SerializeSCTSignatureInput(sct, ct.LogEntry{Leaf: *leaf})
	if err != nil {
		return nil, fmt.Errorf("cannot serialise the timestamp: %w", err)
	}
	digest := sha256.Sum256(input)
	sig, err := ecdsa.SignASN1(rand.Reader, l.key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("cannot sign the timestamp: %w", err)
	}
	sct.Signature = ct.DigitallySigned{
		Algorithm: tls.SignatureAndHashAlgorithm{Hash: tls.SHA256, Signature: tls.ECDSA},
		Signature: sig,
	}
	return &sct, nil
}

// ServeHTTP answers add-pre-chain (RFC 6962 section 4.2), all that Fulcio asks.
func (l *Log) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != ct.AddPreChainPath {
		http.NotFound(w, r)
		return
	}
	var req ct.AddChainRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	chain := make([]ct.ASN1Cert, len(req.Chain))
	for i, der := range req.Chain {
		chain[i].Data = der
	}
	sct, err := l.AddPreChain(r.Context(), chain)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	sig, err := tls.Marshal(sct.Signature)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(ct.AddChainResponse{ // a client that hung up is its own problem
		SCTVersion: sct.SCTVersion,
		ID:         sct.LogID.KeyID[:],
		Timestamp:  sct.Timestamp,
		Extensions: base64.StdEncoding.EncodeToString(sct.Extensions),
		Signature:  sig,
	})
}
