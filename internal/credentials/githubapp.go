package credentials

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/steps"
)

// ScopesAnnotation on a GitHub App's Secret is a JSON object of project names
// and the repository names that each may get a token for; nothing else gets
// one.
const ScopesAnnotation = "kargo.akuity.io/github-token-scopes"

const (
	// tokenMargin is how long a token must still be valid to be handed out.
	tokenMargin = 10 * time.Minute
	// maxTokens bounds the tokens that are remembered.
	maxTokens = 1000
	// maxTokenBody bounds GitHub's answer, in bytes.
	maxTokenBody = 1 << 20
)

// gitHubApps exchanges the keys of GitHub Apps for installation tokens, each
// for one repository, and remembers them while they last.
type gitHubApps struct {
	client *http.Client

	mu     sync.Mutex
	tokens map[string]installationToken
}

type installationToken struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
}

// isGitHubApp tells whether a Secret holds an App's key.
func isGitHubApp(s *Secret) bool {
	return len(s.Data["githubAppInstallationID"]) > 0 && len(s.Data["githubAppPrivateKey"]) > 0 &&
		len(s.Data["githubAppClientID"])+len(s.Data["githubAppID"]) > 0
}

// get returns a token for one repository. The username does not matter to
// GitHub; Kargo's is "kargo".
func (g *gitHubApps) get(ctx context.Context, project string, secret *Secret, repoURL string) (*steps.Credentials, error) {
	page, ok := repourl.Page(repoURL)
	if !ok {
		return nil, fmt.Errorf("%s names no host", repoURL)
	}
	u, err := url.Parse(page)
	if err != nil {
		return nil, err
	}
	name := u.Path[strings.LastIndexByte(u.Path, '/')+1:]
	if err := checkScopes(secret, project, name); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q", page, secret.Data["githubAppInstallationID"], secret.Data["githubAppPrivateKey"], issuer(secret)))
	key := string(sum[:])
	g.mu.Lock()
	token, ok := g.tokens[key]
	g.mu.Unlock()
	if !ok || time.Until(token.ExpiresAt) < tokenMargin {
		if token, err = g.exchange(ctx, secret, u.Host, name); err != nil {
			return nil, err
		}
		g.mu.Lock()
		if g.tokens == nil || len(g.tokens) >= maxTokens {
			g.tokens = map[string]installationToken{}
		}
		g.tokens[key] = token
		g.mu.Unlock()
	}
	return &steps.Credentials{Username: "kargo", Password: token.Token}, nil
}

func checkScopes(secret *Secret, project, name string) error {
	text, ok := secret.Annotations[ScopesAnnotation]
	if !ok {
		return nil
	}
	var scopes map[string][]string
	if err := json.Unmarshal([]byte(text), &scopes); err != nil {
		return fmt.Errorf("annotation %s is not a JSON object of lists of names: %w", ScopesAnnotation, err)
	}
	if !slices.Contains(scopes[project], name) {
		return fmt.Errorf("annotation %s does not let project %q have a token for repository %q", ScopesAnnotation, project, name)
	}
	return nil
}

func issuer(secret *Secret) string {
	if id := secret.Data["githubAppClientID"]; len(id) > 0 {
		return string(id)
	}
	return string(secret.Data["githubAppID"])
}

// exchange asks GitHub for a token ("Create an installation access token for
// an app", REST API version 2022-11-28).
func (g *gitHubApps) exchange(ctx context.Context, secret *Secret, host, name string) (installationToken, error) {
	var token installationToken
	assertion, err := appAssertion(issuer(secret), secret.Data["githubAppPrivateKey"], time.Now())
	if err != nil {
		return token, err
	}
	api := "https://" + host + "/api/v3"
	if host == "github.com" {
		api = "https://api.github.com"
	}
	body, err := json.Marshal(map[string]any{"repositories": []string{name}})
	if err != nil {
		return token, err
	}
	address := api + "/app/installations/" + url.PathEscape(string(secret.Data["githubAppInstallationID"])) + "/access_tokens"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return token, err
	}
	req.Header.Set("Accept", "application/vnd.github+json")
	req.Header.Set("Authorization", "Bearer "+assertion)
	req.Header.Set("User-Agent", "stepd")
	resp, err := g.client.Do(req)
	if err != nil {
		return token, fmt.Errorf("cannot reach GitHub: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody))
	if err != nil {
		return token, fmt.Errorf("cannot read GitHub's answer: %w", err)
	}
	if resp.StatusCode != http.StatusCreated {
		var answer struct {
			Message string `json:"message"`
		}
		_ = json.Unmarshal(text, &answer) // the status says enough
		return token, fmt.Errorf("GitHub answered %s: %.200q", resp.Status, answer.Message)
	}
	if err := json.Unmarshal(text, &token); err != nil || token.Token == "" {
		return token, errors.New("GitHub's answer holds no token")
	}
	return token, nil
}

// appAssertion is the JSON Web Token (RFC 7519, RS256) with which an App
// authenticates. GitHub allows ten minutes and advises to begin in the past.
func appAssertion(issuer string, key []byte, now time.Time) (string, error) {
	private, err := parseAppKey(key)
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": issuer, "iat": now.Add(-time.Minute).Unix(), "exp": now.Add(9 * time.Minute).Unix(),
	})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, sum[:])
	if err != nil {
		return "", errors.New("cannot sign with the App's private key")
	}
	return signed + "." + encode(signature), nil
}

// parseAppKey reads a PEM key, or the base64 of one. Errors do not repeat it.
func parseAppKey(key []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(key)
	if block == nil {
		decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(key)))
		if err == nil {
			block, _ = pem.Decode(decoded)
		}
	}
	if block == nil {
		return nil, errors.New("githubAppPrivateKey is neither PEM nor the base64 of it")
	}
	if private, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return private, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, errors.New("githubAppPrivateKey is not an RSA key")
	}
	return private, nil
}
