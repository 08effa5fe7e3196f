// Package helmcli runs the helm binary for the steps that render and update
// charts: with a home of its own, so that nobody's plugins and repositories
// take part, with a deadline, and with credentials in files that only it reads.
//
// helm is run rather than linked: its library would bring the Kubernetes client
// and half as much again to every start of stepd. What a step wants from helm
// belongs in steps/builtin.
package helmcli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// defaultTimeout bounds a run whose context has no deadline.
	defaultTimeout = 10 * time.Minute
	// maxOutput bounds what helm may print, per stream, in bytes.
	maxOutput = 64 << 20
	// waitDelay is how long a killed helm may hold its pipes.
	waitDelay = 5 * time.Second
)

// ErrNotInstalled says that there is no helm binary.
var ErrNotInstalled = errors.New("this step needs the helm binary (Helm 3) in PATH")

// errOutputLimit says that helm printed too much.
var errOutputLimit = errors.New("helm printed more than 64 MiB")

// Repository is a chart repository that wants credentials: an http(s) URL, or
// oci:// and a registry.
type Repository struct {
	URL, Username, Password string
}

// Home is a configuration that one step uses. Close removes it.
type Home struct {
	dir     string
	secrets []string
}

// NewHome writes a configuration with the given repositories.
func NewHome(repositories []Repository) (*Home, error) {
	dir, err := os.MkdirTemp("", "stepd-helm-")
	if err != nil {
		return nil, err
	}
	h := &Home{dir: dir}
	if err := h.write(repositories); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Close removes the configuration and what helm has cached.
func (h *Home) Close() error { return os.RemoveAll(h.dir) }

func (h *Home) write(repositories []Repository) error {
	type entry struct {
		Name     string `json:"name"`
		URL      string `json:"url"`
		Username string `json:"username,omitempty"`
		Password string `json:"password,omitempty"`
	}
	entries := []entry{}
	auths := map[string]map[string]string{}
	for i, r := range repositories {
		if r.Password != "" {
			h.secrets = append(h.secrets, r.Password)
		}
		if registry, ok := strings.CutPrefix(r.URL, "oci://"); ok {
			host, _, _ := strings.Cut(registry, "/")
			token := base64.StdEncoding.EncodeToString([]byte(r.Username + ":" + r.Password))
			h.secrets = append(h.secrets, token)
			auths[host] = map[string]string{"auth": token}
			continue
		}
		entries = append(entries, entry{fmt.Sprintf("repository-%d", i), r.URL, r.Username, r.Password})
	}
	files := map[string]any{
		// JSON is YAML.
		"repositories.yaml": map[string]any{"apiVersion": "v1", "generated": time.Unix(0, 0).UTC(), "repositories": entries},
		"registry.json":     map[string]any{"auths": auths},
	}
	for name, content := range files {
		text, err := json.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(h.dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Run runs helm in dir and returns what it printed. ctx's end kills it.
func (h *Home) Run(ctx context.Context, dir string, args ...string) ([]byte, error) {
	helm, err := exec.LookPath("helm")
	if err != nil {
		return nil, ErrNotInstalled
	}
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, helm, args...)
	var stdout, stderr limited
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = dir, h.environment(), &stdout, &stderr, waitDelay
	err = cmd.Run()
	switch {
	case context.Cause(ctx) != nil:
		err = context.Cause(ctx)
	case stdout.cut:
		err = errOutputLimit
	}
	if err != nil {
		return nil, fmt.Errorf("helm %s: %w: %s", args[0], err, tail(h.redact(strings.TrimSpace(stderr.kept.String()))))
	}
	return stdout.kept.Bytes(), nil
}

// environment is the whole environment of helm.
func (h *Home) environment() []string {
	environment := []string{
		"HOME=" + h.dir,
		"HELM_CACHE_HOME=" + filepath.Join(h.dir, "cache"),
		"HELM_CONFIG_HOME=" + filepath.Join(h.dir, "config"),
		"HELM_DATA_HOME=" + filepath.Join(h.dir, "data"),
		"HELM_PLUGINS=" + filepath.Join(h.dir, "plugins"),
		"HELM_REPOSITORY_CONFIG=" + filepath.Join(h.dir, "repositories.yaml"),
		"HELM_REPOSITORY_CACHE=" + filepath.Join(h.dir, "repository"),
		"HELM_REGISTRY_CONFIG=" + filepath.Join(h.dir, "registry.json"),
		"KUBECONFIG=" + os.DevNull,
	}
	for _, name := range []string{"PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			environment = append(environment, name+"="+v)
		}
	}
	return environment
}

// tail keeps the end of a long text, which is where helm says what is wrong.
func tail(text string) string {
	const limit = 4096
	if len(text) > limit {
		return "…" + strings.ToValidUTF8(text[len(text)-limit:], "")
	}
	return text
}

func (h *Home) redact(text string) string {
	for _, s := range h.secrets {
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s)} {
			text = strings.ReplaceAll(text, form, "***")
		}
	}
	return text
}

// limited keeps the first maxOutput bytes. The buffer is not embedded: its
// ReadFrom would get round Write.
type limited struct {
	kept bytes.Buffer
	cut  bool
}

// Write implements io.Writer and never fails.
func (l *limited) Write(p []byte) (int, error) {
	room := maxOutput - l.kept.Len()
	l.cut = l.cut || len(p) > room
	l.kept.Write(p[:min(len(p), room)])
	return len(p), nil
}
