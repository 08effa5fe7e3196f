package sidecar_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepd/stepd/kargo/sidecar"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/steps"
)

func TestListen(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:0": true, "127.0.0.9:0": true, "[::1]:0": true,
		"0.0.0.0:0": false, "[::]:0": false, ":0": false, "localhost:0": false, "192.0.2.1:0": false, "unix:/x": false, "": false,
	} {
		l, err := sidecar.Listen(t.Context(), address)
		if strings.HasPrefix(address, "[::1]") && err != nil && strings.Contains(err.Error(), "assign requested address") {
			continue // no IPv6 here
		}
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if l != nil {
			l.Close()
		}
	}
}

// serve runs the bench's sidecar on loopback and returns its URL.
func (b *bench) serve(t *testing.T) string {
	t.Helper()
	l, err := sidecar.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.server.Serve(ctx, l, time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

// over sends a promotion's request over the network.
func (p *promotion) over(client *http.Client, url string) (int, wire.Answer, error) {
	r := p.request()
	var err error
	if r.URL, err = r.URL.Parse(url + r.URL.Path); err != nil {
		return 0, wire.Answer{}, err
	}
	r.RequestURI = ""
	resp, err := client.Do(r)
	if err != nil {
		return 0, wire.Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, wire.Answer{}, err
	}
	return resp.StatusCode, p.b.parse(resp.StatusCode, body), nil
}

func TestServe(t *testing.T) {
	b := newBench(t)
	url := b.serve(t)
	if code, a, err := b.promote("acme", "p1").over(http.DefaultClient, url); err != nil || code != http.StatusOK || a.Status != steps.Succeeded {
		t.Errorf("answered %d, %s: %v", code, a.Message, err)
	}
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("/metrics is at the address of steps: %d", resp.StatusCode)
	}
}

// TestSlowBody: a body that does not come is not waited for. Time is a pipe's,
// so nobody really waits.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		l := newPipeListener()
		server := b.server.HTTPServer(b.server)
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(l) }()
		p := b.promote("acme", "p1")
		for reason, rest := range map[string]string{"no body": "", "half a body": `{"attempt":`} {
			conn := l.dial()
			begin := time.Now()
			go fmt.Fprintf(conn, "POST /v1/steps/probe HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: %s\r\nContent-Length: 1000\r\n\r\n%s",
				wire.Bearer(p.token), rest)
			answer, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408") || !strings.Contains(string(answer), `{"status":"Failed"`) {
				t.Errorf("%s: %q, %v", reason, answer, err)
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("%s: after %s", reason, took)
			}
			conn.Close()
		}
		// Headers that do not come end the connection.
		conn := l.dial()
		go fmt.Fprint(conn, "POST /v1/steps/probe HTTP/1.1\r\nHost:")
		begin := time.Now()
		if _, err := io.ReadAll(conn); err != nil || time.Since(begin) > 20*time.Second {
			t.Errorf("headers: %v after %s", err, time.Since(begin))
		}
		// A request that waits longer than its body may take is not cut off.
		step := newSlow()
		b.does(step.run)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return l.dial(), nil }}}
		go func() {
			time.Sleep(40 * time.Second)
			close(step.release)
		}()
		if code, a, err := p.over(client, "http://x"); err != nil || code != http.StatusOK || a.Message != "released" {
			t.Errorf("a long wait: %d, %s, %v", code, a.Message, err)
		}
		b.server.Drain(0)
		server.Close()
		<-ended
	})
}

// pipeListener accepts connections that are made in memory.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{make(chan net.Conn), make(chan struct{})}
}

func (l *pipeListener) dial() net.Conn {
	near, far := net.Pipe()
	l.conns <- far
	return near
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestObservability(t *testing.T) {
	b := newBench(t)
	p := b.promote("acme", "p1")
	p.post()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		b.server.Observability().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	_, text := get("/metrics")
	for _, want := range []string{
		`stepd_step_runs_total{kind="probe",status="Succeeded"} 1`, `stepd_kargo_requests_total{code="200",status="Succeeded"} 1`,
		`stepd_kargo_operations_total{kind="probe",status="Succeeded"} 1`, `stepd_kargo_operations 0`, `stepd_build_info{version="test"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	for path, want := range map[string]int{"/healthz": 204, "/readyz": 204} {
		if code, _ := get(path); code != want {
			t.Errorf("%s: %d", path, code)
		}
	}
	keys := b.keys
	b.keys = nil
	if code, _ := get("/readyz"); code != 503 {
		t.Errorf("ready without keys: %d", code)
	}
	b.keys = keys
	b.server.Drain(0)
	if code, _ := get("/readyz"); code != 503 {
		t.Errorf("ready while draining: %d", code)
	}
	if code, _ := get("/healthz"); code != 204 {
		t.Errorf("dead while draining: %d", code)
	}
}

func publicPEM(t *testing.T) (ed25519.PublicKey, string) {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return public, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// TestKeyDir is a ConfigMap as the kubelet mounts it: files are symlinks
// through ..data, which is exchanged at once.
func TestKeyDir(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		generation := 0
		mount := func(files map[string]string) {
			t.Helper()
			generation++
			name := fmt.Sprintf("..%d", generation)
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			for f, text := range files {
				if err := os.WriteFile(filepath.Join(dir, name, f), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				_ = os.Symlink(filepath.Join("..data", f), filepath.Join(dir, f)) // may be there
			}
			if err := os.Symlink(name, filepath.Join(dir, "..next")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, "..data")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		first, firstPEM := publicPEM(t)
		second, secondPEM := publicPEM(t)
		keys := &sidecar.KeyDir{Path: dir}
		want := func(reason string, want ...ed25519.PublicKey) {
			t.Helper()
			got, err := keys.Keys()
			if (err != nil) != (len(want) == 0) || len(got) != len(want) {
				t.Errorf("%s: %d keys, %v; want %d", reason, len(got), err, len(want))
				return
			}
			for i := range want {
				if !got[i].Equal(want[i]) {
					t.Errorf("%s: key %d is another", reason, i)
				}
			}
		}
		want("an empty directory")
		mount(map[string]string{"a.pem": firstPEM})
		want("one", first)
		mount(map[string]string{"a.pem": firstPEM, "b.pem": secondPEM})
		want("a new one beside it", first, second)
		mount(map[string]string{"a.pem": secondPEM + firstPEM, "b.pem": "no key"})
		want("two in a file, and a bad file", second, first)
		mount(map[string]string{"a.pem": secondPEM, "b.pem": secondPEM})
		want("the old one is gone", second, second)
		_, private, _ := ed25519.GenerateKey(rand.Reader)
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		mount(map[string]string{"a.pem": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "b.pem": ""})
		want("a private key is none")
		mount(map[string]string{"a.pem": firstPEM, "b.pem": strings.Repeat("x", 70<<10)})
		want("one is too long", first)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		want("no directory")
	})
}
