package admission

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stepd/stepd/internal/stepmetrics"
)

// metrics are the webhook's, in a registry of their own.
type metrics struct {
	registry *prometheus.Registry
	reviews  *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics(version string, expiry func() time.Time, ready func() error) *metrics {
	m := &metrics{
		registry: stepmetrics.NewRegistry(version),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stepd_admissions_total",
			Help: "AdmissionReviews by webhook (mutate, validate) and outcome: allowed, rewritten, denied, failed or malformed. The last three keep the object out.",
		}, []string{"webhook", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stepd_admission_duration_seconds", Help: "How long an AdmissionReview took, by webhook.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"webhook"}),
	}
	m.registry.MustRegister(m.reviews, m.duration,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "stepd_webhook_certificate_expiry_seconds", Help: "When the serving certificate ends, in seconds since 1970; 0 without one.",
		}, func() float64 {
			if t := expiry(); !t.IsZero() {
				return float64(t.Unix())
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "stepd_webhook_ready", Help: "1 if certificate, signing key and caBundle are in place, else 0.",
		}, func() float64 {
			if ready() == nil {
				return 1
			}
			return 0
		}),
	)
	return m
}

func (m *metrics) reviewed(webhook, outcome string, took time.Duration) {
	m.reviews.WithLabelValues(webhook, outcome).Inc()
	m.duration.WithLabelValues(webhook).Observe(took.Seconds())
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}
