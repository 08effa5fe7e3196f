package sidecar

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stepd/stepd/steps"
)

// metrics are the server's, in a registry of their own. Those of steps have the
// names that `stepd serve` gives them, too.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	runs     *prometheus.CounterVec
	failures *prometheus.CounterVec
	duration *prometheus.HistogramVec
	ends     *prometheus.CounterVec
}

func newMetrics(s *Server, version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_kargo_requests_total", Help: "Requests of rewritten steps by HTTP code and answered status.",
		}, []string{"code", "status"}),
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
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_kargo_operations_total", Help: "Operations that have ended, by kind and status.",
		}, []string{"kind", "status"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "stepd_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.requests, m.runs, m.failures, m.duration, m.ends, info,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "stepd_steps_running", Help: "Attempts that run now."},
			func() float64 { _, n := s.depth(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "stepd_kargo_operations", Help: "Operations that run or wait now."},
			func() float64 { n, _ := s.depth(); return float64(n) }),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

func (m *metrics) answered(code int, status steps.Status) {
	m.requests.WithLabelValues(strconv.Itoa(code), string(status)).Inc()
}

func (m *metrics) attempted(op *operation, status steps.Status, err error, took time.Duration) {
	if err != nil && status != steps.Failed {
		status = steps.Errored
	}
	m.runs.WithLabelValues(op.kind.Name, string(status)).Inc()
	m.duration.WithLabelValues(op.kind.Name).Observe(took.Seconds())
	reason := "other"
	switch {
	case errors.Is(err, steps.ErrRefused):
		reason = "refused"
	case errors.Is(err, steps.ErrConflict):
		reason = "conflict"
	case errors.Is(err, steps.ErrConfig):
		reason = "config"
	case errors.Is(err, context.DeadlineExceeded):
		reason = "timeout"
	case errors.Is(err, context.Canceled):
		reason = "canceled"
	case err == nil && status != steps.Failed && status != steps.Errored:
		return
	}
	m.failures.WithLabelValues(op.kind.Name, reason).Inc()
}

func (m *metrics) ended(op *operation, status steps.Status) {
	m.ends.WithLabelValues(op.kind.Name, string(status)).Inc()
}

// Observability serves /metrics, /healthz and /readyz: for Prometheus and the
// kubelet, without secrets. The sidecar is ready while it can check tokens and
// does not stop.
func (s *Server) Observability() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-s.draining:
			http.Error(w, errDraining.Error(), http.StatusServiceUnavailable)
			return
		default:
		}
		if keys, err := s.Keys(); err != nil || len(keys) == 0 {
			http.Error(w, "there is no public key to check tokens with", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}
