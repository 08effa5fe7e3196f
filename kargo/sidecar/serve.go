package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/steps"
)

// ServeHTTP answers one request, always with a wire.Answer.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code, answer := http.StatusInternalServerError, wire.Answer{}
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			code, answer = http.StatusInternalServerError, wire.Answer{Status: steps.Failed, Message: "the sidecar met a defect of its own; its log has the details"}
		}
		s.metrics.answered(code, answer.Status)
		w.Header().Set("Content-Type", wire.ContentType)
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		_, _ = w.Write(answer.Bytes()) // a client that left has no complaint
	}()
	select {
	case s.flights <- struct{}{}:
		defer func() { <-s.flights }()
	default:
		code, answer = http.StatusOK, wire.Answer{Status: steps.Running, Message: "waiting for a turn: the sidecar has too many requests"}
		return
	}
	var err error
	if answer, err = s.handle(w, r); err == nil {
		code = http.StatusOK
		return
	}
	var refused *refusal
	var wait *later
	switch {
	case errors.As(err, &refused):
		s.Log.Warn("request refused", "code", refused.code, "because", refused.message)
		code, answer = refused.code, wire.Answer{Status: steps.Failed, Message: refused.message}
	case errors.As(err, &wait):
		code, answer = http.StatusOK, wire.Answer{Status: steps.Running, Message: wait.message}
	default:
		s.Log.Error("cannot answer a request", "error", err)
		code, answer = http.StatusInternalServerError, wire.Answer{Status: steps.Failed, Message: "the sidecar met a defect of its own; its log has the details"}
	}
}

func (s *Server) handle(w http.ResponseWriter, r *http.Request) (wire.Answer, error) {
	ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
	defer cancel()
	if err := route(r); err != nil {
		return wire.Answer{}, err
	}
	claims, token, err := s.token(r)
	if err != nil {
		return wire.Answer{}, err
	}
	body, err := readBody(w, r)
	if err != nil {
		return wire.Answer{}, err
	}
	c, err := s.authorise(ctx, r, claims, token, body)
	if err != nil {
		return wire.Answer{}, err
	}
	op, kept, err := s.attach(ctx, c)
	if err != nil {
		return wire.Answer{}, err
	}
	if kept != nil {
		return *kept, nil
	}
	defer s.leave(op)
	return s.await(ctx, op), nil
}

// route refuses what no rewritten step sends.
func route(r *http.Request) error {
	rest, ok := cutPrefix(r.URL.Path)
	switch kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); {
	case !ok:
		return refuse(http.StatusNotFound, "there is nothing at this address; steps are at %s", wire.PathPrefix)
	case r.Method != http.MethodPost:
		return refuse(http.StatusMethodNotAllowed, "a step is called with POST")
	case r.Header.Get("Origin") != "":
		return refuse(http.StatusForbidden, "this API is not for browsers")
	case kind != wire.ContentType:
		return refuse(http.StatusUnsupportedMediaType, "the content type has to be %s", wire.ContentType)
	}
	r.SetPathValue("kind", rest)
	return nil
}

func cutPrefix(path string) (rest string, ok bool) {
	if len(path) <= len(wire.PathPrefix) || path[:len(wire.PathPrefix)] != wire.PathPrefix {
		return "", false
	}
	return path[len(wire.PathPrefix):], true
}

func readBody(w http.ResponseWriter, r *http.Request) (wire.Request, error) {
	// Not the server's ReadTimeout: that would end the request, too, while it
	// waits for its answer. It stays for what is left of a body that is refused,
	// which the server reads before it answers.
	conn := http.NewResponseController(w)
	_ = conn.SetReadDeadline(time.Now().Add(readTimeout)) // a recorder in a test has no connection
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxRequest))
	if err == nil {
		_ = conn.SetReadDeadline(time.Time{})
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return wire.Request{}, refuse(http.StatusRequestEntityTooLarge, "the request is longer than %d bytes", wire.MaxRequest)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return wire.Request{}, refuse(http.StatusRequestTimeout, "the request did not arrive in time")
	case err != nil:
		return wire.Request{}, refuse(http.StatusBadRequest, "the request did not arrive in full")
	}
	body, err := wire.ParseRequest(text)
	if err != nil {
		return wire.Request{}, refuse(http.StatusBadRequest, "%v", err)
	}
	return body, nil
}

// Listen opens a loopback address such as 127.0.0.1:8651. Any other is refused:
// requests and answers are in the clear.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: want an address such as 127.0.0.1:8651: %w", address, err)
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("cannot listen on %q: the sidecar speaks plain HTTP, to Kargo's controller in the same pod only; use a loopback address such as 127.0.0.1:8651", address)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", address, err)
	}
	return l, nil
}

const (
	// readTimeout bounds the arrival of a request.
	readTimeout = 15 * time.Second
	// sweepInterval is how often what is stored is compared with the Promotions.
	sweepInterval = 5 * time.Minute
	sweepTimeout  = 4 * time.Minute
)

// HTTPServer returns an HTTP server with the time limits that suit a handler of
// steps.
func (s *Server) HTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      wire.RequestTimeout + readTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
}

// Serve answers requests on l until ctx is done. Then requests that wait are
// answered Running, operations have as long as drain to end, and the rest are
// cancelled: Kargo asks again, and they go on.
func (s *Server) Serve(ctx context.Context, l net.Listener, drain time.Duration) error {
	web := s.HTTPServer(s)
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(l) }()
	sweeps := make(chan struct{})
	sweeping, stopSweeping := context.WithCancel(ctx)
	go func() {
		defer close(sweeps)
		s.sweepForever(sweeping)
	}()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.Drain(drain)
	stopSweeping()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if shutdown := web.Shutdown(closing); shutdown != nil {
		err = errors.Join(err, web.Close())
	}
	<-sweeps
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve: %w", err)
	}
	return nil
}

// Drain takes no new operations, answers the requests that wait, lets
// operations end for some time and cancels the rest. It returns when the last
// has ended.
func (s *Server) Drain(most time.Duration) {
	s.mu.Lock()
	if !s.drained {
		s.drained = true
		close(s.draining)
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.running.Wait()
	}()
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-ended:
		return
	case <-t.C:
	}
	s.mu.Lock()
	for _, op := range s.ops {
		op.cancel(errDraining)
	}
	s.mu.Unlock()
	<-ended
}

func (s *Server) sweepForever(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		sweep, cancel := context.WithTimeout(ctx, sweepTimeout)
		if err := s.Sweep(sweep); err != nil && ctx.Err() == nil {
			s.Log.Warn("cannot sweep", "error", err)
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sweep removes what is stored of Promotions that are over or gone.
func (s *Server) Sweep(ctx context.Context) error {
	over := map[string]bool{} // by UID
	var errs []error
	err := s.results.each(func(path string, found *result) {
		if ctx.Err() != nil {
			return
		}
		gone, known := over[found.UID]
		if time.Since(found.StartedAt) > keptFor {
			gone, known = true, true
		}
		if !known {
			p, err := s.Cluster.Promotion(ctx, found.Namespace, found.Promotion)
			if err != nil && !isGone(err) {
				errs = append(errs, err)
				return
			}
			gone = err != nil || p.UID != found.UID || p.Status.Phase.Terminal()
			over[found.UID] = gone
		}
		if !gone {
			return
		}
		if s.Ledger != nil {
			if err := s.Ledger.Remove(verification.Key{Project: found.Namespace, Promotion: found.Promotion, Alias: found.Alias}); err != nil {
				errs = append(errs, err)
				return // the answer stays, so that this is tried again
			}
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, err)
		}
	})
	if s.Ledger != nil {
		err = errors.Join(err, s.Ledger.Prune(time.Now().Add(-keptFor)))
	}
	return errors.Join(append(errs, err, ctx.Err())...)
}
