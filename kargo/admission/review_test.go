package admission

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
)

// ourSteps describes the kinds that the webhook is for.
func ourSteps(t testing.TB) ([]steps.Registration, *runner.Registry) {
	t.Helper()
	var regs []steps.Registration
	for _, kind := range []string{"oci-download-verified", "config-apply", "atomic-commit"} {
		config, ok1 := schemas.Config(kind)
		output, ok2 := schemas.Output(kind)
		if !ok1 || !ok2 {
			t.Fatalf("step %s has no schemas", kind)
		}
		regs = append(regs, steps.Registration{
			Name: kind, New: func(steps.Capabilities) steps.Runner { return nil }, ConfigSchema: config, OutputSchema: output,
		})
	}
	registry, err := runner.NewRegistry(regs...)
	if err != nil {
		t.Fatal(err)
	}
	return regs, registry
}

type fixedKey struct{ ed25519.PrivateKey }

func (k fixedKey) SigningKey() (ed25519.PrivateKey, error) { return k.PrivateKey, nil }

type noKey struct{}

func (noKey) SigningKey() (ed25519.PrivateKey, error) { return nil, errors.New("no key yet") }

func testKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)) }

func testServer(t testing.TB) *server {
	t.Helper()
	regs, registry := ourSteps(t)
	kinds, err := KindsOf(regs)
	if err != nil {
		t.Fatal(err)
	}
	return &server{
		Options: Options{
			Rewriter: Rewriter{SidecarURL: "http://127.0.0.1:9470", Kinds: kinds},
			Registry: registry, Keys: fixedKey{testKey()}, Log: slog.New(slog.DiscardHandler),
		},
		metrics: newMetrics("test", func() time.Time { return time.Time{} }, func() error { return errors.New("a test") }),
	}
}

// review makes an AdmissionReview of YAML fixtures; old may be empty.
func review(t testing.TB, operation admissionv1.Operation, resource, object, old string) map[string]any {
	t.Helper()
	decode := func(text string) any {
		var v any
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	return map[string]any{
		"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
		"request": map[string]any{
			"uid": "u-1", "operation": operation, "namespace": "acme", "name": "",
			"kind":     map[string]any{"group": "kargo.akuity.io", "version": "v1alpha1", "kind": "X"},
			"resource": map[string]any{"group": "kargo.akuity.io", "version": "v1alpha1", "resource": resource},
			"userInfo": map[string]any{"username": "someone"},
			"object":   decode(object), "oldObject": decode(old), "dryRun": false,
		},
	}
}

// post sends a review, or any other body, and returns what came back.
func post(t testing.TB, h http.Handler, path string, body any) (int, *admissionv1.AdmissionReview, string) {
	t.Helper()
	text, ok := body.(string)
	if !ok {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(text))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var out admissionv1.AdmissionReview
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatalf("the answer is no AdmissionReview: %v", err)
		}
	}
	return w.Code, &out, w.Body.String()
}

const promotion = `
apiVersion: kargo.akuity.io/v1alpha1
kind: Promotion
metadata: {name: prd-us.01j9.abcdefg, namespace: acme}
spec:
  stage: prd-us
  freight: abc
  steps:
  - {uses: git-clone, as: clone, config: {repoURL: 'https://x', checkout: [{path: a}]}, future: kept}
  - uses: oci-download-verified
    as: promote::config
    if: ${{ success() }}
    continueOnError: true
    retry: {timeout: 5m, errorThreshold: 3}
    vars: [{name: tag, value: v1}]
    config: {imageRef: 'ghcr.io/a/b:${{ vars.tag }}', outPath: c.yaml}
  - {uses: http, as: other, config: {url: 'https://x'}}
  - {uses: atomic-commit, as: promote::commit, config: {path: .}}
`

func TestMutate(t *testing.T) {
	h := testServer(t).reviews()
	code, out, text := post(t, h, MutatePath, review(t, admissionv1.Create, "promotions", promotion, ""))
	if code != http.StatusOK || !out.Response.Allowed || out.Response.UID != "u-1" || out.APIVersion != "admission.k8s.io/v1" || out.Kind != "AdmissionReview" {
		t.Fatalf("%d %s", code, text)
	}
	if *out.Response.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Errorf("the patch is of type %s", *out.Response.PatchType)
	}
	var patch []struct {
		Op, Path string
		Value    struct {
			Uses, As, If    string
			ContinueOnError bool
			Vars            []map[string]string
			Config          struct {
				URL     string
				Headers []struct{ Name, Value string }
			}
		}
	}
	if err := json.Unmarshal(out.Response.Patch, &patch); err != nil {
		t.Fatal(err)
	}
	if len(patch) != 2 || patch[0].Path != "/spec/steps/1" || patch[1].Path != "/spec/steps/3" {
		t.Fatalf("the patch is %s", out.Response.Patch)
	}
	p := patch[0]
	if p.Op != "replace" || p.Value.Uses != "http" || p.Value.As != "promote::config" || p.Value.If != "${{ success() }}" ||
		!p.Value.ContinueOnError || len(p.Value.Vars) != 1 || p.Value.Config.URL != "http://127.0.0.1:9470/v1/steps/oci-download-verified" {
		t.Errorf("the step became %+v", p)
	}
	token := ""
	for _, header := range p.Value.Config.Headers {
		if header.Name == wire.HeaderToken {
			token = strings.TrimPrefix(header.Value, "Bearer ")
		}
	}
	claims, err := wire.Verify([]ed25519.PublicKey{testKey().Public().(ed25519.PublicKey)}, token)
	if err != nil {
		t.Fatal(err)
	}
	if claims.Namespace != "acme" || claims.Promotion != "prd-us.01j9.abcdefg" || claims.Alias != "promote::config" || claims.Kind != "oci-download-verified" {
		t.Errorf("the token claims %+v", claims)
	}
	if got := out.Response.AuditAnnotations["rewritten-steps"]; got != "2" {
		t.Errorf("the audit log is told of %q steps", got)
	}

	// Called again with its own result it changes nothing; a dry run is like any other.
	again := review(t, admissionv1.Create, "promotions", promotion, "")
	list := again["request"].(map[string]any)["object"].(map[string]any)["spec"].(map[string]any)["steps"].([]any)
	var values []struct{ Value any }
	if err := json.Unmarshal(out.Response.Patch, &values); err != nil {
		t.Fatal(err)
	}
	list[1], list[3] = values[0].Value, values[1].Value
	again["request"].(map[string]any)["dryRun"] = true
	if _, out, text := post(t, h, MutatePath, again); out.Response == nil || !out.Response.Allowed || out.Response.Patch != nil {
		t.Errorf("called again: %s", text)
	}
}

func TestMutateRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		reason   string
		change   func(request, object map[string]any)
		keys     KeySource
		wantCode int32
		want     string
	}{
		"no key": {
			reason: "an unsigned step could not run", keys: noKey{}, wantCode: http.StatusServiceUnavailable, want: "no key yet",
		},
		"update": {
			reason:   "the configuration asks about CREATE only",
			change:   func(r, _ map[string]any) { r["operation"] = "UPDATE" },
			wantCode: http.StatusBadRequest, want: "install that again",
		},
		"status": {
			reason:   "a subresource is no Promotion",
			change:   func(r, _ map[string]any) { r["subResource"] = "status" },
			wantCode: http.StatusBadRequest, want: "promotions/status",
		},
		"another version": {
			reason: "what v1beta1 looks like is not known",
			change: func(r, _ map[string]any) {
				r["resource"].(map[string]any)["version"] = "v1beta1"
			},
			wantCode: http.StatusBadRequest, want: "kargo.akuity.io/v1beta1",
		},
		"another kind": {
			reason: "a Stage has no steps there",
			change: func(r, _ map[string]any) {
				r["resource"].(map[string]any)["resource"] = "stages"
			},
			wantCode: http.StatusBadRequest, want: "stages",
		},
		"no name": {
			reason:   "a token binds a name",
			change:   func(_, o map[string]any) { delete(o["metadata"].(map[string]any), "name") },
			wantCode: http.StatusUnprocessableEntity, want: "after Kargo's",
		},
		"another namespace": {
			reason:   "a token binds the namespace the object will be in",
			change:   func(_, o map[string]any) { o["metadata"].(map[string]any)["namespace"] = "other" },
			wantCode: http.StatusBadRequest, want: `"other"`,
		},
		"steps of another type": {
			reason:   "nothing is known about it",
			change:   func(_, o map[string]any) { o["spec"].(map[string]any)["steps"] = "x" },
			wantCode: http.StatusUnprocessableEntity, want: "cannot read the Promotion",
		},
		"config that is a list": {
			reason: "no version of Kargo could evaluate it",
			change: func(_, o map[string]any) {
				o["spec"].(map[string]any)["steps"].([]any)[1].(map[string]any)["config"] = []any{1}
			},
			wantCode: http.StatusUnprocessableEntity, want: "promote::config",
		},
		"no object": {
			reason:   "as a DELETE would have it",
			change:   func(r, _ map[string]any) { delete(r, "object") },
			wantCode: http.StatusUnprocessableEntity, want: "cannot read the Promotion",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := testServer(t)
			if tc.keys != nil {
				s.Keys = tc.keys
			}
			r := review(t, admissionv1.Create, "promotions", promotion, "")
			request := r["request"].(map[string]any)
			if tc.change != nil {
				tc.change(request, request["object"].(map[string]any))
			}
			code, out, text := post(t, s.reviews(), MutatePath, r)
			if code != http.StatusOK || out.Response.Allowed || out.Response.Patch != nil || out.Response.UID != "u-1" {
				t.Fatalf("%s; but: %d %s", tc.reason, code, text)
			}
			if out.Response.Result.Code != tc.wantCode || !strings.Contains(out.Response.Result.Message, tc.want) {
				t.Errorf("%s: got %d %s", tc.reason, out.Response.Result.Code, out.Response.Result.Message)
			}
		})
	}
}

func TestMalformedReviews(t *testing.T) {
	h := testServer(t).reviews()
	for name, tc := range map[string]struct {
		reason, body string
		want         int
	}{
		"empty":            {"nothing", "", http.StatusBadRequest},
		"no JSON":          {"text", "hello", http.StatusBadRequest},
		"another version":  {"v1beta1 was removed from Kubernetes", `{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}`, http.StatusBadRequest},
		"another kind":     {"not a review", `{"apiVersion":"admission.k8s.io/v1","kind":"ConversionReview","request":{"uid":"u"}}`, http.StatusBadRequest},
		"no request":       {"an answer", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","allowed":true}}`, http.StatusBadRequest},
		"no uid":           {"what cannot be answered", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}`, http.StatusBadRequest},
		"fields like ours": {"names are taken literally", `{"apiversion":"admission.k8s.io/v1","Kind":"AdmissionReview","Request":{"UID":"u"}}`, http.StatusBadRequest},
		"too long":         {"more than an API server can send", strings.Repeat(" ", maxReviewBytes+1), http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{MutatePath, ValidatePath} {
				if code, _, text := post(t, h, path, tc.body); code != tc.want {
					t.Errorf("%s at %s: got %d %s", tc.reason, path, code, text)
				}
			}
		})
	}
	r := httptest.NewRequest(http.MethodPost, MutatePath, strings.NewReader("{}"))
	r.Header.Set("Content-Type", "text/plain")
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != http.StatusUnsupportedMediaType {
		t.Errorf("text/plain is answered with %d", w.Code)
	}
	w = httptest.NewRecorder()
	if h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, MutatePath, nil)); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET is answered with %d", w.Code)
	}
}

func TestTooMany(t *testing.T) {
	h := testServer(t).reviews()
	one := `{"uses":"config-apply","as":"a%d","config":{"inPath":"a","outPath":"b"}}`
	for name, tc := range map[string]struct {
		reason string
		steps  func() string
		want   bool // allowed
	}{
		"many":           {"as many as are accepted", func() string { return numbered(one, maxOwnSteps) }, true},
		"too many":       {"the Promotion could not be stored", func() string { return numbered(one, maxOwnSteps+1) }, false},
		"many of others": {"other people's steps are not judged", func() string { return numbered(`{"uses":"copy","as":"a%d"}`, maxOwnSteps+1) }, true},
		"too long": {"judging it would take long", func() string {
			return numbered(strings.Replace(one, `"a"`, `"`+strings.Repeat("a", maxOwnBytes)+`"`, 1), 1)
		}, false},
		"long and of others'": {"it is not judged", func() string {
			return numbered(`{"uses":"copy","as":"a%d","config":{"a":"`+strings.Repeat("a", maxOwnBytes)+`"}}`, 1)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			for path, resource := range map[string]string{MutatePath: "promotions", ValidatePath: "promotiontasks"} {
				object := `{"metadata":{"name":"p","namespace":"acme"},"spec":{"steps":[` + tc.steps() + `]}}`
				_, out, text := post(t, h, path, review(t, admissionv1.Create, resource, object, ""))
				if out.Response == nil || out.Response.Allowed != tc.want {
					t.Errorf("%s, at %s: %.500s", tc.reason, path, text)
				} else if !tc.want && !strings.Contains(out.Response.Result.Message, "are not accepted in one object") {
					t.Errorf("%s: %s", tc.reason, out.Response.Result.Message)
				}
			}
		})
	}
}

func numbered(step string, n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(step, i)
	}
	return strings.Join(list, ",")
}

type judgeFunc func(ctx context.Context, req *admissionv1.AdmissionRequest) verdict

func (f judgeFunc) judge(ctx context.Context, req *admissionv1.AdmissionRequest) verdict {
	return f(ctx, req)
}

// TestNeverAllowedByAccident has judges that do not come to a verdict.
func TestNeverAllowedByAccident(t *testing.T) {
	block := make(chan struct{})
	defer close(block)
	for name, tc := range map[string]struct {
		reason string
		judge  judgeFunc
		want   int32
	}{
		"panic":      {"a fault of ours", func(context.Context, *admissionv1.AdmissionRequest) verdict { panic("x") }, http.StatusInternalServerError},
		"no outcome": {"a verdict that says nothing", func(context.Context, *admissionv1.AdmissionRequest) verdict { return verdict{} }, http.StatusInternalServerError},
		"too slow": {"what takes too long", func(context.Context, *admissionv1.AdmissionRequest) verdict {
			<-block
			return verdict{outcome: outcomeAllowed}
		}, http.StatusGatewayTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			s := testServer(t)
			h := newReviewer("mutate", tc.judge, s.Log, s.metrics)
			_, out, text := post(t, h, "/mutate?timeout=1ms", review(t, admissionv1.Create, "promotions", promotion, ""))
			if out.Response == nil || out.Response.Allowed || out.Response.Result.Code != tc.want || out.Response.Result.Message == "" && name != "no outcome" {
				t.Errorf("%s: %s", tc.reason, text)
			}
		})
	}
}

// TestSlots fills all slots with requests that do not end: the next one is
// refused in time rather than kept.
func TestSlots(t *testing.T) {
	block := make(chan struct{})
	started := make(chan struct{}, maxRunning)
	s := testServer(t)
	h := newReviewer("mutate", judgeFunc(func(context.Context, *admissionv1.AdmissionRequest) verdict {
		started <- struct{}{}
		<-block
		return verdict{outcome: outcomeAllowed}
	}), s.Log, s.metrics)
	r := review(t, admissionv1.Create, "promotions", promotion, "")
	answers := make(chan string, maxRunning)
	for range maxRunning {
		go func() {
			_, _, text := post(t, h, "/mutate?timeout=30s", r)
			answers <- text
		}()
	}
	for range maxRunning {
		<-started
	}
	if code, _, text := post(t, h, "/mutate?timeout=1ms", r); code != http.StatusServiceUnavailable {
		t.Errorf("one too many was answered with %d %s", code, text)
	}
	close(block)
	for range maxRunning {
		if text := <-answers; !strings.Contains(text, `"allowed":true`) {
			t.Errorf("one that was running was answered with %s", text)
		}
	}
}

// TestSlowBodies: who sends slowly keeps nobody from being judged, and who sends
// much cannot have it all kept.
func TestSlowBodies(t *testing.T) {
	s := testServer(t)
	h := newReviewer("mutate", judgeFunc(func(context.Context, *admissionv1.AdmissionRequest) verdict {
		return verdict{outcome: outcomeAllowed}
	}), s.Log, s.metrics)
	stalled := func(text, timeout string) (end func() int) {
		r, body := io.Pipe()
		req := httptest.NewRequest(http.MethodPost, "/mutate?timeout="+timeout, r)
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeHTTP(w, req)
			_ = r.Close() // what nobody reads is not written
		}()
		_, _ = io.WriteString(body, text)
		return func() int {
			_ = body.Close()
			<-done
			return w.Code
		}
	}
	r := review(t, admissionv1.Create, "promotions", promotion, "")
	var ends []func() int
	for range 10 * maxRunning {
		ends = append(ends, stalled("{", "30s"))
	}
	if code, _, text := post(t, h, "/mutate?timeout=2s", r); code != http.StatusOK {
		t.Errorf("beside slow ones it was answered with %d %s", code, text)
	}
	for _, end := range ends {
		if code := end(); code != http.StatusBadRequest {
			t.Errorf("a body that broke off was answered with %d", code)
		}
	}
	ends = nil
	for range maxBodies / maxReviewBytes {
		ends = append(ends, stalled(strings.Repeat(" ", maxReviewBytes), "30s"))
	}
	for h.bodies.TryAcquire(1) { // the last of them is about to be counted
		h.bodies.Release(1)
		runtime.Gosched()
	}
	if code := stalled("{", "1ms")(); code != http.StatusServiceUnavailable {
		t.Errorf("one too many was answered with %d", code)
	}
	for _, end := range ends {
		if code := end(); code != http.StatusBadRequest {
			t.Errorf("a body of blanks was answered with %d", code)
		}
	}
	if code, _, text := post(t, h, "/mutate", r); code != http.StatusOK {
		t.Errorf("afterwards it was answered with %d %s", code, text)
	}
}

// TestLog tells what is logged, and that configs and tokens are not.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	s := testServer(t)
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	object := strings.Replace(promotion, "outPath: c.yaml", "outPath: c.yaml, note: hush-hush", 1)
	_, out, _ := post(t, s.reviews(), MutatePath, review(t, admissionv1.Create, "promotions", object, ""))
	if !out.Response.Allowed {
		t.Fatal(out.Response.Result)
	}
	for _, want := range []string{"webhook=mutate", "uid=u-1", "operation=CREATE", "namespace=acme", "user=someone", "outcome=rewritten", "rewritten=2"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s: %s", want, &log)
		}
	}
	for _, secret := range []string{"hush-hush", "eyJ"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has %s: %s", secret, &log)
		}
	}
}

func FuzzReview(f *testing.F) {
	h := testServer(f).reviews()
	for _, r := range []map[string]any{
		review(f, admissionv1.Create, "promotions", promotion, ""),
		review(f, admissionv1.Create, "stages", stage(`{uses: config-apply, config: {inPath: 1, outPath: '${{ x( }}'}}`), ""),
		review(f, admissionv1.Update, "promotiontasks", task(`{uses: atomic-commit, if: x, config: {}}`), task(`{uses: copy}`)),
	} {
		text, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE","resource":{"group":"kargo.akuity.io","version":"v1alpha1","resource":"promotions"},"object":{"spec":{"steps":[null,{"uses":"config-apply"}]}}}}`)
	f.Add(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","namespace":"n","operation":"CREATE","resource":{"group":"kargo.akuity.io","version":"v1alpha1","resource":"promotions"},"object":{"metadata":{"name":"p","namespace":"n"},"spec":{"steps":[{"as":"a","uses":"config-apply"}]},"Spec":{"Steps":[]}}}}`)
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{MutatePath, ValidatePath} {
			code, out, text := post(t, h, path, body)
			if code != http.StatusOK {
				continue
			}
			if out.Response == nil || out.Response.UID == "" {
				t.Fatalf("a review without an answer: %s", text)
			}
			if out.Response.Result != nil && out.Response.Result.Code == http.StatusInternalServerError {
				t.Fatalf("a fault of ours: %s", text)
			}
			if path == MutatePath && out.Response.Allowed {
				noneLeft(t, body, out.Response.Patch)
			}
		}
	})
}

// noneLeft checks that no step of ours is left in a Promotion that was allowed.
func noneLeft(t *testing.T, body string, patch []byte) {
	t.Helper()
	var r struct {
		Request struct {
			Object struct {
				Spec struct {
					Steps []map[string]any `json:"steps"`
				} `json:"spec"`
			} `json:"object"`
		} `json:"request"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts([]byte(body), &r); err != nil {
		t.Fatalf("allowed, and cannot be read: %v", err)
	}
	list := r.Request.Object.Spec.Steps
	if len(patch) > 0 {
		var ops []struct {
			Path  string
			Value map[string]any
		}
		if err := json.Unmarshal(patch, &ops); err != nil {
			t.Fatal(err)
		}
		for _, op := range ops {
			var i int
			if _, err := fmt.Sscanf(op.Path, "/spec/steps/%d", &i); err != nil || i >= len(list) {
				t.Fatalf("the patch changes %s", op.Path)
			}
			list[i] = op.Value
		}
	}
	for _, step := range list {
		switch step["uses"] {
		case "oci-download-verified", "config-apply", "atomic-commit":
			t.Fatalf("a step of ours is left: %v", step)
		}
	}
}

func TestMetrics(t *testing.T) {
	s := testServer(t)
	h := s.reviews()
	post(t, h, MutatePath, review(t, admissionv1.Create, "promotions", promotion, ""))
	post(t, h, MutatePath, review(t, admissionv1.Delete, "promotions", promotion, ""))
	post(t, h, ValidatePath, "")
	w := httptest.NewRecorder()
	s.observability().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	text, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "stepd_admissions_total") {
			got = append(got, line)
		}
	}
	want := []string{
		`stepd_admissions_total{outcome="denied",webhook="mutate"} 1`,
		`stepd_admissions_total{outcome="malformed",webhook="validate"} 1`,
		`stepd_admissions_total{outcome="rewritten",webhook="mutate"} 1`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
