package admission_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/builtin"
)

const projectKey = `
apiVersion: v1
kind: Secret
metadata: {name: stepd-project-key, namespace: demo}
stringData: {key: "0123456789abcdef\"\\0123456789abcdef\n"}
`

// fakeClock moves only when it is waited for.
type fakeClock struct{ now time.Time }

func (c *fakeClock) Now() time.Time { return c.now }

func (c *fakeClock) Sleep(ctx context.Context, d time.Duration) error {
	c.now = c.now.Add(d)
	return ctx.Err()
}

// promote rewrites a Promotion's steps for a sidecar, and runs them in the
// engine with Kargo's http and compose-output steps.
func promote(t *testing.T, sidecar http.Handler, resources, list string) runner.Outcome {
	t.Helper()
	server := httptest.NewServer(sidecar)
	defer server.Close()
	r := rewriter(t)
	r.SidecarURL = server.URL
	object, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"name": "p-1", "namespace": "demo"}, "spec": map[string]any{"steps": json.RawMessage(list)},
	})
	if err != nil {
		t.Fatal(err)
	}
	rewritten, _, err := r.Rewrite(object)
	if err != nil {
		t.Fatal(err)
	}
	set, err := load.Bytes("resources", []byte(resources))
	if err != nil {
		t.Fatal(err)
	}
	registry, err := runner.NewRegistry(builtin.HTTP(httpedge.Live(&effects.Log{})), builtin.ComposeOutput())
	if err != nil {
		t.Fatal(err)
	}
	p := runner.Promotion{Project: "demo", Stage: "prod", Name: "p-1", WorkDir: t.TempDir()}
	for _, raw := range rewritten {
		var s runner.Step
		if err := json.Unmarshal(raw, &s.PromotionStep); err != nil {
			t.Fatal(err)
		}
		p.Steps = append(p.Steps, s)
	}
	engine := &runner.Engine{Registry: registry, Data: runner.NewDocumentData(set, "demo", ""), Clock: &fakeClock{now: time.Now()}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := engine.RunToCompletion(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func answer(w http.ResponseWriter, code int, a wire.Answer) {
	w.Header().Set("Content-Type", wire.ContentType)
	w.WriteHeader(code)
	_, _ = w.Write(a.Bytes())
}

// raw answers with text that no sidecar of ours sends.
func raw(code int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}
}

func answered(code int, status steps.Status, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		answer(w, code, wire.Answer{Status: status, Message: message, Output: map[string]any{"path": "p"}})
	}
}

// TestAnswers has the engine judge, through the real http step, everything that
// may answer. Only Running is polled, and nothing for ever.
func TestAnswers(t *testing.T) {
	const (
		html    = "<html><body>Bad Gateway</body></html>"
		foreign = `step "deploy::apply": HTTP (%d) response met failure criteria: "the answer is not one of stepd's sidecar: HTTP status %d"`
	)
	other := func(code int) string { return fmt.Sprintf(foreign, code, code) }
	for _, tc := range []struct {
		reason  string
		sidecar http.HandlerFunc
		status  steps.Status
		message string
		// requests is how many there are, or at least how many if polled.
		requests int
		polled   bool
	}{
		{"Succeeded", answered(200, steps.Succeeded, "done"), steps.Succeeded, "", 1, false},
		{"Running", answered(200, steps.Running, "working"), steps.Errored, `step "deploy::apply" timed out after 1h5m0s`, 100, true},
		{"Failed", answered(200, steps.Failed, "refused: \"a\" is not <b>\n  and no c\n"), steps.Failed,
			`step "deploy::apply": HTTP (200) response met failure criteria: "refused: 'a' is not <b>; and no c"`, 1, false},
		{"Errored", answered(200, steps.Errored, "registry is down"), steps.Failed,
			`step "deploy::apply": HTTP (200) response met failure criteria: "registry is down"`, 1, false},
		{"no message", answered(200, steps.Failed, ""), steps.Failed, `step "deploy::apply": HTTP (200) response met failure criteria`, 1, false},
		{"a status Kargo does not know", answered(200, "Dancing", "la"), steps.Failed, `step "deploy::apply": HTTP (200) response met failure criteria: "la"`, 1, false},
		{"401 with an answer", answered(401, steps.Failed, "no token"), steps.Failed, `step "deploy::apply": HTTP (401) response met failure criteria: "no token"`, 1, false},
		{"404 with an answer", answered(404, steps.Failed, "no such Promotion"), steps.Failed, `step "deploy::apply": HTTP (404) response met failure criteria: "no such Promotion"`, 1, false},
		{"an error that claims to be running", answered(503, steps.Running, "wait"), steps.Failed, `step "deploy::apply": HTTP (503) response met failure criteria: "wait"`, 1, false},
		{"an error that claims success", answered(500, steps.Succeeded, "ok"), steps.Failed, `step "deploy::apply": HTTP (500) response met failure criteria: "ok"`, 1, false},
		{"201 that claims success", answered(201, steps.Succeeded, "ok"), steps.Failed, `step "deploy::apply": HTTP (201) response met failure criteria: "ok"`, 1, false},
		{"429", raw(429, "text/plain", "slow down"), steps.Failed, other(429), 1, false},
		{"500 with HTML", raw(500, "text/html", html), steps.Failed, other(500), 1, false},
		{"502 without a body", raw(502, "", ""), steps.Failed, other(502), 1, false},
		{"503 declared as JSON that is none", raw(503, "application/json", html), steps.Failed, other(503), 1, false},
		{"200 with HTML", raw(200, "text/html", html), steps.Failed, other(200), 1, false},
		{"200 with an array", raw(200, "application/json", `[{"status":"Succeeded"}]`), steps.Failed, other(200), 1, false},
		{"200 with null", raw(200, "application/json", `null`), steps.Failed, other(200), 1, false},
		{"200 without a body", raw(200, "application/json", ""), steps.Failed, other(200), 1, false},
		{"200 with white space", raw(200, "application/json", "\n \n"), steps.Failed, other(200), 1, false},
		{"another server's status", raw(200, "application/json", `{"status":"UP"}`), steps.Failed, other(200), 1, false},
		{"a success that is not first", raw(200, "application/json", `{"message":"x","status":"Succeeded"}`), steps.Failed, other(200), 1, false},
		{"a status that begins like one", raw(200, "application/json", `{"status":"SucceededNot","message":"x"}`), steps.Failed,
			`step "deploy::apply": HTTP (200) response met failure criteria: "x"`, 1, false},
		{"a failure that is no JSON", raw(200, "application/json", `{"status":"Failed","message":`), steps.Failed, `step "deploy::apply": HTTP (200) response met failure criteria`, 1, false},
		{"a message that is no text", raw(200, "application/json", `{"status":"Failed","message":{}}`), steps.Failed, `step "deploy::apply": HTTP (200) response met failure criteria`, 1, false},
		{"a redirect to nowhere", func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/elsewhere" {
				http.NotFound(w, req)
				return
			}
			http.Redirect(w, req, "/elsewhere", http.StatusFound)
		}, steps.Failed, other(404), 2, false},
		{"redirects in a circle", func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, req.URL.Path, http.StatusTemporaryRedirect)
		}, steps.Errored, `step "deploy::apply" timed out after 1h5m0s`, 100, true},
		{"more than Kargo reads", raw(200, "application/json", `{"status":"Succeeded","output":{"path":"`+strings.Repeat("x", 3<<20)+`"}}`), steps.Errored,
			`step "deploy::apply" timed out after 1h5m0s`, 100, true},
		{"a success that is no JSON", raw(200, "application/json", `{"status":"Succeeded","output":`), steps.Errored, `step "deploy::apply" timed out after 1h5m0s`, 100, true},
		{"a connection that is cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, steps.Errored,
			`step "deploy::apply" timed out after 1h5m0s`, 100, true},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			requests := 0
			out := promote(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				mu.Lock()
				requests++
				mu.Unlock()
				tc.sidecar(w, req)
			}), projectKey, `[{"uses":"config-apply","as":"deploy::apply","config":{"inPath":"${{ ctx.stage }}"}}]`)
			got := out.Steps[0]
			if got.Status != tc.status || got.Message != tc.message {
				t.Errorf("%s: %s\nwant %s: %s", got.Status, got.Message, tc.status, tc.message)
			}
			if requests < tc.requests || !tc.polled && requests > tc.requests {
				t.Errorf("%d requests, want %d", requests, tc.requests)
			}
		})
	}
}

// TestRetryOfTheUser has Kargo give up later than the step itself may.
func TestRetryOfTheUser(t *testing.T) {
	out := promote(t, answered(200, steps.Running, ""), projectKey, `[{"uses":"config-apply","as":"a","retry":{"timeout":"2m","errorThreshold":2},"config":{}}]`)
	if want := `step "a" timed out after 7m0s`; out.Message != want {
		t.Errorf("got %q, want %q", out.Message, want)
	}
}

// TestLostAnswers has a sidecar that restarts: its lost answers do not end the
// step, and each attempt says how many were lost.
func TestLostAnswers(t *testing.T) {
	var mu sync.Mutex // a cut connection orders nothing
	var attempts []wire.Attempt
	out := promote(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		got := receive(t, req)
		mu.Lock()
		defer mu.Unlock()
		attempts = append(attempts, got.Attempt)
		switch len(attempts) {
		case 2, 3:
			panic(http.ErrAbortHandler)
		case 1, 4:
			answer(w, 200, wire.Answer{Status: steps.Running})
		default:
			answer(w, 200, wire.Answer{Status: steps.Succeeded})
		}
	}), projectKey, `[{"uses":"config-apply","as":"a","config":{}}]`)
	if out.Phase != kargoapi.PromotionSucceeded {
		t.Fatalf("%s: %s", out.Phase, out.Message)
	}
	mu.Lock()
	defer mu.Unlock()
	var counts []uint32
	for _, a := range attempts {
		counts = append(counts, a.ErrorCount)
		if !a.StartedAt.Equal(attempts[0].StartedAt) {
			t.Errorf("the attempt's start moved: %v", attempts)
		}
	}
	if d := cmp.Diff([]uint32{0, 0, 1, 2, 2}, counts); d != "" {
		t.Errorf("error counts (-want +got):\n%s", d)
	}
}

func receive(t *testing.T, req *http.Request) wire.Request {
	var body json.RawMessage
	if err := json.NewDecoder(http.MaxBytesReader(nil, req.Body, wire.MaxRequest)).Decode(&body); err != nil {
		t.Errorf("cannot read the request: %v", err)
	}
	got, err := wire.ParseRequest(body)
	if err != nil {
		t.Errorf("cannot parse the request: %v", err)
	}
	return got
}

// TestRequest looks at one request: its headers, its path, its config.
func TestRequest(t *testing.T) {
	set, err := load.Bytes("resources", []byte(projectKey))
	if err != nil {
		t.Fatal(err)
	}
	data, err := runner.NewDocumentData(set, "demo", "").Secret(t.Context(), "demo", wire.ProjectKeySecret)
	if err != nil {
		t.Fatal(err)
	}
	key, err := wire.ProjectKeyHeader("demo", data)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ reason, resources, key string }{
		{"a project with a key", projectKey, key},
		{"a project without", "apiVersion: v1\nkind: Secret\nmetadata: {name: other, namespace: demo}\n", "missing"},
		{"a Secret without", strings.ReplaceAll(projectKey, "key: \"", "other: \""), "missing"},
		{"an empty key", "apiVersion: v1\nkind: Secret\nmetadata: {name: stepd-project-key, namespace: demo}\nstringData: {key: \"\\n\"}\n", "missing"},
	} {
		var got *http.Request
		var config map[string]any
		out := promote(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			got = req
			if config, _, err = wire.DecodeConfig(receive(t, req).Config); err != nil {
				t.Error(err)
			}
			answer(w, 200, wire.Answer{Status: steps.Succeeded})
		}), tc.resources, `[{"uses":"config-apply","as":"a::b","vars":[{"name":"v","value":"1.10"}],"config":{"inPath":"${{ quote(vars.v) }}-${{ vars.v }}","n":"${{ vars.v }}"}}]`)
		if out.Phase != kargoapi.PromotionSucceeded {
			t.Fatalf("%s: %s: %s", tc.reason, out.Phase, out.Message)
		}
		claims, err := wire.Verify(publicKeys, strings.TrimPrefix(got.Header.Get(wire.HeaderToken), "Bearer "))
		if err != nil || claims.Promotion != "p-1" || claims.Namespace != "demo" || claims.Alias != "a::b" || claims.Kind != "config-apply" {
			t.Errorf("%s: claims %+v, %v", tc.reason, claims, err)
		}
		if got.Method != http.MethodPost || got.URL.Path != "/v1/steps/config-apply" || got.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s %s %v", tc.reason, got.Method, got.URL, got.Header)
		}
		if k := got.Header.Get(wire.HeaderProjectKey); k != tc.key {
			t.Errorf("%s: project key %q, want %q", tc.reason, k, tc.key)
		}
		if d := cmp.Diff(map[string]any{"inPath": `"1.10"-1.10`, "n": 1.1}, config); d != "" {
			t.Errorf("%s: config (-want +got):\n%s", tc.reason, d)
		}
	}
}

// TestOutputs has outputs of every type, used by the next step.
func TestOutputs(t *testing.T) {
	output := map[string]any{
		"path": "a\n\"b\" é\u2028${{ 1 }}", "changed": true, "sha256": nil, "extra": "not declared",
		"updates": []any{map[string]any{"key": "image.tag", "old": 1.5, "new": "1.10"}, int64(7), nil, []any{}},
	}
	out := promote(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, wire.Answer{Status: steps.Succeeded, Output: output})
	}), projectKey, `[{"uses":"config-apply","as":"t::apply","config":{}},
		{"uses":"compose-output","as":"t::out","config":{"updates":"${{ task.outputs.apply.updates }}","path":"${{ task.outputs.apply.path }}","absent":"${{ task.outputs.apply.commitMessage }}"}}]`)
	if out.Phase != kargoapi.PromotionSucceeded {
		t.Fatalf("%s: %s", out.Phase, out.Message)
	}
	updates := []any{map[string]any{"key": "image.tag", "old": 1.5, "new": "1.10"}, 7.0, nil, []any{}}
	want := map[string]any{
		"t::apply": map[string]any{"path": output["path"], "changed": true, "sha256": nil, "commitMessage": nil, "updates": updates},
		"t::out":   map[string]any{"path": output["path"], "updates": updates, "absent": nil},
		"t":        map[string]any{"path": output["path"], "updates": updates, "absent": nil},
	}
	if d := cmp.Diff(want, out.State); d != "" {
		t.Errorf("state (-want +got):\n%s", d)
	}
}

// TestConditions has steps that are skipped, and one whose failure does not count.
func TestConditions(t *testing.T) {
	var ran []string
	out := promote(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		claims, err := wire.Verify(publicKeys, strings.TrimPrefix(req.Header.Get(wire.HeaderToken), "Bearer "))
		if err != nil {
			t.Error(err)
		}
		ran = append(ran, claims.Alias)
		answer(w, 200, wire.Answer{Status: steps.Failed, Message: "no"})
	}), projectKey, `[{"uses":"config-apply","as":"off","if":"${{ false }}","config":{}},
		{"uses":"config-apply","as":"soft","continueOnError":true,"config":{}},
		{"uses":"config-apply","as":"wrong","continueOnError":true,"config":{"x":"${{ nosuch.member }}"}},
		{"uses":"config-apply","as":"hard","config":{"x":"${{ outputs.soft }}"}},
		{"uses":"config-apply","as":"after","config":{}},
		{"uses":"config-apply","as":"cleanup","if":"${{ failure() }}","config":{}}]`)
	if d := cmp.Diff([]string{"soft", "hard", "cleanup"}, ran); d != "" {
		t.Errorf("ran (-want +got):\n%s", d)
	}
	if want := `step "hard": HTTP (200) response met failure criteria: "no"`; out.Phase != kargoapi.PromotionFailed || out.Message != want {
		t.Errorf("%s: %s", out.Phase, out.Message)
	}
	if got := out.Steps[2]; got.Status != steps.Errored || !strings.Contains(got.Message, "failed to get step config: cannot fetch member from <nil>") {
		t.Errorf("%s: %s", got.Status, got.Message)
	}
}
