package rpc_test

import (
	"context"
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
