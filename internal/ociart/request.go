package ociart

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// get requests a path below /v2/<repository>/ and hands the answer to read,
// trying again on 429, 5xx and transport errors. read sees statuses in accept
// only; others become a *StatusError. A failure of read is tried again too,
// unless it is ErrIntegrity, so read must be able to start over.
func (r *Repository) get(ctx context.Context, what, path string, header http.Header, accept []int, read func(*http.Response) error) error {
	pause := pauses()
	for attempt := 1; ; attempt++ {
		err := r.attempt(ctx, what, path, header, accept, read)
		if err == nil {
			return nil
		}
		d, again := r.retryable(err)
		if ctx.Err() != nil || !again || attempt >= r.client.limits.Attempts {
			return err
		}
		if d == 0 {
			d = pause.NextBackOff()
		}
		if werr := r.client.opts.Wait(ctx, d); werr != nil {
			return err
		}
	}
}

// busyError is a status that asks to come back.
type busyError struct {
	*StatusError
	after time.Duration // zero: unknown
}

func (e *busyError) Unwrap() error { return e.StatusError }

// retryable decides by type and state: a busy registry and a broken
// connection are worth another attempt, an answer is not.
func (r *Repository) retryable(err error) (time.Duration, bool) {
	var busy *busyError
	if errors.As(err, &busy) {
		return busy.after, busy.after <= r.client.limits.RetryAfter
	}
	var status *StatusError
	var token *tokenError
	if errors.As(err, &status) || errors.As(err, &token) || errors.Is(err, ErrIntegrity) || errors.Is(err, errFinal) || untrusted(err) {
		return 0, false
	}
	return 0, true
}

// errFinal marks failures that are neither the network's nor the registry's,
// such as a full disk.
var errFinal = errors.New("local failure")

func (r *Repository) attempt(ctx context.Context, what, path string, header http.Header, accept []int, read func(*http.Response) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := newDeadline(r.client.limits.Request, cancel)
	defer stall.stop()

	resp, err := r.send(ctx, path, header)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if denied := authError(what, err); denied != nil {
			return denied
		}
		if untrusted(err) {
			return fmt.Errorf("cannot get %s: %w; if it is the right registry, its authority has to be trusted by the system or, where the step has it, in caBundle (--ca-bundle)", what, redactURL(err))
		}
		return fmt.Errorf("cannot get %s: %w", what, redactURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	if !contains(accept, resp.StatusCode) {
		return statusError(what, resp)
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return fmt.Errorf("cannot get %s: %w: it is encoded as %s", what, ErrIntegrity, Quote(enc))
	}
	if resp.ContentLength < 0 || resp.ContentLength > largeBody {
		resp.Body = &progressReader{ReadCloser: resp.Body, deadline: stall}
	}
	if err := read(resp); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, ErrIntegrity) {
			err = cause
		}
		return fmt.Errorf("cannot get %s: %w", what, err)
	}
	return nil
}

// authError recognises what auth.Client says when the registry or its token
// server wants other credentials, or is busy; nil for any other error.
func authError(what string, err error) error {
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return &StatusError{What: what, Code: http.StatusUnauthorized}
	}
	var token *errcode.ErrorResponse
	if !errors.As(err, &token) {
		return nil
	}
	e := &StatusError{What: "a token for " + what, Code: token.StatusCode}
	if len(token.Errors) > 0 {
		e.Detail = Quote(token.Errors[0].Error())
	}
	if busyStatus(e.Code) {
		return &busyError{StatusError: e}
	}
	return &tokenError{e}
}

// tokenError is a token server's answer. It does not unwrap to the status: a
// token server's 404 says nothing about what was asked of the registry.
type tokenError struct{ status *StatusError }

func (e *tokenError) Error() string { return e.status.Error() }

func busyStatus(code int) bool { return code == http.StatusTooManyRequests || code >= 500 }

// largeBody is the size from which a body, and likewise one of unknown size,
// may take longer than one request deadline as long as it makes progress. How
// much there may be of it is limited elsewhere.
const largeBody = 8 << 20

// errDeadline is the cause of a request that was given up.
var errDeadline = errors.New("the registry did not answer within the request deadline")

type deadline struct {
	timer *time.Timer
	d     time.Duration
}

func newDeadline(d time.Duration, cancel context.CancelCauseFunc) *deadline {
	return &deadline{d: d, timer: time.AfterFunc(d, func() { cancel(fmt.Errorf("%w (%s)", errDeadline, d)) })}
}

func (d *deadline) stop()   { d.timer.Stop() }
func (d *deadline) extend() { d.timer.Reset(d.d) }

// progressReader extends the deadline by each MiB that arrived, so that a
// large body may take its time and a trickle may not.
type progressReader struct {
	io.ReadCloser
	deadline *deadline
	n        int64
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if p.n += int64(n); p.n >= 1<<20 {
		p.n = 0
		p.deadline.extend()
	}
	return n, err
}

// send makes one request. On loopback, and where plain HTTP was allowed, it
// finds out which of HTTP and TLS the registry speaks and keeps to that.
func (r *Repository) send(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	r.mu.Lock()
	scheme := r.scheme
	r.mu.Unlock()
	if scheme != "" {
		return r.sendScheme(ctx, scheme, path, header)
	}
	first, second := "http", "https"
	if r.client.opts.InsecureSkipTLSVerify || len(r.client.opts.CABundle) > 0 {
		first, second = second, first
	}
	resp, err := r.sendScheme(ctx, first, path, header)
	if err == nil && (first == "https" || resp.StatusCode != http.StatusBadRequest) {
		r.settle(first)
		return resp, nil
	}
	if err != nil && (ctx.Err() != nil || !speaksOther(first, err)) {
		return nil, err
	}
	other, err2 := r.sendScheme(ctx, second, path, header)
	if untrusted(err2) {
		// It does speak TLS; this is what is wrong, not what it answered to HTTP.
		if resp != nil {
			_ = resp.Body.Close()
		}
		return nil, err2
	}
	if err2 != nil {
		return resp, err
	}
	if resp != nil {
		_ = resp.Body.Close()
	}
	r.settle(second)
	return other, nil
}

// speaksOther tells whether a failed first contact can mean that the server
// speaks the other one of HTTP and TLS. For HTTP any failure short of not
// getting through can; TLS has an error of its own for it.
func speaksOther(first string, err error) bool {
	if errors.Is(err, ErrIntegrity) {
		return false
	}
	if first == "https" {
		return errors.Is(err, http.ErrSchemeMismatch)
	}
	var u *url.Error
	return errors.As(err, &u) && !u.Timeout()
}

// untrusted tells whether a server's TLS certificate is the reason.
func untrusted(err error) bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &certificate)
}

func (r *Repository) settle(scheme string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.scheme = scheme
}

func (r *Repository) sendScheme(ctx context.Context, scheme, path string, header http.Header) (*http.Response, error) {
	target := path
	if !strings.Contains(path, "://") {
		target = scheme + "://" + r.ref.host() + "/v2/" + r.ref.Repository + "/" + path
	}
	ctx = auth.AppendScopesForHost(ctx, r.ref.host(), auth.ScopeRepository(r.ref.Repository, auth.ActionPull))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	return r.auth.Do(req)
}

// redactURL drops the URL from the HTTP client's error: a redirect target can
// carry a signed query.
func redactURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func statusError(what string, resp *http.Response) error {
	e := &StatusError{What: what, Code: resp.StatusCode, Detail: registryErrors(resp.Body)}
	if !busyStatus(resp.StatusCode) {
		return e
	}
	busy := &busyError{StatusError: e}
	if s := resp.Header.Get("Retry-After"); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 0 {
			busy.after = time.Duration(n) * time.Second
		} else if t, err := http.ParseTime(s); err == nil {
			busy.after = max(0, time.Until(t))
		}
	}
	return busy
}

// registryErrors reads the error body of the distribution specification. What
// is not one is left out rather than shown.
func registryErrors(body io.Reader) string {
	var e struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	b, err := io.ReadAll(io.LimitReader(body, 8<<10))
	if err != nil || json.Unmarshal(b, &e) != nil || len(e.Errors) == 0 {
		return ""
	}
	return Quote(strings.TrimSpace(e.Errors[0].Code + " " + e.Errors[0].Message))
}

func contains(list []int, v int) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}
