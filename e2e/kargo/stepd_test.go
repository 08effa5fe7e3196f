package kargo_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/stepd/stepd/e2e/process"
	"github.com/stepd/stepd/e2e/tools"
)

var quiet = log.New(io.Discard, "", 0)

type stepdOptions struct {
	bin, dir, workRoot           string
	sidecarConfig, webhookConfig string // kubeconfig files
	webhookHost, webhookPort     string // where the API server reaches the webhook
}

// stepd is what the suite runs of stepd: the webhook, registered in the
// cluster, and the sidecar, with front before it. Tests may stop and start both.
type stepd struct {
	stepdOptions
	client client.Client
	front  *front
	// webhookURL is where the API server finds the webhook, whenever it runs.
	webhookURL string

	// signingKey is the name of the key that the webhook signs with.
	signingKey string

	webhook, sidecar *process.Process
	closers          []func()
}

// startStepd starts both and registers the webhook, under a name that sorts
// after Kargo's.
func startStepd(ctx context.Context, c client.Client, o stepdOptions) (_ *stepd, err error) {
	s := &stepd{stepdOptions: o, client: c, front: startFront()}
	s.closers = append(s.closers, s.front.srv.Close)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for _, d := range []string{s.dir, s.path("state"), s.path("trust"), s.path("keys"), s.path("home")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	if s.webhookPort == "0" {
		ports, err := process.FreePorts(1)
		if err != nil {
			return nil, err
		}
		s.webhookPort = ports[0]
	}
	s.webhookURL = "https://" + net.JoinHostPort(s.webhookHost, s.webhookPort)
	if err := s.makeCertificate(); err != nil {
		return nil, err
	}
	if err := s.newSigningKey("current"); err != nil {
		return nil, err
	}
	if err := s.startWebhook(ctx); err != nil {
		return nil, err
	}
	if err := s.startSidecar(ctx); err != nil {
		return nil, err
	}
	if err := s.register(ctx); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.unregister(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "cannot remove the webhook configurations:", err)
		}
	})
	return s, nil
}

func (s *stepd) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *stepd) close() {
	for _, p := range []*process.Process{s.webhook, s.sidecar} {
		if p != nil {
			p.Kill()
		}
	}
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
}

func (s *stepd) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), s.bin, args...)
	home := s.path("home")
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + s.workRoot,
		"XDG_CACHE_HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_STATE_HOME=" + home, "GIT_CONFIG_NOSYSTEM=1",
	}
	return cmd
}

// startWebhook starts the webhook, with certificate and key from files, and
// waits until the API server could call it.
func (s *stepd) startWebhook(ctx context.Context) (err error) {
	s.webhook, err = process.Start("stepd webhook", s.command(ctx, "webhook",
		"--listen", net.JoinHostPort(s.webhookHost, s.webhookPort), "--sidecar-url", s.front.srv.URL,
		"--tls-cert", s.path("webhook.crt"), "--tls-key", s.path("webhook.key"), "--signing-key", s.path("keys", "signing.key"),
		"--kubeconfig", s.webhookConfig, "--leave", "0s"))
	if err != nil {
		return err
	}
	return s.webhook.Ready(ctx, listening(net.JoinHostPort(s.webhookHost, s.webhookPort)))
}

// listening is a check for process.Ready: somebody speaks TLS there.
func listening(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // is anybody there?
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// startSidecar starts the sidecar, waits for it, and sends requests there.
func (s *stepd) startSidecar(ctx context.Context) error {
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	address := "127.0.0.1:" + ports[0]
	s.sidecar, err = process.Start("stepd serve --kargo", s.command(ctx, "serve", "--kargo",
		"--http", address, "--kubeconfig", s.sidecarConfig, "--public-keys", s.path("keys", "public"),
		"--work-root", s.workRoot, "--state-dir", s.path("state"), "--trust-dir", s.path("trust"), "--log-level", "INFO"))
	if err != nil {
		return err
	}
	if err := s.sidecar.Ready(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close() // any answer will do
	}); err != nil {
		return err
	}
	return s.front.forward("http://" + address)
}

// register registers the webhook with the configurations that are installed,
// at the address where it runs. They must not be there before: the suite
// would remove what somebody else needs.
func (s *stepd) register(ctx context.Context) error {
	certificate, err := os.ReadFile(s.path("webhook.crt"))
	if err != nil {
		return err
	}
	configurations, err := s.configurations(s.webhookURL)
	if err != nil {
		return err
	}
	for _, u := range configurations {
		for _, w := range u.Object["webhooks"].([]any) {
			w.(map[string]any)["clientConfig"].(map[string]any)["caBundle"] = base64Text(certificate)
		}
		if err := s.client.Create(ctx, u); err != nil {
			return fmt.Errorf("cannot register the webhook: %w", err)
		}
	}
	return nil
}

// unregister takes them away again.
func (s *stepd) unregister(ctx context.Context) error {
	configurations, err := s.configurations(s.webhookURL)
	if err != nil {
		return err
	}
	for _, u := range configurations {
		err = errors.Join(err, client.IgnoreNotFound(s.client.Delete(ctx, u)))
	}
	return err
}

// configurations are the webhook configurations that are installed, for a
// webhook at a URL instead of a Service.
func (s *stepd) configurations(at string) ([]*unstructured.Unstructured, error) {
	file, err := example("kargo", "webhook", "admission.yaml")
	if err != nil {
		return nil, err
	}
	list, err := objects(file)
	for _, u := range list {
		webhooks, _ := u.Object["webhooks"].([]any)
		for _, w := range webhooks {
			w, _ := w.(map[string]any)
			path, _, _ := unstructured.NestedString(w, "clientConfig", "service", "path")
			w["clientConfig"] = map[string]any{"url": at + path}
		}
	}
	return list, err
}

// example is a file of the examples.
func example(elem ...string) (string, error) {
	root, err := tools.Checkout()
	return filepath.Join(append([]string{root, "examples"}, elem...)...), err
}

// newSigningKey makes the webhook's key and adds the public one, by name, to
// those that the sidecar knows.
func (s *stepd) newSigningKey(name string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.path("keys", "public"), 0o700); err != nil {
		return err
	}
	publicDER, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	s.signingKey = name
	return errors.Join(
		replace(s.path("keys", "public", name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER})),
		replace(s.path("keys", "signing.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER})),
	)
}

// retireSigningKey makes the sidecar forget a key.
func (s *stepd) retireSigningKey(name string) error {
	return os.Remove(s.path("keys", "public", name+".pem"))
}

func (s *stepd) makeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stepd-webhook"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(s.webhookHost); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{s.webhookHost}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		replace(s.path("webhook.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		replace(s.path("webhook.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})),
	)
}

// peakMemory is the most memory that the sidecar has had resident, in bytes.
func (s *stepd) peakMemory() (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", s.sidecar.Pid()))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			var kib int64
			_, err := fmt.Sscanf(rest, "%d kB", &kib)
			return kib << 10, err
		}
	}
	return 0, errors.New("the kernel does not say")
}

// replace writes a file so that readers see all of it or what was there before.
func replace(path string, content []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
