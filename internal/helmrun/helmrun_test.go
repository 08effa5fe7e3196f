package helmrun

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/program"
)

// install makes a program that shows what a stepd-helm would be given; the
// steps' own tests run a real one.
func install(t *testing.T, script string) Command {
	t.Helper()
	path := filepath.Join(t.TempDir(), Program)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return Command{Path: path}
}

func TestRunIsolatesHelm(t *testing.T) {
	c := install(t, `{ env; echo "args: $@"; cat; echo; cat "$HOME/repositories.yaml"; echo; cat "$HOME/registry.json"; } > seen; echo '{"manifests":[{"source":"s","text":"t"}]}'`)
	t.Setenv("HELM_PLUGINS", "/mine")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not for helm")
	h, err := NewHome([]Repository{
		{URL: "https://charts.example/x", Username: "u", Password: `p"w`},
		{URL: "oci://ghcr.io/acme/charts", Username: "o", Password: "tok"},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	manifests, err := h.Run(t.Context(), c, dir, Request{Chart: "/w/c", Dependencies: Build})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Manifest{{Source: "s", Text: "t"}}, manifests); diff != "" {
		t.Errorf("manifests (-want +got):\n%s", diff)
	}
	seen, err := os.ReadFile(filepath.Join(dir, "seen"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(seen)
	for _, want := range []string{"HOME=" + h.dir + "\n", "HELM_DATA_HOME=" + h.dir, "KUBECONFIG=/dev/null", "args: \n", `"chart":"/w/c","dependencies":"build"`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "not for helm") || strings.Contains(text, "/mine") || strings.Contains(text, "PATH="+os.Getenv("PATH")) {
		t.Errorf("the caller's environment reaches helm:\n%s", text)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	var repositories struct {
		Repositories []map[string]string `json:"repositories"`
	}
	var registry map[string]any
	if err := errors.Join(json.Unmarshal([]byte(lines[len(lines)-2]), &repositories), json.Unmarshal([]byte(lines[len(lines)-1]), &registry)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]map[string]string{{"name": "repository-0", "url": "https://charts.example/x", "username": "u", "password": `p"w`}}, repositories.Repositories); diff != "" {
		t.Errorf("repositories (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"auths": map[string]any{"ghcr.io": map[string]any{"auth": "bzp0b2s="}}}, registry); diff != "" {
		t.Errorf("registry (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(h.dir, "registry.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others can read the credentials: %v, %v", info.Mode(), err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(h.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the credentials are left behind: %v", err)
	}
}

func TestRunErrors(t *testing.T) {
	h, err := NewHome([]Repository{{URL: "https://c.example", Username: "u", Password: "s3cret/&"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })

	for _, tc := range []struct {
		reason, script string
		want           string
	}{
		{"it dies", `echo "GET https://u:s3cret%2F&@c.example failed: s3cret/&" >&2; exit 3`, "stepd-helm: exit status 3: GET"},
		{"it cannot do what is asked", `echo '{"error":"not found: s3cret/&"}'`, "not found: ***"},
		{"it answers something else", `echo hello`, "cannot read the answer"},
		{"it answers without end", `exec head -c 70000000 /dev/zero`, errOutputLimit.Error()},
	} {
		_, err = h.Run(t.Context(), install(t, tc.script), t.TempDir(), Request{})
		if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.reason, err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Run(ctx, install(t, `exec sleep 60`), t.TempDir(), Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := h.Run(t.Context(), Command{}, t.TempDir(), Request{}); !errors.Is(err, program.ErrNotInstalled) {
		t.Errorf("not beside the executable: %v", err)
	}
}
