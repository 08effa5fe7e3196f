package argocd

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/internal/effects"
)

// kubeconfigFor writes a kubeconfig for a TLS server and a user, given as
// YAML in flow style.
func kubeconfigFor(t *testing.T, server *httptest.Server, user string) string {
	t.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: elsewhere, context: {cluster: none, user: me}}
- {name: here, context: {cluster: c, user: me}}
clusters:
- {name: c, cluster: {server: %q, certificate-authority-data: %s}}
users:
- {name: me, user: %s}
`, server.URL, base64.StdEncoding.EncodeToString(ca), user)
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConnect(t *testing.T) {
	var seen string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Get("Authorization")
		_, _ = w.Write([]byte(`{"metadata":{"name":"app","namespace":"argocd"}}`))
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	plugin, token := filepath.Join(dir, "plugin"), filepath.Join(dir, "token")
	for file, text := range map[string]string{
		token:  "from-file\n",
		plugin: "#!/bin/sh\necho '{\"kind\":\"ExecCredential\",\"status\":{\"token\":\"'$PREFIX-$1'\"}}'\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ reason, user, want string }{
		{"a token", "{token: abc}", "Bearer abc"},
		{"a token file", "{tokenFile: " + token + "}", "Bearer from-file"},
		{"basic authentication", "{username: u, password: p}", "Basic dTpw"},
		{"an exec plugin", "{exec: {apiVersion: client.authentication.k8s.io/v1, command: " + plugin + ", args: [arg], env: [{name: PREFIX, value: pre}]}}", "Bearer pre-arg"},
		{"nobody", "{}", ""},
	} {
		client, url, err := Connect(kubeconfigFor(t, server, tc.user), "")
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		seen = "nothing"
		apps, err := NewCluster(client, url, &effects.Log{}).Find(t.Context(), Query{Namespace: "argocd", Name: "app"})
		if err != nil || len(apps) != 1 || apps[0].Metadata.Name != "app" {
			t.Errorf("%s: %v, %v", tc.reason, apps, err)
		}
		if seen != tc.want {
			t.Errorf("%s: the server saw %q, want %q", tc.reason, seen, tc.want)
		}
	}
}

func TestConnectRefuses(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	plain := httptest.NewUnstartedServer(http.NotFoundHandler())
	good := kubeconfigFor(t, server, "{token: abc}")
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	clear := filepath.Join(t.TempDir(), "clear")
	if err := os.WriteFile(clear, []byte(strings.ReplaceAll(string(text), "https://", "http://")), 0o600); err != nil {
		t.Fatal(err)
	}
	plain.Listener.Close()
	for _, tc := range []struct{ reason, path, context, text string }{
		{"no file", filepath.Join(t.TempDir(), "none"), "", "cannot read kubeconfig"},
		{"no such context", good, "nope", `no context "nope"`},
		{"a context without its cluster", good, "elsewhere", `names cluster "none"`},
		{"a token in the clear", clear, "", "not https"},
		{"a removed auth provider", kubeconfigFor(t, server, "{auth-provider: {name: gcp}}"), "", "auth-provider"},
		{"a certificate without key", kubeconfigFor(t, server, "{client-certificate-data: YQ==}"), "", "client certificate"},
	} {
		if _, _, err := Connect(tc.path, tc.context); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %q", tc.reason, err, tc.text)
		}
	}
}

func TestClusterErrors(t *testing.T) {
	code, body := http.StatusNotFound, `{}`
	pages := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("labelSelector") != "" {
			pages++
			if r.URL.Query().Get("continue") == "" {
				_, _ = w.Write([]byte(`{"metadata":{"continue":"more"},"items":[{"metadata":{"name":"b"}}]}`))
			} else {
				_, _ = w.Write([]byte(`{"items":[{"metadata":{"name":"a"}}]}`))
			}
			return
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	cluster := NewCluster(server.Client(), server.URL, &effects.Log{})
	one := Query{Namespace: "argocd", Name: "app"}

	if _, err := cluster.Find(t.Context(), one); !errors.Is(err, ErrNotFound) {
		t.Errorf("404 is %v", err)
	}
	code, body = http.StatusForbidden, `{"kind":"Status","message":"applications is forbidden"}`
	if _, err := cluster.Find(t.Context(), one); err == nil || !strings.Contains(err.Error(), "403 Forbidden: applications is forbidden") {
		t.Errorf("403 is %v", err)
	}
	code, body = http.StatusOK, "<html>"
	if _, err := cluster.Find(t.Context(), one); err == nil || !strings.Contains(err.Error(), "cannot decode") {
		t.Errorf("HTML is %v", err)
	}
	found, err := cluster.Find(t.Context(), Query{Namespace: "argocd", Selector: Selector{MatchLabels: map[string]string{"x": "y"}}})
	if err != nil || pages != 2 || len(found) != 2 || found[0].Metadata.Name != "a" {
		t.Errorf("%d pages, %v, %v", pages, found, err)
	}
}

func TestSelectorString(t *testing.T) {
	var s Selector
	if err := convert(map[string]any{
		"matchLabels": map[string]any{"b": "2", "a": "1"},
		"matchExpressions": []any{
			map[string]any{"key": "k", "operator": "In", "values": []any{"x", "y"}},
			map[string]any{"key": "k", "operator": "NotIn", "values": []any{"z"}},
			map[string]any{"key": "e", "operator": "Exists"},
			map[string]any{"key": "d", "operator": "DoesNotExist"},
		},
	}, &s); err != nil {
		t.Fatal(err)
	}
	if got, want := s.String(), "a=1,b=2,k in (x,y),k notin (z),e,!d"; got != want {
		t.Errorf("selector %q, want %q", got, want)
	}
}
