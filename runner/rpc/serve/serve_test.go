package serve_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/contracttest"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/runner/rpc/serve"
	"github.com/stepd/stepd/steps"
)

// running is a server under test.
type running struct {
	addrs map[string]net.Addr
	root  string
	stop  context.CancelFunc
	done  chan error
}

// start serves the contract's steps.
func start(t testing.TB, opts serve.Options) *running {
	t.Helper()
	r := &running{root: t.TempDir(), done: make(chan error, 1)}
	dirs, err := rpc.OpenWorkDirs(r.root)
	if err != nil {
		t.Fatal(err)
	}
	opts.Steps.Steps = append(contracttest.Steps(), opts.Steps.Steps...)
	opts.Steps.WorkDirs = dirs
	ready := make(chan map[string]net.Addr, 1)
	opts.Ready = func(a map[string]net.Addr) { ready <- a }
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.done <- serve.Run(ctx, opts) }()
	select {
	case r.addrs = <-ready:
	case err := <-r.done:
		t.Fatalf("Run: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.done <- nil
		dirs.Close()
	})
	return r
}

func (r *running) workDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(r.root, "promotion-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func parse(t testing.TB, s string) *rpc.Address {
	t.Helper()
	a, err := rpc.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func dial(t testing.TB, target string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func subject(r *running, conn *grpc.ClientConn) contracttest.Subject {
	client := rpc.NewClient(conn, rpc.ClientOptions{})
	return contracttest.Subject{
		MaxOutput: rpc.MaxOutputBytes,
		WorkDir:   r.workDir,
		Lookup: func(t testing.TB, kind string) steps.Registration {
			t.Helper()
			regs, err := client.Registrations(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, reg := range regs {
				if reg.Name == kind {
					return reg
				}
			}
			t.Fatalf("no step %q", kind)
			return steps.Registration{}
		},
	}
}

func TestContractOverUnixSocket(t *testing.T) {
	r := start(t, serve.Options{GRPC: parse(t, "unix:"+filepath.Join(t.TempDir(), "s"))})
	contracttest.Run(t, subject(r, dial(t, "unix:"+r.addrs["grpc"].String(), insecure.NewCredentials())))
}

func TestContractOverMutualTLS(t *testing.T) {
	pki := newPKI(t)
	r := start(t, serve.Options{GRPC: parse(t, "127.0.0.1:0"), TLS: pki.server(t)})
	contracttest.Run(t, subject(r, dial(t, r.addrs["grpc"].String(), credentials.NewTLS(pki.client(t, "controller")))))
}

func TestContractOverHTTP(t *testing.T) {
	contracttest.Run(t, httpSubject(start(t, serve.Options{HTTP: parse(t, "127.0.0.1:0"), Insecure: true})))
}

func BenchmarkUnixSocket(b *testing.B) {
	r := start(b, serve.Options{GRPC: parse(b, "unix:"+filepath.Join(b.TempDir(), "s"))})
	contracttest.Benchmark(b, subject(r, dial(b, "unix:"+r.addrs["grpc"].String(), insecure.NewCredentials())))
}

func BenchmarkMutualTLS(b *testing.B) {
	pki := newPKI(b)
	r := start(b, serve.Options{GRPC: parse(b, "127.0.0.1:0"), TLS: pki.server(b)})
	contracttest.Benchmark(b, subject(r, dial(b, r.addrs["grpc"].String(), credentials.NewTLS(pki.client(b, "controller")))))
}

func BenchmarkHTTP(b *testing.B) {
	contracttest.Benchmark(b, httpSubject(start(b, serve.Options{HTTP: parse(b, "127.0.0.1:0"), Insecure: true})))
}

// TestCrowd: a thousand callers at once are served in turn, and what they hold
// meanwhile is bounded: client and server share this process.
func TestCrowd(t *testing.T) {
	r := start(t, serve.Options{GRPC: parse(t, "unix:"+filepath.Join(t.TempDir(), "s")), MaxRunning: 8, MaxWaiting: 1000})
	growth := contracttest.Crowd(t, subject(r, dial(t, "unix:"+r.addrs["grpc"].String(), insecure.NewCredentials())), 1000)
	t.Logf("the heap grew by %d MiB", growth>>20)
	if growth > 256<<20 {
		t.Errorf("a thousand calls held %d MiB", growth>>20)
	}
}

func httpSubject(r *running) contracttest.Subject {
	base := "http://" + r.addrs["http"].String()
	return contracttest.Subject{
		NoLog:     true,
		MaxOutput: rpc.MaxOutputBytes,
		WorkDir:   r.workDir,
		Lookup: func(t testing.TB, kind string) steps.Registration {
			t.Helper()
			for _, reg := range httpSteps(t, base) {
				if reg.Name == kind {
					return reg
				}
			}
			t.Fatalf("no step %q", kind)
			return steps.Registration{}
		},
	}
}

// httpSteps is a client as somebody with nothing but HTTP and JSON would write
// it.
func httpSteps(t testing.TB, base string) []steps.Registration {
	t.Helper()
	resp, err := http.Get(base + "/v1/steps")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list struct {
		Steps []struct {
			Name, ConfigSchema, OutputSchema string
			DefaultTimeout                   string
			DefaultErrorThreshold            uint32
			RequiredCapabilities             []steps.Capability
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	var regs []steps.Registration
	for _, s := range list.Steps {
		reg := steps.Registration{Name: s.Name, New: func(steps.Capabilities) steps.Runner { return httpStep{base, s.Name} }}
		reg.DefaultErrorThreshold, reg.RequiredCapabilities = s.DefaultErrorThreshold, s.RequiredCapabilities
		if s.DefaultTimeout != "" {
			if reg.DefaultTimeout, err = time.ParseDuration(s.DefaultTimeout); err != nil {
				t.Fatal(err)
			}
		}
		if s.ConfigSchema != "" {
			reg.ConfigSchema = []byte(s.ConfigSchema)
		}
		if s.OutputSchema != "" {
			reg.OutputSchema = []byte(s.OutputSchema)
		}
		regs = append(regs, reg)
	}
	return regs
}

type httpStep struct{ base, kind string }

// httpAnswer is the answer to POST /v1/steps/{kind}.
type httpAnswer struct {
	Status      steps.Status
	Message     string
	Output      map[string]any
	RetryAfter  *string
	HealthCheck *struct {
		Kind  string
		Input map[string]any
	}
	Error *struct {
		Message, Reason string
		Terminal        bool
		Detail          map[string]any
	}
}

func (s httpStep) Run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	errored := steps.Result{Status: steps.Errored}
	body, err := json.Marshal(map[string]any{
		"config": sc.Config,
		"context": map[string]any{
			"uiBaseURL": sc.UIBaseURL, "workDir": sc.WorkDir, "sharedState": sc.SharedState, "alias": sc.Alias,
			"project": sc.Project, "stage": sc.Stage, "promotion": sc.Promotion, "promotionActor": sc.PromotionActor,
			"rollback": sc.Rollback, "freightRequests": sc.FreightRequests, "freight": sc.Freight,
			"targetFreightRef": sc.TargetFreightRef, "targetFreightAlias": sc.TargetFreightAlias,
		},
		"attempt": 1,
	})
	if err != nil {
		return errored, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/v1/steps/"+s.kind, bytes.NewReader(body))
	if err != nil {
		return errored, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return errored, err
	}
	defer resp.Body.Close()
	var a httpAnswer
	d := json.NewDecoder(resp.Body)
	if err := d.Decode(&a); err != nil {
		return errored, fmt.Errorf("HTTP %s: %w", resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK {
		return steps.Result{Status: a.Status}, fmt.Errorf("HTTP %s: %s", resp.Status, a.Message)
	}
	r := steps.Result{Status: a.Status, Message: a.Message, Output: a.Output}
	if a.RetryAfter != nil {
		after, err := time.ParseDuration(*a.RetryAfter)
		if err != nil {
			return errored, err
		}
		r.RetryAfter = &after
	}
	if a.HealthCheck != nil {
		r.HealthCheck = &steps.HealthCheck{Kind: a.HealthCheck.Kind, Input: a.HealthCheck.Input}
	}
	if a.Error == nil {
		return r, nil
	}
	err = errors.New(a.Error.Message)
	for code, reason := range map[string]error{
		"ERROR_REASON_REFUSED": steps.ErrRefused, "ERROR_REASON_CONFLICT": steps.ErrConflict, "ERROR_REASON_CONFIG": steps.ErrConfig,
		"ERROR_REASON_TIMEOUT": context.DeadlineExceeded, "ERROR_REASON_CANCELED": context.Canceled,
	} {
		if a.Error.Reason == code {
			err = fmt.Errorf("%w: %w", err, reason)
		}
	}
	if a.Error.Detail != nil {
		err = detailed{err, a.Error.Detail}
	}
	if a.Error.Terminal {
		err = steps.Terminal(err)
	}
	return r, err
}

type detailed struct {
	error
	detail map[string]any
}

func (d detailed) Unwrap() error          { return d.error }
func (d detailed) Detail() map[string]any { return d.detail }

func TestEveryHTTPAnswerIsAResult(t *testing.T) {
	r := start(t, serve.Options{HTTP: parse(t, "127.0.0.1:0"), Insecure: true, MaxRequestBytes: 1 << 16})
	base := "http://" + r.addrs["http"].String()
	for _, tc := range []struct {
		reason, method, path, body string
		header                     map[string]string
		code                       int
	}{
		{"a refusal of the step", "POST", "/v1/steps/contract-refuse", `{"context": {"workDir": "WORK"}}`, nil, 200},
		{"a panic of the step", "POST", "/v1/steps/contract-panic", `{"context": {"workDir": "WORK"}}`, nil, 200},
		{"a config the schema refuses", "POST", "/v1/steps/contract-config", `{"config": {"name": 1}, "context": {"workDir": "WORK"}}`, nil, 200},
		{"no such step", "POST", "/v1/steps/nope", `{"context": {"workDir": "WORK"}}`, nil, 404},
		{"no such path", "GET", "/v1/nope", ``, nil, 404},
		{"another method", "DELETE", "/v1/steps/contract-fail", ``, nil, 501},
		{"no JSON", "POST", "/v1/steps/contract-fail", `hello`, nil, 400},
		{"half of JSON", "POST", "/v1/steps/contract-fail", `{"context": {"workDir": "WORK"}`, nil, 400},
		{"more than one value", "POST", "/v1/steps/contract-fail", `{"context": {"workDir": "WORK"}} {"config": {}}`, nil, 400},
		{"a key twice", "POST", "/v1/steps/contract-fail", `{"config": {"a": 1, "a": 2}, "context": {"workDir": "WORK"}}`, nil, 400},
		{"a field nobody knows", "POST", "/v1/steps/contract-fail", `{"confg": {}}`, nil, 400},
		{"a work dir outside the root", "POST", "/v1/steps/contract-fail", `{"context": {"workDir": "/etc"}}`, nil, 403},
		{"no work dir", "POST", "/v1/steps/contract-fail", `{}`, nil, 400},
		{"another content type", "POST", "/v1/steps/contract-fail", `{}`, map[string]string{"Content-Type": "text/plain"}, 415},
		{"a browser", "POST", "/v1/steps/contract-fail", `{}`, map[string]string{"Origin": "https://evil.example"}, 403},
		{"too long, and of unknown length", "POST", "/v1/steps/contract-fail", `{"config": {"x": "` + strings.Repeat("x", 1<<16) + `"}}`, map[string]string{"Length": "unknown"}, 413},
		{"compressed", "POST", "/v1/steps/contract-fail", "\x1f\x8b\x08", map[string]string{"Content-Encoding": "gzip"}, 400},
		{"a deadline that has passed", "POST", "/v1/steps/contract-wait", `{"context": {"workDir": "WORK"}}`, map[string]string{"Grpc-Timeout": "1n"}, 504},
		{"too long", "POST", "/v1/steps/contract-fail", `{"config": {"x": "` + strings.Repeat("x", 1<<16) + `"}}`, nil, 413},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, base+tc.path,
			strings.NewReader(strings.ReplaceAll(tc.body, "WORK", r.workDir(t))))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		for k, v := range tc.header {
			req.Header.Set(k, v)
		}
		if tc.header["Length"] != "" {
			req.ContentLength = -1
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var answer map[string]any
		err = json.NewDecoder(resp.Body).Decode(&answer)
		resp.Body.Close()
		_, hasOutput := answer["output"]
		if err != nil || resp.StatusCode != tc.code || (answer["status"] != "Failed" && answer["status"] != "Errored") || answer["message"] == "" || !hasOutput {
			t.Errorf("%s: %s %v, %v; want HTTP %d and a result that is no success", tc.reason, resp.Status, answer, err, tc.code)
		}
	}
}

func TestHTTPStreamAndOpenAPI(t *testing.T) {
	r := start(t, serve.Options{HTTP: parse(t, "127.0.0.1:0"), Insecure: true})
	base := "http://" + r.addrs["http"].String()
	resp, err := http.Post(base+"/v1/steps/contract-log/run", "application/json",
		strings.NewReader(fmt.Sprintf(`{"context": {"workDir": %q}}`, r.workDir(t))))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"look"`) || !strings.Contains(lines[1], "STATUS_SUCCEEDED") {
		t.Errorf("want a log record and a result, one a line: %s", b)
	}
	resp, err = http.Post(base+"/v1/steps/contract-config/validate", "application/json", strings.NewReader(`{"config": {}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var validated struct {
		Violations []struct{ Description string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&validated); err != nil || len(validated.Violations) != 1 {
		t.Errorf("got %v, %v; want one violation", validated, err)
	}
	resp, err = http.Get(base + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct{ Paths map[string]any }
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/steps", "/v1/steps/{kind}", "/v1/steps/{kind}/validate", "/v1/steps/{kind}/run"} {
		if doc.Paths[path] == nil {
			t.Errorf("the OpenAPI document lacks %s", path)
		}
	}
}

func TestRefusesTCPWithoutTLS(t *testing.T) {
	for _, opts := range []serve.Options{
		{GRPC: parse(t, "127.0.0.1:0")},
		{HTTP: parse(t, "127.0.0.1:0")},
		{GRPC: parse(t, "127.0.0.1:0"), TLS: &serve.TLS{CertFile: "c", KeyFile: "k"}},
		{},
	} {
		if err := serve.Run(t.Context(), opts); err == nil {
			t.Errorf("%+v was served", opts)
		}
	}
	for _, bad := range []string{"", ":8080", "unix:", "localhost"} {
		if a, err := rpc.ParseAddress(bad); err == nil {
			t.Errorf("address %q was accepted as %v", bad, a)
		}
	}
}

func TestMutualTLS(t *testing.T) {
	pki, stranger := newPKI(t), newPKI(t)
	options := pki.server(t)
	options.AllowedClients = []string{"controller"}
	r := start(t, serve.Options{GRPC: parse(t, "127.0.0.1:0"), TLS: options})
	call := func(creds credentials.TransportCredentials) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := stepdv1.NewStepServiceClient(dial(t, r.addrs["grpc"].String(), creds)).ListSteps(ctx, &stepdv1.ListStepsRequest{})
		return err
	}
	if err := call(credentials.NewTLS(pki.client(t, "controller"))); err != nil {
		t.Errorf("an allowed client: %v", err)
	}
	strange := pki.client(t, "controller")
	strange.Certificates = stranger.client(t, "controller").Certificates
	nobody := pki.client(t, "controller")
	nobody.Certificates = nil
	for reason, creds := range map[string]credentials.TransportCredentials{
		"no TLS":                      insecure.NewCredentials(),
		"no certificate":              credentials.NewTLS(nobody),
		"another CA's client":         credentials.NewTLS(strange),
		"a client that is not listed": credentials.NewTLS(pki.client(t, "somebody")),
	} {
		if err := call(creds); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v, want Unavailable", reason, err)
		}
	}
	// A rotated certificate is used without a restart; a broken file is not.
	renewed := pki.issue(t, "server")
	write(t, options.KeyFile, []byte("broken"))
	if err := call(credentials.NewTLS(pki.client(t, "controller"))); err != nil {
		t.Errorf("in the middle of a rotation: %v", err)
	}
	write(t, options.CertFile, renewed.certPEM)
	write(t, options.KeyFile, renewed.keyPEM)
	var seen *big.Int
	config := pki.client(t, "controller")
	config.VerifyConnection = func(s tls.ConnectionState) error {
		seen = s.PeerCertificates[0].SerialNumber
		return nil
	}
	if err := call(credentials.NewTLS(config)); err != nil {
		t.Fatal(err)
	}
	if seen.Cmp(renewed.serial) != 0 {
		t.Error("the server still shows its old certificate")
	}
}

func TestHealthReflectionMetricsTraces(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tracing := serve.NewTracing(trace.NewTracerProvider(trace.WithSpanProcessor(recorder)))
	r := start(t, serve.Options{
		GRPC: parse(t, "unix:"+filepath.Join(t.TempDir(), "s")), Metrics: parse(t, "127.0.0.1:0"), Tracing: tracing,
	})
	conn := dial(t, "unix:"+r.addrs["grpc"].String(), insecure.NewCredentials())
	for _, service := range []string{"", "stepd.v1.StepService"} {
		h, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, h, err)
		}
	}
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || !strings.Contains(resp.String(), "stepd.v1.StepService") {
		t.Errorf("reflection: %v, %v", resp, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}

	s := subject(r, conn)
	for _, kind := range []string{"contract-log", "contract-refuse"} {
		_, _ = s.Lookup(t, kind).New(steps.Capabilities{}).Run(t.Context(), s.NewContext(t)) // what it answers is another test's
	}
	// A call is counted when its stream has ended, a moment after its result.
	const counted = `stepd_calls_total{code="OK",method="/stepd.v1.StepService/RunStep"} 2`
	text := ""
	for patience := time.Now().Add(30 * time.Second); !strings.Contains(text, counted) && time.Now().Before(patience); {
		text = get(t, "http://"+r.addrs["metrics"].String()+"/metrics")
	}
	for _, want := range []string{
		`stepd_step_runs_total{kind="contract-log",status="Succeeded"} 1`,
		`stepd_step_runs_total{kind="contract-refuse",status="Failed"} 1`,
		`stepd_step_failures_total{kind="contract-refuse",reason="refused"} 1`,
		`stepd_step_duration_seconds_count{kind="contract-log"} 1`,
		`stepd_steps_running 0`,
		counted,
		`go_goroutines`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	names := map[string]bool{}
	for _, span := range recorder.Ended() {
		names[span.Name()] = true
		for _, a := range span.Attributes() {
			if strings.Contains(a.Value.String(), "no acceptable signature") {
				t.Errorf("span %s tells the error text", span.Name())
			}
		}
	}
	if !names["step contract-log"] || !names["step contract-refuse"] {
		t.Errorf("spans: %v", names)
	}
}

func TestDrain(t *testing.T) {
	started, finish := make(chan struct{}), make(chan struct{})
	slow := steps.Registration{Name: "slow", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
			close(started)
			select {
			case <-finish:
				return steps.Result{Status: steps.Succeeded}, nil
			case <-ctx.Done():
				return steps.Result{}, ctx.Err()
			}
		})
	}}
	r := start(t, serve.Options{
		GRPC:    parse(t, "unix:"+filepath.Join(t.TempDir(), "s")),
		Metrics: parse(t, "127.0.0.1:0"),
		Steps:   rpc.ServerOptions{Steps: []steps.Registration{slow}},
		Drain:   time.Minute,
	})
	conn := dial(t, "unix:"+r.addrs["grpc"].String(), insecure.NewCredentials())
	s := subject(r, conn)
	runner := s.Lookup(t, "slow").New(steps.Capabilities{})
	results := make(chan error, 1)
	sc := s.NewContext(t)
	go func() {
		res, err := runner.Run(context.Background(), sc)
		if err == nil && res.Status != steps.Succeeded {
			err = fmt.Errorf("status %q", res.Status)
		}
		results <- err
	}()
	<-started
	watch, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if h, err := watch.Recv(); err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("health before: %v, %v", h, err)
	}
	r.stop()
	if h, err := watch.Recv(); err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health while draining: %v, %v", h, err)
	}
	close(finish)
	if err := <-results; err != nil {
		t.Errorf("a step that ran when the drain began: %v", err)
	}
}

func TestDrainCancelsWhatDoesNotEnd(t *testing.T) {
	started := make(chan struct{})
	slow := steps.Registration{Name: "slow", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
			close(started)
			<-ctx.Done()
			return steps.Result{}, ctx.Err()
		})
	}}
	r := start(t, serve.Options{
		GRPC: parse(t, "unix:"+filepath.Join(t.TempDir(), "s")), Steps: rpc.ServerOptions{Steps: []steps.Registration{slow}}, Drain: time.Millisecond,
	})
	s := subject(r, dial(t, "unix:"+r.addrs["grpc"].String(), insecure.NewCredentials()))
	runner, sc := s.Lookup(t, "slow").New(steps.Capabilities{}), s.NewContext(t)
	results := make(chan steps.Result, 1)
	go func() {
		res, _ := runner.Run(context.Background(), sc)
		results <- res
	}()
	<-started
	r.stop()
	if res := <-results; res.Status != steps.Errored {
		t.Errorf("got %q, want Errored", res.Status)
	}
}

// TestDrainAnswersOverHTTP: a call that is cancelled in the end is told so.
func TestDrainAnswersOverHTTP(t *testing.T) {
	started := make(chan struct{})
	slow := steps.Registration{Name: "slow", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
			close(started)
			<-ctx.Done()
			return steps.Result{}, ctx.Err()
		})
	}}
	r := start(t, serve.Options{
		HTTP: parse(t, "127.0.0.1:0"), Insecure: true, Steps: rpc.ServerOptions{Steps: []steps.Registration{slow}}, Drain: time.Millisecond,
	})
	body := fmt.Sprintf(`{"context": {"workDir": %q}}`, r.workDir(t))
	answers := make(chan string, 1)
	go func() {
		resp, err := http.Post("http://"+r.addrs["http"].String()+"/v1/steps/slow", "application/json", strings.NewReader(body))
		if err != nil {
			answers <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		answers <- fmt.Sprint(resp.StatusCode, " ", string(b), " ", err)
	}()
	<-started
	r.stop()
	if a := <-answers; !strings.Contains(a, `"status":"Errored"`) {
		t.Errorf("got %s, want an answer", a)
	}
}

// TestFullQueue: one call runs, one waits, and the third is refused at once,
// over one connection or several.
func TestFullQueue(t *testing.T) {
	running, finish := make(chan struct{}, 2), make(chan struct{})
	hold := steps.Registration{Name: "hold", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
			running <- struct{}{}
			select {
			case <-finish:
				return steps.Result{Status: steps.Succeeded}, nil
			case <-ctx.Done():
				return steps.Result{}, ctx.Err()
			}
		})
	}}
	r := start(t, serve.Options{
		GRPC: parse(t, "unix:"+filepath.Join(t.TempDir(), "s")), HTTP: parse(t, "127.0.0.1:0"), Insecure: true, Metrics: parse(t, "127.0.0.1:0"),
		Steps: rpc.ServerOptions{Steps: []steps.Registration{hold}}, MaxRunning: 1, MaxWaiting: 1,
	})
	s := subject(r, dial(t, "unix:"+r.addrs["grpc"].String(), insecure.NewCredentials()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 2)
	for range 2 {
		runner, sc := s.Lookup(t, "hold").New(steps.Capabilities{}), s.NewContext(t)
		go func() {
			_, err := runner.Run(ctx, sc)
			ended <- err
		}()
	}
	<-running
	for !strings.Contains(get(t, "http://"+r.addrs["metrics"].String()+"/metrics"), "stepd_steps_waiting 1") {
		if ctx.Err() != nil {
			t.Fatal("no second call waits")
		}
	}
	_, err := s.Lookup(t, "contract-log").New(steps.Capabilities{}).Run(ctx, s.NewContext(t))
	if err == nil || !strings.Contains(err.Error(), "ResourceExhausted") || steps.IsTerminal(err) {
		t.Errorf("over gRPC: %v, want a retryable refusal", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.addrs["http"].String()+"/v1/steps/contract-log",
		strings.NewReader(fmt.Sprintf(`{"context": {"workDir": %q}}`, r.workDir(t))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("over HTTP: %s, want 429", resp.Status)
	}
	close(finish)
	for range 2 {
		if err := <-ended; err != nil {
			t.Errorf("a call that had a place: %v", err)
		}
	}
}

// TestCallerThatDoesNotRead: its step is held up no longer than the server lets
// a step run, and then its turn is somebody else's.
func TestCallerThatDoesNotRead(t *testing.T) {
	loud := steps.Registration{Name: "loud", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			for ctx.Err() == nil {
				sc.Log.Info(strings.Repeat("x", 32<<10))
			}
			return steps.Result{}, ctx.Err()
		})
	}}
	r := start(t, serve.Options{
		GRPC:       parse(t, "unix:"+filepath.Join(t.TempDir(), "s")),
		Steps:      rpc.ServerOptions{Steps: []steps.Registration{loud}, Timeout: time.Second},
		MaxRunning: 1, MaxWaiting: 1,
	})
	conn := dial(t, "unix:"+r.addrs["grpc"].String(), insecure.NewCredentials())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := stepdv1.NewStepServiceClient(conn).RunStep(ctx, &stepdv1.RunStepRequest{
		Kind: "loud", Context: &stepdv1.StepContext{WorkDir: r.workDir(t)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil { // it runs
		t.Fatal(err)
	}
	s := subject(r, conn)
	next, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if res, err := s.Lookup(t, "contract-log").New(steps.Capabilities{}).Run(next, s.NewContext(t)); err != nil || res.Status != steps.Succeeded {
		t.Errorf("the next in the queue: %q, %v", res.Status, err)
	}
}

func TestSocketInTheWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	start(t, serve.Options{GRPC: parse(t, "unix:"+path)})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v; want 0600", info.Mode(), err)
	}
	if err := serve.Run(t.Context(), serve.Options{GRPC: parse(t, "unix:"+path)}); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a socket in use: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	write(t, file, nil)
	if err := serve.Run(t.Context(), serve.Options{GRPC: parse(t, "unix:"+file)}); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	stale := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	start(t, serve.Options{GRPC: parse(t, "unix:"+stale)})
}

// A server that is stopped before it has begun to serve was stopped, no more.
func TestStoppedAtOnce(t *testing.T) {
	dirs, err := rpc.OpenWorkDirs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dirs.Close()
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		opts := serve.Options{GRPC: parse(t, "unix:"+filepath.Join(t.TempDir(), "s")), Ready: func(map[string]net.Addr) { cancel() }}
		opts.Steps.Steps, opts.Steps.WorkDirs = contracttest.Steps(), dirs
		if err := serve.Run(ctx, opts); err != nil {
			t.Fatal(err)
		}
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(b)
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// pki is a certificate authority.
type pki struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

type issued struct {
	certPEM, keyPEM []byte
	serial          *big.Int
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pki{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (p *pki) issue(t testing.TB, name string) issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, p.cert, key.Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return issued{
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
		serial:  serial,
	}
}

func (p *pki) server(t testing.TB) *serve.TLS {
	t.Helper()
	dir := t.TempDir()
	s := &serve.TLS{
		CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), ClientCAFile: filepath.Join(dir, "ca.crt"),
	}
	c := p.issue(t, "server")
	write(t, s.CertFile, c.certPEM)
	write(t, s.KeyFile, c.keyPEM)
	write(t, s.ClientCAFile, p.pem)
	return s
}

func (p *pki) client(t testing.TB, name string) *tls.Config {
	t.Helper()
	c := p.issue(t, name)
	cert, err := tls.X509KeyPair(c.certPEM, c.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(p.cert)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13}
}
