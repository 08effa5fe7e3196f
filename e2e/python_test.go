package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stepd/stepd/e2e/tools"
)

// TestStepServerInPython runs the step of examples/plugin-step/python, which has
// of stepd nothing but its proto, in `stepd run`: with success, with a config
// that is not acceptable, and with a step that fails.
func TestStepServerInPython(t *testing.T) {
	python, err := tools.Python(t.Context())
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	root, err := tools.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	server := python(t.Context(), filepath.Join(root, "examples/plugin-step/python/checksum_server.py"), filepath.Join(root, "proto/stepd.v1.binpb"), socket)
	var stderr bytes.Buffer
	server.Stderr = &stderr
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := server.Wait(); err != nil {
			t.Errorf("told to stop, the server ends with %v\n%s", err, stderr.String())
		}
	}()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "serving\n" {
		t.Fatalf("the server does not start: %q, %v\n%s", line, err, stderr.String())
	}

	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(work, "values.yaml")
	if err := os.WriteFile(file, []byte("replicas: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(config map[string]any, flags ...string) (code int, out string) {
		t.Helper()
		task, err := json.Marshal(map[string]any{
			"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "PromotionTask", "metadata": map[string]any{"name": "sum"},
			"spec": map[string]any{"steps": []any{map[string]any{"uses": "checksum", "as": "sum", "config": config}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), stepd, append([]string{"run", "-f", "-", "--workdir", work, "-o", "json", "--step-server", "unix:" + socket}, flags...)...)
		cmd.Stdin = bytes.NewReader(task)
		cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_STATE_HOME="+dir, "XDG_CACHE_HOME="+dir)
		b, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(b)
	}
	const digest = "sha256:9cf3a5f89adc05f90e87b284d40f8e39e1b763d9f9df307327e6f127ed492175"
	if code, out := run(map[string]any{"path": "values.yaml"}, "--live"); code != 0 || !strings.Contains(out, digest) {
		t.Errorf("exit code %d, want 0 and the output %s\n%s", code, digest, out)
	}
	if b, err := os.ReadFile(file + ".sha256"); err != nil || string(b) != digest+"\n" {
		t.Errorf("beside the file: %q, %v", b, err)
	}
	for _, tc := range []struct {
		reason string
		config map[string]any
		code   int
		says   string
		flags  []string
	}{
		{"no such file", map[string]any{"path": "absent"}, 1, "cannot read absent", []string{"--live"}},
		{"a path that leads out of the work dir", map[string]any{"path": "../secret"}, 1, "outside the work dir", []string{"--live"}},
		{"a config that the step's schema does not allow", map[string]any{"pth": "values.yaml"}, 1, "pth", []string{"--live"}},
		{"a dry run", map[string]any{"path": "values.yaml"}, 2, "use it with --live", nil},
	} {
		if code, out := run(tc.config, tc.flags...); code != tc.code || !strings.Contains(out, tc.says) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s", tc.reason, code, tc.code, tc.says, out)
		}
	}
}
