package rpc

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/steps"
)

// Grants implements the HostService: it hands a running attempt, and nobody
// else, what it was granted. The zero value is ready.
type Grants struct {
	stepdv1.UnimplementedHostServiceServer
	mu     sync.Mutex
	tokens map[string]grant
}

// grant is what one attempt may use.
type grant struct {
	project string
	caps    steps.Capabilities
	log     *slog.Logger
	over    <-chan struct{}
}

// Grant is what one attempt was granted and how it asks for it.
type Grant struct {
	// Token authorises the attempt's calls to the HostService; empty with no
	// capabilities.
	Token string
	// HostServiceID is where a plugin finds the HostService.
	HostServiceID uint32
	Capabilities  []steps.Capability
	// End ends the grant; it is never nil.
	End func()
}

// Add makes caps available to the attempt that sc belongs to, under a fresh
// token, until the grant is ended.
func (g *Grants) Add(sc *steps.Context, caps steps.Capabilities) Grant {
	granted := caps.Names()
	if len(granted) == 0 {
		return Grant{End: func() {}}
	}
	token := rand.Text()
	over := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tokens == nil {
		g.tokens = map[string]grant{}
	}
	log := sc.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g.tokens[token] = grant{project: sc.Project, caps: caps, log: log, over: over}
	return Grant{Token: token, Capabilities: granted, End: sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.tokens, token)
		close(over)
	})}
}

// GetCredentials implements the HostService.
func (g *Grants) GetCredentials(ctx context.Context, req *stepdv1.GetCredentialsRequest) (*stepdv1.GetCredentialsResponse, error) {
	held, err := g.find(req.GetRunToken())
	if err != nil {
		return nil, err
	}
	if held.caps.Credentials == nil {
		return nil, notGranted(steps.AccessCredentials)
	}
	ctx, cancel := held.bound(ctx)
	defer cancel()
	// The project is the promotion's own, whatever the plugin would like.
	c, err := held.caps.Credentials.Get(ctx, held.project, steps.CredentialType(req.GetType()), req.GetRepoUrl())
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	if c == nil {
		return &stepdv1.GetCredentialsResponse{}, nil
	}
	return &stepdv1.GetCredentialsResponse{Credentials: &stepdv1.Credentials{
		Username: c.Username, Password: c.Password, SshPrivateKey: c.SSHPrivateKey,
	}}, nil
}

// GetGitUser implements the HostService.
func (g *Grants) GetGitUser(ctx context.Context, req *stepdv1.GetGitUserRequest) (*stepdv1.GetGitUserResponse, error) {
	held, err := g.find(req.GetRunToken())
	if err != nil {
		return nil, err
	}
	if held.caps.GitUser == nil {
		return nil, notGranted(steps.AccessGitUser)
	}
	ctx, cancel := held.bound(ctx)
	defer cancel()
	u, err := held.caps.GitUser.GitUser(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &stepdv1.GetGitUserResponse{
		Name: u.Name, Email: u.Email, SigningKey: u.SigningKey, SigningKeyType: u.SigningKeyType,
	}, nil
}

// CallCluster implements the HostService. What goes beyond the capability the
// source refuses, with an fs.ErrPermission; every request is logged.
func (g *Grants) CallCluster(ctx context.Context, req *stepdv1.CallClusterRequest) (*stepdv1.CallClusterResponse, error) {
	held, err := g.find(req.GetRunToken())
	if err != nil {
		return nil, err
	}
	capability := steps.Capability(req.GetCapability())
	source := clusterOf(held.caps, capability)
	if source == nil {
		return nil, notGranted(capability)
	}
	ctx, cancel := held.bound(ctx)
	defer cancel()
	if !strings.HasPrefix(req.GetTarget(), "/") {
		return nil, badRequest("target", "has to begin with a slash")
	}
	// The server and its credentials are the source's to add.
	out, err := http.NewRequestWithContext(ctx, req.GetMethod(), clusterURL+req.GetTarget(), bytes.NewReader(req.GetBody()))
	if err != nil {
		return nil, badRequest("target", "makes no request: "+valid(err.Error()))
	}
	out.Header = header(req.GetAccept(), req.GetContentType())
	resp, err := source.Client(held.project).Do(out)
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without a URL that has a made-up host
	}
	if errors.Is(err, fs.ErrPermission) {
		held.log.Warn("cluster request refused", "capability", capability, "err", err)
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxClusterAnswer+1))
	if err == nil && len(body) > maxClusterAnswer {
		err = fmt.Errorf("the API server's answer is longer than %d bytes", maxClusterAnswer)
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	held.log.Info("cluster request", "capability", capability, "method", out.Method, "path", out.URL.Path, "code", resp.StatusCode)
	return &stepdv1.CallClusterResponse{
		StatusCode: uint32(resp.StatusCode), ContentType: resp.Header.Get("Content-Type"), Body: body,
	}, nil
}

const (
	// clusterURL stands before the target; nothing resolves it.
	clusterURL = "https://cluster"
	// maxClusterAnswer and maxClusterRequest bound bodies.
	maxClusterAnswer, maxClusterRequest = 8 << 20, 3 << 20
)

func clusterOf(c steps.Capabilities, name steps.Capability) steps.ClusterSource {
	switch name {
	case steps.AccessArgoCD:
		return c.ArgoCD
	case steps.AccessControlPlane:
		return c.ControlPlane
	}
	return nil
}

func header(accept, contentType string) http.Header {
	h := http.Header{}
	if accept != "" {
		h.Set("Accept", accept)
	}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	return h
}

func (g *Grants) find(token string) (grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	held, ok := g.tokens[token]
	if !ok {
		return grant{}, status.Error(codes.Unauthenticated, "no running step has this token")
	}
	return held, nil
}

// bound ends ctx with the attempt.
func (g grant) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-g.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func notGranted(c steps.Capability) error {
	return status.Errorf(codes.PermissionDenied, "the capability %q was not granted to this step", c)
}

// HostCapabilities are the capabilities that the host behind conn granted to
// the attempt of req.
func HostCapabilities(conn grpc.ClientConnInterface, req *stepdv1.RunStepRequest) steps.Capabilities {
	host := hostClient{
		service: stepdv1.NewHostServiceClient(conn),
		token:   req.GetRunToken(),
		project: req.GetContext().GetProject(),
	}
	var caps steps.Capabilities
	for _, g := range req.GetGrantedCapabilities() {
		switch steps.Capability(g) {
		case steps.AccessCredentials:
			caps.Credentials = host
		case steps.AccessGitUser:
			caps.GitUser = host
		case steps.AccessArgoCD:
			caps.ArgoCD = hostCluster{host, steps.AccessArgoCD}
		case steps.AccessControlPlane:
			caps.ControlPlane = hostCluster{host, steps.AccessControlPlane}
		}
	}
	return caps
}

// hostClient asks the host on behalf of one attempt.
type hostClient struct {
	service stepdv1.HostServiceClient
	token   string
	project string
}

// Get implements steps.CredentialSource.
func (h hostClient) Get(ctx context.Context, project string, typ steps.CredentialType, repoURL string) (*steps.Credentials, error) {
	if project != h.project {
		return nil, fmt.Errorf("cannot get credentials of project %q: this promotion belongs to project %q", project, h.project)
	}
	resp, err := h.service.GetCredentials(ctx, &stepdv1.GetCredentialsRequest{
		RunToken: h.token, Type: string(typ), RepoUrl: repoURL,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot get credentials for %s from the host: %s", repoURL, status.Convert(err).Message())
	}
	c := resp.GetCredentials()
	if c == nil {
		return nil, nil
	}
	return &steps.Credentials{Username: c.GetUsername(), Password: c.GetPassword(), SSHPrivateKey: c.GetSshPrivateKey()}, nil
}

// GitUser implements steps.GitUserSource.
func (h hostClient) GitUser(ctx context.Context) (steps.GitUser, error) {
	u, err := h.service.GetGitUser(ctx, &stepdv1.GetGitUserRequest{RunToken: h.token})
	if err != nil {
		return steps.GitUser{}, fmt.Errorf("cannot get the git identity from the host: %s", status.Convert(err).Message())
	}
	return steps.GitUser{
		Name: u.GetName(), Email: u.GetEmail(), SigningKey: u.GetSigningKey(), SigningKeyType: u.GetSigningKeyType(),
	}, nil
}

// hostCluster sends requests to a cluster by way of the host.
type hostCluster struct {
	hostClient
	capability steps.Capability
}

// Client implements steps.ClusterSource.
func (h hostCluster) Client(project string) *http.Client {
	return &http.Client{Transport: hostTransport{h, project}}
}

type hostTransport struct {
	hostCluster
	asked string
}

// RoundTrip implements http.RoundTripper.
func (t hostTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		defer func() { _ = req.Body.Close() }()
		var err error
		if body, err = io.ReadAll(io.LimitReader(req.Body, maxClusterRequest+1)); err != nil {
			return nil, err
		}
	}
	if t.asked != t.project {
		return nil, fmt.Errorf("cannot reach the cluster for project %q: this promotion belongs to project %q", t.asked, t.project)
	}
	resp, err := t.service.CallCluster(req.Context(), &stepdv1.CallClusterRequest{
		RunToken: t.token, Capability: string(t.capability), Method: req.Method, Target: req.URL.RequestURI(),
		Accept: req.Header.Get("Accept"), ContentType: req.Header.Get("Content-Type"), Body: body,
	}, grpc.MaxCallRecvMsgSize(MaxMessageBytes))
	switch {
	case status.Code(err) == codes.PermissionDenied:
		return nil, fmt.Errorf("%s: %w", status.Convert(err).Message(), fs.ErrPermission)
	case err != nil:
		return nil, fmt.Errorf("cannot reach the cluster through the host: %s", status.Convert(err).Message())
	}
	code := int(resp.GetStatusCode())
	return &http.Response{
		Status: fmt.Sprintf("%d %s", code, http.StatusText(code)), StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header("", resp.GetContentType()), Body: io.NopCloser(bytes.NewReader(resp.GetBody())),
		ContentLength: int64(len(resp.GetBody())), Request: req,
	}, nil
}
