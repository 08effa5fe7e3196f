package gitrepo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	userAgent    = "git/stepd"
	maxErrorText = 4 << 10
)

// httpWire speaks smart HTTP (gitprotocol-http). Credentials are sent with
// every request to the repository's own origin and to no other.
type httpWire struct {
	client      *http.Client
	credentials Credentials

	mu   sync.Mutex
	base *url.URL // moves when the server redirects within its origin
}

func (w *httpWire) assumeV2() bool { return true }

func (w *httpWire) advertise(ctx context.Context, service string, v2 bool) (io.ReadCloser, error) {
	const suffix = "/info/refs"
	for range 4 {
		base := w.url()
		u := base.JoinPath(suffix)
		u.RawQuery = "service=" + service
		res, err := w.do(ctx, http.MethodGet, u, service, v2, nil)
		var status *StatusError
		if errors.As(err, &status) && status.location != "" {
			if err := w.follow(base, status.location, suffix); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if got, want := res.Header.Get("Content-Type"), "application/x-"+service+"-advertisement"; got != want {
			_ = res.Body.Close()
			return nil, malformed("content type %q: this is not a Git repository over smart HTTP", clean(got))
		}
		return drained{res.Body}, nil
	}
	return nil, malformed("too many redirects")
}

func (w *httpWire) call(ctx context.Context, service string, v2 bool, request []byte) (io.ReadCloser, error) {
	res, err := w.do(ctx, http.MethodPost, w.url().JoinPath(service), service, v2, request)
	if err != nil {
		return nil, err
	}
	if got, want := res.Header.Get("Content-Type"), "application/x-"+service+"-result"; got != want {
		_ = res.Body.Close()
		return nil, malformed("content type %q", clean(got))
	}
	return drained{res.Body}, nil
}

// drained reads a little more before it closes, so that the connection can be
// used again.
type drained struct{ io.ReadCloser }

func (d drained) Close() error {
	_, _ = io.CopyN(io.Discard, d.ReadCloser, 4<<10)
	return d.ReadCloser.Close()
}

func (w *httpWire) url() *url.URL {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.base
}

// follow moves the repository's URL to where the server redirected its
// advertisement, unless that is another origin: credentials do not go there.
func (w *httpWire) follow(from *url.URL, location, suffix string) error {
	to, err := from.Parse(location)
	if err != nil {
		return malformed("a redirect to an unusable address")
	}
	sameHost := to.Host == from.Host && (to.Scheme == from.Scheme || to.Scheme == "https")
	if !sameHost || to.User != nil || !strings.HasSuffix(to.Path, suffix) {
		return &StatusError{Code: http.StatusNotFound, Text: clean(fmt.Sprintf("it redirects to %s://%s; set repoURL to the repository's new address", to.Scheme, to.Host))}
	}
	to.Path, to.RawPath, to.RawQuery = strings.TrimSuffix(to.Path, suffix), "", ""
	w.mu.Lock()
	defer w.mu.Unlock()
	w.base = to
	return nil
}

func (w *httpWire) do(ctx context.Context, method string, u *url.URL, service string, v2 bool, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, &URLError{Reason: "malformed"}
	}
	req.Header.Set("User-Agent", userAgent)
	if body != nil {
		req.Header.Set("Content-Type", "application/x-"+service+"-request")
		req.Header.Set("Accept", "application/x-"+service+"-result")
	}
	if v2 {
		req.Header.Set("Git-Protocol", "version=2")
	}
	if w.credentials.Username != "" || w.credentials.Password != "" {
		req.SetBasicAuth(w.credentials.Username, w.credentials.Password)
	}
	res, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the git server: %w", withoutURL(err))
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	status := &StatusError{Code: res.StatusCode}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") {
		text, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorText)) // a part is as good
		status.Text = clean(string(text))
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		status.RetryAfter = time.Duration(min(s, 3600)) * time.Second
	}
	if res.StatusCode >= 300 && res.StatusCode < 400 {
		status.location = res.Header.Get("Location")
	}
	return nil, status
}

// withoutURL takes the request's URL off an error; the caller names the
// repository.
func withoutURL(err error) error {
	var uerr *url.Error
	if errors.As(err, &uerr) {
		return uerr.Err
	}
	return err
}

// httpClients keeps one client, and so one set of connections, per way of
// reaching servers.
type httpClients struct {
	proxy func(*http.Request) (*url.URL, error)
	wrap  func(http.RoundTripper) http.RoundTripper

	mu sync.Mutex
	m  map[string]*http.Client
}

func (h *httpClients) get(t Target) (*http.Client, error) {
	key := fmt.Sprintf("%t\x00%s", t.InsecureSkipTLSVerify, t.CABundle)
	h.mu.Lock()
	defer h.mu.Unlock()
	if c, ok := h.m[key]; ok {
		return c, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.InsecureSkipTLSVerify} //nolint:gosec // the user's explicit setting, named like this
	if len(t.CABundle) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(t.CABundle) {
			return nil, &AccessError{Err: errors.New("caBundle holds no PEM certificate")}
		}
		cfg.RootCAs = pool
	}
	proxy := h.proxy
	if proxy == nil {
		proxy = http.ProxyFromEnvironment
	}
	var transport http.RoundTripper = &http.Transport{
		Proxy:                  proxy,
		TLSClientConfig:        cfg,
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // packs are compressed; and no decompression bombs
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if h.wrap != nil {
		transport = h.wrap(transport)
	}
	c := &http.Client{
		Transport: transport,
		// A redirected request would carry the credentials and a push.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if h.m == nil {
		h.m = map[string]*http.Client{}
	}
	if len(h.m) >= 64 { // CA bundles come from configuration; do not keep them without bound
		for k, old := range h.m {
			old.CloseIdleConnections()
			delete(h.m, k)
			break
		}
	}
	h.m[key] = c
	return c, nil
}
