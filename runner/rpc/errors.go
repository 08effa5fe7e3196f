package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stepd/stepd/internal/configschema"
	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/steps"
)

// FieldViolation is one way in which a config does not satisfy its schema.
type FieldViolation struct {
	// Field is the JSON pointer (RFC 6901) of the value; empty for the root.
	Field       string
	Description string
}

// StepError is an error that a step reported over the wire. It wraps what the
// original wrapped of the errors a caller decides by: steps.ErrRefused,
// steps.ErrConflict, steps.ErrConfig, context.DeadlineExceeded,
// context.Canceled.
type StepError struct {
	Message    string
	Violations []FieldViolation
	reason     error
}

// Error returns the step's own text.
func (e *StepError) Error() string { return e.Message }

// Unwrap returns what the step's error wrapped, or nil.
func (e *StepError) Unwrap() error { return e.reason }

// detailedError is a StepError with detail. It is a type of its own because
// having the method Detail means having detail.
type detailedError struct {
	*StepError
	detail map[string]any
}

// Detail implements steps.Detailer.
func (e *detailedError) Detail() map[string]any { return e.detail }

// Unwrap returns the StepError.
func (e *detailedError) Unwrap() error { return e.StepError }

// reasons pairs what callers decide by with its code. Order matters: an error
// that wraps several has the first.
func reasons() []struct {
	err  error
	code stepdv1.ErrorReason
} {
	return []struct {
		err  error
		code stepdv1.ErrorReason
	}{
		{steps.ErrRefused, stepdv1.ErrorReason_ERROR_REASON_REFUSED},
		{steps.ErrConflict, stepdv1.ErrorReason_ERROR_REASON_CONFLICT},
		{steps.ErrConfig, stepdv1.ErrorReason_ERROR_REASON_CONFIG},
		{context.DeadlineExceeded, stepdv1.ErrorReason_ERROR_REASON_TIMEOUT},
		{context.Canceled, stepdv1.ErrorReason_ERROR_REASON_CANCELED},
	}
}

func errorToProto(err error) *stepdv1.StepError {
	if err == nil {
		return nil
	}
	p := &stepdv1.StepError{Message: valid(err.Error()), Terminal: steps.IsTerminal(err)}
	for _, r := range reasons() {
		if errors.Is(err, r.err) {
			p.Reason = r.code
			break
		}
	}
	var config *guard.ConfigError
	if errors.As(err, &config) {
		p.Violations = violationsToProto(config.Violations)
	}
	var detailer steps.Detailer
	if errors.As(err, &detailer) {
		// Detail is extra: one that cannot be encoded must not hide the error.
		if detail, encErr := rounded.toStruct(detailer.Detail()); encErr == nil {
			p.Detail = detail
		}
	}
	return p
}

func errorFromProto(p *stepdv1.StepError) error {
	if p == nil {
		return nil
	}
	e := &StepError{Message: p.GetMessage()}
	if e.Message == "" {
		e.Message = "the step failed without saying why"
	}
	for _, r := range reasons() {
		if r.code == p.GetReason() {
			e.reason = r.err
		}
	}
	for _, v := range p.GetViolations() {
		e.Violations = append(e.Violations, FieldViolation{v.GetField(), v.GetDescription()})
	}
	var err error = e
	if d := p.GetDetail(); d != nil {
		err = &detailedError{e, fromStruct(d, asInt64)}
	}
	if p.GetTerminal() {
		err = steps.Terminal(err)
	}
	return err
}

func violationsToProto(vs []configschema.Violation) []*stepdv1.FieldViolation {
	out := make([]*stepdv1.FieldViolation, len(vs))
	for i, v := range vs {
		description := v.Message
		if v.Hint != "" {
			description += " (" + v.Hint + ")"
		}
		out[i] = &stepdv1.FieldViolation{Field: v.Pointer, Description: valid(description)}
	}
	return out
}

// badRequest is the gRPC error for a malformed request.
func badRequest(field, description string) error {
	st := status.Newf(codes.InvalidArgument, "%s: %s", field, description)
	if detailed, err := st.WithDetails(&errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: description}},
	}); err == nil {
		st = detailed
	}
	return st.Err()
}

// callError turns the gRPC error of a call into what a Runner returns. The
// context, when it is done, decides whether it was a timeout or a cancellation,
// since a deadline can show up as either on the wire, and there sooner.
func callError(ctx context.Context, kind string, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("cannot run step %q: %w", kind, cause)
	}
	st := status.Convert(err)
	err = fmt.Errorf("cannot run step %q: %s (%s)", kind, st.Message(), st.Code())
	switch st.Code() {
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: %w", err, context.DeadlineExceeded)
	case codes.Canceled:
		return fmt.Errorf("%w: %w", err, context.Canceled)
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return steps.Terminal(err)
	}
	return err
}

// valid makes s fit for a proto string.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
