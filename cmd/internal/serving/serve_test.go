package serving

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/cmd/internal/cli"
)

func TestServe(t *testing.T) {
	root := t.TempDir()
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	ctx, stop := context.WithCancel(t.Context())
	stderr, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, NewRoot, []string{
			"serve", "--work-root", root, "--http", "127.0.0.1:0", "--insecure", "--metrics", "127.0.0.1:0",
		}, cli.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: w})
		w.Close()
	}()
	addresses := map[string]string{}
	lines := bufio.NewScanner(stderr)
	for len(addresses) < 2 && lines.Scan() {
		t.Log(lines.Text())
		var what, network, address string
		if _, err := fmt.Sscanf(lines.Text(), "serving %s at %s %s", &what, &network, &address); err == nil {
			addresses[what] = address
		}
	}
	if len(addresses) < 2 {
		t.Fatalf("serve did not say where it listens; exit code %d", <-code)
	}
	go io.Copy(io.Discard, stderr)

	work := filepath.Join(root, "promotion-1")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "in.yaml"), []byte("image:\n  tag: \"1\" # keep\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	post := func(kind, body string) map[string]any {
		t.Helper()
		resp, err := http.Post("http://"+addresses["http"]+"/v1/steps/"+kind, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	answer := post("config-apply", fmt.Sprintf(`{
		"config": {"inPath": "in.yaml", "outPath": "out.yaml", "updates": [{"key": "image.tag", "value": "2"}]},
		"context": {"workDir": %q, "project": "acme", "promotion": "p1", "alias": "apply"}}`, work))
	if answer["status"] != "Succeeded" {
		t.Errorf("config-apply answered %v", answer)
	}
	if got, err := os.ReadFile(filepath.Join(work, "out.yaml")); err != nil || string(got) != "image:\n  tag: \"2\" # keep\n" {
		t.Errorf("it wrote %q, %v", got, err)
	}
	// Builtin steps of Kargo's are for local runs: a server would be a proxy.
	if answer := post("http", fmt.Sprintf(`{"config": {"url": "http://127.0.0.1"}, "context": {"workDir": %q}}`, work)); answer["status"] != "Errored" {
		t.Errorf("the http step answered %v", answer)
	}
	// A file of trust is found below the trust directory or nowhere.
	answer = post("oci-download-verified", fmt.Sprintf(`{
		"config": {"imageRef": "127.0.0.1:1/a:b", "outPath": "o", "verify": {"keys": [{"path": "/etc/hostname"}]}},
		"context": {"workDir": %q, "configFile": "/etc/passwd", "project": "acme", "promotion": "p1", "alias": "get"}}`, work))
	if message, _ := answer["message"].(string); !strings.Contains(message, "trust directory") {
		t.Errorf("a key outside the trust directory: %v", answer)
	}
	resp, err := http.Get("http://" + addresses["metrics"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(metrics), `stepd_step_runs_total{kind="config-apply",status="Succeeded"} 1`) {
		t.Errorf("the run is not counted: %v", err)
	}
	stop()
	if c := <-code; c != cli.ExitOK {
		t.Errorf("exit code %d after a drain", c)
	}
}
