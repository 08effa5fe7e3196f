package sigverify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Key is a public key that may sign.
type Key struct {
	// ID is base64(sha256(DER SPKI)), the hint in Cosign's bundles.
	ID       string
	verifier *keyVerifier
}

// ParseKey reads one PEM public key: ECDSA (P-256, P-384, P-521), RSA of 2048
// bits or more, or Ed25519.
func ParseKey(data []byte) (Key, error) {
	block, rest := pem.Decode(data)
	if block == nil {
		return Key{}, errors.New("it is not a PEM public key")
	}
	if bytes.Contains(rest, []byte("-----BEGIN")) {
		return Key{}, errors.New("it holds more than one PEM block: list each key by itself")
	}
	if block.Type != "PUBLIC KEY" {
		return Key{}, fmt.Errorf("it is a PEM %s, expected PUBLIC KEY", block.Type)
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Key{}, fmt.Errorf("it is not a public key: %w", err)
	}
	verifiers, err := keyVerifiers(pub)
	if err != nil {
		return Key{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return Key{}, fmt.Errorf("cannot encode the public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return Key{ID: base64.StdEncoding.EncodeToString(sum[:]), verifier: &keyVerifier{pub, verifiers}}, nil
}

// keyVerifiers are the algorithms a key may have signed with: Cosign v2 used
// SHA-256 with every curve, v3 the hash of the curve's size; Ed25519 signs as
// it is, and pre-hashed where the log wants that.
func keyVerifiers(pub crypto.PublicKey) ([]signature.Verifier, error) {
	var list []signature.Verifier
	add := func(v signature.Verifier, err error) error {
		if err != nil {
			return fmt.Errorf("unusable public key: %w", err)
		}
		list = append(list, v)
		return nil
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		hashes := map[elliptic.Curve][]crypto.Hash{
			elliptic.P256(): {crypto.SHA256},
			elliptic.P384(): {crypto.SHA384, crypto.SHA256},
			elliptic.P521(): {crypto.SHA512, crypto.SHA256},
		}[k.Curve]
		if hashes == nil {
			return nil, fmt.Errorf("the curve %s is not supported", k.Curve.Params().Name)
		}
		for _, h := range hashes {
			if err := add(signature.LoadECDSAVerifier(k, h)); err != nil {
				return nil, err
			}
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("an RSA key of %d bits is too short, 2048 is the least", k.N.BitLen())
		}
		if err := add(signature.LoadRSAPKCS1v15Verifier(k, crypto.SHA256)); err != nil {
			return nil, err
		}
		if err := add(signature.LoadRSAPSSVerifier(k, crypto.SHA256, nil)); err != nil {
			return nil, err
		}
	case ed25519.PublicKey:
		if err := add(signature.LoadED25519Verifier(k)); err != nil {
			return nil, err
		}
		if err := add(signature.LoadED25519phVerifier(k)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("keys of type %T are not supported", pub)
	}
	return list, nil
}

// keyVerifier accepts a signature that any of its algorithms accepts.
type keyVerifier struct {
	pub       crypto.PublicKey
	verifiers []signature.Verifier
}

func (k *keyVerifier) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return k.pub, nil
}

func (k *keyVerifier) VerifySignature(sig, message io.Reader, opts ...signature.VerifyOption) error {
	s, err := io.ReadAll(sig)
	if err != nil {
		return err
	}
	m, err := io.ReadAll(message)
	if err != nil {
		return err
	}
	for _, v := range k.verifiers {
		if err = v.VerifySignature(bytes.NewReader(s), bytes.NewReader(m), opts...); err == nil {
			return nil
		}
	}
	return err
}

// material is trusted material in which every hint means this key. A hint is
// nobody's signature: the key that counts is the configured one.
func (k Key) material() root.TrustedMaterial {
	expiring := root.NewExpiringKey(k.verifier, zeroTime, zeroTime)
	return root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return expiring, nil })
}
