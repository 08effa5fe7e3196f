package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stepd/stepd/internal/redact"
	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/contracttest"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

func TestContractOverUnixSocket(t *testing.T) {
	client := serve(t, rpc.ServerOptions{Steps: contracttest.Steps()})
	contracttest.Run(t, contracttest.Subject{Lookup: lookup(client), MaxOutput: rpc.MaxOutputBytes})
}

// serve starts a server on a unix socket and returns a client of it.
func serve(t testing.TB, opts rpc.ServerOptions) *rpc.Client {
	t.Helper()
	return rpc.NewClient(dial(t, opts), rpc.ClientOptions{})
}

func dial(t testing.TB, opts rpc.ServerOptions) *grpc.ClientConn {
	t.Helper()
	s, err := rpc.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	return dialService(t, s.Register)
}

func dialService(t testing.TB, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	g := grpc.NewServer(grpc.MaxRecvMsgSize(rpc.MaxMessageBytes))
	register(g)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		g.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return conn
}

// TestCompressedMessages: gRPC in other languages compresses what it sends when
// its user says so, whatever the peer offered; Python's grpc.server does with
// compression=grpc.Compression.Gzip. A client that compresses is answered so.
func TestCompressedMessages(t *testing.T) {
	service := stepdv1.NewStepServiceClient(dial(t, rpc.ServerOptions{Steps: contracttest.Steps()}))
	resp, err := service.ListSteps(t.Context(), &stepdv1.ListStepsRequest{}, grpc.UseCompressor("gzip"))
	if err != nil || len(resp.GetSteps()) != len(contracttest.Steps()) {
		t.Errorf("%d steps, %v", len(resp.GetSteps()), err)
	}
}

func lookup(c *rpc.Client) func(testing.TB, string) steps.Registration {
	return func(t testing.TB, kind string) steps.Registration {
		t.Helper()
		regs, err := c.Registrations(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range regs {
			if r.Name == kind {
				return r
			}
		}
		t.Fatalf("no step %q", kind)
		return steps.Registration{}
	}
}

func TestUnknownKindAndMalformedRequests(t *testing.T) {
	service := stepdv1.NewStepServiceClient(dial(t, rpc.ServerOptions{Steps: contracttest.Steps()}))
	for _, tc := range []struct {
		reason string
		req    *stepdv1.CallStepRequest
		code   codes.Code
	}{
		{"no kind", &stepdv1.CallStepRequest{}, codes.InvalidArgument},
		{"unknown kind", &stepdv1.CallStepRequest{Kind: "nope"}, codes.NotFound},
		{"no work dir", &stepdv1.CallStepRequest{Kind: "contract-succeed"}, codes.InvalidArgument},
	} {
		_, err := service.CallStep(t.Context(), tc.req)
		if status.Code(err) != tc.code {
			t.Errorf("%s: %v, want %v", tc.reason, err, tc.code)
		}
		if tc.code == codes.InvalidArgument && len(status.Convert(err).Details()) == 0 {
			t.Errorf("%s: no field violation in the details", tc.reason)
		}
	}
}

func TestValidateConfig(t *testing.T) {
	client := serve(t, rpc.ServerOptions{Steps: contracttest.Steps()})
	vs, err := client.ValidateConfig(t.Context(), "contract-config", map[string]any{"name": "a", "count": "x"})
	if err != nil {
		t.Fatal(err)
	}
	if len(vs) != 1 || vs[0].Field != "/count" {
		t.Errorf("got %v, want one violation of /count", vs)
	}
	if vs, err := client.ValidateConfig(t.Context(), "contract-config", map[string]any{"name": "a"}); err != nil || len(vs) != 0 {
		t.Errorf("a valid config: %v, %v", vs, err)
	}
	if _, err := client.ValidateConfig(t.Context(), "nope", nil); err == nil {
		t.Error("an unknown kind was valid")
	}
}

// liar is a StepService that does not keep to the protocol.
type liar struct {
	stepdv1.UnimplementedStepServiceServer
	run func(grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error
}

func (l liar) ListSteps(context.Context, *stepdv1.ListStepsRequest) (*stepdv1.ListStepsResponse, error) {
	return &stepdv1.ListStepsResponse{Steps: []*stepdv1.Step{{Name: "lie"}}}, nil
}

func (l liar) RunStep(_ *stepdv1.RunStepRequest, s grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
	return l.run(s)
}

func TestServersThatLie(t *testing.T) {
	result := func(r *stepdv1.StepResult) *stepdv1.RunStepResponse {
		return &stepdv1.RunStepResponse{Event: &stepdv1.RunStepResponse_Result{Result: r}}
	}
	for _, tc := range []struct {
		reason, says string
		run          func(grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error
	}{
		{"ends without a result", "without a result", func(grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error { return nil }},
		{"a status nobody knows", "status", func(s grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
			return s.Send(result(&stepdv1.StepResult{Status: 99}))
		}},
		{"no status at all", "status", func(s grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
			return s.Send(result(&stepdv1.StepResult{}))
		}},
		{"a retry_after no duration has", "retry_after", func(s grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
			return s.Send(result(&stepdv1.StepResult{Status: stepdv1.Status_STATUS_RUNNING, RetryAfter: &durationpb.Duration{Seconds: 1 << 62}}))
		}},
		{"a log that never ends", "log records", func(s grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
			for {
				if err := s.Send(&stepdv1.RunStepResponse{Event: &stepdv1.RunStepResponse_Log{Log: &stepdv1.LogRecord{Message: "x"}}}); err != nil {
					return err
				}
			}
		}},
		{"an output over the limit", "the limit is", func(s grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
			return s.Send(result(&stepdv1.StepResult{Status: stepdv1.Status_STATUS_SUCCEEDED, Message: strings.Repeat("x", rpc.MaxOutputBytes+1<<20)}))
		}},
		{"a message over the limit", "larger than max", func(s grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
			return s.Send(result(&stepdv1.StepResult{Message: strings.Repeat("x", rpc.MaxMessageBytes+1)}))
		}},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			client := rpc.NewClient(dialService(t, func(g grpc.ServiceRegistrar) {
				stepdv1.RegisterStepServiceServer(g, liar{run: tc.run})
			}), rpc.ClientOptions{})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			r, err := lookup(client)(t, "lie").New(steps.Capabilities{}).Run(ctx, &steps.Context{WorkDir: "/"})
			if r.Status != steps.Errored || err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %q, %v; want an error that says %q", r.Status, err, tc.says)
			}
		})
	}
}

func TestOversizedRecordsAreNotLogged(t *testing.T) {
	client := rpc.NewClient(dialService(t, func(g grpc.ServiceRegistrar) {
		stepdv1.RegisterStepServiceServer(g, liar{run: func(s grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
			for _, message := range []string{"small", "LARGE" + strings.Repeat("x", 1<<20)} {
				for _, e := range []*stepdv1.RunStepResponse{
					{Event: &stepdv1.RunStepResponse_Log{Log: &stepdv1.LogRecord{Message: message}}},
					{Event: &stepdv1.RunStepResponse_Progress{Progress: &stepdv1.Progress{Message: message}}},
				} {
					if err := s.Send(e); err != nil {
						return err
					}
				}
			}
			return s.Send(&stepdv1.RunStepResponse{Event: &stepdv1.RunStepResponse_Result{Result: &stepdv1.StepResult{Status: stepdv1.Status_STATUS_SUCCEEDED}}})
		}})
	}), rpc.ClientOptions{})
	var logged bytes.Buffer
	sc := &steps.Context{WorkDir: "/", Log: slog.New(slog.NewTextHandler(&logged, nil))}
	if _, err := lookup(client)(t, "lie").New(steps.Capabilities{}).Run(t.Context(), sc); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(logged.String(), "small"); n != 2 || strings.Contains(logged.String(), "LARGE") {
		t.Errorf("want two small records and no large one: %.500s", logged.String())
	}
}

// leak puts a secret wherever a step can put something.
type leak struct{ secret string }

func (l leak) Error() string          { return "no " + l.secret }
func (l leak) Detail() map[string]any { return map[string]any{"why": []any{l.secret}} }

func TestNoSecretLeavesAServer(t *testing.T) {
	const secret = "correct-horse-battery-staple"
	redactor := redact.New()
	redactor.Add(secret)
	leaky := steps.Registration{Name: "leaky", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			sc.Log.Info("a "+secret, "key", secret)
			rpc.ReportProgress(ctx, secret, 1, 2)
			return steps.Result{
				Status: steps.Failed, Message: secret, Output: map[string]any{secret: map[string]any{"x": "a " + secret}},
				HealthCheck: &steps.HealthCheck{Kind: "k", Input: map[string]any{"token": secret}},
			}, leak{secret}
		})
	}}
	var logged bytes.Buffer
	service := stepdv1.NewStepServiceClient(dial(t, rpc.ServerOptions{
		Steps: []steps.Registration{leaky}, Redactor: redactor, Log: slog.New(slog.NewTextHandler(&logged, nil)),
	}))
	stream, err := service.RunStep(t.Context(), &stepdv1.RunStepRequest{Kind: "leaky", Context: &stepdv1.StepContext{WorkDir: "/"}})
	if err != nil {
		t.Fatal(err)
	}
	var events int
	for ; ; events++ {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if text := e.String(); strings.Contains(text, secret) || !strings.Contains(text, redact.Mask) {
			t.Errorf("the secret is not masked in %s", text)
		}
	}
	if events != 3 || strings.Contains(logged.String(), secret) {
		t.Errorf("%d events, want a record, progress and the result; logged %s", events, logged.String())
	}
}
