package registry_test

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/registry/distribution"
)

// TestReferrersAPI checks the one difference that the suite wants between its
// two registries, and the request log on the way.
func TestReferrersAPI(t *testing.T) {
	for name, tc := range map[string]struct {
		reason  string
		handler http.Handler
		status  int
	}{
		"go-containerregistry": {"it has the API", registry.WithReferrers(), http.StatusOK},
		"distribution":         {"it has not: clients fall back to a tag", distribution.New(t.Context()), http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			s := registry.Start(tc.handler)
			t.Cleanup(s.Close)
			repository := s.Host() + "/acme/configs"
			manifest, err := artifact.Push(t.Context(), repository, artifact.Config{Service: "svc", Version: "v1", Region: "us", Values: []byte("a: 1\n")})
			if err != nil {
				t.Fatal(err)
			}
			if err := artifact.AttachBundle(t.Context(), repository, manifest, []byte("{}"), "x"); err != nil {
				t.Fatal(err)
			}
			s.Reset()
			path := "/v2/acme/configs/referrers/" + manifest.Digest.String()
			resp, err := http.Get("http://" + s.Host() + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != tc.status {
				t.Errorf("%s: status %d, want %d", tc.reason, resp.StatusCode, tc.status)
			}
			if diff := cmp.Diff([]registry.Request{{Method: http.MethodGet, Path: path}}, s.Requests()); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

// TestFaults checks that a fault sees every request, can pass it on, and goes
// away again.
func TestFaults(t *testing.T) {
	s := registry.Start(registry.WithReferrers())
	t.Cleanup(s.Close)
	status := func() int {
		resp, err := http.Get("http://" + s.Host() + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	left := 1
	s.Inject(func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		if left--; left >= 0 {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		registry.ServeHTTP(w, r)
	})
	got := []int{status(), status()}
	s.Inject(nil)
	got = append(got, status())
	if diff := cmp.Diff([]int{http.StatusTooManyRequests, http.StatusOK, http.StatusOK}, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}
