package serve

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/stepd/stepd/internal/stepmetrics"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// metrics are the server's, in a registry of their own.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	steps    *stepmetrics.Attempts
	bytes    *prometheus.CounterVec
	attempts *prometheus.CounterVec
}

func newMetrics(queue *rpc.Queue, version string) *metrics {
	m := &metrics{
		registry: stepmetrics.NewRegistry(version),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_calls_total", Help: "API calls by gRPC method and code.",
		}, []string{"method", "code"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_step_bytes_total", Help: "Bytes of artifacts that steps report as their output size.",
		}, []string{"kind"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_step_attempts_total", Help: "Attempts within one run, such as pushes, that steps report as their output attempts.",
		}, []string{"kind"}),
	}
	m.steps = stepmetrics.New(m.registry, func() int { n, _ := queue.Depth(); return n })
	m.registry.MustRegister(m.calls, m.bytes, m.attempts,
		stepmetrics.Gauge("stepd_steps_waiting", "Attempts that wait for their turn.", func() int { _, n := queue.Depth(); return n }))
	return m
}

// observer feeds metrics and traces.
type observer struct {
	metrics *metrics
	tracing *Tracing
}

// Started implements rpc.Observer.
func (o observer) Started(ctx context.Context, a rpc.Attempt) (context.Context, func(steps.Result, error)) {
	start := time.Now()
	ctx, end := o.tracing.start(ctx, a)
	return ctx, func(r steps.Result, err error) {
		m := o.metrics
		m.steps.Observe(a.Kind, r.Status, err, time.Since(start))
		m.bytes.WithLabelValues(a.Kind).Add(number(r.Output["size"]))
		m.attempts.WithLabelValues(a.Kind).Add(number(r.Output["attempts"]))
		end(r, err)
	}
}

// number is v if that is a number a counter can take, else 0.
func number(v any) float64 {
	var f float64
	switch v := v.(type) {
	case int:
		f = float64(v)
	case int64:
		f = float64(v)
	case float64:
		f = v
	}
	if f > 0 && f <= 1e15 {
		return f
	}
	return 0
}

// observability serves metrics and health.
func (s *server) observability() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.Handle("GET /healthz", alive())
	mux.Handle("GET /readyz", s.ready())
	return mux
}

func alive() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
}

// ready answers 503 while the server drains.
func (s *server) ready() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := s.health.Check(r.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}
