// Package clusteraccess confines a client of a Kubernetes API server to what
// one of Kargo's capabilities is about, so that a step of somebody else's can
// be given it. The credentials stay in this process.
//
// How a cluster is reached belongs to internal/kubeconfig and kargo/cluster; who
// is given access, and how it travels to a plugin, to the callers.
package clusteraccess

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/steps"
)

const (
	// MaxRequestBytes is what Kubernetes accepts.
	MaxRequestBytes = 3 << 20
	// MaxResponseBytes bounds one answer.
	MaxResponseBytes = 8 << 20
	// timeout bounds one request, as in Kargo.
	timeout = 30 * time.Second
)

// Options say how a cluster is reached and how far.
type Options struct {
	// Client adds credentials to requests for Server, the API server's URL.
	Client *http.Client
	Server string
	// ReadOnly refuses every request that is not a GET, as a dry run does.
	ReadOnly bool
	// Effects receives every request that is not a GET. Optional.
	Effects *effects.Log
}

// ArgoCD is a source for steps.AccessArgoCD: Applications, ApplicationSets and
// AppProjects, in any namespace that the credentials reach.
func ArgoCD(o Options) (steps.ClusterSource, error) {
	return newSource(o, func(_ string, r resource) bool {
		return r.group == "argoproj.io" && slices.Contains([]string{"applications", "applicationsets", "appprojects"}, r.name)
	})
}

// ControlPlane is a source for steps.AccessControlPlane: Kargo's resources in
// the promotion's project, and the project itself.
func ControlPlane(o Options) (steps.ClusterSource, error) {
	return newSource(o, func(project string, r resource) bool {
		if r.group != "kargo.akuity.io" || project == "" {
			return false
		}
		return r.namespace == project || r.namespace == "" && r.name == "projects" && r.object == project && r.reads
	})
}

// DeniedError is a request that goes beyond the capability and was not sent.
// It wraps fs.ErrPermission.
type DeniedError struct{ Method, Target, Reason string }

// Error says what was not sent and why.
func (e *DeniedError) Error() string {
	return fmt.Sprintf("%s %s was not sent: %s", e.Method, e.Target, e.Reason)
}

// Unwrap makes errors.Is(err, fs.ErrPermission) hold.
func (e *DeniedError) Unwrap() error { return fs.ErrPermission }

// resource is what a request is about. A discovery request has a group only.
type resource struct {
	group, namespace, name, object string
	reads                          bool
}

type source struct {
	Options
	base   *url.URL
	covers func(project string, r resource) bool
}

func newSource(o Options, covers func(string, resource) bool) (*source, error) {
	base, err := url.Parse(o.Server)
	if err != nil || base.Host == "" || base.RawQuery != "" {
		return nil, fmt.Errorf("cannot give access to a cluster: its server %q is not a URL", o.Server)
	}
	client := *o.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	o.Client = &client
	return &source{Options: o, base: base, covers: covers}, nil
}

// Client implements steps.ClusterSource.
func (s *source) Client(project string) *http.Client {
	return &http.Client{Transport: transport{s, project}}
}

type transport struct {
	*source
	project string
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := readBody(req)
	if err != nil {
		return nil, err
	}
	target, err := t.check(req, len(body))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	defer cancel()
	out, err := http.NewRequestWithContext(ctx, req.Method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"Accept", "Content-Type"} {
		if v := req.Header.Get(name); v != "" {
			out.Header.Set(name, v)
		}
	}
	resp, err := t.Options.Client.Do(out)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxResponseBytes+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the API server's answer: %w", err)
	}
	if len(answer) > MaxResponseBytes {
		return nil, fmt.Errorf("the API server's answer is longer than %d bytes; list fewer objects, with limit= or a selector", MaxResponseBytes)
	}
	t.record(req, resp.StatusCode < 300)
	return &http.Response{
		Status: resp.Status, StatusCode: resp.StatusCode, Proto: resp.Proto, ProtoMajor: resp.ProtoMajor, ProtoMinor: resp.ProtoMinor,
		Header: http.Header{"Content-Type": resp.Header.Values("Content-Type")},
		Body:   io.NopCloser(bytes.NewReader(answer)), ContentLength: int64(len(answer)), Request: req,
	}, nil
}

func readBody(req *http.Request) ([]byte, error) {
	if req.Body == nil {
		return nil, nil
	}
	defer func() { _ = req.Body.Close() }()
	return io.ReadAll(io.LimitReader(req.Body, MaxRequestBytes+1))
}

// check returns the URL to send to, or a *DeniedError.
func (t transport) check(req *http.Request, size int) (*url.URL, error) {
	deny := func(reason string) (*url.URL, error) {
		return nil, &DeniedError{Method: req.Method, Target: req.URL.RequestURI(), Reason: reason}
	}
	query, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return deny("its query is malformed")
	}
	r, ok := parse(req.Method, req.URL.EscapedPath())
	switch {
	case !slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, req.Method):
		return deny("the method is none of GET, POST, PUT, PATCH and DELETE")
	case size > MaxRequestBytes:
		return deny(fmt.Sprintf("its body is longer than %d bytes", MaxRequestBytes))
	case query.Has("watch") || query.Has("follow"):
		return deny("it would not end; watches are not supported")
	case !ok || !t.permits(r):
		return deny("the capability does not cover it")
	case t.ReadOnly && !r.reads:
		t.record(req, false)
		return deny("nothing is changed in a dry run")
	}
	target := t.base.JoinPath(req.URL.Path)
	target.RawQuery = query.Encode()
	return target, nil
}

// permits also lets discovery through: clients ask it first.
func (t transport) permits(r resource) bool {
	if r.name != "" {
		return t.covers(t.project, r)
	}
	return r.reads
}

// path is one of the API server's: no escapes, no dots to climb with.
var path = regexp.MustCompile(`^(/[A-Za-z0-9][A-Za-z0-9._:-]*)+$`)

// parse reads the paths of resources in API groups, and of discovery:
//
//	/api, /apis, /apis/GROUP, /apis/GROUP/VERSION
//	/apis/GROUP/VERSION/NAME[/OBJECT[/SUBRESOURCE]]
//	/apis/GROUP/VERSION/namespaces/NAMESPACE/NAME[/OBJECT[/SUBRESOURCE]]
func parse(method, escaped string) (resource, bool) {
	if !path.MatchString(escaped) {
		return resource{}, false
	}
	r := resource{reads: method == http.MethodGet}
	parts := strings.Split(escaped[1:], "/")
	if parts[0] != "apis" {
		return r, escaped == "/api"
	}
	if len(parts) <= 3 {
		return r, true
	}
	r.group = parts[1]
	rest := parts[3:]
	if rest[0] == "namespaces" {
		if len(rest) < 3 {
			return r, false
		}
		r.namespace, rest = rest[1], rest[2:]
	}
	r.name = rest[0]
	if len(rest) > 1 {
		r.object = rest[1]
	}
	return r, len(rest) <= 3
}

func (t transport) record(req *http.Request, done bool) {
	if t.Effects == nil || req.Method == http.MethodGet {
		return
	}
	t.Effects.Request(effects.Request{Kind: "kubernetes", Target: req.Method + " " + req.URL.RequestURI(), Done: done})
}
