package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"

	"github.com/stepd/stepd/internal/jsonapi"
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
	escaped, err := path.escaped()
	if err != nil {
		return err
	}
	address := c.base.JoinPath(escaped)
	address.RawQuery = query.Encode()
	req, err := jsonapi.NewRequest(ctx, method, address.String(), "application/json", in)
	if err != nil {
		return err
	}
	code, text, err := jsonapi.Do(c.http, req, "the API server", maxAnswer)
	switch {
	case err != nil:
		return err
	case code/100 != 2:
		return &StatusError{Code: code, Message: jsonapi.StatusMessage(text)}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("cannot decode the API server's answer: %w", err)
	}
	return nil
}
