package pullrequest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stepd/stepd/internal/jsonapi"
	"github.com/stepd/stepd/internal/repourl"
)

const (
	requestTimeout = 30 * time.Second
	// maxBody bounds an answer, in bytes.
	maxBody = 4 << 20
)

// api sends JSON to a provider's REST API.
type api struct {
	client *http.Client
	token  string
	// base is where the API is, path the repository's path.
	scheme, host, path string
}

func newAPI(r Repository) (*api, error) {
	page, ok := repourl.Page(r.URL)
	if !ok {
		return nil, fmt.Errorf("%s names no host", r.URL)
	}
	u, err := url.Parse(page)
	if err != nil {
		return nil, err
	}
	a := &api{token: r.Token, scheme: "https", host: u.Host, path: strings.Trim(u.Path, "/")}
	if strings.HasPrefix(r.URL, "http://") {
		if a.scheme = "http"; r.Token != "" {
			return nil, errors.New("a token is not sent over plain HTTP")
		}
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true}
	if r.InsecureSkipTLSVerify {
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // asked for by the step's config
	}
	a.client = &http.Client{Transport: transport, Timeout: requestTimeout}
	return a, nil
}

// ownerAndName splits the repository's path.
func (a *api) ownerAndName() (owner, name string) {
	i := strings.LastIndexByte(a.path, '/')
	if i < 0 {
		return "", a.path
	}
	return a.path[:i], a.path[i+1:]
}

// statusError is an answer that is no success.
type statusError struct {
	code    int
	message string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the provider answered %d %s: %s", e.code, http.StatusText(e.code), e.message)
}

// do sends body, if any, to a path of the API and decodes the answer, if into
// is not nil.
func (a *api) do(ctx context.Context, method, path string, body, into any) error {
	req, err := jsonapi.NewRequest(ctx, method, a.scheme+"://"+path, "application/json", body)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "stepd")
	if a.token != "" { // all three providers take it; Go drops it on a redirect elsewhere
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	code, text, err := jsonapi.Do(a.client, req, "the provider", maxBody)
	switch {
	case err != nil:
		return err
	case code/100 != 2:
		return &statusError{code, message(text)}
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("cannot decode the provider's answer: %w", err)
	}
	return nil
}

// message is what an answer says is wrong. GitHub and Gitea have a string,
// GitLab a string, a list or an object.
func message(body []byte) string {
	var answer struct {
		Message json.RawMessage `json:"message"`
		Error   string          `json:"error"`
		Errors  json.RawMessage `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return fmt.Sprintf("%.200q", body)
	}
	var parts []string
	for _, raw := range []json.RawMessage{answer.Message, answer.Errors} {
		if len(raw) > 0 && string(raw) != "null" {
			parts = append(parts, fmt.Sprintf("%.400s", raw))
		}
	}
	if answer.Error != "" {
		parts = append(parts, answer.Error)
	}
	return strings.Join(parts, " ")
}

// notMergeable wraps the answers by which providers say so.
func notMergeable(err error, codes ...int) error {
	var status *statusError
	if errors.As(err, &status) {
		for _, code := range codes {
			if status.code == code {
				return fmt.Errorf("%w: %w", ErrNotMergeable, err)
			}
		}
	}
	return err
}
