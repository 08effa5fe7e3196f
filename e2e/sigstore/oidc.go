package sigstore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/stepd/stepd/e2e/sigstore/workflow"
)

// issuer is an OpenID Connect issuer on loopback that gives any workflow an ID
// token with the claims of GitHub's. It has discovery and a key set, nothing
// else.
type issuer struct {
	srv    *httptest.Server
	key    jose.JSONWebKey
	signer jose.Signer
}

func startIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make the issuer's key: %w", err)
	}
	i := &issuer{key: jose.JSONWebKey{Key: key, KeyID: "1", Algorithm: string(jose.ES256), Use: "sig"}}
	i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("cannot make the issuer's signer: %w", err)
	}
	mux := http.NewServeMux()
	i.srv = httptest.NewServer(mux)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{
			"issuer":                                i.srv.URL,
			"jwks_uri":                              i.srv.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{string(jose.ES256)},
			"response_types_supported":              []string{"id_token"},
			"subject_types_supported":               []string{"public"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.key.Public()}})
	})
	return i, nil
}

// token is an ID token for a run, valid for ten minutes.
func (i *issuer) token(run workflow.Run) (string, error) {
	now := time.Now()
	claims := map[string]any{
		"iss": i.srv.URL,
		"aud": clientID,
		"iat": now.Unix(),
		"nbf": now.Unix(),
		"exp": now.Add(10 * time.Minute).Unix(),
	}
	for k, v := range run.Claims() {
		claims[k] = v
	}
	token, err := jwt.Signed(i.signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("cannot sign an ID token: %w", err)
	}
	return token, nil
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // a client that hung up is its own problem
}
