// Package trust writes the trusted_root.json of a private Sigstore.
package trust

import (
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
)

// Log is a transparency log or a certificate log.
type Log struct {
	// URL is the log's base URL. For Rekor v2 its host name is the log's origin.
	URL string
	// ID is what entries name the log by.
	ID        []byte
	PublicKey crypto.PublicKey
}

// Root is everything that a private Sigstore asks to be trusted.
type Root struct {
	// Fulcio is the chain of the certificate authority, root last.
	Fulcio []*x509.Certificate
	// TSA is the chain of the timestamp authority, leaf first; may be empty.
	TSA       []*x509.Certificate
	CTLogs    []Log
	RekorLogs []Log
}

// JSON renders r as a trusted_root.json whose logs are valid from a day ago.
func (r Root) JSON() ([]byte, error) {
	if len(r.Fulcio) == 0 {
		return nil, errors.New("cannot write a trusted root: there is no certificate authority")
	}
	last := len(r.Fulcio) - 1
	authorities := []root.CertificateAuthority{&root.FulcioCertificateAuthority{
		Root:                r.Fulcio[last],
		Intermediates:       r.Fulcio[:last],
		ValidityPeriodStart: r.Fulcio[last].NotBefore,
		URI:                 "https://fulcio.localhost",
	}}
	var stamps []root.TimestampingAuthority
	if n := len(r.TSA); n > 0 {
		stamps = append(stamps, &root.SigstoreTimestampingAuthority{
			Root:                r.TSA[n-1],
			Leaf:                r.TSA[0],
			Intermediates:       r.TSA[1 : n-1],
			ValidityPeriodStart: r.TSA[n-1].NotBefore,
			URI:                 "https://tsa.localhost/api/v1/timestamp",
		})
	}
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, authorities, logs(r.CTLogs), stamps, logs(r.RekorLogs))
	if err != nil {
		return nil, fmt.Errorf("cannot write a trusted root: %w", err)
	}
	return tr.MarshalJSON()
}

func logs(in []Log) map[string]*root.TransparencyLog {
	out := map[string]*root.TransparencyLog{}
	for _, l := range in {
		out[hex.EncodeToString(l.ID)] = &root.TransparencyLog{
			BaseURL:             l.URL,
			ID:                  l.ID,
			ValidityPeriodStart: time.Now().Add(-24 * time.Hour).Truncate(time.Second),
			HashFunc:            crypto.SHA256,
			PublicKey:           l.PublicKey,
			SignatureHashFunc:   crypto.SHA256,
		}
	}
	return out
}
