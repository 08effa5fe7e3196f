package admission

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
)

// running is a webhook that serves.
type running struct {
	address, observe string
	stop             context.CancelFunc
	ended            chan error
}

func start(t *testing.T, o Options) *running {
	t.Helper()
	base := testServer(t)
	o.Rewriter, o.Registry = base.Rewriter, base.Registry
	o.Listen, o.Observe = "127.0.0.1:0", "127.0.0.1:0"
	o.Log = slog.New(slog.DiscardHandler)
	if o.Drain == 0 {
		o.Drain = 10 * time.Second
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &running{stop: stop, ended: make(chan error, 1)}
	listening := make(chan [2]net.Addr, 1)
	o.Listening = func(listen, observe net.Addr) { listening <- [2]net.Addr{listen, observe} }
	go func() { r.ended <- Serve(ctx, o) }()
	select {
	case at := <-listening:
		r.address, r.observe = at[0].String(), at[1].String()
	case err := <-r.ended:
		t.Fatalf("it does not serve: %v", err)
	}
	t.Cleanup(func() {
		stop()
		if err := <-r.ended; err != nil {
			t.Errorf("it ended with %v", err)
		}
		close(r.ended)
	})
	return r
}

// ready polls until the webhook says what is wanted.
func (r *running) ready(t *testing.T, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.observe+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == want {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("it says %d %s", resp.StatusCode, text)
		}
	}
}

// apiServerClient calls webhooks as the API server does: it trusts the caBundle
// and nothing else, and asks for the name of the Service.
func apiServerClient(bundle []byte) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
	}}
}

// call also returns the protocols that were spoken, "HTTP/2.0 TLS 1.3".
func call(t *testing.T, c *http.Client, address, path string, body any) (*admissionv1.AdmissionReview, string, error) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Post("https://"+address+path+"?timeout=10s", "application/json", bytes.NewReader(text))
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	var out admissionv1.AdmissionReview
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return &out, resp.Proto + " " + tls.VersionName(resp.TLS.Version), nil
}

// TestServeManaged starts two replicas on empty objects and calls both as the
// API server would.
func TestServeManaged(t *testing.T) {
	s := newAPIServer(t)
	now := &clock{t: time.Now()}
	var replicas []*running
	for range 2 {
		m := replica(t, s, now)
		replicas = append(replicas, start(t, Options{Certificates: m, Keys: m, Managed: m}))
	}
	for _, r := range replicas {
		r.ready(t, http.StatusNoContent)
	}
	for _, bundle := range s.bundles(t) {
		for _, r := range replicas {
			c := apiServerClient(bundle)
			out, spoken, err := call(t, c, r.address, MutatePath, review(t, admissionv1.Create, "promotions", promotion, ""))
			if err != nil {
				t.Fatal(err)
			}
			if spoken != "HTTP/2.0 TLS 1.3" || !out.Response.Allowed || len(out.Response.Patch) == 0 {
				t.Errorf("%s: %+v", spoken, out.Response)
			}
			out, _, err = call(t, c, r.address, ValidatePath, review(t, admissionv1.Create, "stages", stage(`{uses: config-apply}`), ""))
			if err != nil || out.Response.Allowed {
				t.Errorf("%v: %+v", err, out)
			}
		}
	}
	if _, _, err := call(t, apiServerClient(nil), replicas[0].address, MutatePath, nil); err == nil {
		t.Error("a client that trusts nobody was served")
	}
	if len(s.forbidden) > 0 {
		t.Errorf("the webhook asked for more than it may: %v", s.forbidden)
	}
}

// TestNothingYet has a webhook that cannot reach the API server: it neither
// handshakes nor is it ready, but it lives.
func TestNothingYet(t *testing.T) {
	s := newAPIServer(t)
	s.refuse = func(string, string) bool { return true }
	m := replica(t, s, &clock{t: time.Now()})
	r := start(t, Options{Certificates: m, Keys: m, Managed: m})
	r.ready(t, http.StatusServiceUnavailable)
	resp, err := http.Get("http://" + r.observe + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("/healthz says %d", resp.StatusCode)
	}
	if _, _, err := call(t, apiServerClient(nil), r.address, MutatePath, nil); err == nil {
		t.Error("it serves without a certificate")
	}
}

// TestLeaving has a request that takes until after the signal to end: it is
// answered, the webhook is not ready meanwhile, and new connections are taken
// for as long as Leave says.
func TestLeaving(t *testing.T) {
	s := newAPIServer(t)
	m := replica(t, s, &clock{t: time.Now()})
	mustSync(t, m)
	keys := &slowKeys{KeySource: m, asked: make(chan struct{}, 1), answer: make(chan struct{})}
	leave := make(chan time.Time)
	r := start(t, Options{Certificates: m, Keys: keys, Managed: m, Leave: time.Minute, after: func(d time.Duration) <-chan time.Time {
		if d != time.Minute {
			t.Errorf("it leaves for %s", d)
		}
		return leave
	}})
	r.ready(t, http.StatusNoContent)
	keys.slow.Store(true)
	answers := make(chan *admissionv1.AdmissionReview, 1)
	body := review(t, admissionv1.Create, "promotions", promotion, "")
	bundle := s.bundles(t)[0]
	go func() {
		out, _, err := call(t, apiServerClient(bundle), r.address, MutatePath, body)
		if err != nil {
			t.Error(err)
		}
		answers <- out
	}()
	<-keys.asked
	r.stop()
	r.ready(t, http.StatusServiceUnavailable)
	out, _, err := call(t, apiServerClient(bundle), r.address, ValidatePath, review(t, admissionv1.Create, "stages", stage(apply), ""))
	if err != nil || out.Response == nil {
		t.Errorf("a new connection while leaving: %v", err)
	}
	close(leave)
	for { // until it takes no new connections
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			break
		}
		c.Close()
	}
	close(keys.answer)
	if out := <-answers; out == nil || !out.Response.Allowed {
		t.Errorf("the request that was running got %+v", out)
	}
}

// slowKeys have to be waited for once.
type slowKeys struct {
	KeySource
	slow          atomic.Bool // for whoever asks next
	asked, answer chan struct{}
}

func (k *slowKeys) SigningKey() (ed25519.PrivateKey, error) {
	if k.slow.CompareAndSwap(true, false) {
		k.asked <- struct{}{}
		<-k.answer
	}
	return k.KeySource.SigningKey()
}
