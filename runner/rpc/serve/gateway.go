package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	gw "github.com/stepd/stepd/proto/gateway/stepd/v1"
	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// gateway is the HTTP/JSON face of the service. It calls a gRPC server of its
// own through memory, so that both faces go through the same interceptors.
func (s *server) gateway(ctx context.Context, service *rpc.Server) (http.Handler, error) {
	s.pipe = bufconn.Listen(256 << 10)
	s.inner = s.newGRPC(service, nil)
	conn, err := grpc.NewClient("passthrough:///gateway",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.pipe.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(rpc.MaxMessageBytes), grpc.MaxCallSendMsgSize(s.opts.MaxRequestBytes)),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot make the gateway: %w", err)
	}
	s.conn = conn
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, wholeJSON{&runtime.JSONPb{
			// Every declared key is there, null when there is nothing to say. Kargo's
			// expressions fail on keys that are missing.
			MarshalOptions:   protojson.MarshalOptions{EmitUnpopulated: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
		}}),
		runtime.WithErrorHandler(writeError),
		runtime.WithDisablePathLengthFallback(),
	)
	if err := gw.RegisterStepServiceHandler(ctx, mux, conn); err != nil {
		return nil, fmt.Errorf("cannot make the gateway: %w", err)
	}
	root := http.NewServeMux()
	root.Handle("/v1/", s.guard(mux))
	root.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(stepdv1.OpenAPI()) // a client that left has no complaint
	})
	root.Handle("GET /healthz", alive())
	root.Handle("GET /readyz", s.ready())
	return root, nil
}

// wholeJSON reads a request to its end: of several values the gateway's own
// decoder takes the first and drops the rest.
type wholeJSON struct{ *runtime.JSONPb }

// NewDecoder implements runtime.Marshaler. An empty request is io.EOF, which the
// gateway takes for an empty message.
func (m wholeJSON) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		text, err := io.ReadAll(r) // guard limits it
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(text)) == 0 {
			return io.EOF
		}
		message, ok := v.(proto.Message)
		if !ok {
			return fmt.Errorf("cannot decode a request into a %T", v)
		}
		return m.UnmarshalOptions.Unmarshal(text, message)
	})
}

// guard refuses what no client of the API sends: a browser's requests, other
// content than JSON, and more than the limit.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); {
		case r.Header.Get("Origin") != "":
			answer(w, http.StatusForbidden, "this API is not for browsers")
		case r.Method == http.MethodPost && kind != "application/json":
			answer(w, http.StatusUnsupportedMediaType, "the content type has to be application/json")
		case r.ContentLength > int64(s.opts.MaxRequestBytes):
			answer(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is longer than %d bytes", s.opts.MaxRequestBytes))
		default:
			r.Body = &limitedBody{ReadCloser: http.MaxBytesReader(w, r.Body, int64(s.opts.MaxRequestBytes))}
			next.ServeHTTP(w, r)
		}
	})
}

// limitedBody remembers that a request of unknown length was too long, which
// the gateway reports like any other that it cannot read.
type limitedBody struct {
	io.ReadCloser
	tooLong atomic.Bool
}

// Read implements io.Reader.
func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		b.tooLong.Store(true)
	}
	return n, err
}

// writeError answers with a step's result, whatever went wrong: a client that
// reads status, message and output never meets anything else.
func writeError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	st := status.Convert(err)
	if body, ok := r.Body.(*limitedBody); ok && body.tooLong.Load() {
		answer(w, http.StatusRequestEntityTooLarge, "the request is too long")
		return
	}
	if st.Code() == codes.DeadlineExceeded {
		// The wire's wording differs with who noticed first.
		answer(w, http.StatusGatewayTimeout, "the call's deadline has passed")
		return
	}
	answer(w, runtime.HTTPStatusFromCode(st.Code()), st.Message())
}

func answer(w http.ResponseWriter, code int, message string) {
	body, err := json.Marshal(map[string]any{"status": steps.Errored, "message": message, "output": nil})
	if err != nil { // two strings and a null
		body = []byte(`{"status":"Errored","message":"","output":null}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // a client that left has no complaint
}

// unary and stream log every call, and turn a panic outside a step, which is
// a defect of the server's, into an error.
func (s *server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer s.record(ctx, info.FullMethod, time.Now(), &err)
	return handler(ctx, req)
}

func (s *server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer s.record(stream.Context(), info.FullMethod, time.Now(), &err)
	return handler(srv, stream)
}

func (s *server) record(ctx context.Context, method string, start time.Time, err *error) {
	if p := recover(); p != nil {
		s.opts.Log.ErrorContext(ctx, "panic", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the server met a defect of its own; its log has the details")
	}
	from := ""
	if p, ok := peer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	s.metrics.calls.WithLabelValues(method, status.Code(*err).String()).Inc()
	s.opts.Log.InfoContext(ctx, "call", "method", method, "code", status.Code(*err).String(),
		"duration", time.Since(start), "peer", from)
}
