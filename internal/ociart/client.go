package ociart

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/stepd/stepd/steps"
)

// Limits bounds what a registry can make us do. The zero value of a field is
// its default.
type Limits struct {
	// Manifest is the size of an artifact's manifest or index; 1 MiB.
	Manifest int64
	// SignatureManifest is the size of a manifest of signatures; 4 MiB.
	SignatureManifest int64
	// Pages is how many pages of a referrers listing are read; 8.
	Pages int
	// Referrers is how many entries a referrers listing may have in all; 4096.
	Referrers int
	// Redirects is how many redirects one request may follow; 5.
	Redirects int
	// Attempts is how often one request is tried in all; 4.
	Attempts int
	// Request is the deadline of one attempt, body included; 30 s. Each MiB of
	// a body that is larger than 8 MiB, or of unknown size, renews it.
	Request time.Duration
	// RetryAfter is the longest pause a registry may ask for; 60 s.
	RetryAfter time.Duration
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	defInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Manifest, 1<<20)
	def(&l.SignatureManifest, 4<<20)
	defInt(&l.Pages, 8)
	defInt(&l.Referrers, 4096)
	defInt(&l.Redirects, 5)
	defInt(&l.Attempts, 4)
	if l.Request == 0 {
		l.Request = 30 * time.Second
	}
	if l.RetryAfter == 0 {
		l.RetryAfter = time.Minute
	}
	return l
}

// Transports hands out HTTP transports, one per TLS setting, so that a
// long-running process neither leaks connections nor shares them between
// settings. The zero value is ready and safe for concurrent use.
type Transports struct {
	// Wrap, if not nil, is put around every transport: the edge at which tests
	// and metrics see the requests.
	Wrap func(http.RoundTripper) http.RoundTripper

	mu sync.Mutex
	m  map[string]http.RoundTripper
}

// maxTransports bounds the pool; further settings get a transport that is not
// kept.
const maxTransports = 64

func (t *Transports) get(insecureSkipVerify bool, caBundle []byte) (http.RoundTripper, error) {
	sum := sha256.Sum256(caBundle)
	key := strconv.FormatBool(insecureSkipVerify) + string(sum[:])
	t.mu.Lock()
	defer t.mu.Unlock()
	if rt, ok := t.m[key]; ok {
		return rt, nil
	}
	tr := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          32,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		ExpectContinueTimeout: time.Second,
		// Digests are of the bytes as stored. Nothing is ever decompressed.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecureSkipVerify}, //nolint:gosec // the user's explicit insecureSkipTLSVerify
	}
	if len(caBundle) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(caBundle) {
			return nil, errors.New("the CA bundle holds no PEM certificate")
		}
		tr.TLSClientConfig.RootCAs = pool
	}
	var rt http.RoundTripper = tr
	if t.Wrap != nil {
		rt = t.Wrap(rt)
	}
	if t.m == nil {
		t.m = map[string]http.RoundTripper{}
	}
	if len(t.m) < maxTransports {
		t.m[key] = rt
	}
	return rt, nil
}

// Options configures a Client.
type Options struct {
	// Transports is the pool to take connections from. Required.
	Transports *Transports
	// Credentials finds the credentials of a repository; nil is anonymous.
	Credentials steps.CredentialSource
	// Project is whose credentials are looked up.
	Project string
	// InsecureSkipTLSVerify accepts any server certificate.
	InsecureSkipTLSVerify bool
	// CABundle is PEM certificates trusted in addition to the system's.
	CABundle []byte
	// PlainHTTP allows HTTP without TLS beyond loopback.
	PlainHTTP bool
	Limits    Limits
	// Wait pauses between attempts; nil is a real pause that ctx can end.
	Wait func(ctx context.Context, d time.Duration) error
	// UserAgent is sent with every request; "stepd" by default.
	UserAgent string
}

// Client reads from registries on behalf of one step: it remembers tokens for
// its own lifetime only.
type Client struct {
	opts      Options
	limits    Limits
	transport http.RoundTripper
}

// New makes a Client. It fails only on a CA bundle that holds no certificate.
func New(opts Options) (*Client, error) {
	if opts.Transports == nil {
		opts.Transports = &Transports{}
	}
	rt, err := opts.Transports.get(opts.InsecureSkipTLSVerify, opts.CABundle)
	if err != nil {
		return nil, err
	}
	if opts.Wait == nil {
		opts.Wait = wait
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "stepd"
	}
	return &Client{opts: opts, limits: opts.Limits.withDefaults(), transport: rt}, nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Repository is one repository of one registry. It is safe for concurrent use.
type Repository struct {
	client *Client
	ref    Reference
	auth   *auth.Client

	mu     sync.Mutex
	scheme string // "" until the registry answered
}

// Repository opens the repository that ref names; no request is made.
func (c *Client) Repository(ref Reference) *Repository {
	r := &Repository{client: c, ref: ref}
	if !ref.loopback() && !c.opts.PlainHTTP {
		r.scheme = "https"
	}
	r.auth = &auth.Client{
		Client:     &http.Client{Transport: c.transport, CheckRedirect: c.checkRedirect},
		Cache:      auth.NewCache(),
		Credential: r.credential,
		ClientID:   "stepd",
		Header:     http.Header{"User-Agent": {c.opts.UserAgent}},
	}
	return r
}

// Reference is what the repository was opened with.
func (r *Repository) Reference() Reference { return r.ref }

// checkRedirect allows a bounded number of redirects and none from TLS to
// plain HTTP. That the credentials stay behind is auth.Client's doing
// (GHSA-vh4v-2xq2-g5cg).
func (c *Client) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > c.limits.Redirects {
		return fmt.Errorf("%w: more than %d redirects", ErrIntegrity, c.limits.Redirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: redirected from https to %s", ErrIntegrity, Quote(req.URL.Scheme))
	}
	if req.URL.Scheme != "https" && req.URL.Scheme != "http" {
		return fmt.Errorf("%w: redirected to the scheme %s", ErrIntegrity, Quote(req.URL.Scheme))
	}
	return nil
}

// identityTokenUser is the user name under which Docker's credential helpers
// hand out an OAuth2 refresh token.
const identityTokenUser = "<token>"

func (r *Repository) credential(ctx context.Context, hostport string) (auth.Credential, error) {
	if r.client.opts.Credentials == nil || hostport != r.ref.host() {
		return auth.EmptyCredential, nil
	}
	typ, url := steps.CredentialsImage, r.ref.Name()
	if r.ref.Helm {
		typ, url = steps.CredentialsHelm, "oci://"+url
	}
	creds, err := r.client.opts.Credentials.Get(ctx, r.client.opts.Project, typ, url)
	if err != nil {
		return auth.EmptyCredential, fmt.Errorf("cannot get the credentials of %s: %w", r.ref.Name(), err)
	}
	switch {
	case creds == nil || creds.Username == "" && creds.Password == "":
		return auth.EmptyCredential, nil
	case creds.Username == identityTokenUser:
		return auth.Credential{RefreshToken: creds.Password}, nil
	default:
		return auth.Credential{Username: creds.Username, Password: creds.Password}, nil
	}
}

// pauses returns the pauses between attempts: exponential with jitter, from
// 200 ms.
func pauses() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 200 * time.Millisecond
	b.MaxInterval = 5 * time.Second
	b.Reset()
	return b
}
