package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stepd/stepd/steps"
)

func TestChecksum(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "values.yaml"), []byte("replicas: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	step := checksum().New(steps.Capabilities{})
	call := func(path string) (steps.Result, error) {
		return step.Run(t.Context(), &steps.Context{
			WorkDir: dir, Config: map[string]any{"path": path}, Log: slog.New(slog.DiscardHandler),
		})
	}
	const want = "sha256:9cf3a5f89adc05f90e87b284d40f8e39e1b763d9f9df307327e6f127ed492175"
	r, err := call("values.yaml")
	if err != nil || r.Status != steps.Succeeded || r.Output["digest"] != want {
		t.Errorf("got %v, %v; want digest %s", r, err, want)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "values.yaml.sha256")); err != nil || string(b) != want+"\n" {
		t.Errorf("beside the file: %q, %v", b, err)
	}
	for _, path := range []string{"absent", "../values.yaml", "/etc/hostname"} {
		if _, err := call(path); !steps.IsTerminal(err) {
			t.Errorf("%s: %v, want a terminal error", path, err)
		}
	}
}
