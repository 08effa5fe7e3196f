// Package apiserver runs a real Kubernetes API, with no cluster behind it: etcd
// and kube-apiserver as processes on loopback. There are no controllers, so
// nothing is garbage collected and namespaces never finish deleting; and no
// nodes, so nothing is scheduled. What is installed into it is its users'
// business.
package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/stepd/stepd/e2e/process"
	"github.com/stepd/stepd/e2e/tools"
)

// Admin is the user who may do everything.
const Admin = "admin"

// Server is a running API server.
type Server struct {
	// URL is where it listens: https and a loopback address.
	URL string

	dir       string
	ca        []byte
	tokens    map[string]string
	etcd, api *process.Process
}

// Start builds what the cache lacks (minutes) and starts the server (seconds)
// with its files in dir, a folder of its own. It knows Admin and the users;
// RBAC gives them nothing. Close it.
func Start(ctx context.Context, dir string, users ...string) (_ *Server, err error) {
	etcd, err := tools.Etcd(ctx)
	if err != nil {
		return nil, err
	}
	api, err := tools.KubeAPIServer(ctx)
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, tokens: map[string]string{}}
	for _, u := range append([]string{Admin}, users...) {
		s.tokens[u] = rand.Text()
	}
	if err := s.writeFiles(); err != nil {
		return nil, err
	}
	const attempts = 3 // for a port may be taken before it is used
	for range attempts {
		if err = s.start(ctx, etcd, api); err == nil || ctx.Err() != nil {
			break
		}
		s.Close()
	}
	return s, err
}

// Close ends the server. Its state is worth nothing, so it is not asked.
func (s *Server) Close() {
	for _, p := range []*process.Process{s.api, s.etcd} {
		if p != nil {
			p.Kill()
		}
	}
	s.api, s.etcd = nil, nil
}

// Config is how user reaches the server.
func (s *Server) Config(user string) *rest.Config {
	return &rest.Config{
		Host: s.URL, BearerToken: s.tokens[user], TLSClientConfig: rest.TLSClientConfig{CAData: s.ca},
		QPS: -1, // the test's own machine needs no protection
	}
}

// Kubeconfig writes user's kubeconfig file and returns its path.
func (s *Server) Kubeconfig(user string) (string, error) {
	path := filepath.Join(s.dir, user+".kubeconfig")
	return path, clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: s.URL, CertificateAuthorityData: s.ca}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: s.tokens[user]}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, path)
}

// writeFiles makes what the server reads: users with their tokens, and the key
// of service accounts, without which it does not start.
func (s *Server) writeFiles() error {
	var users strings.Builder
	for user, token := range s.tokens {
		groups := ""
		if user == Admin {
			groups = ",system:masters"
		}
		fmt.Fprintf(&users, "%s,%s,%s%s\n", token, user, hex.EncodeToString([]byte(user)), groups)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("cannot make a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("cannot encode the key: %w", err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(s.dir, "users.csv"), []byte(users.String()), 0o600),
		os.WriteFile(filepath.Join(s.dir, "sa.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600),
	)
}

func (s *Server) start(ctx context.Context, etcd, api string) error {
	ports, err := process.FreePorts(3)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(s.dir, "etcd")); err != nil { // of an attempt before
		return fmt.Errorf("cannot clear etcd's folder: %w", err)
	}
	client, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	alive := context.WithoutCancel(ctx) // until Close
	s.etcd, err = process.Start("etcd", exec.CommandContext(alive, etcd,
		"--data-dir", filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer))
	if err != nil {
		return err
	}
	if err := s.etcd.Ready(ctx, process.OK(nil, client+"/health")); err != nil {
		return err
	}
	certs := filepath.Join(s.dir, "certs")
	s.api, err = process.Start("kube-apiserver", exec.CommandContext(alive, api,
		"--etcd-servers", client, "--bind-address", "127.0.0.1", "--secure-port", ports[2], "--cert-dir", certs,
		"--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.0.0.0/24",
		"--token-auth-file", filepath.Join(s.dir, "users.csv"), "--authorization-mode", "RBAC",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", filepath.Join(s.dir, "sa.key"), "--service-account-signing-key-file", filepath.Join(s.dir, "sa.key"),
		"--disable-admission-plugins", "ServiceAccount", // nothing makes the accounts it waits for
	))
	if err != nil {
		return err
	}
	s.URL = "https://127.0.0.1:" + ports[2]
	return s.api.Ready(ctx, s.ready(filepath.Join(certs, "apiserver.crt")))
}

// ready checks that the server, which makes its own certificate, answers.
func (s *Server) ready(certificate string) func(context.Context) error {
	return func(ctx context.Context) error {
		var err error
		if s.ca, err = os.ReadFile(certificate); err != nil {
			return err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(s.ca)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
		defer transport.CloseIdleConnections()
		return process.OK(&http.Client{Transport: transport, Timeout: 10 * time.Second}, s.URL+"/readyz")(ctx)
	}
}
