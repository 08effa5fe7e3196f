package serving

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/cmd/internal/cli"
)

// TestServeKargo starts the sidecar without a key and without a cluster: it is
// alive, not ready, and refuses what comes. What it does with both is tested
// end to end.
func TestServeKargo(t *testing.T) {
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys")
	if err := os.Mkdir(keys, 0o700); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {"token": "t"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stderr, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, NewRoot, []string{
			"serve", "--kargo", "--work-root", dir, "--kubeconfig", kubeconfig, "--public-keys", keys,
			"--http", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--drain", "1s",
		}, cli.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: w})
		w.Close()
	}()
	addresses := map[string]string{}
	warned := false
	lines := bufio.NewScanner(stderr)
	for len(addresses) < 2 && lines.Scan() {
		t.Log(lines.Text())
		var what, address string
		if _, err := fmt.Sscanf(lines.Text(), "serving %s at tcp %s", &what, &address); err == nil {
			addresses[what] = address
		}
		warned = warned || strings.Contains(lines.Text(), "no step will run until there is a key")
	}
	if len(addresses) < 2 {
		t.Fatalf("it did not say where it listens; exit code %d", <-code)
	}
	if !warned {
		t.Error("it did not say that there is no key")
	}
	go io.Copy(io.Discard, stderr)

	status := func(address, path string) int {
		t.Helper()
		resp, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	metrics := addresses["metrics"]
	if alive, ready := status(metrics, "/healthz"), status(metrics, "/readyz"); alive != 204 || ready != 503 {
		t.Errorf("without a key: alive %d, ready %d", alive, ready)
	}
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	// Written aside and renamed, as a ConfigMap is: never half a key.
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "new.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "new.pem"), filepath.Join(keys, "new.pem")); err != nil {
		t.Fatal(err)
	}
	for tick := time.Tick(50 * time.Millisecond); status(metrics, "/readyz") != 204; <-tick {
		if t.Context().Err() != nil {
			t.Fatal("it does not see the key")
		}
	}
	resp, err := http.Post("http://"+addresses["kargo"]+"/v1/steps/atomic-commit", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(string(body), `{"status":"Failed",`) {
		t.Errorf("without a token: %d %s, %v", resp.StatusCode, body, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "stepd")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the state directory: %v, %v", info, err)
	}
	stop()
	if got := <-code; got != cli.ExitOK {
		t.Errorf("exit code %d", got)
	}
}
