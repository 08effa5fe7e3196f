package rpc

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stepd/stepd/internal/configschema"
	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/steps"
)

func TestWorkDirs(t *testing.T) {
	root := t.TempDir()
	outside := t.TempDir()
	for _, d := range []string{"promotion-1/deep", "promotion-2"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"out": outside, "in": filepath.Join(root, "promotion-2"), "promotion-1/other": "../promotion-2"} {
		if err := os.Symlink(to, filepath.Join(root, from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := OpenWorkDirs(root)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, tc := range []struct {
		reason, dir string
		code        codes.Code
	}{
		{"a directory below the root", root + "/promotion-1", codes.OK},
		{"also a deep one", root + "/promotion-1/deep/", codes.OK},
		{"dots that stay inside", root + "/promotion-1/../promotion-2", codes.OK},
		{"the root itself is everybody's", root, codes.PermissionDenied},
		{"outside", outside, codes.PermissionDenied},
		{"dots that lead out", root + "/../" + filepath.Base(outside), codes.PermissionDenied},
		{"a sibling that shares the prefix", root + "-evil", codes.PermissionDenied},
		{"a link that leads out", root + "/out", codes.PermissionDenied},
		{"a link to another promotion", root + "/in", codes.PermissionDenied},
		{"a link on the way", root + "/promotion-1/other", codes.PermissionDenied},
		{"a file", root + "/file", codes.PermissionDenied},
		{"not there", root + "/promotion-3", codes.FailedPrecondition},
		{"relative", "promotion-1", codes.InvalidArgument},
		{"empty", "", codes.InvalidArgument},
	} {
		if _, err := w.check(tc.dir); status.Code(err) != tc.code {
			t.Errorf("%s: %v, want %v", tc.reason, err, tc.code)
		}
	}
	if _, err := (*WorkDirs)(nil).check("relative"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("even without a root, a relative work dir has to be refused: %v", err)
	}
}

func TestQueue(t *testing.T) {
	q := NewQueue(1, 1)
	first, err := q.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() {
		_, err := q.enter(ctx)
		waiting <- err
	}()
	for _, queued := q.Depth(); queued == 0; _, queued = q.Depth() {
		runtime.Gosched()
	}
	if _, err := q.enter(t.Context()); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v, want ResourceExhausted", err)
	}
	if running, queued := q.Depth(); running != 1 || queued != 1 {
		t.Errorf("depth %d, %d; want 1, 1", running, queued)
	}
	cancel()
	if err := <-waiting; status.Code(err) != codes.Canceled {
		t.Errorf("a caller that gives up: %v, want Canceled", err)
	}
	first()
	second, err := q.enter(t.Context())
	if err != nil {
		t.Fatalf("after both left there is room: %v", err)
	}
	second()
	if running, queued := q.Depth(); running != 0 || queued != 0 {
		t.Errorf("depth %d, %d when idle", running, queued)
	}
}

type staticCredentials struct{ asked string }

func (s *staticCredentials) Get(_ context.Context, project string, _ steps.CredentialType, _ string) (*steps.Credentials, error) {
	s.asked = project
	return &steps.Credentials{Username: "u", Password: "p"}, nil
}

func TestGrants(t *testing.T) {
	var g Grants
	source := &staticCredentials{}
	granted := g.Add(&steps.Context{Project: "mine"}, steps.Capabilities{Credentials: source})
	token := granted.Token
	if len(granted.Capabilities) != 1 || granted.Capabilities[0] != steps.AccessCredentials || len(token) < 26 {
		t.Fatalf("granted %v under %q", granted.Capabilities, token)
	}
	ask := func(token string) (*stepdv1.GetCredentialsResponse, error) {
		return g.GetCredentials(t.Context(), &stepdv1.GetCredentialsRequest{RunToken: token, Type: "git", RepoUrl: "r"})
	}
	if resp, err := ask(token); err != nil || resp.GetCredentials().GetPassword() != "p" || source.asked != "mine" {
		t.Errorf("the attempt's own token: %v, %v, project %q", resp, err, source.asked)
	}
	if _, err := g.GetGitUser(t.Context(), &stepdv1.GetGitUserRequest{RunToken: token}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("what was not granted: %v, want PermissionDenied", err)
	}
	for _, wrong := range []string{"", token + "x"} {
		if _, err := ask(wrong); status.Code(err) != codes.Unauthenticated {
			t.Errorf("token %q: %v, want Unauthenticated", wrong, err)
		}
	}
	granted.End()
	if _, err := ask(token); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after the attempt: %v, want Unauthenticated", err)
	}
	if none := g.Add(&steps.Context{}, steps.Capabilities{}); none.Token != "" || len(none.Capabilities) != 0 {
		t.Errorf("nothing granted must give no token, got %q", none.Token)
	}
}

// cluster is a ClusterSource that says for which project it was asked.
type cluster struct{}

func (cluster) Client(project string) *http.Client {
	return &http.Client{Transport: transport(func(req *http.Request) (*http.Response, error) {
		switch req.URL.Path {
		case "/denied":
			return nil, fs.ErrPermission
		case "/down":
			return nil, errors.New("connection refused")
		}
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(project + req.URL.RequestURI() + req.URL.Host))}, nil
	})}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestClusterCalls(t *testing.T) {
	var g Grants
	granted := g.Add(&steps.Context{Project: "mine"}, steps.Capabilities{ArgoCD: cluster{}})
	defer granted.End()
	for _, tc := range []struct {
		reason                     string
		token, capability, m, path string
		code                       codes.Code
		body                       string
	}{
		{"the attempt's own token", granted.Token, "access-argocd", "GET", "/a?b=c", codes.OK, "mine/a?b=ccluster"},
		{"another token", "x", "access-argocd", "GET", "/", codes.Unauthenticated, ""},
		{"another cluster", granted.Token, "access-control-plane", "GET", "/", codes.PermissionDenied, ""},
		{"no cluster", granted.Token, "access-credentials", "GET", "/", codes.PermissionDenied, ""},
		{"beyond the capability", granted.Token, "access-argocd", "GET", "/denied", codes.PermissionDenied, ""},
		{"a cluster that is down", granted.Token, "access-argocd", "GET", "/down", codes.Unavailable, ""},
		{"a target that continues the host", granted.Token, "access-argocd", "GET", ".evil.example/", codes.InvalidArgument, ""},
		{"a target with user information", granted.Token, "access-argocd", "GET", "@evil.example/", codes.InvalidArgument, ""},
		{"a method that is none", granted.Token, "access-argocd", "GET /x", "/", codes.InvalidArgument, ""},
	} {
		resp, err := g.CallCluster(t.Context(), &stepdv1.CallClusterRequest{
			RunToken: tc.token, Capability: tc.capability, Method: tc.m, Target: tc.path,
		})
		if status.Code(err) != tc.code || string(resp.GetBody()) != tc.body {
			t.Errorf("%s: %q, %v; want %q, %v", tc.reason, resp.GetBody(), err, tc.body, tc.code)
		}
	}
}

func TestErrorsKeepWhatCallersDecideBy(t *testing.T) {
	for _, tc := range []struct {
		reason string
		in     error
		is     error
	}{
		{"refused", steps.ErrRefused, steps.ErrRefused},
		{"conflict", steps.ErrConflict, steps.ErrConflict},
		{"config", &guard.ConfigError{Kind: "k", Violations: []configschema.Violation{{Pointer: "/a", Message: "bad"}}}, steps.ErrConfig},
		{"timeout", context.DeadlineExceeded, context.DeadlineExceeded},
		{"canceled", context.Canceled, context.Canceled},
		{"other", errors.New("x"), nil},
	} {
		got := errorFromProto(errorToProto(tc.in))
		if tc.is != nil && !errors.Is(got, tc.is) {
			t.Errorf("%s: %v is not %v", tc.reason, got, tc.is)
		}
		if got.Error() != tc.in.Error() {
			t.Errorf("%s: text %q, want %q", tc.reason, got, tc.in)
		}
		for _, other := range []error{steps.ErrRefused, steps.ErrConflict, steps.ErrConfig} {
			if errors.Is(got, other) && !errors.Is(tc.in, other) {
				t.Errorf("%s: became %v", tc.reason, other)
			}
		}
		if _, ok := errors.AsType[steps.Detailer](got); ok {
			t.Errorf("%s: has detail that nobody gave", tc.reason)
		}
	}
	violations := errorFromProto(errorToProto(&guard.ConfigError{Kind: "k", Violations: []configschema.Violation{{Pointer: "/a", Message: "bad"}}}))
	if e, ok := errors.AsType[*StepError](violations); !ok || len(e.Violations) != 1 || e.Violations[0].Field != "/a" {
		t.Errorf("field violations were lost: %v", violations)
	}
	if err := errorFromProto(&stepdv1.StepError{}); err == nil || strings.TrimSpace(err.Error()) == "" {
		t.Errorf("an error without text has to say something: %v", err)
	}
}

func TestCallErrors(t *testing.T) {
	for _, tc := range []struct {
		reason   string
		ctx      context.Context
		code     codes.Code
		is       error
		terminal bool
	}{
		{"the wire knows of the deadline before the context does", t.Context(), codes.DeadlineExceeded, context.DeadlineExceeded, false},
		{"the server was cancelled", t.Context(), codes.Canceled, context.Canceled, false},
		{"a deadline that the wire calls a cancellation", past(t), codes.Canceled, context.DeadlineExceeded, false},
		{"a lost connection may come back", t.Context(), codes.Unavailable, nil, false},
		{"a full queue empties", t.Context(), codes.ResourceExhausted, nil, false},
		{"what was refused stays refused", t.Context(), codes.PermissionDenied, nil, true},
		{"what is not there stays away", t.Context(), codes.NotFound, nil, true},
	} {
		err := callError(tc.ctx, "k", status.Error(tc.code, "because"))
		if tc.is != nil && !errors.Is(err, tc.is) || steps.IsTerminal(err) != tc.terminal {
			t.Errorf("%s: %v (terminal %t)", tc.reason, err, steps.IsTerminal(err))
		}
	}
}

// past is a context whose deadline is over.
func past(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	t.Cleanup(cancel)
	return ctx
}
