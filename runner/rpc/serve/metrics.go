package serve

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// metrics are the server's, in a registry of their own.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	runs     *prometheus.CounterVec
	failures *prometheus.CounterVec
	duration *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	attempts *prometheus.CounterVec
}

func newMetrics(queue *rpc.Queue, version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_calls_total", Help: "API calls by gRPC method and code.",
		}, []string{"method", "code"}),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_step_runs_total", Help: "Attempts of steps by kind and resulting status.",
		}, []string{"kind", "status"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_step_failures_total",
			Help: "Failed attempts by kind and reason: refused, conflict, config, timeout, canceled or other.",
		}, []string{"kind", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stepd_step_duration_seconds", Help: "Duration of attempts by kind.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600},
		}, []string{"kind"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_step_bytes_total", Help: "Bytes of artifacts that steps report as their output size.",
		}, []string{"kind"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_step_attempts_total", Help: "Attempts within one run, such as pushes, that steps report as their output attempts.",
		}, []string{"kind"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "stepd_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.calls, m.runs, m.failures, m.duration, m.bytes, m.attempts, info,
		gauge("stepd_steps_running", "Attempts that run now.", func() int { n, _ := queue.Depth(); return n }),
		gauge("stepd_steps_waiting", "Attempts that wait for their turn.", func() int { _, n := queue.Depth(); return n }),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

func gauge(name, help string, value func() int) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
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
		m.runs.WithLabelValues(a.Kind, string(r.Status)).Inc()
		m.duration.WithLabelValues(a.Kind).Observe(time.Since(start).Seconds())
		if why := reason(r, err); why != "" {
			m.failures.WithLabelValues(a.Kind, why).Inc()
		}
		m.bytes.WithLabelValues(a.Kind).Add(number(r.Output["size"]))
		m.attempts.WithLabelValues(a.Kind).Add(number(r.Output["attempts"]))
		end(r, err)
	}
}

// reason classifies a failure; empty for none.
func reason(r steps.Result, err error) string {
	switch {
	case errors.Is(err, steps.ErrRefused):
		return "refused"
	case errors.Is(err, steps.ErrConflict):
		return "conflict"
	case errors.Is(err, steps.ErrConfig):
		return "config"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case err != nil, r.Status == steps.Failed, r.Status == steps.Errored:
		return "other"
	}
	return ""
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
