package argocd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/yaml"
)

// Connect reads a kubeconfig file and returns a client for the API server of a
// context, and the server's URL. An empty contextName is the current context.
//
// It understands certificates, bearer tokens, basic authentication, exec
// credential plugins, proxies and server names; not the auth-provider plugins
// that Kubernetes dropped in 1.26. Nothing is contacted yet.
func Connect(path, contextName string) (client *http.Client, server string, err error) {
	fail := func(err error) (*http.Client, string, error) {
		return nil, "", fmt.Errorf("cannot use kubeconfig %s: %w", path, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, "", fmt.Errorf("cannot read kubeconfig: %w", err)
	}
	var file kubeconfig
	if err := yaml.Unmarshal(text, &file); err != nil {
		return fail(err)
	}
	cluster, user, err := file.choose(contextName)
	if err != nil {
		return fail(err)
	}
	dir := filepath.Dir(path)
	config, err := cluster.tls(dir)
	if err != nil {
		return fail(err)
	}
	if err := user.certificate(dir, config); err != nil {
		return fail(err)
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
	}
	if cluster.ProxyURL != "" {
		proxy, err := url.Parse(cluster.ProxyURL)
		if err != nil {
			return fail(err)
		}
		transport.Proxy = http.ProxyURL(proxy)
	}
	base, err := url.Parse(cluster.Server)
	if err != nil || base.Host == "" {
		return fail(fmt.Errorf("the server %q is not a URL", cluster.Server))
	}
	if base.Scheme != "https" && user.secret() {
		return fail(errors.New("the server's URL is not https, so credentials would be sent in the clear"))
	}
	auth := &authenticator{next: transport, host: base.Host, user: user, dir: dir}
	if user.Exec != nil {
		config.GetClientCertificate = auth.certificate
	}
	return &http.Client{Transport: auth, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("the Kubernetes API redirects")
	}}, cluster.Server, nil
}

type kubeconfig struct {
	CurrentContext string `json:"current-context"`
	Contexts       []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster string `json:"cluster"`
			User    string `json:"user"`
		} `json:"context"`
	} `json:"contexts"`
	Clusters []struct {
		Name    string  `json:"name"`
		Cluster cluster `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		Name string `json:"name"`
		User user   `json:"user"`
	} `json:"users"`
}

type cluster struct {
	Server                string `json:"server"`
	CAFile                string `json:"certificate-authority"`
	CAData                []byte `json:"certificate-authority-data"`
	InsecureSkipTLSVerify bool   `json:"insecure-skip-tls-verify"`
	TLSServerName         string `json:"tls-server-name"`
	ProxyURL              string `json:"proxy-url"`
}

type user struct {
	CertFile     string          `json:"client-certificate"`
	CertData     []byte          `json:"client-certificate-data"`
	KeyFile      string          `json:"client-key"`
	KeyData      []byte          `json:"client-key-data"`
	Token        string          `json:"token"`
	TokenFile    string          `json:"tokenFile"`
	Username     string          `json:"username"`
	Password     string          `json:"password"`
	AuthProvider json.RawMessage `json:"auth-provider"`
	Exec         *execPlugin     `json:"exec"`
}

type execPlugin struct {
	APIVersion string   `json:"apiVersion"`
	Command    string   `json:"command"`
	Args       []string `json:"args"`
	Env        []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
}

// choose finds the cluster and the user of a context.
func (k kubeconfig) choose(name string) (*cluster, *user, error) {
	if name == "" {
		name = k.CurrentContext
	}
	for _, c := range k.Contexts {
		if c.Name != name {
			continue
		}
		for _, cl := range k.Clusters {
			if cl.Name != c.Context.Cluster {
				continue
			}
			for _, u := range k.Users {
				if u.Name == c.Context.User {
					if len(u.User.AuthProvider) > 0 {
						return nil, nil, fmt.Errorf("user %q has an auth-provider, which Kubernetes no longer has; use exec or a token", u.Name)
					}
					return &cl.Cluster, &u.User, nil
				}
			}
			return nil, nil, fmt.Errorf("context %q names user %q, which is not there", name, c.Context.User)
		}
		return nil, nil, fmt.Errorf("context %q names cluster %q, which is not there", name, c.Context.Cluster)
	}
	if name == "" {
		return nil, nil, errors.New("it has no current context")
	}
	return nil, nil, fmt.Errorf("it has no context %q", name)
}

func (c *cluster) tls(dir string) (*tls.Config, error) {
	config := &tls.Config{ServerName: c.TLSServerName, MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.InsecureSkipTLSVerify} //nolint:gosec // as the file says
	ca, err := dataOrFile(c.CAData, dir, c.CAFile)
	if err != nil || ca == nil {
		return config, err
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return nil, errors.New("the certificate authority is not a PEM certificate")
	}
	return config, nil
}

func (u *user) certificate(dir string, config *tls.Config) error {
	cert, err := dataOrFile(u.CertData, dir, u.CertFile)
	if err != nil || cert == nil {
		return err
	}
	key, err := dataOrFile(u.KeyData, dir, u.KeyFile)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("the client certificate: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return nil
}

// secret tells whether requests carry something to keep from others.
func (u *user) secret() bool {
	return u.Token != "" || u.TokenFile != "" || u.Password != "" || u.Exec != nil
}

// dataOrFile prefers inline data; a file is relative to the kubeconfig.
func dataOrFile(data []byte, dir, file string) ([]byte, error) {
	if len(data) > 0 || file == "" {
		return data, nil
	}
	return os.ReadFile(relative(dir, file))
}

func relative(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}

// authenticator adds the user's credentials to requests to the API server.
type authenticator struct {
	next *http.Transport
	host string
	user *user
	dir  string

	mu      sync.Mutex
	token   string          // from the exec plugin
	pair    tls.Certificate // from the exec plugin
	asked   bool
	expires time.Time
}

// RoundTrip implements http.RoundTripper.
func (a *authenticator) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != a.host {
		return nil, fmt.Errorf("%s is not the API server", req.URL.Host)
	}
	token, err := a.bearer(req.Context())
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	switch {
	case token != "":
		req.Header.Set("Authorization", "Bearer "+token)
	case a.user.Password != "":
		req.SetBasicAuth(a.user.Username, a.user.Password)
	}
	return a.next.RoundTrip(req)
}

func (a *authenticator) bearer(ctx context.Context) (string, error) {
	switch {
	case a.user.Token != "":
		return a.user.Token, nil
	case a.user.TokenFile != "": // read each time: such tokens are rotated
		text, err := os.ReadFile(relative(a.dir, a.user.TokenFile))
		if err != nil {
			return "", fmt.Errorf("cannot read the token file: %w", err)
		}
		return strings.TrimSpace(string(text)), nil
	case a.user.Exec == nil:
		return "", nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked && (a.expires.IsZero() || time.Now().Before(a.expires.Add(-10*time.Second))) {
		return a.token, nil
	}
	status, err := a.user.Exec.run(ctx, a.dir)
	if err != nil {
		return "", err
	}
	if status.ClientCertificateData != "" {
		pair, err := tls.X509KeyPair([]byte(status.ClientCertificateData), []byte(status.ClientKeyData))
		if err != nil {
			return "", fmt.Errorf("the credential plugin's certificate: %w", err)
		}
		a.pair = pair
	}
	a.asked, a.token, a.expires = true, status.Token, status.ExpirationTimestamp
	return a.token, nil
}

// certificate is what the exec plugin gave last; none is no error.
func (a *authenticator) certificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &a.pair, nil
}

// execStatus is the status of client.authentication.k8s.io's ExecCredential.
type execStatus struct {
	Token                 string    `json:"token"`
	ClientCertificateData string    `json:"clientCertificateData"`
	ClientKeyData         string    `json:"clientKeyData"`
	ExpirationTimestamp   time.Time `json:"expirationTimestamp"`
}

// run starts the plugin, without a terminal to ask on.
func (p *execPlugin) run(ctx context.Context, dir string) (*execStatus, error) {
	command := p.Command
	if strings.ContainsRune(command, filepath.Separator) {
		command = relative(dir, command)
	}
	info, err := json.Marshal(map[string]any{
		"apiVersion": p.APIVersion, "kind": "ExecCredential", "spec": map[string]any{"interactive": false},
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, command, p.Args...)
	cmd.Env = append(os.Environ(), "KUBERNETES_EXEC_INFO="+string(info))
	for _, e := range p.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, 5*time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("credential plugin %s: %w: %.200s", p.Command, err, stderr.String())
	}
	var credential struct {
		Status execStatus `json:"status"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &credential); err != nil {
		return nil, fmt.Errorf("credential plugin %s does not print an ExecCredential", p.Command)
	}
	if credential.Status.Token == "" && credential.Status.ClientCertificateData == "" {
		return nil, fmt.Errorf("credential plugin %s gives neither a token nor a certificate", p.Command)
	}
	return &credential.Status, nil
}
