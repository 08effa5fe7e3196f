package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // servers in other languages compress unasked; without it no answer of theirs is understood
	"google.golang.org/protobuf/proto"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/steps"
)

// ClientOptions says how a Client runs steps.
type ClientOptions struct {
	// Grant makes what an attempt is given available to it. Nil grants nothing:
	// over a network the server's operator decides what steps may use.
	Grant func(sc *steps.Context, caps steps.Capabilities) Grant
}

// Client is the engine's side of a StepService. It is safe for concurrent use.
type Client struct {
	service stepdv1.StepServiceClient
	opts    ClientOptions
}

// NewClient makes a Client over a connection, which stays the caller's.
func NewClient(conn grpc.ClientConnInterface, opts ClientOptions) *Client {
	return &Client{service: stepdv1.NewStepServiceClient(conn), opts: opts}
}

// Registrations describes the steps that the server has. Their Runners call
// the server; ctx bounds this call only.
func (c *Client) Registrations(ctx context.Context) ([]steps.Registration, error) {
	resp, err := c.service.ListSteps(ctx, &stepdv1.ListStepsRequest{},
		grpc.MaxCallRecvMsgSize(MaxMessageBytes))
	if err != nil {
		return nil, fmt.Errorf("cannot list steps: %w", err)
	}
	regs := make([]steps.Registration, 0, len(resp.GetSteps()))
	for _, s := range resp.GetSteps() {
		reg := steps.Registration{
			Name: s.GetName(),
			New: func(caps steps.Capabilities) steps.Runner {
				return &remoteRunner{client: c, kind: s.GetName(), caps: caps}
			},
			Metadata: steps.Metadata{
				DefaultTimeout:        s.GetDefaultTimeout().AsDuration(),
				DefaultErrorThreshold: s.GetDefaultErrorThreshold(),
			},
			ConfigSchema: schema(s.GetConfigSchema()),
			OutputSchema: schema(s.GetOutputSchema()),
		}
		if d := s.GetDefaultTimeout(); d != nil && (d.CheckValid() != nil || d.AsDuration() < 0) {
			return nil, fmt.Errorf("cannot use step %q: its default timeout is not a duration", s.GetName())
		}
		for _, capability := range s.GetRequiredCapabilities() {
			reg.RequiredCapabilities = append(reg.RequiredCapabilities, steps.Capability(capability))
		}
		regs = append(regs, reg)
	}
	return regs, nil
}

func schema(text string) []byte {
	if text == "" {
		return nil
	}
	return []byte(text)
}

// ValidateConfig asks the server what is wrong with a config; nil is nothing.
func (c *Client) ValidateConfig(ctx context.Context, kind string, config map[string]any) ([]FieldViolation, error) {
	encoded, err := exact.toStruct(config)
	if err != nil {
		return nil, fmt.Errorf("cannot send the config of step %q: %w", kind, err)
	}
	resp, err := c.service.ValidateConfig(ctx, &stepdv1.ValidateConfigRequest{Kind: kind, Config: encoded})
	if err != nil {
		return nil, callError(ctx, kind, err)
	}
	var out []FieldViolation
	for _, v := range resp.GetViolations() {
		out = append(out, FieldViolation{Field: v.GetField(), Description: v.GetDescription()})
	}
	return out, nil
}

// remoteRunner is one attempt of a step that runs elsewhere.
type remoteRunner struct {
	client *Client
	kind   string
	caps   steps.Capabilities
}

// Run implements steps.Runner.
func (r *remoteRunner) Run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	req, err := r.request(sc)
	if err != nil {
		return errored(), steps.Terminal(fmt.Errorf("cannot send step %q: %w", r.kind, err))
	}
	if grant := r.client.opts.Grant; grant != nil {
		granted := grant(sc, r.caps)
		defer granted.End()
		req.RunToken, req.HostServiceId = granted.Token, granted.HostServiceID
		for _, g := range granted.Capabilities {
			req.GrantedCapabilities = append(req.GrantedCapabilities, string(g))
		}
	}
	// However this function is left, the call ends with it.
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.client.service.RunStep(call, req,
		grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes))
	if err != nil {
		return errored(), callError(ctx, r.kind, err)
	}
	for events := 0; ; events++ {
		event, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errored(), fmt.Errorf("step %q ended its answer without a result", r.kind)
		case err != nil:
			return errored(), callError(ctx, r.kind, err)
		case events > floodFactor*maxEvents:
			return errored(), steps.Terminal(fmt.Errorf("step %q was stopped: it sent more than %d log records", r.kind, floodFactor*maxEvents))
		}
		size := proto.Size(event)
		tooMuch := events > maxEvents || size > maxEventBytes // which a Server does not send
		switch event := event.GetEvent().(type) {
		case *stepdv1.RunStepResponse_Log:
			if !tooMuch {
				replay(ctx, sc.Log, event.Log)
			}
		case *stepdv1.RunStepResponse_Progress:
			p := event.Progress
			if tooMuch {
				break
			}
			ReportProgress(ctx, p.GetMessage(), p.GetCompleted(), p.GetTotal())
			if sc.Log != nil {
				sc.Log.InfoContext(ctx, p.GetMessage(), "completed", p.GetCompleted(), "total", p.GetTotal())
			}
		case *stepdv1.RunStepResponse_Result:
			if size > MaxOutputBytes+maxEventBytes {
				return errored(), steps.Terminal(fmt.Errorf("step %q returned %d bytes, and the limit is %d", r.kind, size, MaxOutputBytes))
			}
			return resultFromProto(event.Result)
		}
	}
}

func (r *remoteRunner) request(sc *steps.Context) (*stepdv1.RunStepRequest, error) {
	config, err := exact.toStruct(sc.Config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	c, err := contextToProto(sc)
	if err != nil {
		return nil, err
	}
	return &stepdv1.RunStepRequest{Kind: r.kind, Config: config, Context: c}, nil
}

// replay logs a record that a step sent as if it had been logged here.
func replay(ctx context.Context, log *slog.Logger, rec *stepdv1.LogRecord) {
	level := slog.Level(max(min(rec.GetLevel(), 12), -8))
	if log == nil || !log.Enabled(ctx, level) {
		return
	}
	at := time.Now()
	if t := rec.GetTime(); t.IsValid() {
		at = t.AsTime()
	}
	record := slog.NewRecord(at, level, rec.GetMessage(), 0)
	for k, v := range fromStruct(rec.GetAttributes(), asInt64) {
		record.AddAttrs(slog.Any(k, v))
	}
	// A handler that cannot write has nobody to tell.
	_ = log.Handler().Handle(ctx, record)
}
