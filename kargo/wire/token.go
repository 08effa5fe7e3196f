package wire

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Claims are what a token binds a step to.
type Claims struct {
	// Namespace and Promotion name the Promotion; its UID is not known when the
	// token is made.
	Namespace string `json:"namespace"`
	Promotion string `json:"promotion"`
	// Alias is the step's full alias, Kind what its `uses` was.
	Alias string `json:"alias"`
	Kind  string `json:"kind"`
	// Skeleton is the config's.
	Skeleton Skeleton `json:"skeleton"`
	// Retry is the step's own retry policy, which the sidecar applies.
	Retry Retry `json:"retry"`
	// IssuedAt has whole seconds.
	IssuedAt time.Time `json:"issuedAt"`
}

// Retry is a step's retry policy.
type Retry struct {
	// Timeout is how long the step may take in all; 0 is no limit of the user's.
	Timeout time.Duration `json:"timeout,omitempty"`
	// ErrorThreshold is how many errors end the step; 0 is the step's default.
	ErrorThreshold uint32 `json:"errorThreshold,omitempty"`
}

// Errors of Verify. Neither says anything about the claims, which nobody vouches
// for.
var (
	// ErrToken is a token that is malformed, or whose signature is wrong.
	ErrToken = errors.New("the token is not valid")
	// ErrUnknownKey is a token signed with a key that is not, or no longer, known.
	ErrUnknownKey = errors.New("the token is signed with an unknown key")
)

const (
	// tokenType keeps anything else that is signed with the key from being a token.
	tokenType = "stepd-step"
	// maxToken is far beyond what names and aliases can make of a token.
	maxToken = 8 << 10
)

// Sign returns a token for claims: a compact JWS (RFC 7515) with EdDSA (RFC
// 8037), whose kid is KeyID of the public key. It has no character that means
// anything to Kargo's expressions or to YAML.
func Sign(key ed25519.PrivateKey, c Claims) (token string, err error) {
	if len(key) != ed25519.PrivateKeySize {
		return "", errors.New("cannot sign a token: no Ed25519 private key")
	}
	c.IssuedAt = c.IssuedAt.UTC().Truncate(time.Second)
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("cannot encode the claims of a token: %w", err)
	}
	public, _ := key.Public().(ed25519.PublicKey)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key, KeyID: KeyID(public)}},
		(&jose.SignerOptions{}).WithType(tokenType))
	if err != nil {
		return "", fmt.Errorf("cannot sign a token: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("cannot sign a token: %w", err)
	}
	if token, err = jws.CompactSerialize(); err != nil {
		return "", fmt.Errorf("cannot sign a token: %w", err)
	}
	if len(token) > maxToken {
		return "", fmt.Errorf("cannot sign a token: it would have %d bytes, more than %d", len(token), maxToken)
	}
	return token, nil
}

// Verify returns the claims of a token that one of the keys signed. The error
// is, or wraps, ErrToken or ErrUnknownKey.
func Verify(keys []ed25519.PublicKey, token string) (Claims, error) {
	if len(token) > maxToken {
		return Claims{}, fmt.Errorf("%w: it has %d bytes, more than %d", ErrToken, len(token), maxToken)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return Claims{}, fmt.Errorf("%w: it cannot be read", ErrToken)
	}
	header := jws.Signatures[0].Protected
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); typ != tokenType {
		return Claims{}, fmt.Errorf("%w: it is of another type", ErrToken)
	}
	for _, key := range keys {
		if len(key) != ed25519.PublicKeySize || KeyID(key) != header.KeyID {
			continue
		}
		payload, err := jws.Verify(key)
		if err != nil {
			return Claims{}, fmt.Errorf("%w: its signature is wrong", ErrToken)
		}
		var c Claims
		if err := json.Unmarshal(payload, &c); err != nil {
			return Claims{}, fmt.Errorf("%w: its claims cannot be read", ErrToken)
		}
		return c, nil
	}
	return Claims{}, ErrUnknownKey
}

// KeyID returns the name of a public key: its JWK thumbprint (RFC 7638, SHA-256)
// in unpadded base64url.
func KeyID(key ed25519.PublicKey) string {
	jwk := `{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(key) + `"}`
	sum := sha256.Sum256([]byte(jwk))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
