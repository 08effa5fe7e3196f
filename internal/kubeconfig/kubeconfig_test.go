package kubeconfig

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
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

func TestLoad(t *testing.T) {
	var seen string
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen = r.Header.Get("Authorization")
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	plugin, token := filepath.Join(dir, "plugin"), filepath.Join(dir, "token")
	for file, text := range map[string]string{
		token:  "from-file\n",
		plugin: "#!/bin/sh\necho '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{\"token\":\"'$PREFIX-$1'\"}}'\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ reason, user, want string }{
		{"a token", "{token: abc}", "Bearer abc"},
		{"a token file", "{tokenFile: " + token + "}", "Bearer from-file"},
		{"basic authentication", "{username: u, password: p}", "Basic dTpw"},
		{"an exec plugin", "{exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: " + plugin + ", args: [arg], env: [{name: PREFIX, value: pre}]}}", "Bearer pre-arg"},
		{"nobody", "{}", ""},
	} {
		config, err := Load(kubeconfigFor(t, server, tc.user), "")
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		seen = "nothing"
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, config.Host, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		_ = resp.Body.Close()
		if seen != tc.want {
			t.Errorf("%s: the server saw %q, want %q", tc.reason, seen, tc.want)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	good := kubeconfigFor(t, server, "{token: abc}")
	for _, tc := range []struct{ reason, path, context, text string }{
		{"no file", filepath.Join(t.TempDir(), "none"), "", "cannot read kubeconfig"},
		{"no such context", good, "nope", `context "nope" does not exist`},
		{"a context without its cluster", good, "elsewhere", "no configuration has been provided"},
		{"a certificate without key", kubeconfigFor(t, server, "{client-certificate-data: YQ==}"), "", "client-key-data"},
	} {
		if _, err := Load(tc.path, tc.context); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %q", tc.reason, err, tc.text)
		}
	}
}

func TestNoCredentialsInTheClear(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	path := kubeconfigFor(t, server, "{token: abc}")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "https://", "http://")), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := Load(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if config.BearerToken != "" {
		t.Error("the token would be sent over plain HTTP")
	}
}
