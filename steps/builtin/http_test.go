package builtin

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/steps"
)

// answering serves what a path says: /CODE[/TYPE/SUBTYPE], with the body of
// the request, or of ?body=.
func answering(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var code int
		parts := strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 2)
		if _, err := fmt.Sscan(parts[0], &code); err != nil {
			t.Error(err)
		}
		if len(parts) > 1 {
			w.Header().Set("Content-Type", parts[1])
		}
		w.Header().Set("X-Seen", r.Method+" "+r.Header.Get("X-Sent"))
		w.WriteHeader(code)
		body := r.URL.Query().Get("body")
		if body == "" {
			sent, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			body = string(sent)
		}
		if _, err := io.WriteString(w, body); err != nil && code != http.StatusNoContent {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// Conformance G21 to G27.
func TestHTTP(t *testing.T) {
	base := answering(t)
	jsonBody := func(body string) string { return "/200/application/json?body=" + url.QueryEscape(body) }
	for _, tc := range []struct {
		reason string
		path   string
		config config
		want   outcome
		output map[string]any
	}{
		{"G21 204 without expressions", "/204", nil, outcome{status: steps.Succeeded}, map[string]any{}},
		{"G21 404 without expressions", "/404", nil, outcome{status: steps.Failed}, nil},
		{"G22 success and failure", "/200", config{"successExpression": "true", "failureExpression": "true"}, outcome{steps.Failed, true, "HTTP (200) response met failure criteria"}, nil},
		{"a timeout of 0 is the default, not no time at all", "/200", config{"timeout": "0s"}, outcome{status: steps.Succeeded}, map[string]any{}},
		{"success decides over the status", "/500", config{"successExpression": "response.status == 500"}, outcome{status: steps.Succeeded}, map[string]any{}},
		{"success not met yet", "/200", config{"successExpression": "false", "pollInterval": "7s"}, outcome{status: steps.Running}, nil},
		{"no success expression, failure not met", "/200", config{"failureExpression": "false"}, outcome{status: steps.Running}, nil},
		{"both false", "/200", config{"successExpression": "false", "failureExpression": "false"}, outcome{status: steps.Running}, nil},
		{"G24 message from the response", jsonBody(`{"m":"boom"}`), config{"failureExpression": "true", "errorExpression": "response.body.m"}, outcome{steps.Failed, true, `HTTP (200) response met failure criteria: "boom"`}, nil},
		{"G24 no message", "/200", config{"failureExpression": "true", "errorExpression": "nil"}, outcome{steps.Failed, true, "met failure criteria"}, nil},
		{"G24 the message is no string", "/200", config{"failureExpression": "true", "errorExpression": "1"}, outcome{steps.Failed, true, "met failure criteria"}, nil},
		{"G24 the message cannot be evaluated", "/200", config{"failureExpression": "true", "errorExpression": "response.body.a.b.c"}, outcome{steps.Failed, true, "met failure criteria"}, nil},
		{"G24 the message does not compile", "/200", config{"failureExpression": "true", "errorExpression": "(1 +"}, outcome{steps.Errored, true, "error compiling error expression"}, nil},
		{"a criterion that is no bool", "/200", config{"successExpression": "1"}, outcome{steps.Errored, false, "did not evaluate to a boolean"}, nil},
		{"a criterion that does not compile", "/200", config{"successExpression": "(1 +"}, outcome{steps.Errored, true, "error compiling success expression"}, nil},
		{"failure is evaluated even after success", "/200", config{"successExpression": "true", "failureExpression": "response.body.a.b"}, outcome{steps.Errored, false, "error evaluating failure expression"}, nil},
		{"G26 unknown type, invalid JSON", "/200/application/x-who?body=%7B", config{"outputs": outputs("b", "response.body")}, outcome{status: steps.Succeeded}, map[string]any{"b": map[string]any{}}},
		{"unknown type, valid JSON", "/200/application/x-who?body=%5B1%5D", config{"outputs": outputs("b", "response.body")}, outcome{status: steps.Succeeded}, map[string]any{"b": []any{1.0}}},
		{"declared JSON that is none", "/200/application/json?body=%7B", nil, outcome{steps.Errored, false, "not JSON"}, nil},
		{"YAML", "/200/text/yaml?body=" + url.QueryEscape("a: [1, x]"), config{"outputs": outputs("b", "response.body.a")}, outcome{status: steps.Succeeded}, map[string]any{"b": []any{1.0, "x"}}},
		{"plain text", "/200/text/plain?body=hi", config{"outputs": outputs("b", "response.body")}, outcome{status: steps.Succeeded}, map[string]any{"b": "hi"}},
		{"the type is overridden", "/200/text/plain?body=%5B2%5D", config{"responseContentType": "application/json", "outputs": outputs("b", "response.body[0]")}, outcome{status: steps.Succeeded}, map[string]any{"b": 2.0}},
		{"method, header, body, query; output types", "/201/application/json", config{
			"method": "POST", "headers": []any{config{"name": "X-Sent", "value": "v"}}, "body": `{"l":["a"]}`,
			"outputs": outputs("seen", "response.header('x-seen')", "status", "response.status", "n", "len(response.body.l)", "all", "response.headers['X-Seen']", "split", "split('a,b', ',')"),
		}, outcome{status: steps.Succeeded}, map[string]any{"seen": "POST v", "status": int64(201), "n": int64(1), "all": []any{"POST v"}, "split": []any{"a", "b"}}},
		{"an output that cannot be evaluated", "/200", config{"outputs": outputs("x", "response.body.a.b")}, outcome{steps.Errored, false, `error evaluating expression of output "x"`}, nil},
		{"G27 a header without value", "/200", config{"headers": []any{config{"name": "a", "value": ""}}}, outcome{steps.Failed, true, "headers.0.value: String length must be greater than or equal to 1"}, nil},
		{"a timeout that only looks like one", "/200", config{"timeout": "5s!"}, outcome{steps.Errored, true, "timeout"}, nil},
	} {
		p := newPromotion(t)
		cfg := config{"url": base + tc.path}
		for k, v := range tc.config {
			cfg[k] = v
		}
		r, err := p.run(HTTP(httpedge.Live(p.log)), cfg)
		tc.want.check(t, tc.reason, r, err)
		if diff := cmp.Diff(tc.output, r.Output); diff != "" {
			t.Errorf("%s: output (-want +got):\n%s", tc.reason, diff)
		}
		if running := r.Status == steps.Running; running != (r.RetryAfter != nil) {
			t.Errorf("%s: RetryAfter %v", tc.reason, r.RetryAfter)
		}
		if tc.config["pollInterval"] == "7s" && *r.RetryAfter != 7*time.Second {
			t.Errorf("%s: RetryAfter %v", tc.reason, *r.RetryAfter)
		}
	}
}

func outputs(pairs ...string) []any {
	var out []any
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, config{"name": pairs[i], "fromExpression": pairs[i+1]})
	}
	return out
}

// Conformance G29 and golden case 312, and what else ends before a response.
func TestHTTPRefusals(t *testing.T) {
	large := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, maxHTTPBody+1)) // the client hangs up
	}))
	t.Cleanup(large.Close)
	redirecting := httptest.NewServer(http.RedirectHandler("http://169.254.169.254/latest", http.StatusFound))
	t.Cleanup(redirecting.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	for _, tc := range []struct {
		reason string
		config config
		want   outcome
	}{
		{"G29 link-local", config{"url": "http://169.254.169.254/latest"}, outcome{steps.Errored, false, `connections to link-local addresses are not permitted (host "169.254.169.254" resolved to link-local IPs only)`}},
		{"link-local v6", config{"url": "http://[fe80::1]/x"}, outcome{steps.Errored, false, `(host "fe80::1" resolved to link-local IPs only)`}},
		{"link-local, mapped", config{"url": "http://[::ffff:169.254.169.254]/x"}, outcome{steps.Errored, false, "link-local"}},
		{"link-local, by a proxy", config{"url": "http://169.254.169.254/", "proxy": closed.URL}, outcome{steps.Errored, false, "link-local"}},
		{"link-local, by a redirect", config{"url": redirecting.URL}, outcome{steps.Errored, false, "link-local"}},
		{"nobody there", config{"url": closed.URL + "/x?token=s3cr3t"}, outcome{steps.Errored, false, `error sending HTTP request: Get "` + closed.URL + `/x":`}},
		{"no URL", config{"url": "::bad::"}, outcome{steps.Errored, true, `error building HTTP request: error creating HTTP request: parse "::bad::": missing protocol scheme`}},
		{"a large body", config{"url": large.URL}, outcome{steps.Errored, false, "exceeds the limit of 2097152 bytes"}},
	} {
		p := newPromotion(t)
		r, err := p.run(HTTP(httpedge.Live(p.log)), tc.config)
		tc.want.check(t, tc.reason, r, err)
	}
}

func TestHTTPRecorded(t *testing.T) {
	p := newPromotion(t)
	base := answering(t)
	allow, err := httpedge.AllowPrefixes(base + "/200")
	if err != nil {
		t.Fatal(err)
	}
	step := HTTP(httpedge.Recorder(p.log, allow))
	cfg := func(path, method string) config {
		return config{"url": base + path + "?token=s3cr3t", "method": method, "outputs": outputs("status", "response.status"), "successExpression": "response.status == 200"}
	}
	for _, tc := range []struct {
		reason, path, method string
		status               any
	}{
		{"an allowed read is sent", "/200/text/plain", "GET", int64(200)},
		{"not by a string that only begins the same", "/2000", "GET", nil},
		{"nor by a detour", "/200/../404", "GET", nil},
		{"a write never", "/200", "POST", nil},
	} {
		out := p.must(step, cfg(tc.path, tc.method))
		if diff := cmp.Diff(map[string]any{"status": tc.status}, out); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
	r, err := p.run(step, cfg("/200", "PUT"))
	if err != nil || !strings.Contains(r.Message, "was recorded and not sent") {
		t.Errorf("message %q, %v", r.Message, err)
	}
	want := effects.Request{Kind: "http", Target: base + "/200", Detail: map[string]any{"method": "PUT"}, Step: "http"}
	got := p.log.Requests()
	if diff := cmp.Diff(want, got[len(got)-1]); len(got) != 5 || diff != "" {
		t.Errorf("%d logged, the last (-want +got):\n%s", len(got), diff)
	}
	for url, text := range map[string]string{
		"http://169.254.169.254/latest": "link-local addresses are not permitted", "ftp://h/f": `unsupported protocol scheme "ftp"`, "nonsense": `unsupported protocol scheme ""`,
	} {
		r, err := p.run(step, config{"url": url, "method": "POST", "body": "x"})
		outcome{steps.Errored, false, text}.check(t, "what no run could send is not recorded", r, err)
	}
	if n := len(p.log.Requests()); n != len(got) {
		t.Errorf("%d requests are logged, want %d", n, len(got))
	}
	if _, err := httpedge.AllowPrefixes("api.example.com"); err == nil {
		t.Error("a prefix without scheme is accepted")
	}
}

func TestHTTPDownload(t *testing.T) {
	base := answering(t)
	claims := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(maxDownload+1))
	}))
	t.Cleanup(claims.Close)
	for _, tc := range []struct {
		reason string
		config config
		want   outcome
	}{
		{"a file", config{"url": base + "/200?body=x", "outPath": "d/f"}, outcome{status: steps.Succeeded}},
		{"an existing file", config{"url": base + "/200?body=x", "outPath": "old"}, outcome{steps.Errored, true, "file already exists at old and overwrite is not allowed"}},
		{"overwriting", config{"url": base + "/200?body=x", "outPath": "old", "allowOverwrite": true}, outcome{status: steps.Succeeded}},
		{"not found", config{"url": base + "/404", "outPath": "f"}, outcome{steps.Failed, false, "HTTP request failed with status 404"}},
		{"too large by its own account", config{"url": claims.URL, "outPath": "f"}, outcome{steps.Errored, true, "exceeds the limit"}},
		{"link-local", config{"url": "http://169.254.169.254/", "outPath": "f"}, outcome{steps.Errored, false, "link-local"}},
	} {
		p := newPromotion(t)
		p.write("old", "old")
		r, err := p.run(HTTPDownload(httpedge.Live(p.log)), tc.config)
		tc.want.check(t, tc.reason, r, err)
		name := tc.config["outPath"].(string)
		if r.Status == steps.Succeeded && p.read(name) != "x" {
			t.Errorf("%s: the file holds %q", tc.reason, p.read(name))
		}
		if r.Status != steps.Succeeded && name != "old" && p.exists(name) {
			t.Errorf("%s: something was written", tc.reason)
		}
		if errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", tc.reason, err)
		}
	}
}
