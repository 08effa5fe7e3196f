// Package contracttest is the test suite that every way of running a step has
// to pass: in process, in a plugin, over a unix socket, mutual TLS or HTTP.
// It knows the contract in package steps and nothing of any transport.
package contracttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stepd/stepd/steps"
)

// What the suite's steps and its credential source agree on.
const (
	// RepoURL is the repository that Credentials knows.
	RepoURL = "https://git.example.com/acme/gitops.git"
	// Username goes with RepoURL.
	Username = "robot"
	// Password goes with RepoURL; it must not show up in a log.
	Password = "correct-horse-battery-staple"
	// EnvSecret names an environment variable that Run sets in the test's
	// process; a step that runs elsewhere must not see it.
	EnvSecret = "STEPD_CONTRACT_SECRET"
	// deadline bounds what should take milliseconds.
	deadline = 30 * time.Second
)

// Subject is what is under test.
type Subject struct {
	// Lookup returns the registration under test of one of Steps.
	Lookup func(t testing.TB, kind string) steps.Registration
	// GrantsOnCall tells whether what a Registration's factory is given reaches
	// the step. It does not over a network, where the server's operator decides.
	GrantsOnCall bool
	// SeparateProcess tells that steps run in another process than the test.
	SeparateProcess bool
	// Unsettled tells that the status of an attempt that ended with an error, and
	// one that nobody knows, are settled by the engine and not by the subject.
	Unsettled bool
	// NoLog tells that the transport drops what steps log.
	NoLog bool
	// MaxOutput is the number of bytes from which outputs are refused; 0 for
	// no limit.
	MaxOutput int
	// WorkDir makes a work dir that the subject may use; nil is t.TempDir.
	WorkDir func(t testing.TB) string
}

// Credentials is a source of credentials for RepoURL in project "acme".
type Credentials struct{}

// Get implements steps.CredentialSource.
func (Credentials) Get(_ context.Context, project string, typ steps.CredentialType, repoURL string) (*steps.Credentials, error) {
	if project != "acme" || typ != steps.CredentialsGit || repoURL != RepoURL {
		return nil, errors.New("no such credentials")
	}
	return &steps.Credentials{Username: Username, Password: Password}, nil
}

// Cluster is a source whose API server answers every request with what it was
// asked, but for those below /forbidden, which go beyond the capability.
type Cluster struct{}

// Client implements steps.ClusterSource.
func (Cluster) Client(project string) *http.Client {
	return &http.Client{Transport: apiServer(project)}
}

type apiServer string // the project

// RoundTrip implements http.RoundTripper.
func (project apiServer) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasPrefix(req.URL.Path, "/forbidden") {
		return nil, fmt.Errorf("not for %s: %w", project, fs.ErrPermission)
	}
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
	}
	answer := strings.Join([]string{string(project), req.Method, req.URL.RequestURI(), req.Header.Get("Content-Type"), string(body)}, " ")
	return &http.Response{StatusCode: http.StatusConflict, Header: http.Header{"Content-Type": {"text/plain"}}, Body: io.NopCloser(strings.NewReader(answer)), Request: req}, nil
}

// Run holds a subject against the contract.
func Run(t *testing.T, s Subject) {
	t.Setenv(EnvSecret, "visible to this process only")
	t.Run("describes itself", s.metadata)
	t.Run("success", s.success)
	t.Run("outcomes", s.outcomes)
	t.Run("bad config", s.badConfig)
	t.Run("timeout", s.timeout)
	t.Run("cancel", s.cancel)
	t.Run("large output", s.largeOutput)
	t.Run("credentials", s.credentials)
	t.Run("cluster access", s.cluster)
	t.Run("log", s.log)
	t.Run("concurrent calls", s.concurrent)
}

// NewContext is a step context with every field set, for a fresh work dir.
func (s Subject) NewContext(t testing.TB) *steps.Context {
	newDir := s.WorkDir
	if newDir == nil {
		newDir = func(t testing.TB) string { return t.TempDir() }
	}
	ref := steps.FreightReference{
		Name:      "f1",
		Origin:    steps.FreightOrigin{Kind: "Warehouse", Name: "w"},
		Commits:   []steps.GitCommit{{RepoURL: RepoURL, ID: "abc", Branch: "main", Message: "héllo\nworld"}},
		Images:    []steps.Image{{RepoURL: "ghcr.io/acme/app", Tag: "1.10", Digest: "sha256:1", Annotations: map[string]string{"a": "b"}}},
		Charts:    []steps.Chart{{RepoURL: "oci://charts", Name: "c", Version: "1.0.0"}},
		Artifacts: []steps.ArtifactReference{{SubscriptionName: "s", Version: "v1", Metadata: json.RawMessage(`{"n":1}`)}},
	}
	return &steps.Context{
		UIBaseURL: "https://kargo.example.com",
		WorkDir:   newDir(t),
		SharedState: map[string]any{
			"clone": map[string]any{"commit": "abc", "n": int64(3), "f": 1.5, "list": []any{nil, true}},
		},
		Alias:              "task::step",
		Config:             map[string]any{"whole": 3, "fraction": 1.25, "text": "1.10", "null": nil, "deep": map[string]any{"list": []any{1, "a"}}},
		Project:            "acme",
		Stage:              "prd-us",
		Promotion:          "prd-us.01h.abc",
		PromotionActor:     "admin",
		Rollback:           true,
		FreightRequests:    []steps.FreightRequest{{Origin: ref.Origin, Sources: json.RawMessage(`{"direct":true}`)}},
		Freight:            steps.FreightCollection{ID: "id", Freight: map[string]steps.FreightReference{"Warehouse/w": ref}},
		TargetFreightRef:   ref,
		TargetFreightAlias: "wonky-wombat",
		Log:                slog.New(slog.DiscardHandler),
	}
}

func (s Subject) run(t *testing.T, kind string, config map[string]any) (steps.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	sc := s.NewContext(t)
	if config != nil {
		sc.Config = config
	}
	return s.Lookup(t, kind).New(steps.Capabilities{}).Run(ctx, sc)
}

func (s Subject) metadata(t *testing.T) {
	for _, want := range Steps() {
		got := s.Lookup(t, want.Name)
		if diff := cmp.Diff(want.Metadata, got.Metadata, cmpopts.EquateEmpty()); diff != "" && want.Name == "contract-succeed" {
			t.Errorf("metadata of %s (-want +got):\n%s", want.Name, diff)
		}
		if diff := cmp.Diff(want.RequiredCapabilities, got.RequiredCapabilities, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("capabilities of %s (-want +got):\n%s", want.Name, diff)
		}
		if diff := cmp.Diff(compact(t, want.ConfigSchema), compact(t, got.ConfigSchema)); diff != "" {
			t.Errorf("config schema of %s (-want +got):\n%s", want.Name, diff)
		}
		if diff := cmp.Diff(compact(t, want.OutputSchema), compact(t, got.OutputSchema)); diff != "" {
			t.Errorf("output schema of %s (-want +got):\n%s", want.Name, diff)
		}
	}
}

func (s Subject) success(t *testing.T) {
	sc := s.NewContext(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	got, err := s.Lookup(t, "contract-succeed").New(steps.Capabilities{}).Run(ctx, sc)
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	want, err := succeed(ctx, sc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(asJSON(t, want), asJSON(t, got)); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	touched, err := os.ReadFile(filepath.Join(sc.WorkDir, "touched"))
	if err != nil || string(touched) != sc.Alias {
		t.Errorf("the step did not work in its work dir: %q, %v", touched, err)
	}
}

func (s Subject) outcomes(t *testing.T) {
	after := 7 * time.Second
	for _, tc := range []struct {
		kind     string
		reason   string
		status   steps.Status
		message  string
		output   map[string]any
		after    *time.Duration
		err      bool
		text     string
		terminal bool
		is       error
		detail   map[string]any
	}{
		{kind: "contract-fail", reason: "a failure is an outcome, and its partial output is kept", status: steps.Failed, message: "not today", output: map[string]any{"partial": true}},
		{kind: "contract-refuse", reason: "a refusal keeps status, cause and detail", status: steps.Failed, err: true, text: "no acceptable signature", is: steps.ErrRefused, detail: map[string]any{"rejected": []any{"one", "two"}}},
		{kind: "contract-error", reason: "an error without a status is Errored and may be retried", status: steps.Errored, err: true, text: "the network is down"},
		{kind: "contract-terminal", reason: "terminal survives, wherever it is in the chain", status: steps.Errored, err: true, text: "gone for good", terminal: true, is: steps.ErrConflict},
		{kind: "contract-running", reason: "Running says when to come back", status: steps.Running, message: "waiting", after: &after},
		{kind: "contract-status", reason: "a status nobody knows is an error", status: steps.Errored, err: true, text: "status"},
		{kind: "contract-panic", reason: "a panic is a terminal error and nothing else stops", status: steps.Errored, err: true, text: "out of cheese", terminal: true},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			if s.Unsettled && (tc.kind == "contract-error" || tc.kind == "contract-status") {
				t.Skip("the engine's business")
			}
			r, err := s.run(t, tc.kind, nil)
			if r.Status != tc.status {
				t.Errorf("%s: status %q, want %q (%v)", tc.reason, r.Status, tc.status, err)
			}
			if tc.message != "" && r.Message != tc.message {
				t.Errorf("%s: message %q, want %q", tc.reason, r.Message, tc.message)
			}
			if diff := cmp.Diff(tc.output, r.Output); diff != "" {
				t.Errorf("%s: output (-want +got):\n%s", tc.reason, diff)
			}
			if diff := cmp.Diff(tc.after, r.RetryAfter); diff != "" {
				t.Errorf("%s: RetryAfter (-want +got):\n%s", tc.reason, diff)
			}
			if (err != nil) != tc.err {
				t.Fatalf("%s: error %v, want one: %t", tc.reason, err, tc.err)
			}
			if err == nil {
				return
			}
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: error %q does not say %q", tc.reason, err, tc.text)
			}
			if steps.IsTerminal(err) != tc.terminal {
				t.Errorf("%s: terminal is %t, want %t", tc.reason, !tc.terminal, tc.terminal)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%s: %v is not %v", tc.reason, err, tc.is)
			}
			var detail map[string]any
			if d, ok := errors.AsType[steps.Detailer](err); ok {
				detail = d.Detail()
			}
			if diff := cmp.Diff(tc.detail, detail); diff != "" {
				t.Errorf("%s: detail (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

func (s Subject) badConfig(t *testing.T) {
	for _, tc := range []struct {
		reason string
		config map[string]any
		says   string
	}{
		{"a required field is missing", map[string]any{}, "name"},
		{"a field has the wrong type", map[string]any{"name": 3}, "name"},
		{"a field does not exist", map[string]any{"name": "a", "colour": "b"}, "colour"},
	} {
		r, err := s.run(t, "contract-config", tc.config)
		if r.Status != steps.Failed || !errors.Is(err, steps.ErrConfig) || !steps.IsTerminal(err) {
			t.Errorf("%s: got %q, %v; want Failed and a terminal steps.ErrConfig", tc.reason, r.Status, err)
			continue
		}
		if !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %q does not name %q", tc.reason, err, tc.says)
		}
	}
	r, err := s.run(t, "contract-config", map[string]any{"name": "a", "count": 2})
	if err != nil || r.Output["name"] != "a" {
		t.Errorf("a valid config: got %v, %v", r, err)
	}
}

func (s Subject) timeout(t *testing.T) {
	// A machine with much else to do may need longer than that to start a step.
	for limit := time.Second; !s.timesOut(t, limit); limit *= 2 {
		if limit > deadline {
			t.Fatal("the step never starts in time")
		}
	}
}

// timesOut tells whether the step started before its time was up.
func (s Subject) timesOut(t *testing.T, limit time.Duration) (started bool) {
	t.Helper()
	sc := s.NewContext(t)
	begun, stopped := pipe(t, sc.WorkDir, "started"), pipe(t, sc.WorkDir, "stopped")
	// What has to be started for this work dir is not what is timed.
	if _, err := s.Lookup(t, "contract-log").New(steps.Capabilities{}).Run(t.Context(), sc); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	r, err := s.Lookup(t, "contract-wait").New(steps.Capabilities{}).Run(ctx, sc)
	if s.failed(r) != steps.Errored || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %q, %v; want Errored, context.DeadlineExceeded", r.Status, err)
	}
	select {
	case <-begun:
	case <-time.After(limit):
		return false
	}
	await(t, stopped, "the deadline reached the step")
	return true
}

// failed is the status of a result that came with an error.
func (s Subject) failed(r steps.Result) steps.Status {
	if s.Unsettled && r.Status == "" {
		return steps.Errored
	}
	return r.Status
}

func (s Subject) cancel(t *testing.T) {
	sc := s.NewContext(t)
	started, stopped := pipe(t, sc.WorkDir, "started"), pipe(t, sc.WorkDir, "stopped")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type answer struct {
		steps.Result
		err error
	}
	answers := make(chan answer, 1)
	runner := s.Lookup(t, "contract-wait").New(steps.Capabilities{})
	go func() {
		r, err := runner.Run(ctx, sc)
		answers <- answer{r, err}
	}()
	await(t, started, "the step started")
	cancel()
	await(t, stopped, "the cancellation reached the step")
	select {
	case a := <-answers:
		if s.failed(a.Result) != steps.Errored || !errors.Is(a.err, context.Canceled) {
			t.Errorf("got %q, %v; want Errored, context.Canceled", a.Status, a.err)
		}
	case <-time.After(deadline):
		t.Fatal("Run did not return after its context was cancelled")
	}
}

func (s Subject) largeOutput(t *testing.T) {
	const mebibyte = 1 << 20
	r, err := s.run(t, "contract-large", map[string]any{"bytes": mebibyte})
	if err != nil {
		t.Fatalf("an output of 1 MiB: %v", err)
	}
	if blob, _ := r.Output["blob"].(string); len(blob) != mebibyte {
		t.Errorf("of an output of 1 MiB, %d bytes arrived", len(blob))
	}
	if s.MaxOutput == 0 {
		return
	}
	r, err = s.run(t, "contract-large", map[string]any{"bytes": s.MaxOutput + 1})
	if r.Status != steps.Errored || err == nil || !steps.IsTerminal(err) || len(r.Output) > 0 {
		t.Errorf("an output over the limit: got %q, %v and %d outputs; want a terminal error and none", r.Status, err, len(r.Output))
	}
}

func (s Subject) credentials(t *testing.T) {
	caps := steps.Capabilities{Credentials: Credentials{}}
	for _, tc := range []struct {
		reason, kind string
		caps         steps.Capabilities
		granted      bool
	}{
		{"nothing was granted", "contract-credentials", steps.Capabilities{}, false},
		{"granted, but never declared", "contract-undeclared", caps, false},
		{"declared and granted", "contract-credentials", caps, s.GrantsOnCall},
	} {
		if !s.GrantsOnCall && tc.kind == "contract-undeclared" {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		var logged lines
		sc := s.NewContext(t)
		sc.Log = slog.New(slog.NewJSONHandler(&logged, nil))
		reg := s.Lookup(t, tc.kind)
		r, err := reg.New(declared(reg, tc.caps)).Run(ctx, sc)
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		want := map[string]any{"credentials": tc.granted, "gitUser": false, "environment": !s.SeparateProcess}
		if tc.granted {
			want["username"], want["rightPassword"] = Username, true
		}
		if diff := cmp.Diff(want, r.Output); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
		if s.SeparateProcess && strings.Contains(logged.text(), Password) {
			t.Errorf("%s: the password was logged", tc.reason)
		}
	}
}

func (s Subject) cluster(t *testing.T) {
	both := steps.Capabilities{ArgoCD: Cluster{}, ControlPlane: Cluster{}}
	for _, tc := range []struct {
		reason, kind string
		caps         steps.Capabilities
		granted      bool
	}{
		{"nothing was granted", "contract-cluster", steps.Capabilities{}, false},
		{"granted, but never declared", "contract-undeclared", both, false},
		{"declared and granted", "contract-cluster", both, s.GrantsOnCall},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		reg := s.Lookup(t, tc.kind)
		r, err := reg.New(declared(reg, tc.caps)).Run(ctx, s.NewContext(t))
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		got := map[string]any{"argocd": r.Output["argocd"], "controlPlane": r.Output["controlPlane"]}
		want := map[string]any{"argocd": nil, "controlPlane": nil}
		if tc.granted {
			want["argocd"] = "409 text/plain acme PATCH /apis/argoproj.io/v1alpha1/namespaces/argocd/applications/shop?fieldManager=a%20b application/merge-patch+json {}"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
}

// declared is what an engine hands to a factory: what the step declares.
func declared(reg steps.Registration, c steps.Capabilities) steps.Capabilities {
	return c.Only(reg.RequiredCapabilities)
}

func (s Subject) log(t *testing.T) {
	if s.NoLog {
		t.Skip("this transport drops logs")
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	var logged lines
	sc := s.NewContext(t)
	sc.Log = slog.New(slog.NewJSONHandler(&logged, nil))
	if _, err := s.Lookup(t, "contract-log").New(steps.Capabilities{}).Run(ctx, sc); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"level":"WARN"`, `"msg":"look"`, `"a":1`, `"b":"two"`, `"err":"bad"`} {
		if !strings.Contains(logged.text(), want) {
			t.Errorf("the log lacks %s:\n%s", want, logged.text())
		}
	}
}

func (s Subject) concurrent(t *testing.T) {
	reg := s.Lookup(t, "contract-config")
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	var wg sync.WaitGroup
	for range 20 {
		sc := s.NewContext(t)
		sc.Config = map[string]any{"name": sc.WorkDir}
		wg.Go(func() {
			r, err := reg.New(steps.Capabilities{}).Run(ctx, sc)
			if err != nil || r.Output["name"] != sc.WorkDir {
				t.Errorf("got %v, %v; want its own config back", r.Output, err)
			}
		})
	}
	wg.Wait()
}

// pipe makes a named pipe and returns what is written to it.
func pipe(t *testing.T, dir, name string) <-chan string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// Both ends are opened here, so that neither side ever blocks on open.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	c := make(chan string, 1)
	go func() {
		b := make([]byte, 64)
		n, err := f.Read(b)
		if err == nil {
			c <- string(b[:n])
		}
	}()
	return c
}

func await(t *testing.T, c <-chan string, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(deadline):
		t.Fatalf("cannot see that %s", what)
	}
}

// compact is a schema without its layout.
func compact(t *testing.T, schema []byte) string {
	t.Helper()
	if schema == nil {
		return ""
	}
	var b bytes.Buffer
	if err := json.Compact(&b, schema); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// asJSON is v as JSON has it, where numbers have one type.
func asJSON(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// lines collects log lines; it is safe for concurrent use.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
