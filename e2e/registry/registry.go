// Package registry runs an OCI registry on loopback: go-containerregistry's,
// which has the referrers API, or any other handler (package distribution has
// one without it). It counts requests and lets a test stand between client and
// registry to inject faults. It never leaves the process.
package registry

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// Fault handles a request in place of the registry, or by way of it.
type Fault func(w http.ResponseWriter, r *http.Request, registry http.Handler)

// Request is one request that was received.
type Request struct{ Method, Path string }

// Server is a registry on loopback. All methods are safe for concurrent use.
type Server struct {
	srv  *httptest.Server
	next http.Handler

	mu       sync.Mutex
	requests []Request
	fault    Fault
}

// WithReferrers returns a fresh in-memory registry with the referrers API.
func WithReferrers() http.Handler {
	return ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0)))
}

// Start serves h on a loopback port until Close.
func Start(h http.Handler) *Server {
	s := &Server{next: h}
	s.srv = httptest.NewServer(s)
	return s
}

// Host is the registry's host and port, as references name it.
func (s *Server) Host() string { return strings.TrimPrefix(s.srv.URL, "http://") }

// Close stops the registry and forgets its content.
func (s *Server) Close() { s.srv.Close() }

// Requests returns what was received since the start or the last Reset.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// Reset forgets the requests so far.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// Inject makes f handle every further request; nil takes it away again.
func (s *Server) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, Request{r.Method, r.URL.RequestURI()})
	fault := s.fault
	s.mu.Unlock()
	if fault != nil {
		fault(w, r, s.next)
		return
	}
	s.next.ServeHTTP(w, r)
}
