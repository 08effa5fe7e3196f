package admission

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/stepd/stepd/runner"
)

// Paths that the API server calls.
const (
	MutatePath   = "/mutate"
	ValidatePath = "/validate"
)

// CertificateSource has the serving certificate of the moment.
type CertificateSource interface {
	Certificate() (*tls.Certificate, error)
}

// Options say what the webhook serves, and with what.
type Options struct {
	// Listen is HOST:PORT for the API server, over TLS 1.3.
	Listen string
	// Observe is HOST:PORT for /metrics, /healthz and /readyz, without TLS; empty
	// for nowhere.
	Observe string
	// Certificates and Keys are required.
	Certificates CertificateSource
	Keys         KeySource
	// Rewriter is complete but for its Key.
	Rewriter Rewriter
	// Registry holds the kinds of step to check, and no others.
	Registry *runner.Registry
	// Managed is kept running while the webhook is; nil if nothing is managed.
	Managed *Managed
	// Leave is how long it still takes new connections after ctx is done, while
	// the cluster notices that it is going.
	Leave time.Duration
	// Drain is how long requests may take after that.
	Drain   time.Duration
	Version string
	Log     *slog.Logger
	// Listening is called once with the addresses in use; observe is nil without
	// Observe. Optional.
	Listening func(listen, observe net.Addr)

	after func(time.Duration) <-chan time.Time // time.After, but for tests
}

// Serve answers the API server until ctx is done, and then for as long as it
// takes to be missed.
func Serve(ctx context.Context, o Options) error {
	if o.after == nil {
		o.after = time.After
	}
	s := &server{Options: o}
	s.metrics = newMetrics(o.Version, s.expiry, s.ready)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("cannot serve the webhooks: %w", err)
	}
	running := []*http.Server{s.web(s.reviews())}
	running[0].TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.Certificates.Certificate() },
	}
	failed := make(chan error, 2)
	var observed net.Listener
	if o.Observe != "" {
		if observed, err = lc.Listen(ctx, "tcp", o.Observe); err != nil {
			return errors.Join(fmt.Errorf("cannot serve metrics: %w", err), l.Close())
		}
		running = append(running, s.web(s.observability()))
		go func() { failed <- running[1].Serve(observed) }()
	}
	go func() { failed <- running[0].ServeTLS(l, "", "") }()
	if o.Listening != nil {
		var at net.Addr
		if observed != nil {
			at = observed.Addr()
		}
		o.Listening(l.Addr(), at)
	}
	return s.run(ctx, running, failed)
}

type server struct {
	Options
	metrics *metrics
	leaving atomic.Bool
}

// run waits for the end, and for everything that was started to end.
func (s *server) run(ctx context.Context, running []*http.Server, failed <-chan error) error {
	managing, stop := context.WithCancel(context.WithoutCancel(ctx))
	managed := make(chan struct{})
	go func() {
		defer close(managed)
		if s.Managed != nil {
			s.Managed.Run(managing)
		}
	}()
	ended := 0
	var err error
	select {
	case <-ctx.Done():
		s.leaving.Store(true)
		s.Log.Info("leaving", "for", s.Leave, "drain", s.Drain)
		select {
		case <-s.after(s.Leave):
		case err = <-failed:
			ended++
		}
	case err = <-failed:
		ended++
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Drain)
	defer cancel()
	for _, w := range running {
		if w.Shutdown(drain) != nil {
			_ = w.Close() // cutting off what is left is all that can be done
		}
	}
	for ; ended < len(running); ended++ {
		if e := <-failed; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	stop()
	<-managed
	return err
}

func (s *server) web(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       20 * time.Second,
		WriteTimeout:      maximalDeadline + 10*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
}

// reviews are for the API server.
func (s *server) reviews() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+MutatePath, newReviewer("mutate", &mutator{s.Rewriter, s.Keys}, s.Log, s.metrics))
	mux.Handle("POST "+ValidatePath, newReviewer("validate", &validator{s.Registry}, s.Log, s.metrics))
	s.health(mux)
	return mux
}

// observability is for the kubelet and Prometheus.
func (s *server) observability() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics.handler())
	s.health(mux)
	return mux
}

func (s *server) health(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

// ready says why the API server should call another replica, or nil.
func (s *server) ready() error {
	if s.leaving.Load() {
		return errors.New("leaving")
	}
	cert, err := s.Certificates.Certificate()
	if err != nil {
		return err
	}
	if !time.Now().Before(cert.Leaf.NotAfter) {
		return errors.New("the serving certificate has expired")
	}
	if _, err := s.Keys.SigningKey(); err != nil {
		return err
	}
	if s.Managed != nil {
		return s.Managed.Ready()
	}
	return nil
}

func (s *server) expiry() time.Time {
	if c, err := s.Certificates.Certificate(); err == nil {
		return c.Leaf.NotAfter
	}
	return time.Time{}
}
