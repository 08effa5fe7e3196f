// Package helmrun runs stepd-helm, the command with Helm's library in it, for
// the steps that render and update charts: with a home of its own, so that
// nobody's plugins and repositories take part, with a deadline and bounds, and
// with credentials in files that only it reads.
//
// The library is not linked into stepd: see docs/decisions/0008-helm.md. What
// is asked of it is in internal/helmlib; what a step wants from Helm belongs in
// steps/builtin.
package helmrun

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

	"github.com/stepd/stepd/internal/program"
)

const (
	// Program is the name of the command.
	Program = "stepd-helm"
	// defaultTimeout bounds a run whose context has no earlier deadline.
	defaultTimeout = 10 * time.Minute
	// maxOutput bounds an answer, in bytes.
	maxOutput = 64 << 20
	// maxDiagnostics is how much is shown of what a failed run printed, in bytes.
	maxDiagnostics = 1 << 10
	// waitDelay is how long a killed run may hold its pipes.
	waitDelay = 5 * time.Second
)

// errOutputLimit says that a chart rendered to too much.
var errOutputLimit = errors.New("the rendered chart is larger than 64 MiB")

// Request is what is asked of one run, in this order.
type Request struct {
	// Home is the directory of the configuration; filled in by Run.
	Home string `json:"home"`
	// Chart is the chart's directory, absolute.
	Chart string `json:"chart"`
	// Dependencies says whether they are fetched first.
	Dependencies Dependencies `json:"dependencies,omitempty"`
	// Render is nil if nothing is rendered.
	Render *Render `json:"render,omitempty"`
}

// Dependencies is what is done with a chart's dependencies; empty is nothing.
type Dependencies string

const (
	// Build fetches those of Chart.lock, or else does as Update.
	Build Dependencies = "build"
	// Update resolves the ranges of Chart.yaml and writes Chart.lock.
	Update Dependencies = "update"
)

// Render says how a chart is rendered.
type Render struct {
	ReleaseName string `json:"releaseName"`
	Namespace   string `json:"namespace"`
	// KubeVersion and APIVersions are what templates see of a cluster; without
	// a version, the library's default.
	KubeVersion string   `json:"kubeVersion,omitempty"`
	APIVersions []string `json:"apiVersions,omitempty"`
	// ValuesFiles are absolute; later ones win, then Set, then SetLiteral, both
	// as key=value.
	ValuesFiles []string `json:"valuesFiles,omitempty"`
	Set         []string `json:"set,omitempty"`
	SetLiteral  []string `json:"setLiteral,omitempty"`
	IncludeCRDs bool     `json:"includeCRDs,omitempty"`
	NoHooks     bool     `json:"noHooks,omitempty"`
	SkipTests   bool     `json:"skipTests,omitempty"`
}

// Manifest is a rendered manifest and the template it comes from, as in
// web/templates/service.yaml.
type Manifest struct {
	Source string `json:"source"`
	Text   string `json:"text"`
}

// Response is the answer to a Request.
type Response struct {
	Manifests []Manifest `json:"manifests,omitempty"`
	// Error is empty if everything asked for was done.
	Error string `json:"error,omitempty"`
}

// Command is the stepd-helm to run; the zero value is the one beside the
// running executable.
type Command struct {
	// Path is the program's.
	Path string
}

func (c Command) find() (string, error) {
	if c.Path != "" {
		return c.Path, nil
	}
	path, err := program.Beside(Program)
	if err != nil {
		return "", fmt.Errorf("this step needs %s: %w", Program, err)
	}
	return path, nil
}

// The files in a Home.
const (
	RepositoriesFile = "repositories.yaml"
	RegistryFile     = "registry.json"
)

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
		RepositoriesFile: map[string]any{"apiVersion": "v1", "generated": time.Unix(0, 0).UTC(), "repositories": entries},
		RegistryFile:     map[string]any{"auths": auths},
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

// Run runs c in dir and returns what it rendered. ctx's end kills it.
func (h *Home) Run(ctx context.Context, c Command, dir string, r Request) ([]Manifest, error) {
	path, err := c.find()
	if err != nil {
		return nil, err
	}
	r.Home = h.dir
	request, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	stdout, stderr := limited{max: maxOutput}, limited{max: maxDiagnostics} // a Go program says first why it dies
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, h.environment(), waitDelay
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), &stdout, &stderr
	err = cmd.Run()
	switch {
	case context.Cause(ctx) != nil:
		return nil, fmt.Errorf("%s: %w", Program, context.Cause(ctx))
	case stdout.cut:
		return nil, errOutputLimit
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %s", Program, err, h.redact(strings.TrimSpace(stderr.kept.String())))
	}
	var response Response
	if err := json.Unmarshal(stdout.kept.Bytes(), &response); err != nil {
		return nil, fmt.Errorf("cannot read the answer of %s: %w", Program, err)
	}
	if response.Error != "" {
		return nil, errors.New(h.redact(response.Error))
	}
	return response.Manifests, nil
}

// environment is the whole environment of a run. It has no PATH: Helm's library
// starts credential helpers that it finds there.
func (h *Home) environment() []string {
	environment := []string{
		"HOME=" + h.dir,
		"HELM_CACHE_HOME=" + filepath.Join(h.dir, "cache"),
		"HELM_CONFIG_HOME=" + filepath.Join(h.dir, "config"),
		"HELM_DATA_HOME=" + filepath.Join(h.dir, "data"),
		"KUBECONFIG=" + os.DevNull,
	}
	for _, name := range []string{"TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			environment = append(environment, name+"="+v)
		}
	}
	return environment
}

func (h *Home) redact(text string) string {
	for _, s := range h.secrets {
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s)} {
			text = strings.ReplaceAll(text, form, "***")
		}
	}
	return text
}

// limited keeps the first max bytes. The buffer is not embedded: its ReadFrom
// would get round Write.
type limited struct {
	kept bytes.Buffer
	max  int
	cut  bool
}

// Write implements io.Writer and never fails.
func (l *limited) Write(p []byte) (int, error) {
	room := l.max - l.kept.Len()
	l.cut = l.cut || len(p) > room
	l.kept.Write(p[:min(len(p), room)])
	return len(p), nil
}
