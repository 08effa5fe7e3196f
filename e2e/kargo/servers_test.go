package kargo_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/registry/distribution"
	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/e2e/tools"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

// servers are the servers that promotions use: git http-backend and a
// distribution registry, with artifacts signed by cosign.
type servers struct {
	git      *gittest.Server
	registry *registry.Server
	// gitURL and registryHost are where the cluster reaches them. Beyond loopback
	// they are behind TLS with a certificate that nobody knows: insecure.
	gitURL, registryHost string
	insecure             bool
	// publicKey is what releases are signed with, PEM.
	publicKey string

	dir     string
	cosign  string
	closers []func()
}

// startServers starts the servers with their files in dir, to be reached at
// host.
func startServers(ctx context.Context, dir, host string) (_ *servers, err error) {
	s := &servers{dir: dir}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.cosign, err = tools.CosignV3.Path(ctx); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "git"), 0o700); err != nil {
		return nil, err
	}
	for _, key := range []string{"release", "stranger"} {
		if err := s.runCosign(ctx, "generate-key-pair", "--output-key-prefix", filepath.Join(dir, key)); err != nil {
			return nil, err
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "release.pub"))
	if err != nil {
		return nil, err
	}
	s.publicKey = string(public)
	if s.git, err = gittest.Start(filepath.Join(dir, "git")); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.git.Close)
	s.registry = registry.Start(distribution.New(context.WithoutCancel(ctx)))
	s.closers = append(s.closers, s.registry.Close)
	s.gitURL, s.registryHost = s.git.URL, s.registry.Host()
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return s, s.expose(host)
	}
	return s, nil
}

func (s *servers) close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
}

// expose puts proxies with TLS in front of the servers, which only listen on
// loopback.
func (s *servers) expose(host string) error {
	s.insecure = true
	for _, e := range []struct {
		behind string
		front  *string
	}{{s.gitURL, &s.gitURL}, {"http://" + s.registryHost, &s.registryHost}} {
		target, err := url.Parse(e.behind)
		if err != nil {
			return err
		}
		proxy := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded() // the registry makes URLs of it
		}}
		front, err := serveTLS(proxy, net.JoinHostPort(host, "0"))
		if err != nil {
			return err
		}
		s.closers = append(s.closers, front.Close)
		*e.front = front.URL
	}
	s.registryHost = strings.TrimPrefix(s.registryHost, "https://")
	return nil
}

// publish pushes a region's configuration into a repository of its own,
// signed with a key: "release", "stranger", or "" for none. It returns the
// repository as steps name it.
func (s *servers) publish(ctx context.Context, name string, c artifact.Config, key string) (string, error) {
	manifest, err := artifact.Push(ctx, s.registry.Host()+"/"+name, c)
	if err != nil {
		return "", err
	}
	if key != "" {
		err = s.runCosign(ctx, "sign", "--yes", "--key", filepath.Join(s.dir, key+".key"), "--allow-http-registry",
			"--tlog-upload=false", "--use-signing-config=false", s.registry.Host()+"/"+name+"@"+manifest.Digest.String())
	}
	return s.registryHost + "/" + name, err
}

func (s *servers) runCosign(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.cosign, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "COSIGN_PASSWORD="}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cosign %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// repository makes a gitops repository that has both regions' configuration.
func (s *servers) repository(name string) (url string, err error) {
	if _, err := s.git.Create(name); err != nil {
		return "", err
	}
	_, err = s.git.Commit(name, gittest.Change{Message: "v1.1.0 everywhere", Files: gittest.Files(map[string]string{
		sandbox.ValuesPath(sandbox.RegionUS): string(sandbox.Deployed(sandbox.RegionUS)),
		sandbox.ValuesPath(sandbox.RegionCA): string(sandbox.Deployed(sandbox.RegionCA)),
	})})
	return s.gitURL + "/" + name, err
}

// serveTLS serves h at an address, with httptest's certificate, which is its
// own authority and for 127.0.0.1 only.
func serveTLS(h http.Handler, address string) (*httptest.Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	s := httptest.NewUnstartedServer(h)
	_ = s.Listener.Close()
	s.Listener = l
	s.StartTLS()
	return s, nil
}

func certificatePEM(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func base64Text(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// documents splits a YAML file.
func documents(text string) []string { return separator.Split(text, -1) }

var separator = regexp.MustCompile(`(?m)^---\s*$`)
