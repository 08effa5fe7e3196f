package main

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/cmd/internal/cli"
)

const clusterPlugin = `package main

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/stepd/stepd/plugin"
	"github.com/stepd/stepd/steps"
)

func main() {
	plugin.Serve(steps.Registration{
		Name:     "annotate",
		Metadata: steps.Metadata{RequiredCapabilities: []steps.Capability{steps.AccessArgoCD}},
		New: func(c steps.Capabilities) steps.Runner {
			return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
				if c.ArgoCD == nil {
					return steps.Result{Status: steps.Succeeded, Output: map[string]any{"answer": "no access"}}, nil
				}
				req, err := http.NewRequestWithContext(ctx, sc.Config["method"].(string), "https://cluster"+sc.Config["path"].(string), strings.NewReader("{}"))
				if err != nil {
					return steps.Result{}, err
				}
				resp, err := c.ArgoCD.Client(sc.Project).Do(req)
				if err != nil {
					return steps.Result{}, steps.Terminal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				return steps.Result{Status: steps.Succeeded, Output: map[string]any{"answer": string(body)}}, err
			})
		},
	})
}
`

// TestClusterAccess: a plugin reaches Argo CD's cluster with the operator's
// kubeconfig, which it never sees, as far as it was granted.
func TestClusterAccess(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer cluster-token-of-the-operator" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = io.WriteString(w, r.Method+" reached the cluster")
	}))
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	kubeconfig := filepath.Join(t.TempDir(), "config")
	writeFile(t, kubeconfig, fmt.Sprintf(`{"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority-data": %q}}],
		"users": [{"name": "u", "user": {"token": "cluster-token-of-the-operator"}}]}`, server.URL, base64.StdEncoding.EncodeToString(ca)))

	program := filepath.Join(t.TempDir(), "stepd-step-annotate")
	buildOutside(t, program, clusterPlugin)
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	const app = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/shop"
	for _, tc := range []struct {
		reason, grant, method, path string
		live                        bool
		code                        int
		says                        string
	}{
		{"granted", "access-argocd", "PATCH", app, true, cli.ExitOK, "PATCH reached the cluster"},
		{"not granted", "", "PATCH", app, true, cli.ExitOK, "no access"},
		{"beyond what was granted", "access-argocd", "GET", "/api/v1/namespaces/argocd/secrets/s", true, cli.ExitFailed, "the capability does not cover it"},
		{"a dry run reads", "access-argocd", "GET", app, false, cli.ExitOK, "GET reached the cluster"},
		{"a dry run changes nothing", "access-argocd", "PATCH", app, false, cli.ExitFailed, "nothing is changed in a dry run"},
	} {
		t.Setenv("XDG_DATA_HOME", t.TempDir())
		install := []string{"plugin", "install", program}
		if tc.grant != "" {
			install = append(install, "--grant", tc.grant)
		}
		if out, code := stepd(t, install...); code != cli.ExitOK {
			t.Fatalf("install: exit code %d\n%s", code, out)
		}
		task := filepath.Join(t.TempDir(), "task.yaml")
		writeFile(t, task, strings.NewReplacer("checksum", "annotate", "path: values.yaml", fmt.Sprintf("{method: %s, path: %s}", tc.method, tc.path)).Replace(checksumTask))
		out, code := stepd(t, "run", "-f", task, "-o", "json", "--log-level", "INFO", "--kubeconfig", kubeconfig, fmt.Sprintf("--live=%t", tc.live))
		if code != tc.code || !strings.Contains(out, tc.says) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s", tc.reason, code, tc.code, tc.says, out)
		}
		if !strings.Contains(out, "requested=[access-argocd] granted=["+tc.grant+"]") {
			t.Errorf("%s: what was asked for and granted is not logged\n%s", tc.reason, out)
		}
		if strings.Contains(out, "cluster-token-of-the-operator") {
			t.Errorf("%s: the token leaked\n%s", tc.reason, out)
		}
	}
}

// buildOutside builds a main package as a module of its own, outside the
// checkout.
func buildOutside(t *testing.T, program, source string) {
	t.Helper()
	checkout, dir := repository(t), t.TempDir()
	writeFile(t, filepath.Join(dir, "main.go"), source)
	copyFile(t, filepath.Join(checkout, "go.sum"), filepath.Join(dir, "go.sum"))
	writeFile(t, filepath.Join(dir, "go.mod"), "module example.com/plugin\n\ngo 1.26.0\n\n"+
		"require github.com/stepd/stepd v0.0.0\n\nreplace github.com/stepd/stepd => "+checkout+"\n")
	build := exec.CommandContext(t.Context(), "go", "build", "-mod=mod", "-o", program, ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}
