package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/schemas"
)

const checksumTask = `apiVersion: kargo.akuity.io/v1alpha1
kind: PromotionTask
metadata:
  name: sum
spec:
  steps:
    - uses: checksum
      as: sum
      config:
        path: values.yaml
`

// TestPluginExampleFromItsOwnModule builds examples/plugin-step as somebody
// else's module would, outside the checkout, and runs it.
func TestPluginExampleFromItsOwnModule(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	source, err := os.ReadFile(filepath.Join(repository(t), "examples/plugin-step/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "stepd-step-checksum")
	buildOutside(t, program, string(source))
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	if out, code := stepd(t, "plugin", "install", program); code != cli.ExitOK {
		t.Fatalf("install: exit code %d\n%s", code, out)
	}
	checkChecksum(t, "--live=false")
}

// TestAkuityExamples: the manifests call stepd exec as it is.
func TestAkuityExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(repository(t), "examples/akuity/*.yaml"))
	if err != nil || len(files) != 3 {
		t.Fatalf("manifests: %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var step struct {
			APIVersion, Kind string
			Metadata         struct{ Name string }
			Spec             struct {
				Command []string
				Env     []struct{ Name string }
				Output  struct{ Source struct{ Format string } }
			}
		}
		if err := yaml.Unmarshal(text, &step); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		args := step.Spec.Command
		if step.APIVersion != "ee.kargo.akuity.io/v1alpha1" || step.Kind != "CustomPromotionStep" || len(args) < 4 ||
			args[0] != "stepd" || args[1] != "exec" || args[2] != step.Metadata.Name {
			t.Errorf("%s: %+v", file, step)
			continue
		}
		if _, ok := schemas.Config(args[2]); !ok {
			t.Errorf("%s: there is no step %q", file, args[2])
		}
		cmd := newExecCommand(&cli.App{})
		if err := cmd.ParseFlags(args[3:]); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if config := cmd.Flag("config").Value.String(); config != "env:"+step.Spec.Env[0].Name {
			t.Errorf("%s: the config comes from %s, not from the environment that is set", file, config)
		}
		if format := cmd.Flag("format").Value.String(); !strings.EqualFold(format, step.Spec.Output.Source.Format) {
			t.Errorf("%s: exec writes %s, Kargo reads %s", file, format, step.Spec.Output.Source.Format)
		}
	}
}

// checkChecksum runs the step checksum and looks at what it leaves.
func checkChecksum(t *testing.T, flags ...string) {
	t.Helper()
	work := t.TempDir()
	writeFile(t, filepath.Join(work, "values.yaml"), "replicas: 3\n")
	out, code := stepd(t, append([]string{"run", "-f", taskFile(t), "--workdir", work, "-o", "json"}, flags...)...)
	const digest = "sha256:9cf3a5f89adc05f90e87b284d40f8e39e1b763d9f9df307327e6f127ed492175"
	if code != cli.ExitOK || !strings.Contains(out, digest) {
		t.Errorf("exit code %d, want 0 and the output %s\n%s", code, digest, out)
	}
	if b, err := os.ReadFile(filepath.Join(work, "values.yaml.sha256")); err != nil || string(b) != digest+"\n" {
		t.Errorf("beside the file: %q, %v", b, err)
	}
	if err := os.Remove(filepath.Join(work, "values.yaml")); err != nil {
		t.Fatal(err)
	}
	if out, code := stepd(t, append([]string{"run", "-f", taskFile(t), "--workdir", work}, flags...)...); code != cli.ExitFailed || !strings.Contains(out, "cannot read values.yaml") {
		t.Errorf("without the file: exit code %d\n%s", code, out)
	}
}

func taskFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "task.yaml")
	writeFile(t, path, checksumTask)
	return path
}

// stepd runs a command line in this process.
func stepd(t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	var out terminalBuffer
	code = cli.Run(t.Context(), newRootCommand, args, cli.Stdio{In: strings.NewReader(""), Out: &out, Err: &out})
	return out.String(), code
}

// terminalBuffer can be written to while it is read, like a terminal: go-plugin
// may still log that a connection has ended when run returns.
type terminalBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *terminalBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *terminalBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func repository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, string(b))
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
