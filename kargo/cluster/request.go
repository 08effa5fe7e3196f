package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"
)

// maxAnswer bounds one answer of the API server, in bytes. A single object is
// at most 1.5 MiB; this is for lists of Secrets.
const maxAnswer = 32 << 20

// Sentinels that callers decide by.
var (
	// ErrNotFound says that an object does not exist.
	ErrNotFound = errors.New("not found")
	// ErrForbidden says that this process may not do what it asked for.
	ErrForbidden = errors.New("forbidden")
	// ErrExists says that an object of that name exists already.
	ErrExists = errors.New("already exists")
)

// StatusError is an answer of the API server that is not a success. It is the
// sentinel of its code, where there is one.
type StatusError struct {
	Code int
	// Message is the server's own; it names the object.
	Message string
}

// Error implements error.
func (e *StatusError) Error() string {
	return fmt.Sprintf("the API server answered %d: %s", e.Code, e.Message)
}

// Is implements errors.Is.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Code == http.StatusNotFound
	case ErrForbidden:
		return e.Code == http.StatusForbidden || e.Code == http.StatusUnauthorized
	case ErrExists:
		return e.Code == http.StatusConflict
	}
	return false
}

// Client reads the objects a promotion is made of and records events. It holds
// nothing between calls: every read is of the API server's present state. It is
// safe for concurrent use.
type Client struct {
	http *http.Client
	base *url.URL
}

// New returns a client of the API server that config names; see Config. The
// service account's token is read again when it is renewed.
func New(config *rest.Config) (*Client, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("cannot make a client of the API server: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("cannot use the API server's address: %w", err)
	}
	// A redirect would carry the token to wherever it points.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{http: client, base: base}, nil
}

// path is an API path. Its segments come from objects and requests: one that
// would name another object than it seems to is refused.
type path []string

func (p path) escaped() (string, error) {
	var b strings.Builder
	for _, segment := range p {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsAny(segment, "/%?#") {
			return "", fmt.Errorf("%q is no name of an object", segment)
		}
		b.WriteByte('/')
		b.WriteString(url.PathEscape(segment))
	}
	return b.String(), nil
}

// get reads one object or list into out.
func (c *Client) get(ctx context.Context, path path, query url.Values, out any) error {
	return c.do(ctx, http.MethodGet, path, query, nil, out)
}

// do makes one request with in as JSON, if not nil, and decodes the answer into
// out, if not nil.
func (c *Client) do(ctx context.Context, method string, path path, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("cannot encode the request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	escaped, err := path.escaped()
	if err != nil {
		return err
	}
	address := c.base.JoinPath(escaped)
	address.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, address.String(), body)
	if err != nil {
		return fmt.Errorf("cannot make the request: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("cannot reach the API server: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("cannot read the API server's answer: %w", err)
	case len(text) > maxAnswer:
		return fmt.Errorf("the API server's answer is larger than %d bytes", maxAnswer)
	case resp.StatusCode/100 != 2:
		return &StatusError{Code: resp.StatusCode, Message: statusMessage(text)}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("cannot decode the API server's answer: %w", err)
	}
	return nil
}

// statusMessage is the message of a metav1.Status, or the start of whatever came
// instead, as when something other than an API server answers.
func statusMessage(body []byte) string {
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &status) == nil && status.Message != "" {
		return status.Message
	}
	return fmt.Sprintf("%.200q", body)
}
