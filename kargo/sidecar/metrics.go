package sidecar

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stepd/stepd/internal/stepmetrics"
	"github.com/stepd/stepd/steps"
)

// metrics are the server's, in a registry of their own. Those of steps have the
// names that `stepd serve` gives them, too.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	steps    *stepmetrics.Attempts
	ends     *prometheus.CounterVec
}

func newMetrics(s *Server, version string) *metrics {
	m := &metrics{
		registry: stepmetrics.NewRegistry(version),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_kargo_requests_total", Help: "Requests of rewritten steps by HTTP code and answered status.",
		}, []string{"code", "status"}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_kargo_operations_total", Help: "Operations that have ended, by kind and status.",
		}, []string{"kind", "status"}),
	}
	m.steps = stepmetrics.New(m.registry, func() int { _, n := s.depth(); return n })
	m.registry.MustRegister(m.requests, m.ends,
		stepmetrics.Gauge("stepd_kargo_operations", "Operations that run or wait now.", func() int { n, _ := s.depth(); return n }))
	return m
}

func (m *metrics) answered(code int, status steps.Status) {
	m.requests.WithLabelValues(strconv.Itoa(code), string(status)).Inc()
}

func (m *metrics) attempted(op *operation, status steps.Status, err error, took time.Duration) {
	if err != nil && status != steps.Failed {
		status = steps.Errored
	}
	m.steps.Observe(op.kind.Name, status, err, took)
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
