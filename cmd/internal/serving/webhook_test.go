package serving

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/cmd/internal/cli"
)

// webhookFiles makes a certificate for 127.0.0.1 and a signing key.
func webhookFiles(t *testing.T) (dir string, roots *x509.CertPool) {
	t.Helper()
	dir = t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	_, signing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]any{"tls.key": key, "signing.pem": signing, "tls.crt": der} {
		block := &pem.Block{Type: "CERTIFICATE", Bytes: der}
		if name != "tls.crt" {
			block.Type = "PRIVATE KEY"
			if block.Bytes, err = x509.MarshalPKCS8PrivateKey(content); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(parsed)
	return dir, roots
}

// TestWebhook starts the command with files, away from any cluster, and asks it
// about a Promotion and a Stage.
func TestWebhook(t *testing.T) {
	dir, roots := webhookFiles(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stderr, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, NewRoot, []string{
			"webhook", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--leave", "0s",
			"--tls-cert", filepath.Join(dir, "tls.crt"), "--tls-key", filepath.Join(dir, "tls.key"),
			"--signing-key", filepath.Join(dir, "signing.pem"), "--sidecar-url", "http://127.0.0.1:1234/",
		}, cli.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: w})
		w.Close()
	}()
	addresses := map[string]string{}
	lines := bufio.NewScanner(stderr)
	for len(addresses) < 2 && lines.Scan() {
		var what, network, address string
		if _, err := fmt.Sscanf(lines.Text(), "serving %s at %s %s", &what, &network, &address); err == nil {
			addresses[what] = address
		}
	}
	if len(addresses) < 2 {
		t.Fatalf("webhook did not say where it listens; exit code %d", <-code)
	}
	go io.Copy(io.Discard, stderr)

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	defer client.CloseIdleConnections()
	ask := func(path, resource, object string) (allowed bool, message, patch string) {
		t.Helper()
		body := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE","namespace":"acme",
			"resource":{"group":"kargo.akuity.io","version":"v1alpha1","resource":"` + resource + `"},"object":` + object + `}}`
		resp, err := client.Post("https://"+addresses["webhooks"]+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var out struct {
			Response struct {
				Allowed bool
				Patch   []byte
				Status  struct{ Message string }
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		return out.Response.Allowed, out.Response.Status.Message, string(out.Response.Patch)
	}
	for _, kind := range []string{"oci-download-verified", "config-apply", "atomic-commit"} {
		allowed, message, patch := ask("/mutate", "promotions",
			`{"metadata":{"name":"p","namespace":"acme"},"spec":{"steps":[{"uses":"`+kind+`","as":"a"}]}}`)
		if !allowed || !strings.Contains(patch, "http://127.0.0.1:1234/v1/steps/"+kind) {
			t.Errorf("%s: %t %s %s", kind, allowed, message, patch)
		}
		allowed, message, _ = ask("/validate", "stages",
			`{"metadata":{"name":"s","namespace":"acme"},"spec":{"promotionTemplate":{"spec":{"steps":[{"uses":"`+kind+`","as":"a","config":{"nonsense":1}}]}}}}`)
		if allowed || !strings.Contains(message, "nonsense is not allowed") {
			t.Errorf("%s: %t %s", kind, allowed, message)
		}
	}
	resp, err := http.Get("http://" + addresses["metrics"] + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent || !bytes.Equal(text, nil) {
		t.Errorf("/readyz says %d %s", resp.StatusCode, text)
	}
	stop()
	if c := <-code; c != cli.ExitOK {
		t.Errorf("exit code %d after a drain", c)
	}
}
