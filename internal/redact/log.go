package redact

import (
	"context"
	"log/slog"
)

// Handler returns a slog.Handler that masks secrets in the message and in every
// attribute before next sees the record. Attributes given to With are masked
// when a record is handled, so secrets learnt in between are covered.
func (r *Redactor) Handler(next slog.Handler) slog.Handler {
	return &handler{r: r, next: next}
}

type handler struct {
	r    *Redactor
	next slog.Handler
	with []scope
}

// scope is one call of WithGroup (group set) or WithAttrs.
type scope struct {
	group string
	attrs []slog.Attr
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h *handler) Handle(ctx context.Context, rec slog.Record) error {
	next := h.next
	for _, s := range h.with {
		if s.group != "" {
			next = next.WithGroup(h.r.String(s.group))
		} else {
			next = next.WithAttrs(h.r.attrs(s.attrs))
		}
	}
	out := slog.NewRecord(rec.Time, rec.Level, h.r.String(rec.Message), rec.PC)
	rec.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(h.r.attr(a))
		return true
	})
	return next.Handle(ctx, out)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	return h.scoped(scope{attrs: attrs})
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.scoped(scope{group: name})
}

func (h *handler) scoped(s scope) slog.Handler {
	with := append(append(make([]scope, 0, len(h.with)+1), h.with...), s)
	return &handler{r: h.r, next: h.next, with: with}
}

func (r *Redactor) attrs(in []slog.Attr) []slog.Attr {
	out := make([]slog.Attr, len(in))
	for i, a := range in {
		out[i] = r.attr(a)
	}
	return out
}

func (r *Redactor) attr(a slog.Attr) slog.Attr {
	key, v := r.String(a.Key), a.Value.Resolve()
	switch v.Kind() {
	case slog.KindString:
		return slog.String(key, r.String(v.String()))
	case slog.KindGroup:
		return slog.Attr{Key: key, Value: slog.GroupValue(r.attrs(v.Group())...)}
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return slog.Any(key, r.Error(err))
		}
		return slog.Any(key, r.rendered(v.Any()))
	}
	return slog.Attr{Key: key, Value: v}
}
