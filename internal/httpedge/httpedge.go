// Package httpedge is the edge through which promotions send HTTP requests of
// their own: Live sends them, Recorder writes them down. Either refuses
// link-local addresses, where cloud metadata services live.
//
// Requests that are part of another protocol (git, registries, Argo CD, hosting
// providers) do not come through here.
package httpedge

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stepd/stepd/internal/effects"
)

// Edge makes transports.
type Edge interface {
	Transport(o Options) (http.RoundTripper, error)
}

// Options are what a step's config says about the connection.
type Options struct {
	// Proxy is the URL of a proxy; empty is the environment's.
	Proxy                 string
	InsecureSkipTLSVerify bool
	// Step is the alias of the step that sends.
	Step string
}

// NotSentError is a Recorder's answer to a request it did not send: there is
// no response, and nothing can be said about what it would have been.
type NotSentError struct{ Method, URL string }

// Error implements error.
func (e *NotSentError) Error() string {
	return fmt.Sprintf("%s %s was recorded and not sent", e.Method, e.URL)
}

// Live returns an edge that sends requests and logs those that may change
// something, which is every method but GET and HEAD.
func Live(log *effects.Log) Edge { return live{log} }

type live struct{ log *effects.Log }

func (l live) Transport(o Options) (http.RoundTripper, error) {
	t, err := newTransport(o)
	if err != nil {
		return nil, err
	}
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		resp, err := t.RoundTrip(req)
		if err == nil && !isRead(req) {
			l.log.Request(request(req, o, true, map[string]any{"method": req.Method, "status": int64(resp.StatusCode)}))
		}
		return resp, err
	}), nil
}

// Recorder returns an edge that sends GET and HEAD requests that allow accepts
// and answers all others with a *NotSentError. Every request is logged.
func Recorder(log *effects.Log, allow func(*url.URL) bool) Edge { return recorder{log, allow} }

type recorder struct {
	log   *effects.Log
	allow func(*url.URL) bool
}

func (r recorder) Transport(o Options) (http.RoundTripper, error) {
	t, err := newTransport(o)
	if err != nil {
		return nil, err
	}
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if err := sendable(req.URL); err != nil { // or a preview would succeed where the run cannot
			return nil, closed(req, err)
		}
		sent := isRead(req) && r.allow != nil && r.allow(req.URL)
		r.log.Request(request(req, o, sent, map[string]any{"method": req.Method}))
		if !sent {
			return nil, closed(req, &NotSentError{Method: req.Method, URL: req.URL.Redacted()})
		}
		return t.RoundTrip(req)
	}), nil
}

// AllowPrefixes accepts URLs that begin with one of the given URLs: same
// scheme and host, and a path below theirs. A prefix that is no absolute URL
// is an error.
func AllowPrefixes(prefixes ...string) (func(*url.URL) bool, error) {
	var allowed []*url.URL
	for _, p := range prefixes {
		u, err := url.Parse(p)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("%q is not the beginning of an HTTP URL, such as https://api.example.com/v1", p)
		}
		allowed = append(allowed, u)
	}
	return func(u *url.URL) bool {
		return slices.ContainsFunc(allowed, func(a *url.URL) bool {
			path := strings.TrimSuffix(a.Path, "/")
			return a.Scheme == u.Scheme && strings.EqualFold(a.Host, u.Host) &&
				(u.Path == path || strings.HasPrefix(u.Path, path+"/")) && !strings.Contains(u.Path, "/..")
		})
	}, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func isRead(req *http.Request) bool {
	return req.Method == http.MethodGet || req.Method == http.MethodHead
}

// request describes req without its query, headers and body, any of which may
// hold a secret.
func request(req *http.Request, o Options, done bool, detail map[string]any) effects.Request {
	target := *req.URL
	target.User, target.RawQuery, target.Fragment = nil, "", ""
	return effects.Request{Kind: "http", Target: target.String(), Detail: detail, Done: done, Step: o.Step}
}

func newTransport(o Options) (http.RoundTripper, error) {
	proxy := http.ProxyFromEnvironment
	if o.Proxy != "" {
		u, err := url.Parse(o.Proxy)
		if err != nil {
			return nil, fmt.Errorf("error parsing proxy URL: %w", err)
		}
		proxy = http.ProxyURL(u)
	}
	t := &http.Transport{
		Proxy:                  proxy,
		DialContext:            dial,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: 1 << 20,
		DisableKeepAlives:      true, // a transport serves one step
	}
	if o.InsecureSkipTLSVerify {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // asked for by the step's config
	}
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		// A proxy would resolve and connect for us.
		if err := sendable(req.URL); err != nil {
			return nil, closed(req, err)
		}
		return t.RoundTrip(req)
	}), nil
}

// sendable says why no request to a URL can be sent, whatever is there; in the
// words of net/http where it would say so itself.
func sendable(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("unsupported protocol scheme %q", u.Scheme)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && isLinkLocal(ip) {
		return linkLocalError(u.Hostname())
	}
	return nil
}

// closed ends a request with an error, as a RoundTripper has to.
func closed(req *http.Request, err error) error {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return err
}

// dial connects to the first address of a host that is not link-local. The
// address that was checked is the one that is dialled.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	ips = slices.DeleteFunc(ips, isLinkLocal)
	err = linkLocalError(host)
	dialer := net.Dialer{Timeout: 30 * time.Second}
	for _, ip := range ips {
		var conn net.Conn
		if conn, err = dialer.DialContext(ctx, network, net.JoinHostPort(ip.Unmap().String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

func isLinkLocal(ip netip.Addr) bool { return ip.Unmap().IsLinkLocalUnicast() }

func linkLocalError(host string) error {
	return fmt.Errorf("connections to link-local addresses are not permitted (host %q resolved to link-local IPs only)", host)
}
