package admission

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// apiServer serves the four objects that the webhook may read and replace, with
// optimistic concurrency as Kubernetes has it, and forbids everything else.
type apiServer struct {
	*httptest.Server
	mu        sync.Mutex
	objects   map[string]map[string]any // by path
	version   int
	conflicts int
	forbidden []string
	// refuse, if not nil, tells which requests are forbidden beyond that.
	refuse func(method, path string) bool
	// before, if not nil, is called before a request is served, without the lock.
	before func(method, path string)
}

const (
	secretPath     = "/api/v1/namespaces/kargo/secrets/stepd-webhook"
	configMapPath  = "/api/v1/namespaces/kargo/configmaps/stepd-public-keys"
	mutatingPath   = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/stepd"
	validatingPath = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/stepd"
)

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	s := &apiServer{objects: map[string]map[string]any{}}
	webhook := func(kind string, names ...string) map[string]any {
		var webhooks []any
		for _, n := range names {
			webhooks = append(webhooks, map[string]any{"name": n, "clientConfig": map[string]any{"service": map[string]any{"name": "stepd-webhook"}}})
		}
		return map[string]any{"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": map[string]any{"name": "stepd"}, "webhooks": webhooks}
	}
	s.put(secretPath, map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "stepd-webhook", "namespace": "kargo"}})
	s.put(configMapPath, map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "stepd-public-keys", "namespace": "kargo"}})
	s.put(mutatingPath, webhook("MutatingWebhookConfiguration", "promotions.stepd.dev"))
	s.put(validatingPath, webhook("ValidatingWebhookConfiguration", "stages.stepd.dev", "tasks.stepd.dev"))
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) client(t *testing.T) dynamic.Interface {
	t.Helper()
	c, err := dynamic.NewForConfig(&rest.Config{Host: s.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// put stores an object as somebody else would.
func (s *apiServer) put(path string, o map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store(path, o)
}

func (s *apiServer) store(path string, o map[string]any) {
	s.version++
	o["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(s.version)
	s.objects[path] = o
}

// get returns a copy.
func (s *apiServer) get(path string) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := json.Marshal(s.objects[path])
	if err != nil {
		panic(err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		panic(err)
	}
	return out
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.before != nil {
		s.before(r.Method, r.URL.Path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have, known := s.objects[r.URL.Path]
	switch {
	case s.refuse != nil && s.refuse(r.Method, r.URL.Path):
		status(w, http.StatusForbidden, "Forbidden")
	case r.Method == http.MethodGet && known:
		answer(w, http.StatusOK, have)
	case r.Method == http.MethodPut && known:
		var o map[string]any
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			status(w, http.StatusBadRequest, "BadRequest")
			return
		}
		if o["metadata"].(map[string]any)["resourceVersion"] != have["metadata"].(map[string]any)["resourceVersion"] {
			s.conflicts++
			status(w, http.StatusConflict, "Conflict")
			return
		}
		s.store(r.URL.Path, o)
		answer(w, http.StatusOK, o)
	case (r.Method == http.MethodGet || r.Method == http.MethodPut) && isOwn(r.URL.Path):
		status(w, http.StatusNotFound, "NotFound")
	default:
		s.forbidden = append(s.forbidden, r.Method+" "+r.URL.Path)
		status(w, http.StatusForbidden, "Forbidden")
	}
}

func isOwn(path string) bool {
	for _, p := range []string{secretPath, configMapPath, mutatingPath, validatingPath} {
		if path == p {
			return true
		}
	}
	return false
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}

func status(w http.ResponseWriter, code int, reason string) {
	answer(w, code, map[string]any{
		"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
		"message": fmt.Sprintf("the test says %s", strings.ToLower(reason)),
	})
}
