package jsonapi_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stepd/stepd/internal/jsonapi"
)

func TestExchange(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, r.Header.Get("Content-Type")+" "+string(text))
	}))
	defer server.Close()
	for _, tc := range []struct {
		reason string
		body   any
		limit  int64
		want   string
		fails  string
	}{
		{"a body is JSON", map[string]int{"a": 1}, 100, `a/b {"a":1}`, ""},
		{"none has no type", nil, 100, " ", ""},
		{"an answer as large as it may be", nil, 1, " ", ""},
		{"an answer that is larger", nil, 0, "", "the server's answer is larger than 0 MiB"},
		{"a body that is no JSON", make(chan int), 100, "", "cannot encode the request"},
	} {
		req, err := jsonapi.NewRequest(t.Context(), http.MethodPost, server.URL, "a/b", tc.body)
		var code int
		var got []byte
		if err == nil {
			code, got, err = jsonapi.Do(server.Client(), req, "the server", tc.limit)
		}
		switch {
		case tc.fails != "":
			if err == nil || !strings.Contains(err.Error(), tc.fails) {
				t.Errorf("%s: %v, want %q", tc.reason, err, tc.fails)
			}
		case err != nil || code != http.StatusTeapot || string(got) != tc.want:
			t.Errorf("%s: %d %q, %v; want %q", tc.reason, code, got, err, tc.want)
		}
	}
}

func TestStatusMessage(t *testing.T) {
	for body, want := range map[string]string{
		`{"kind":"Status","message":"no"}`: "no",
		`{}`:                               `"{}"`,
		"<html>":                           `"<html>"`,
	} {
		if got := jsonapi.StatusMessage([]byte(body)); got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
}
