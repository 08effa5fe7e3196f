package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stepd/stepd/cmd/internal/cli"
)

// polls is a task whose step is Running for ever.
func polls(url string) string {
	return `{apiVersion: kargo.akuity.io/v1alpha1, kind: PromotionTask, metadata: {name: polls}, spec: {steps: [
		{uses: http, as: poll, config: {url: "` + url + `", pollInterval: 10ms, successExpression: "false"}},
		{uses: compose-output, config: {a: 1}}]}}`
}

func TestTimeoutEndsPolling(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("{}"))
	}))
	defer server.Close()
	var stdout, stderr bytes.Buffer
	code := cli.Run(t.Context(), newRootCommand, []string{"run", "--live", "-f", "-", "-o", "json", "--timeout", "300ms"},
		cli.Stdio{In: strings.NewReader(polls(server.URL)), Out: &stdout, Err: &stderr})
	if code != cli.ExitFailed || !strings.Contains(stderr.String(), "--timeout allows more") {
		t.Errorf("exit code %d, want %d and the flag that helps in\n%s", code, cli.ExitFailed, &stderr)
	}
	var r report
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("a run that is cut short still reports: %v\n%s", err, &stdout)
	}
	if r.Phase != "Errored" || len(r.Steps) == 0 || r.Steps[0].Status != "Errored" {
		t.Errorf("report is %+v, want an Errored step", r)
	}
	// The next step may be reached, when the time ends during an attempt, but
	// it does not run.
	for _, s := range r.Steps[min(1, len(r.Steps)):] {
		if s.Status != "" {
			t.Errorf("step %s is %s, want it not to run", s.Alias, s.Status)
		}
	}
}

func TestInterruptEndsPolling(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("{}"))
		cancel()
	}))
	defer server.Close()
	var stdout, stderr bytes.Buffer
	code := cli.Run(ctx, newRootCommand, []string{"run", "--live", "-f", "-"},
		cli.Stdio{In: strings.NewReader(polls(server.URL)), Out: &stdout, Err: &stderr})
	if code != cli.ExitFailed || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("exit code %d, want %d and the reason in\n%s", code, cli.ExitFailed, &stderr)
	}
}

// TestInterruptEndsReading: nobody types, nobody writes to the pipe.
func TestInterruptEndsReading(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	fifo := filepath.Join(t.TempDir(), "policy.yaml")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, w := io.Pipe()
	defer w.Close()
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		reason string
		ctx    context.Context
		args   []string
		says   string
	}{
		{"a config, until the step's time is up", t.Context(), []string{"exec", "config-apply", "--config", "-", "--timeout", "1ms"}, "cannot read the config: context deadline exceeded"},
		{"a policy", interrupted, []string{"verify", "--config", "-"}, "cannot read the policy: context canceled"},
		{"a policy that is a pipe", interrupted, []string{"verify", "--config", fifo}, "cannot read the policy: context canceled"},
		{"a plugin's policy", interrupted, []string{"plugin", "install", "oci://r.example/p:v1", "--verify", "-"}, "cannot read the policy: context canceled"},
	} {
		var out bytes.Buffer
		code := cli.Run(tc.ctx, newRootCommand, tc.args, cli.Stdio{In: stdin, Out: &out, Err: &out})
		if code != cli.ExitFailed || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%s: exit code %d, want %d and %q in\n%s", tc.reason, code, cli.ExitFailed, tc.says, &out)
		}
	}
}

func TestStopping(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	if got, err := stopping(ctx, time.Hour, func() (int, error) { return 1, nil }); got != 1 || err != nil {
		t.Errorf("what has ended: %d, %v", got, err)
	}
	listens := func() (int, error) { <-ctx.Done(); return 2, nil }
	cancel()
	if got, err := stopping(ctx, time.Hour, listens); got != 2 || err != nil {
		t.Errorf("what stops when it is told to: %d, %v", got, err)
	}
	release := make(chan struct{})
	defer close(release)
	deaf := func() (int, error) { <-release; return 3, nil }
	if got, err := stopping(ctx, time.Millisecond, deaf); got != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("what does not: %d, %v", got, err)
	}
}
