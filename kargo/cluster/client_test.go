package cluster_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/stepd/stepd/kargo/cluster"
)

// api is a server that answers by path, and a client of it. What a real API
// server answers is tested end to end.
func api(t *testing.T, answers map[string]http.HandlerFunc) *cluster.Client {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f, ok := answers[r.Method+" "+r.URL.Path]; ok {
			f(w, r)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","message":"promotions.kargo.akuity.io \"p\" not found","code":404}`)
	}))
	t.Cleanup(srv.Close)
	c, err := cluster.New(&rest.Config{Host: srv.URL, BearerToken: "sa-token"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const promotionPath = "GET /apis/kargo.akuity.io/v1alpha1/namespaces/acme/promotions/p"

func answer(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func TestPromotion(t *testing.T) {
	for _, tc := range []struct {
		reason string
		answer http.HandlerFunc
		want   error // nil for any
		ok     bool
	}{
		{"it is there", answer(200, `{"metadata":{"name":"p","uid":"u"},"status":{"phase":"Running"}}`), nil, true},
		{"it is not", answer(404, `{"message":"gone"}`), cluster.ErrNotFound, false},
		{"not allowed", answer(403, `{"message":"no"}`), cluster.ErrForbidden, false},
		{"not known", answer(401, ``), cluster.ErrForbidden, false},
		{"a defect", answer(500, `<html>`), nil, false},
		{"no JSON", answer(200, `<html>`), nil, false},
		{"a redirect, which would carry the token away", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusFound)
		}, nil, false},
		{"far too much", func(w http.ResponseWriter, _ *http.Request) {
			chunk := []byte(strings.Repeat(" ", 1<<20))
			for range 40 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, nil, false},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			c := api(t, map[string]http.HandlerFunc{
				promotionPath:    tc.answer,
				"GET /elsewhere": answer(200, `{"metadata":{"uid":"u"}}`),
			})
			p, err := c.Promotion(t.Context(), "acme", "p")
			if (err == nil) != tc.ok || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			if tc.ok && p.UID != "u" {
				t.Errorf("got %+v", p)
			}
		})
	}
}

// TestNames that would reach another object than they seem to name.
func TestNames(t *testing.T) {
	c := api(t, map[string]http.HandlerFunc{
		promotionPath: answer(200, `{}`),
		"GET /apis/kargo.akuity.io/v1alpha1/namespaces/acme/promotions":   answer(200, `{}`),
		"GET /apis/kargo.akuity.io/v1alpha1/namespaces/acme/promotions/":  answer(200, `{}`),
		"GET /apis/kargo.akuity.io/v1alpha1/namespaces/acme/secrets/p":    answer(200, `{}`),
		"GET /apis/kargo.akuity.io/v1alpha1/namespaces/promotions/p":      answer(200, `{}`),
		"GET /apis/kargo.akuity.io/v1alpha1/namespaces/acme/promotions/?": answer(200, `{}`),
	})
	if _, err := c.Promotion(t.Context(), "acme", "p"); err != nil {
		t.Fatalf("control: %v", err)
	}
	for _, name := range []string{"", ".", "..", "../secrets/p", "p/..", "p?x=y", "p%2f", "p#"} {
		if _, err := c.Promotion(t.Context(), "acme", name); err == nil {
			t.Errorf("Promotion %q was read", name)
		}
		if _, err := c.Promotion(t.Context(), name, "p"); err == nil {
			t.Errorf("a Promotion of namespace %q was read", name)
		}
	}
}

func TestCredentialSecrets(t *testing.T) {
	c := api(t, map[string]http.HandlerFunc{"GET /api/v1/namespaces/acme/secrets": func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("labelSelector") != "kargo.akuity.io/cred-type" || r.Header.Get("Authorization") != "Bearer sa-token" {
			t.Errorf("asked with %s, %v", r.URL, r.Header)
		}
		next := `,"continue":"2"`
		if q.Get("continue") == "2" {
			next = ""
		}
		fmt.Fprintf(w, `{"metadata":{"resourceVersion":"1"%s},"items":[{"metadata":{"name":"s%s","labels":{"l":"v"},"annotations":{"a":"v"}},"data":{"k":"dmFsdWU="}}]}`, next, q.Get("continue"))
	}})
	got, err := c.CredentialSecrets(t.Context(), "acme")
	if err != nil || len(got) != 2 || got[0].Name != "s" || got[1].Name != "s2" || string(got[1].Data["k"]) != "value" || got[0].Labels["l"] != "v" || got[0].Annotations["a"] != "v" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := c.CredentialSecrets(t.Context(), "other"); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestClusterConfig(t *testing.T) {
	c := api(t, nil)
	if config, err := c.ClusterConfig(t.Context()); config != nil || err != nil {
		t.Errorf("none: %v, %v", config, err)
	}
	c = api(t, map[string]http.HandlerFunc{"GET /apis/kargo.akuity.io/v1alpha1/clusterconfigs/cluster": answer(200, `{"spec":{"gitClient":{"name":"n"}}}`)})
	if config, err := c.ClusterConfig(t.Context()); err != nil || config.Spec.GitClient.Name != "n" {
		t.Errorf("one: %v, %v", config, err)
	}
}

func TestRecordEvent(t *testing.T) {
	names := map[string]int{}
	var last map[string]any
	c := api(t, map[string]http.HandlerFunc{"POST /api/v1/namespaces/acme/events": func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&last); err != nil {
			t.Error(err)
		}
		name := last["metadata"].(map[string]any)["name"].(string)
		if names[name]++; names[name] > 1 {
			w.WriteHeader(http.StatusConflict)
		}
	}})
	e := cluster.Event{Namespace: "acme", Promotion: "p", UID: "u", Reason: "CommitPushed", Key: "step\x00abc", Message: "a\nb\x1b[31m\u202e" + strings.Repeat("é", 2000), Time: time.Unix(0, 0)}
	for range 2 { // the second one exists already
		if err := c.RecordEvent(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if len(names) != 1 {
		t.Errorf("one event has the names %v", names)
	}
	message := last["message"].(string)
	if len(message) > 1024 || !strings.HasPrefix(message, "a b[31mé") || !strings.HasSuffix(message, "…") {
		t.Errorf("the message is %d bytes: %.40q", len(message), message)
	}
	if involved := last["involvedObject"].(map[string]any); involved["uid"] != "u" || involved["kind"] != "Promotion" || last["type"] != "Normal" {
		t.Errorf("recorded %v", last)
	}
	others := []cluster.Event{e, e, e, e}
	others[0].UID, others[1].Reason, others[2].Key, others[3].Promotion = "v", "X", "step\x00abd", strings.Repeat("p", 253)
	others[3].Warning = true
	for _, o := range others {
		if err := c.RecordEvent(t.Context(), o); err != nil {
			t.Error(err)
		}
	}
	if len(names) != 5 || last["type"] != "Warning" {
		t.Errorf("five events have the names %v", names)
	}
	for name := range names {
		if len(name) > 253 {
			t.Errorf("the name has %d bytes", len(name))
		}
	}
	e.Namespace = "other"
	if err := c.RecordEvent(t.Context(), e); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
