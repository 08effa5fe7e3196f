// Package gitsign signs commits so that `git verify-commit` accepts them: with
// OpenPGP keys, and with SSH keys (PROTOCOL.sshsig). Where keys come from does
// not belong here.
package gitsign

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/crypto/ssh"
)

// Signer signs the bytes of a commit.
type Signer struct {
	sign func(message []byte, at time.Time) (string, error)
}

// Sign implements gitrepo.Signer. At is the commit's time, which an OpenPGP
// signature carries and at which its key must be valid.
func (s Signer) Sign(message []byte, at time.Time) (string, error) { return s.sign(message, at) }

// OpenPGP returns a signer with the first key in an armored private key block
// that can sign. Keys with a passphrase, expired and revoked keys, and version 6
// keys, which git's gpg does not know, are errors.
func OpenPGP(armored []byte) (Signer, error) {
	keys, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(armored))
	if err != nil {
		return Signer{}, errors.New("it is not an armored OpenPGP key")
	}
	for _, e := range keys {
		if e.PrivateKey == nil {
			continue
		}
		if e.PrimaryKey.Version > 4 {
			return Signer{}, fmt.Errorf("it is a version %d OpenPGP key; gpg knows versions up to 4", e.PrimaryKey.Version)
		}
		key, ok := e.SigningKey(time.Now())
		if !ok {
			return Signer{}, errors.New("it has no valid signing key: expired, revoked or not meant to sign")
		}
		if key.PrivateKey == nil {
			return Signer{}, errors.New("the private part of its signing key is missing")
		}
		if key.PrivateKey.Encrypted {
			return Signer{}, errors.New("it has a passphrase; export it without")
		}
		return Signer{func(message []byte, at time.Time) (string, error) {
			if _, ok := e.SigningKey(at); !ok {
				return "", errors.New("the OpenPGP key is not valid at the commit's time")
			}
			deterministic := false
			cfg := &packet.Config{Time: func() time.Time { return at }, NonDeterministicSignaturesViaNotation: &deterministic}
			var b bytes.Buffer
			if err := openpgp.ArmoredDetachSign(&b, e, bytes.NewReader(message), cfg); err != nil {
				return "", fmt.Errorf("cannot sign with the OpenPGP key: %w", err)
			}
			return b.String() + "\n", nil
		}}, nil
	}
	return Signer{}, errors.New("it has no private OpenPGP key")
}

// SSH returns a signer with an OpenSSH or PEM private key: Ed25519, RSA (signing
// with SHA-512) or ECDSA. A passphrase is an error.
func SSH(key []byte) (Signer, error) {
	s, err := ssh.ParsePrivateKey(append(bytes.TrimSpace(key), '\n'))
	if missing := (*ssh.PassphraseMissingError)(nil); errors.As(err, &missing) {
		return Signer{}, errors.New("it has a passphrase; export it without")
	}
	if err != nil {
		return Signer{}, errors.New("it is not an OpenSSH private key")
	}
	algorithm := s.PublicKey().Type()
	if algorithm == ssh.KeyAlgoRSA {
		algorithm = ssh.KeyAlgoRSASHA512 // ssh-rsa means SHA-1, which PROTOCOL.sshsig forbids
	}
	signer, ok := s.(ssh.AlgorithmSigner)
	if !ok {
		return Signer{}, fmt.Errorf("keys of type %s cannot sign", algorithm)
	}
	return Signer{func(message []byte, _ time.Time) (string, error) {
		return sshSignature(signer, algorithm, message)
	}}, nil
}

const (
	sshMagic     = "SSHSIG"
	sshNamespace = "git"
	sshHash      = "sha512"
)

// sshSignature makes an armored signature (openssh/PROTOCOL.sshsig).
func sshSignature(signer ssh.AlgorithmSigner, algorithm string, message []byte) (string, error) {
	digest := sha512.Sum512(message)
	signed := append([]byte(sshMagic), ssh.Marshal(struct {
		Namespace, Reserved, Hash string
		Digest                    []byte
	}{sshNamespace, "", sshHash, digest[:]})...)
	sig, err := signer.SignWithAlgorithm(rand.Reader, signed, algorithm)
	if err != nil {
		return "", fmt.Errorf("cannot sign with the SSH key: %w", err)
	}
	blob := append([]byte(sshMagic), ssh.Marshal(struct {
		Version                   uint32
		PublicKey                 []byte
		Namespace, Reserved, Hash string
		Signature                 []byte
	}{1, signer.PublicKey().Marshal(), sshNamespace, "", sshHash, ssh.Marshal(sig)})...)

	var b strings.Builder
	b.WriteString("-----BEGIN SSH SIGNATURE-----\n")
	text := base64.StdEncoding.EncodeToString(blob)
	for len(text) > 70 {
		b.WriteString(text[:70] + "\n")
		text = text[70:]
	}
	b.WriteString(text + "\n-----END SSH SIGNATURE-----\n")
	return b.String(), nil
}
