package serve

import (
	"context"
	"fmt"
	"os"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/stepd/stepd/internal/stepmetrics"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// Tracing makes OpenTelemetry spans, one for each attempt of a step. A nil
// *Tracing makes none.
type Tracing struct {
	provider   trace.TracerProvider
	propagator propagation.TextMapPropagator
	tracer     trace.Tracer
	shutdown   func(context.Context) error
}

// TracingFromEnvironment makes the Tracing that the standard OTEL_* variables
// ask for. It is off, and nil, unless OTEL_TRACES_EXPORTER names an exporter or
// OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set.
func TracingFromEnvironment(ctx context.Context, version string) (*Tracing, error) {
	if exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter == "none" || exporter == "" &&
		os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return nil, nil
	}
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot export traces: %w", err)
	}
	described, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "stepd"), attribute.String("service.version", version)),
		resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil {
		return nil, fmt.Errorf("cannot export traces: %w", err)
	}
	return NewTracing(sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(described))), nil
}

// NewTracing makes spans with a provider, which Shutdown shuts down.
func NewTracing(p *sdktrace.TracerProvider) *Tracing {
	return &Tracing{
		provider:   p,
		propagator: propagation.TraceContext{},
		tracer:     p.Tracer("github.com/stepd/stepd/runner/rpc/serve"),
		shutdown:   p.Shutdown,
	}
}

// Shutdown exports what is left.
func (t *Tracing) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.shutdown(ctx)
}

// start starts the span of an attempt and returns what ends it. Messages and
// errors stay out of spans: they are for the promotion, not for everybody who
// sees traces.
func (t *Tracing) start(ctx context.Context, a rpc.Attempt) (context.Context, func(steps.Result, error)) {
	if t == nil {
		return ctx, func(steps.Result, error) {}
	}
	ctx, span := t.tracer.Start(ctx, "step "+a.Kind, trace.WithAttributes(
		attribute.String("stepd.kind", a.Kind),
		attribute.String("stepd.alias", a.Alias),
		attribute.Int64("stepd.attempt", int64(a.Number)),
		attribute.String("kargo.project", a.Project),
		attribute.String("kargo.stage", a.Stage),
		attribute.String("kargo.promotion", a.Promotion),
	))
	return ctx, func(r steps.Result, err error) {
		span.SetAttributes(attribute.String("stepd.status", string(r.Status)))
		if why := stepmetrics.Reason(r.Status, err); why != "" {
			span.SetStatus(codes.Error, why)
		}
		span.End()
	}
}
