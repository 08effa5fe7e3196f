// Package serve is the step server around rpc.Server: listeners and TLS, the
// HTTP/JSON gateway with its OpenAPI document, health and reflection, metrics,
// traces, and an orderly end. What a step call means belongs in runner/rpc;
// which steps there are and what they may use is decided by main.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/rpc"
)

// Options say where to listen and how far to go. The zero value of an optional
// field is the default given with it.
type Options struct {
	// GRPC and HTTP are listened on; see rpc.ParseAddress. At least one is needed.
	GRPC, HTTP *rpc.Address
	// Metrics is where /metrics, /healthz and /readyz are served without TLS;
	// nil for nowhere.
	Metrics *rpc.Address
	// TLS is needed for every TCP address of GRPC and HTTP that Insecure does
	// not excuse.
	TLS *TLS
	// Insecure allows TCP without TLS: whoever can connect can run steps.
	Insecure bool

	// Steps is the service, complete but for Queue and Observer.
	Steps rpc.ServerOptions
	// MaxRunning and MaxWaiting bound attempts: 16 run, 256 wait.
	MaxRunning, MaxWaiting int
	// MaxRequestBytes bounds one request: rpc.MaxMessageBytes.
	MaxRequestBytes int
	// Drain is how long running steps have to end: 30 s.
	Drain time.Duration
	// Log receives one record for each call; nil discards it.
	Log *slog.Logger
	// Tracing makes spans; nil makes none.
	Tracing *Tracing
	// Ready is called once with the addresses in use, by "grpc", "http" and
	// "metrics". Optional.
	Ready func(map[string]net.Addr)
}

func (o *Options) setDefaults() {
	if o.MaxRunning == 0 {
		o.MaxRunning = 16
	}
	if o.MaxWaiting == 0 {
		o.MaxWaiting = 256
	}
	if o.MaxRequestBytes == 0 {
		o.MaxRequestBytes = rpc.MaxMessageBytes
	}
	if o.Drain == 0 {
		o.Drain = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Run serves until ctx is done, then lets running steps end for as long as
// Drain allows, cancels the rest and returns. While draining, health is
// NOT_SERVING and new connections are refused.
func Run(ctx context.Context, opts Options) error {
	opts.setDefaults()
	if opts.GRPC == nil && opts.HTTP == nil {
		return errors.New("cannot serve: no address to listen on")
	}
	s := &server{opts: opts}
	err := s.open(ctx)
	if err == nil {
		err = s.serve(ctx)
	}
	return errors.Join(err, s.close())
}

// server is one run.
type server struct {
	opts    Options
	health  *health.Server
	metrics *metrics
	grpc    *grpc.Server
	inner   *grpc.Server // behind the gateway
	pipe    *bufconn.Listener
	conn    *grpc.ClientConn

	grpcListener net.Listener
	webs         []*web
}

// web is an HTTP server with its listener.
type web struct {
	*http.Server
	listener net.Listener
}

// open makes everything and listens, but serves nothing yet.
func (s *server) open(ctx context.Context) error {
	queue := rpc.NewQueue(s.opts.MaxRunning, s.opts.MaxWaiting)
	s.metrics = newMetrics(queue, s.opts.Steps.Version)
	s.opts.Steps.Queue = queue
	s.opts.Steps.Observer = observer{s.metrics, s.opts.Tracing}
	service, err := rpc.NewServer(s.opts.Steps)
	if err != nil {
		return err
	}
	s.health = health.NewServer()
	s.health.SetServingStatus(stepdv1.StepService_ServiceDesc.ServiceName, grpc_health_v1.HealthCheckResponse_SERVING)

	bound := map[string]net.Addr{}
	if a := s.opts.GRPC; a != nil {
		config, err := s.tlsFor("gRPC", a)
		if err != nil {
			return err
		}
		if s.grpcListener, err = listen(ctx, a); err != nil {
			return fmt.Errorf("cannot serve gRPC: %w", err)
		}
		bound["grpc"] = s.grpcListener.Addr()
		// Beyond the queue, callers are refused and told so; the limit on streams,
		// at which a client waits without a word, has to lie well above it.
		s.grpc = s.newGRPC(service, config, grpc.MaxConcurrentStreams(uint32(2*(s.opts.MaxRunning+max(s.opts.MaxWaiting, 0))+100)))
		reflection.Register(s.grpc)
	}
	if a := s.opts.HTTP; a != nil {
		config, err := s.tlsFor("HTTP", a)
		if err != nil {
			return err
		}
		handler, err := s.gateway(ctx, service)
		if err != nil {
			return err
		}
		if bound["http"], err = s.web(ctx, a, handler, config); err != nil {
			return fmt.Errorf("cannot serve HTTP: %w", err)
		}
	}
	if a := s.opts.Metrics; a != nil {
		if bound["metrics"], err = s.web(ctx, a, s.observability(), nil); err != nil {
			return fmt.Errorf("cannot serve metrics: %w", err)
		}
	}
	if s.opts.Ready != nil {
		s.opts.Ready(bound)
	}
	return nil
}

// tlsFor decides how an address is protected. A unix socket is protected by
// its directory and mode; TCP needs mutual TLS, or somebody's word.
func (s *server) tlsFor(what string, a *rpc.Address) (*tls.Config, error) {
	switch {
	case s.opts.TLS != nil && a.Network == "tcp":
		config, err := s.opts.TLS.config()
		if err != nil {
			return nil, fmt.Errorf("cannot serve %s at %s: %w", what, a, err)
		}
		return config, nil
	case a.Network == "unix", s.opts.Insecure:
		return nil, nil
	}
	return nil, fmt.Errorf("cannot serve %s at %s without TLS: give a certificate, a key and the CA of the clients, "+
		"listen on a unix socket, or say --insecure and let anybody who can connect run steps", what, a)
}

func (s *server) newGRPC(service *rpc.Server, config *tls.Config, more ...grpc.ServerOption) *grpc.Server {
	protection := insecure.NewCredentials()
	if config != nil {
		protection = credentials.NewTLS(config)
	}
	opts := []grpc.ServerOption{
		grpc.Creds(protection),
		grpc.MaxRecvMsgSize(s.opts.MaxRequestBytes),
		grpc.MaxSendMsgSize(rpc.MaxMessageBytes),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 15 * time.Minute, Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
	}
	opts = append(opts, more...)
	if t := s.opts.Tracing; t != nil {
		opts = append(opts, grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(t.propagator))))
	}
	g := grpc.NewServer(opts...)
	service.Register(g)
	grpc_health_v1.RegisterHealthServer(g, s.health)
	return g
}

func (s *server) web(ctx context.Context, a *rpc.Address, h http.Handler, config *tls.Config) (net.Addr, error) {
	l, err := listen(ctx, a)
	if err != nil {
		return nil, err
	}
	addr := l.Addr()
	if config != nil {
		l = tls.NewListener(l, config)
	}
	s.webs = append(s.webs, &web{listener: l, Server: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute, // of the request: a step may take longer to answer
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelWarn),
	}})
	return addr, nil
}

// serve serves until ctx is done or a listener fails, then drains.
func (s *server) serve(ctx context.Context) error {
	failed := make(chan error, 2+len(s.webs))
	var running int
	start := func(f func() error) {
		running++
		go func() { failed <- f() }()
	}
	if s.grpc != nil {
		start(func() error { return serveGRPC(s.grpc, s.grpcListener) })
	}
	if s.inner != nil {
		start(func() error { return serveGRPC(s.inner, s.pipe) })
	}
	for _, w := range s.webs {
		start(func() error {
			if err := w.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	var err error
	select {
	case <-ctx.Done():
		s.opts.Log.Info("draining", "for", s.opts.Drain)
	case err = <-failed:
		running--
	}
	s.drain() //nolint:contextcheck // ctx is done, which is why there is a drain
	for range running {
		err = errors.Join(err, <-failed)
	}
	return err
}

// serveGRPC serves until the server is stopped, which may be before it began.
func serveGRPC(g *grpc.Server, l net.Listener) error {
	if err := g.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// lastWords is how long the answers of cancelled calls have to be sent.
const lastWords = time.Second

// drain ends everything that serves: in order within the drain time, by force
// after it.
func (s *server) drain() {
	s.health.Shutdown()
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Drain)
	defer cancel()
	gentle := make(chan struct{})
	go func() {
		defer close(gentle)
		for _, w := range s.webs {
			_ = w.Shutdown(ctx) // what is left over is closed below
		}
		for _, g := range []*grpc.Server{s.grpc, s.inner} {
			if g != nil {
				g.GracefulStop()
			}
		}
	}()
	select {
	case <-gentle:
	case <-ctx.Done():
		s.opts.Log.Warn("drain time is over; cancelling what still runs")
	}
	for _, g := range []*grpc.Server{s.grpc, s.inner} {
		if g != nil {
			g.Stop()
		}
	}
	// What was cancelled has an answer, which still has to reach the caller.
	last, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	for _, w := range s.webs {
		_ = w.Shutdown(last)
		_ = w.Close() // closing a listener twice is no news
	}
	<-gentle
}

// close gives up what open made, also when open failed half way.
func (s *server) close() error {
	var errs []error
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.pipe != nil {
		errs = append(errs, s.pipe.Close())
	}
	listeners := []net.Listener{s.grpcListener}
	for _, w := range s.webs {
		listeners = append(listeners, w.listener)
	}
	for _, l := range listeners {
		if l != nil {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
