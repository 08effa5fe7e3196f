package clusteraccess

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/steps"
)

// apiServer answers with what it was asked.
func apiServer(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Secret", "stays")
		if r.URL.Path == "/base/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/large" {
			_, _ = io.Copy(w, io.LimitReader(zeros{}, MaxResponseBytes+1))
			return
		}
		if strings.HasSuffix(r.URL.Path, "/moved") {
			http.Redirect(w, r, "/base/api/v1/secrets", http.StatusFound)
			return
		}
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Content-Type")+r.Header.Get("Impersonate-User")+" "+string(body))
	}))
	t.Cleanup(server.Close)
	return server
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestWhatACapabilityCovers(t *testing.T) {
	server := apiServer(t)
	argo, err := ArgoCD(Options{Client: server.Client(), Server: server.URL + "/base"})
	if err != nil {
		t.Fatal(err)
	}
	kargo, err := ControlPlane(Options{Client: server.Client(), Server: server.URL + "/base"})
	if err != nil {
		t.Fatal(err)
	}
	const apps, mine = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications", "/apis/kargo.akuity.io/v1alpha1/namespaces/acme/"
	for _, tc := range []struct {
		reason, method, target string
		argo, kargo            bool
	}{
		{"an Application", "GET", apps + "/shop", true, false},
		{"its status", "PATCH", apps + "/shop/status", true, false},
		{"all Applications", "GET", "/apis/argoproj.io/v1alpha1/applications?labelSelector=a%3Db", true, false},
		{"a Workflow is somebody else's program", "POST", "/apis/argoproj.io/v1alpha1/namespaces/argocd/workflows", false, false},
		{"a Secret", "GET", "/api/v1/namespaces/acme/secrets/s", false, false},
		{"a Secret by way of dots", "GET", apps + "/../../../../../../api/v1/namespaces/acme/secrets/s", false, false},
		{"a Secret by way of escaped dots", "GET", apps + "/%2e%2e/secrets", false, false},
		{"an escaped slash", "GET", apps + "%2fshop", false, false},
		{"an empty part", "GET", apps + "//shop", false, false},
		{"a watch", "GET", apps + "?watch=1", false, false},
		{"a query in two readings", "GET", apps + "?a=1;watch=1", false, false},
		{"another method", "OPTIONS", apps + "/shop", false, false},
		{"a proxy", "GET", "/api/v1/namespaces/argocd/services/argocd-server/proxy", false, false},
		{"discovery", "GET", "/apis/argoproj.io/v1alpha1", true, true},
		{"discovery is for reading", "POST", "/apis/argoproj.io/v1alpha1", false, false},
		{"no path", "GET", "", false, false},
		{"a Stage of the project", "GET", mine + "stages/prd-us", false, true},
		{"its status", "PATCH", mine + "stages/prd-us/status", false, true},
		{"a Stage of another project", "GET", "/apis/kargo.akuity.io/v1alpha1/namespaces/other/stages/x", false, false},
		{"the Stages of all projects", "GET", "/apis/kargo.akuity.io/v1alpha1/stages", false, false},
		{"the project", "GET", "/apis/kargo.akuity.io/v1alpha1/projects/acme", false, true},
		{"the project, to change it", "PATCH", "/apis/kargo.akuity.io/v1alpha1/projects/acme", false, false},
		{"another project", "GET", "/apis/kargo.akuity.io/v1alpha1/projects/other", false, false},
		{"a namespace without a resource", "GET", mine[:len(mine)-1], false, false},
	} {
		for name, source := range map[string]steps.ClusterSource{"argocd": argo, "control plane": kargo} {
			req := request(t, tc.method, tc.target, "body")
			req.Header.Set("Content-Type", "text/x")
			req.Header.Set("Impersonate-User", "admin")
			want := tc.argo
			if name == "control plane" {
				want = tc.kargo
			}
			code, got, header, err := do(source, "acme", req)
			if !want {
				if _, ok := errors.AsType[*DeniedError](err); !ok || !errors.Is(err, fs.ErrPermission) {
					t.Errorf("%s with %s: %v, want a DeniedError", tc.reason, name, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s with %s: %v", tc.reason, name, err)
				continue
			}
			if code != http.StatusAccepted || got != tc.method+" /base"+tc.target+" text/x body" {
				t.Errorf("%s with %s: the server got %q, %d", tc.reason, name, got, code)
			}
			if header.Get("X-Secret") != "" {
				t.Errorf("%s with %s: a header was passed on", tc.reason, name)
			}
		}
	}
	if _, _, _, err := do(kargo, "", request(t, "GET", "/apis/kargo.akuity.io/v1alpha1/stages", "")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("without a project: %v", err)
	}
	if _, _, _, err := do(argo, "acme", request(t, "POST", apps, strings.Repeat("x", MaxRequestBytes+1))); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a body that is too long: %v", err)
	}
	if code, _, _, err := do(argo, "acme", request(t, "GET", apps+"/moved", "")); err != nil || code != http.StatusFound {
		t.Errorf("a redirect was followed: %d, %v", code, err)
	}
	if _, _, _, err := do(argo, "acme", request(t, "GET", apps+"/large", "")); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("an answer that is too long: %v", err)
	}
}

func request(t *testing.T, method, target, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://cluster"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func do(source steps.ClusterSource, project string, req *http.Request) (code int, body string, header http.Header, err error) {
	resp, err := source.Client(project).Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Header, err
}

func TestDryRunsChangeNothing(t *testing.T) {
	server := apiServer(t)
	for _, readOnly := range []bool{true, false} {
		log := &effects.Log{}
		argo, err := ArgoCD(Options{Client: server.Client(), Server: server.URL, ReadOnly: readOnly, Effects: log})
		if err != nil {
			t.Fatal(err)
		}
		const app = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/shop"
		if code, _, _, err := do(argo, "acme", request(t, "GET", app, "")); err != nil || code != http.StatusAccepted {
			t.Errorf("reading, read only %t: %v", readOnly, err)
		}
		_, _, _, err = do(argo, "acme", request(t, "POST", app, "{}"))
		if errors.Is(err, fs.ErrPermission) != readOnly {
			t.Errorf("changing, read only %t: %v", readOnly, err)
		}
		want := []effects.Request{{Kind: "kubernetes", Target: "POST /apis/argoproj.io/v1alpha1/namespaces/argocd/applications/shop", Done: !readOnly}}
		if diff := cmp.Diff(want, log.Requests()); diff != "" {
			t.Errorf("effects, read only %t (-want +got):\n%s", readOnly, diff)
		}
	}
	if _, err := ArgoCD(Options{Server: "nowhere"}); err == nil {
		t.Error("a server without a host was accepted")
	}
}
