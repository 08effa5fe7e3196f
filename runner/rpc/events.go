package rpc

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
)

const (
	// maxEvents is how many log and progress events of one attempt are sent;
	// the rest are counted and dropped.
	maxEvents = 10_000
	// maxEventBytes bounds one event.
	maxEventBytes = 64 << 10
	// A client gives up on a server that sends this many times what an honest
	// one does.
	floodFactor = 4
)

// eventStream sends the log and progress of one attempt. A nil *eventStream
// drops them. It is safe for concurrent use; nothing is sent after close,
// however late a goroutine of the step still logs.
//
// A caller that does not read holds a step up until its attempt's context is
// done, and no longer: sending is another goroutine's business.
type eventStream struct {
	stream grpc.ServerStreamingServer[stepdv1.RunStepResponse]
	over   <-chan struct{} // the attempt's context is done
	queue  chan *stepdv1.RunStepResponse
	ended  chan struct{} // all of the queue was sent

	mu      sync.Mutex
	sent    int
	dropped int
	closed  bool
}

// queueLength is how many events wait for a caller to read.
const queueLength = 16

// start begins to send. It has to be called before anything is sent.
func (s *eventStream) start(ctx context.Context) {
	if s == nil {
		return
	}
	s.over = ctx.Done()
	s.queue = make(chan *stepdv1.RunStepResponse, queueLength)
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		for e := range s.queue {
			// A failed send means that the call is over, which the step learns
			// from its context.
			_ = s.stream.Send(e)
		}
	}()
}

func (s *eventStream) send(e *stepdv1.RunStepResponse) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
	case s.sent >= maxEvents, proto.Size(e) > maxEventBytes:
		s.dropped++
	case s.enqueue(e):
		s.sent++
	default:
		s.dropped++
	}
}

// enqueue tells whether e will be sent: also after the attempt is over, as long
// as there is room.
func (s *eventStream) enqueue(e *stepdv1.RunStepResponse) bool {
	select {
	case s.queue <- e:
		return true
	default:
	}
	select {
	case s.queue <- e:
		return true
	case <-s.over:
		return false
	}
}

// close ends the stream of events and says how many were dropped. The attempt's
// context has to be done. It returns when the caller has read everything, or
// is gone.
func (s *eventStream) close() {
	s.mu.Lock()
	s.closed = true
	dropped := s.dropped
	s.mu.Unlock()
	if s.queue == nil { // the attempt never began
		return
	}
	close(s.queue)
	<-s.ended
	if dropped > 0 {
		attrs, _ := rounded.toStruct(map[string]any{"dropped": dropped}) // a number always encodes
		_ = s.stream.Send(logEvent(&stepdv1.LogRecord{
			Time: timestamppb.Now(), Level: int32(slog.LevelWarn),
			Message: "the step logged too much; records were dropped", Attributes: attrs,
		}))
	}
}

func (s *eventStream) progress(message string, completed, total uint64) {
	s.send(&stepdv1.RunStepResponse{Event: &stepdv1.RunStepResponse_Progress{
		Progress: &stepdv1.Progress{Message: valid(message), Completed: completed, Total: total},
	}})
}

// handler makes log records events; nil for a nil stream.
func (s *eventStream) handler() slog.Handler {
	if s == nil {
		return nil
	}
	return &eventHandler{stream: s, attrs: map[string]any{}}
}

func logEvent(r *stepdv1.LogRecord) *stepdv1.RunStepResponse {
	return &stepdv1.RunStepResponse{Event: &stepdv1.RunStepResponse_Log{Log: r}}
}

// eventHandler is a slog.Handler. Groups are nested objects.
type eventHandler struct {
	stream *eventStream
	attrs  map[string]any
	groups []string
}

// Enabled implements slog.Handler: the receiver filters.
func (h *eventHandler) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (h *eventHandler) Handle(_ context.Context, rec slog.Record) error {
	attrs := make([]slog.Attr, 0, rec.NumAttrs())
	rec.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a); return true })
	encoded, err := rounded.toStruct(h.with(attrs))
	if err != nil {
		encoded = &structpb.Struct{Fields: map[string]*structpb.Value{"logError": structpb.NewStringValue(valid(err.Error()))}}
	}
	h.stream.send(logEvent(&stepdv1.LogRecord{
		Time: timestamppb.New(rec.Time), Level: int32(rec.Level), Message: valid(rec.Message), Attributes: encoded,
	}))
	return nil
}

// WithAttrs implements slog.Handler.
func (h *eventHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &eventHandler{stream: h.stream, attrs: h.with(attrs), groups: h.groups}
}

// WithGroup implements slog.Handler.
func (h *eventHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &eventHandler{stream: h.stream, attrs: h.attrs, groups: append(h.groups[:len(h.groups):len(h.groups)], name)}
}

// with returns the handler's attributes plus attrs below its groups.
func (h *eventHandler) with(attrs []slog.Attr) map[string]any {
	root := cloneTree(h.attrs)
	m := root
	for _, g := range h.groups {
		next, ok := m[g].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[g] = next
		}
		m = next
	}
	addAttrs(m, attrs)
	return root
}

func addAttrs(m map[string]any, attrs []slog.Attr) {
	for _, a := range attrs {
		v := a.Value.Resolve()
		switch {
		case v.Kind() == slog.KindGroup && a.Key == "":
			addAttrs(m, v.Group())
		case v.Kind() == slog.KindGroup:
			group := map[string]any{}
			addAttrs(group, v.Group())
			m[a.Key] = group
		case a.Key != "":
			m[a.Key] = attrValue(v)
		}
	}
}

func attrValue(v slog.Value) any {
	switch v.Kind() {
	case slog.KindDuration:
		return v.Duration().String()
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindUint64:
		return float64(v.Uint64())
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return valid(err.Error())
		}
	case slog.KindString:
		return valid(v.String())
	}
	return v.Any()
}

func cloneTree(m map[string]any) map[string]any {
	out := make(map[string]any, len(m)+4)
	for k, v := range m {
		if sub, ok := v.(map[string]any); ok {
			v = cloneTree(sub)
		}
		out[k] = v
	}
	return out
}

// newTee is next, and also second when it is not nil.
func newTee(next, second slog.Handler) slog.Handler {
	if second == nil {
		return next
	}
	return slog.NewMultiHandler(next, second)
}

// progressKey is the context key of the function that reports progress.
type progressKey struct{}

func withProgress(ctx context.Context, report func(message string, completed, total uint64)) context.Context {
	return context.WithValue(ctx, progressKey{}, report)
}

// ReportProgress tells the caller of the step that runs under ctx how far it
// has come; total is 0 when unknown. Without such a caller it does nothing.
func ReportProgress(ctx context.Context, message string, completed, total uint64) {
	if report, ok := ctx.Value(progressKey{}).(func(string, uint64, uint64)); ok {
		report(message, completed, total)
	}
}
