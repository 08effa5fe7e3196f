package kargo_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
)

// front stands between Kargo and the sidecar, at the address that rewritten
// steps name. It passes everything on, remembers it, and lets a test answer in
// the sidecar's place. If the sidecar is not there, neither is front: the
// connection ends without an answer.
type front struct {
	srv *httptest.Server

	mu     sync.Mutex
	target *url.URL
	calls  []call
	rules  map[string]rule
}

// call is one request of a rewritten step.
type call struct {
	Namespace, Promotion, Alias string
	Path                        string
	Header                      http.Header
	Body                        []byte
}

// rule handles a request in the sidecar's place, if it answers true.
type rule func(w http.ResponseWriter, c call) (handled bool)

func startFront() *front {
	f := &front{rules: map[string]rule{}}
	f.srv = httptest.NewServer(f)
	return f
}

// forward names the sidecar.
func (f *front) forward(to string) error {
	u, err := url.Parse(to)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.target = u
	return nil
}

// intercept applies r to further requests from a namespace; nil ends it.
func (f *front) intercept(namespace string, r rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rules[namespace] = r; r == nil {
		delete(f.rules, namespace)
	}
}

// received are the requests from a namespace so far.
func (f *front) received(namespace string) []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	var calls []call
	for _, c := range f.calls {
		if c.Namespace == namespace {
			calls = append(calls, c)
		}
	}
	return calls
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	c := call{Path: r.URL.Path, Header: r.Header.Clone(), Body: body}
	c.Namespace, c.Promotion, c.Alias = claimed(r.Header.Get("Authorization"))
	f.mu.Lock()
	f.calls = append(f.calls, c)
	target, handle := f.target, f.rules[c.Namespace]
	f.mu.Unlock()
	if handle != nil && handle(w, c) {
		return
	}
	if target == nil {
		panic(http.ErrAbortHandler)
	}
	(&httputil.ReverseProxy{
		Rewrite:      func(p *httputil.ProxyRequest) { p.SetURL(target) },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     quiet,
	}).ServeHTTP(w, r)
}

// claimed is what a token says, whoever signed it.
func claimed(authorization string) (namespace, promotion, alias string) {
	parts := strings.Split(strings.TrimPrefix(authorization, "Bearer "), ".")
	if len(parts) != 3 {
		return "", "", ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", "", ""
	}
	var c struct{ Namespace, Promotion, Alias string }
	if err := json.Unmarshal(payload, &c); err != nil {
		return "", "", ""
	}
	return c.Namespace, c.Promotion, c.Alias
}
