package argocd

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stepd/stepd/internal/effects"
)

func TestClusterErrors(t *testing.T) {
	code, body := http.StatusNotFound, `{}`
	pages := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("labelSelector") != "" {
			pages++
			if r.URL.Query().Get("continue") == "" {
				_, _ = w.Write([]byte(`{"metadata":{"continue":"more"},"items":[{"metadata":{"name":"b"}}]}`))
			} else {
				_, _ = w.Write([]byte(`{"items":[{"metadata":{"name":"a"}}]}`))
			}
			return
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	cluster := NewCluster(server.Client(), server.URL, &effects.Log{})
	one := Query{Namespace: "argocd", Name: "app"}

	if _, err := cluster.Find(t.Context(), one); !errors.Is(err, ErrNotFound) {
		t.Errorf("404 is %v", err)
	}
	code, body = http.StatusForbidden, `{"kind":"Status","message":"applications is forbidden"}`
	if _, err := cluster.Find(t.Context(), one); err == nil || !strings.Contains(err.Error(), "403 Forbidden: applications is forbidden") {
		t.Errorf("403 is %v", err)
	}
	code, body = http.StatusOK, "<html>"
	if _, err := cluster.Find(t.Context(), one); err == nil || !strings.Contains(err.Error(), "cannot decode") {
		t.Errorf("HTML is %v", err)
	}
	found, err := cluster.Find(t.Context(), Query{Namespace: "argocd", Selector: Selector{MatchLabels: map[string]string{"x": "y"}}})
	if err != nil || pages != 2 || len(found) != 2 || found[0].Metadata.Name != "a" {
		t.Errorf("%d pages, %v, %v", pages, found, err)
	}
}

func TestSelectorString(t *testing.T) {
	var s Selector
	if err := convert(map[string]any{
		"matchLabels": map[string]any{"b": "2", "a": "1"},
		"matchExpressions": []any{
			map[string]any{"key": "k", "operator": "In", "values": []any{"x", "y"}},
			map[string]any{"key": "k", "operator": "NotIn", "values": []any{"z"}},
			map[string]any{"key": "e", "operator": "Exists"},
			map[string]any{"key": "d", "operator": "DoesNotExist"},
		},
	}, &s); err != nil {
		t.Fatal(err)
	}
	if got, want := s.String(), "a=1,b=2,k in (x,y),k notin (z),e,!d"; got != want {
		t.Errorf("selector %q, want %q", got, want)
	}
}
