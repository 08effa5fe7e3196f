// Package stepmetrics counts attempts of steps for Prometheus, under the same
// names wherever they are served. What else a server counts is its own.
package stepmetrics

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/stepd/stepd/steps"
)

// NewRegistry returns a registry that tells of the process: stepd's version,
// the Go runtime and what the kernel knows.
func NewRegistry(version string) *prometheus.Registry {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "stepd_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	r := prometheus.NewRegistry()
	r.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Attempts are the metrics of attempts.
type Attempts struct {
	runs     *prometheus.CounterVec
	failures *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// New registers metrics of attempts; running tells how many run now.
func New(r prometheus.Registerer, running func() int) *Attempts {
	a := &Attempts{
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
	}
	r.MustRegister(a.runs, a.failures, a.duration, Gauge("stepd_steps_running", "Attempts that run now.", running))
	return a
}

// Observe counts one attempt.
func (a *Attempts) Observe(kind string, status steps.Status, err error, took time.Duration) {
	a.runs.WithLabelValues(kind, string(status)).Inc()
	a.duration.WithLabelValues(kind).Observe(took.Seconds())
	if why := Reason(status, err); why != "" {
		a.failures.WithLabelValues(kind, why).Inc()
	}
}

// Gauge is a metric that is asked for when it is read.
func Gauge(name, help string, value func() int) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
}

// Reason classifies a failed attempt, as the label reason does; empty for none.
func Reason(status steps.Status, err error) string {
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
	case err != nil, status == steps.Failed, status == steps.Errored:
		return "other"
	}
	return ""
}
