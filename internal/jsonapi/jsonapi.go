// Package jsonapi makes one exchange with a JSON API over HTTP: a request with
// a body or none, and an answer of bounded size. What an answer's status means,
// and who may be asked, belongs to the callers.
package jsonapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// NewRequest makes a request with body as JSON of a content type; nil is no body.
func NewRequest(ctx context.Context, method, url, contentType string, body any) (*http.Request, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the request: %w", err)
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		return nil, fmt.Errorf("cannot make the request: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	return req, nil
}

// Do sends a request and reads the answer, whatever its status, up to limit
// bytes, and returns its status code. peer is what errors call the server, for example "the API server".
func Do(client *http.Client, req *http.Request, peer string, limit int64) (code int, body []byte, err error) {
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("cannot reach %s: %w", peer, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("cannot read %s's answer: %w", peer, err)
	case int64(len(text)) > limit:
		return 0, nil, fmt.Errorf("%s's answer is larger than %d MiB", peer, limit>>20)
	}
	return resp.StatusCode, text, nil
}

// StatusMessage is the message of a Kubernetes metav1.Status, or the start of whatever
// came instead, as when something other than an API server answers.
func StatusMessage(body []byte) string {
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &status) == nil && status.Message != "" {
		return status.Message
	}
	return fmt.Sprintf("%.200q", body)
}
