package admission

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"time"

	"golang.org/x/sync/semaphore"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	kjson "sigs.k8s.io/json"

	"github.com/stepd/stepd/runner/kargoapi"
)

// Limits of a review. What etcd stores is at most 1.5 MiB, and an update carries
// two objects.
const (
	maxReviewBytes   = 4 << 20
	maxBodies        = 16 << 20 // of all requests that are there
	maxRunning       = 4
	readDeadline     = 5 * time.Second
	defaultDeadline  = 10 * time.Second // that of admissionregistration.k8s.io/v1
	maximalDeadline  = 30 * time.Second // the most the API server allows
	answerBefore     = 500 * time.Millisecond
	maxMessageLength = 8 << 10
)

// Limits of the steps to judge in one object. More of them, rewritten, would be
// more than etcd stores; and what they are bounds what judging them takes.
const (
	maxOwnSteps = 400
	maxOwnBytes = 512 << 10
)

// tooMany refuses steps of ours beyond the limits, nil for fewer.
func tooMany(ours []json.RawMessage) *verdict {
	size := 0
	for _, step := range ours {
		size += len(step)
	}
	if len(ours) <= maxOwnSteps && size <= maxOwnBytes {
		return nil
	}
	v := deny(http.StatusUnprocessableEntity, "there are %d steps of stepd's with %d KiB: more than %d, or %d KiB, are not accepted in one object",
		len(ours), size>>10, maxOwnSteps, maxOwnBytes>>10)
	return &v
}

// Outcomes of a review, as logs and metrics call them.
const (
	outcomeAllowed   = "allowed"
	outcomeRewritten = "rewritten"
	outcomeDenied    = "denied" // for a reason that whoever asked can mend
	outcomeFailed    = "failed" // for a reason of our own; denied all the same
	outcomeMalformed = "malformed"
)

// verdict is the answer to one request.
type verdict struct {
	outcome string
	// code and message say why something was denied.
	code    int32
	message string
	// warnings are shown to whoever applied the object.
	warnings []string
	// patch is a JSON patch (RFC 6902), nil for none.
	patch []byte
	// rewritten counts the steps that patch replaces.
	rewritten int
}

func deny(code int32, format string, args ...any) verdict {
	return verdict{outcome: outcomeDenied, code: code, message: fmt.Sprintf(format, args...)}
}

func fail(code int32, format string, args ...any) verdict {
	return verdict{outcome: outcomeFailed, code: code, message: fmt.Sprintf(format, args...)}
}

// judge decides about one request. It is called by several goroutines.
type judge interface {
	judge(ctx context.Context, req *admissionv1.AdmissionRequest) verdict
}

// reviewer answers AdmissionReviews (admission.k8s.io/v1) with what a judge
// says. Whatever is no verdict is an HTTP error or a refusal, and both keep the
// object out under failurePolicy Fail.
type reviewer struct {
	name  string // of the endpoint, for logs and metrics
	judge judge
	// slots bounds how many requests are judged at a time, bodies how many bytes
	// of requests are there at all, and so both the memory that these take,
	// whoever sends them. One that arrives slowly is in nobody's way.
	slots   chan struct{}
	bodies  *semaphore.Weighted
	log     *slog.Logger
	metrics *metrics
}

func newReviewer(name string, j judge, log *slog.Logger, m *metrics) *reviewer {
	return &reviewer{name: name, judge: j, slots: make(chan struct{}, maxRunning), bodies: semaphore.NewWeighted(maxBodies), log: log, metrics: m}
}

// ServeHTTP implements http.Handler.
func (v *reviewer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), deadline(r))
	defer cancel()
	in := &body{ctx: ctx, bodies: v.bodies}
	release := in.release
	defer func() { release() }()
	code, err := in.read(w, r)
	if err == nil {
		select {
		case v.slots <- struct{}{}:
			release = func() { <-v.slots; in.release() }
		case <-ctx.Done():
			code, err = http.StatusServiceUnavailable, errBusy
		}
	}
	var req *admissionv1.AdmissionRequest
	if err == nil {
		req, code, err = decodeReview(in.text)
	}
	switch {
	case errors.Is(err, errBusy):
		v.metrics.reviewed(v.name, outcomeFailed, time.Since(start))
		http.Error(w, err.Error(), code)
		return
	case err != nil:
		v.metrics.reviewed(v.name, outcomeMalformed, time.Since(start))
		v.log.Warn("cannot read an AdmissionReview", "webhook", v.name, "error", err)
		http.Error(w, "cannot read the AdmissionReview: "+err.Error(), code)
		return
	}
	whenDone := release
	release = func() {} // decide does
	out := v.decide(ctx, req, whenDone)
	v.metrics.reviewed(v.name, out.outcome, time.Since(start))
	v.record(ctx, req, out, time.Since(start))
	answer, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Response: out.response(req.UID),
	})
	if err != nil {
		http.Error(w, "cannot write the AdmissionReview: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) // whoever went away is not told
}

// errBusy says that there are more or larger requests than fit.
var errBusy = errors.New("too many requests at a time")

// body is the body of a request, which takes from bodies what it holds.
type body struct {
	text   []byte
	from   io.Reader
	ctx    context.Context //nolint:containedctx // of Read, which has none
	bodies *semaphore.Weighted
	held   int64
}

func (b *body) read(w http.ResponseWriter, r *http.Request) (int, error) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return http.StatusUnsupportedMediaType, errors.New("the Content-Type has to be application/json")
	}
	// Not every ResponseWriter can; the server's own read timeout remains.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(readDeadline))
	defer func() { _ = control.SetReadDeadline(time.Time{}) }()
	b.from = http.MaxBytesReader(w, r.Body, maxReviewBytes)
	var err error
	b.text, err = io.ReadAll(b)
	switch _, tooLong := errors.AsType[*http.MaxBytesError](err); {
	case tooLong:
		return http.StatusRequestEntityTooLarge, fmt.Errorf("it is longer than %d MiB", maxReviewBytes>>20)
	case errors.Is(err, errBusy):
		return http.StatusServiceUnavailable, errBusy
	case err != nil:
		return http.StatusBadRequest, err
	}
	return 0, nil
}

// Read implements io.Reader. What does not fit in time is errBusy.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if b.bodies.Acquire(b.ctx, int64(n)) != nil {
		return 0, errBusy
	}
	b.held += int64(n)
	return n, err
}

func (b *body) release() { b.bodies.Release(b.held) }

// decodeReview decodes the request of a review. Field names are taken literally,
// as the API server does: a field that is only like another is none.
func decodeReview(body []byte) (*admissionv1.AdmissionRequest, int, error) {
	var review admissionv1.AdmissionReview
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &review); err != nil {
		return nil, http.StatusBadRequest, err
	}
	switch want := admissionv1.SchemeGroupVersion.String(); {
	case review.APIVersion != want || review.Kind != "AdmissionReview":
		return nil, http.StatusBadRequest, fmt.Errorf("it is %.100q of %.100q, not AdmissionReview of %s: list v1 in admissionReviewVersions", review.Kind, review.APIVersion, want)
	case review.Request == nil:
		return nil, http.StatusBadRequest, errors.New("it has no request")
	case review.Request.UID == "":
		return nil, http.StatusBadRequest, errors.New("its request has no uid")
	}
	return review.Request, 0, nil
}

// deadline is a little less than the API server waits, which it says in the
// query: an answer of ours explains more than its timeout does.
func deadline(r *http.Request) time.Duration {
	d, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || d <= 0 {
		d = defaultDeadline
	}
	return max(min(d, maximalDeadline)-answerBefore, answerBefore)
}

// decide judges a request within its deadline, and calls release, which gives up
// its slot. What cannot be stopped, because it computes, goes on for as long as
// it takes and occupies the slot meanwhile.
func (v *reviewer) decide(ctx context.Context, req *admissionv1.AdmissionRequest, release func()) verdict {
	done := make(chan verdict, 1)
	go func() {
		defer release()
		defer func() {
			if p := recover(); p != nil {
				v.log.Error("panic while judging a request", "webhook", v.name, "uid", req.UID, "panic", p, "stack", string(debug.Stack()))
				done <- fail(http.StatusInternalServerError, "stepd webhook failed; its log says more under uid %s", req.UID)
			}
		}()
		done <- v.judge.judge(ctx, req)
	}()
	select {
	case out := <-done:
		return out
	case <-ctx.Done():
		return fail(http.StatusGatewayTimeout, "stepd webhook could not decide in time; try again")
	}
}

// record logs a decision. The object itself is nobody's business but its own.
func (v *reviewer) record(ctx context.Context, req *admissionv1.AdmissionRequest, out verdict, took time.Duration) {
	level := slog.LevelInfo
	switch out.outcome {
	case outcomeDenied:
		level = slog.LevelWarn
	case outcomeFailed:
		level = slog.LevelError
	}
	v.log.Log(ctx, level, "reviewed", "webhook", v.name, "uid", req.UID, "operation", req.Operation,
		"resource", req.Resource.Resource, "namespace", req.Namespace, "name", req.Name, "user", req.UserInfo.Username,
		"dryRun", isDryRun(req), "outcome", out.outcome, "rewritten", out.rewritten, "message", out.message, "took", took)
}

func isDryRun(req *admissionv1.AdmissionRequest) bool { return req.DryRun != nil && *req.DryRun }

// response is what the API server is told. Only the two outcomes that say so
// allow anything.
func (v verdict) response(uid types.UID) *admissionv1.AdmissionResponse {
	r := &admissionv1.AdmissionResponse{UID: uid, Warnings: v.warnings}
	switch v.outcome {
	case outcomeAllowed:
		r.Allowed = true
	case outcomeRewritten:
		r.Allowed = true
		jsonPatch := admissionv1.PatchTypeJSONPatch
		r.Patch, r.PatchType = v.patch, &jsonPatch
		r.AuditAnnotations = map[string]string{"rewritten-steps": fmt.Sprint(v.rewritten)}
	default:
		r.Result = &metav1.Status{
			Status:  metav1.StatusFailure,
			Code:    cmp.Or(v.code, http.StatusInternalServerError),
			Reason:  reason(v.code),
			Message: truncate(v.message, maxMessageLength),
		}
	}
	return r
}

func reason(code int32) metav1.StatusReason {
	switch code {
	case http.StatusUnprocessableEntity:
		return metav1.StatusReasonInvalid
	case http.StatusBadRequest:
		return metav1.StatusReasonBadRequest
	case http.StatusServiceUnavailable:
		return metav1.StatusReasonServiceUnavailable
	case http.StatusGatewayTimeout:
		return metav1.StatusReasonTimeout
	}
	return metav1.StatusReasonInternalError
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return string(bytes.ToValidUTF8([]byte(s[:n]), nil)) + " …"
}

// expects tells whether a request is one the webhook configurations ask for.
// Anything else shows that they were changed, and nothing is known about it.
func expects(req *admissionv1.AdmissionRequest, resources []string, operations ...admissionv1.Operation) *verdict {
	group := schema.GroupVersion{Group: kargoapi.Group, Version: "v1alpha1"}
	for _, resource := range resources {
		for _, op := range operations {
			if req.Operation == op && req.SubResource == "" &&
				req.Resource == metav1.GroupVersionResource(group.WithResource(resource)) {
				return nil
			}
		}
	}
	v := deny(http.StatusBadRequest, "stepd webhook does not know what to say about %s of %s/%s, resource %q: "+
		"the webhook configuration is not the one that stepd comes with; install that again",
		req.Operation, req.Resource.Group, req.Resource.Version, req.Resource.Resource+"/"+req.SubResource)
	return &v
}
