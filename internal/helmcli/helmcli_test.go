package helmcli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// install puts a program named helm into PATH. It shows what a helm would be
// given; the steps' own tests run a real one where there is one.
func install(t *testing.T, script string) {
	t.Helper()
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "helm"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

func TestRunIsolatesHelm(t *testing.T) {
	install(t, `env; echo "args: $@"; cat "$HELM_REPOSITORY_CONFIG"; echo; cat "$HELM_REGISTRY_CONFIG"`)
	t.Setenv("HELM_PLUGINS", "/mine")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not for helm")
	h, err := NewHome([]Repository{
		{URL: "https://charts.example/x", Username: "u", Password: `p"w`},
		{URL: "oci://ghcr.io/acme/charts", Username: "o", Password: "tok"},
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.Run(t.Context(), t.TempDir(), "template", "--", "r")
	if err != nil {
		t.Fatal(err)
	}
	text := string(out)
	for _, want := range []string{"HOME=" + h.dir + "\n", "HELM_PLUGINS=" + h.dir, "KUBECONFIG=/dev/null", "args: template -- r"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "not for helm") || strings.Contains(text, "/mine") {
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

	install(t, `echo "GET https://u:s3cret%2F&@c.example failed: s3cret/&" >&2; exit 3`)
	_, err = h.Run(t.Context(), t.TempDir(), "dependency", "update")
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "helm dependency: exit status 3") {
		t.Errorf("a failure: %v", err)
	}

	install(t, `exec sleep 60`)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Run(ctx, t.TempDir(), "template"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}

	install(t, `exec head -c 70000000 /dev/zero`)
	if _, err := h.Run(t.Context(), t.TempDir(), "template"); !errors.Is(err, errOutputLimit) {
		t.Errorf("endless output: %v", err)
	}

	t.Setenv("PATH", t.TempDir())
	if _, err := h.Run(t.Context(), t.TempDir(), "template"); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("no helm: %v", err)
	}
}
