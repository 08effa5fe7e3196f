package credentials

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/steps"
)

// gitHub exchanges assertions of one App for tokens.
type gitHub struct {
	t        *testing.T
	key      *rsa.PublicKey
	lifetime time.Duration
	seen     []string
}

func (g *gitHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		g.t.Error(err)
	}
	g.seen = append(g.seen, r.Method+" "+r.URL.Path+" "+string(body))
	assertion := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	parts := strings.Split(assertion, ".")
	if len(parts) != 3 {
		g.t.Fatalf("assertion %q", assertion)
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		g.t.Error(err)
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if rsa.VerifyPKCS1v15(g.key, crypto.SHA256, sum[:], signature) != nil {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"message":"A JSON web token could not be decoded"}`)
		return
	}
	var claims struct {
		Iss      string
		Iat, Exp int64
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(raw, &claims) != nil || claims.Iss != "Iv1.abc" || claims.Exp-claims.Iat > 600 {
		g.t.Errorf("claims %s, %v", raw, err)
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"token":"ghs_%d","expires_at":%q}`, len(g.seen), time.Now().Add(g.lifetime).UTC().Format(time.RFC3339))
}

func TestGitHubApp(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	hub := &gitHub{t: t, key: &key.PublicKey, lifetime: time.Hour}
	server := httptest.NewTLSServer(hub)
	t.Cleanup(server.Close)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(typ string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
	}
	pkcs1 := encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	for _, tc := range []struct {
		reason, key, scopes string
		err                 string
	}{
		{"PKCS #1", pkcs1, "", ""},
		{"PKCS #8", encode("PRIVATE KEY", pkcs8), "", ""},
		{"base64 of PEM", base64.StdEncoding.EncodeToString([]byte(pkcs1)), "", ""},
		{"another App's key", encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(other)), "", "GitHub answered 401"},
		{"no key", "rubbish s3cr3t", "", "neither PEM nor"},
		{"in scope", pkcs1, `{"demo":["x","repo"]}`, ""},
		{"another repository", pkcs1, `{"demo":["x"]}`, `does not let project "demo"`},
		{"another project", pkcs1, `{"other":["repo"]}`, `does not let project "demo"`},
		{"scopes that are none", pkcs1, `repo`, "not a JSON object"},
	} {
		hub.seen = nil
		app := secret("app", "git", map[string]string{
			"repoURL": server.URL, "repoURLIsRegex": "true", "githubAppClientID": "Iv1.abc", "githubAppInstallationID": "42", "githubAppPrivateKey": tc.key,
		})
		if tc.scopes != "" {
			app.Annotations = map[string]string{ScopesAnnotation: tc.scopes}
		}
		source := FromSecrets(func(context.Context, string) ([]Secret, error) { return []Secret{app}, nil }, SecretOptions{Client: server.Client()})
		got, err := source.Get(t.Context(), "demo", steps.CredentialsGit, server.URL+"/org/repo.git")
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "s3cr3t") || got != nil {
				t.Errorf("%s: %v, %v, want an error with %q", tc.reason, got, err, tc.err)
			}
			continue
		}
		if err != nil || got == nil || got.Username != "kargo" || got.Password != "ghs_1" {
			t.Errorf("%s: %v, %v", tc.reason, got, err)
			continue
		}
		if want := `POST /api/v3/app/installations/42/access_tokens {"repositories":["repo"]}`; hub.seen[0] != want {
			t.Errorf("%s: request %q, want %q", tc.reason, hub.seen[0], want)
		}
		if again, err := source.Get(t.Context(), "demo", steps.CredentialsGit, server.URL+"/org/repo.git"); err != nil || again.Password != "ghs_1" || len(hub.seen) != 1 {
			t.Errorf("%s: the token is not remembered: %v, %v", tc.reason, again, err)
		}
		if second, err := source.Get(t.Context(), "demo", steps.CredentialsGit, server.URL+"/org/other"); err != nil && tc.scopes == "" || err == nil && second.Password != "ghs_2" {
			t.Errorf("%s: a token is used for two repositories: %v, %v", tc.reason, second, err)
		}
	}
}

func TestGitHubAppTokenEnds(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	hub := &gitHub{t: t, key: &key.PublicKey, lifetime: time.Minute}
	server := httptest.NewTLSServer(hub)
	t.Cleanup(server.Close)
	app := secret("app", "git", map[string]string{
		"repoURL": server.URL + "/org/repo", "githubAppClientID": "Iv1.abc", "githubAppInstallationID": "42",
		"githubAppPrivateKey": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
	})
	source := FromSecrets(func(context.Context, string) ([]Secret, error) { return []Secret{app}, nil }, SecretOptions{Client: server.Client()})
	for _, want := range []string{"ghs_1", "ghs_2"} {
		got, err := source.Get(t.Context(), "demo", steps.CredentialsGit, server.URL+"/org/repo")
		if err != nil || got.Password != want {
			t.Errorf("got %v, %v, want %s", got, err, want)
		}
	}
}
