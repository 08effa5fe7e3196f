package runner

import (
	"errors"
	"fmt"
	"time"

	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Attempted is one attempt of a step: what it was allowed and what it answered.
type Attempted struct {
	// Alias is the step's full alias.
	Alias string
	// StartedAt is when the step's first attempt began, Now is when this one
	// ended.
	StartedAt, Now time.Time
	// Timeout counts from StartedAt; zero and less never time out.
	Timeout time.Duration
	// ErrorThreshold is how many errors end the step, at least 1; ErrorCount is
	// how many there were before.
	ErrorThreshold, ErrorCount uint32
	// Result and Err are what the step answered.
	Result steps.Result
	Err    error
}

// Settlement is what an attempt comes to.
type Settlement struct {
	// Done tells that there is no further attempt.
	Done   bool
	Status steps.Status
	// Message is Kargo's wording.
	Message string
	// ErrorCount includes this attempt's error, if it had one that counts.
	ErrorCount uint32
	// Err is nil without an error. With an error, an attempt that is not done is
	// to be repeated after a pause; without one the step runs still.
	Err error
}

// Settle reconciles an attempt's result and error and decides whether the step
// is done, as Kargo v1.11.2 does (pkg/promotion/local_orchestrator.go,
// determineStepCompletion).
func Settle(a Attempted) Settlement {
	s := Settlement{Status: a.Result.Status, Message: a.Result.Message, ErrorCount: a.ErrorCount, Err: a.Err}
	if s.Err == nil && s.Status == steps.Errored {
		details := s.Message
		if details == "" {
			details = "no details provided"
		}
		s.Err = fmt.Errorf("step %q errored: %s", a.Alias, details)
	}
	if s.Err != nil {
		if s.Status != steps.Failed {
			s.Status = steps.Errored
		}
		s.Message = s.Err.Error()
	}
	timedOut := a.Timeout > 0 && a.Now.Sub(a.StartedAt) > a.Timeout
	cutOff := errors.Is(s.Err, guard.ErrTimeout)
	switch {
	case s.Err == nil && (s.Status == steps.Succeeded || s.Status == steps.Skipped):
		s.Done = true
		return s
	case s.Err != nil && steps.IsTerminal(s.Err):
		if s.Status == steps.Failed {
			s.Done = true
			return s
		}
		return s.end(steps.Errored, fmt.Errorf("an unrecoverable error occurred: %w", s.Err))
	case s.Err != nil && !cutOff:
		s.ErrorCount++
		if s.ErrorCount >= a.ErrorThreshold {
			return s.end(s.Status, fmt.Errorf("step %q met error threshold of %d: %w", a.Alias, a.ErrorThreshold, s.Err))
		}
	}
	switch {
	case timedOut || cutOff:
		msg := fmt.Errorf("step %q timed out after %s", a.Alias, a.Timeout)
		if s.Err != nil {
			msg = &timeoutError{msg.Error(), s.Err}
		}
		return s.end(steps.Errored, msg)
	case s.Err != nil:
		s.Message += "; step will be retried"
	}
	return s // to be repeated; or Running, or Failed or Aborted without an error: polled
}

func (s Settlement) end(status steps.Status, err error) Settlement {
	s.Done, s.Status, s.Message, s.Err = true, status, err.Error(), err
	return s
}

// settle enters an attempt into the step's metadata. If the step is not done,
// the error is that of an attempt to be repeated.
func (r *pass) settle(
	step *Step, m *kargoapi.StepExecutionMetadata, res steps.Result, err error,
	timeout time.Duration, threshold uint32,
) (done bool, retryErr error) {
	s := Settle(Attempted{
		Alias: step.As, StartedAt: *m.StartedAt, Now: r.Clock.Now(), Timeout: timeout,
		ErrorThreshold: threshold, ErrorCount: m.ErrorCount, Result: res, Err: err,
	})
	if r.Redactor != nil {
		s.Message = r.Redactor.String(s.Message)
		if s.Err != nil {
			s.Err = r.Redactor.Error(s.Err)
		}
	}
	m.Status, m.Message, m.ErrorCount = s.Status, s.Message, s.ErrorCount
	r.errs[step.As] = s.Err
	if s.Done {
		r.finishedNow(m)
		return true, nil
	}
	return false, s.Err
}

// timeoutError has Kargo's words and the chain of the last attempt's error.
type timeoutError struct {
	text string
	err  error
}

func (e *timeoutError) Error() string { return e.text }
func (e *timeoutError) Unwrap() error { return e.err }

// severity orders statuses from harmless to bad (pkg/promotion/orchestrator.go).
func severity(s steps.Status) int {
	switch s {
	case steps.Succeeded:
		return 0
	case steps.Skipped:
		return 1
	case steps.Running:
		return 2
	case steps.Aborted:
		return 3
	case steps.Failed:
		return 4
	}
	return 5
}

// finalPhase is made of the worst status among steps that do not continue on
// error, and the message of the first step that has it.
func finalPhase(metas []kargoapi.StepExecutionMetadata) (kargoapi.PromotionPhase, string) {
	worst, message := steps.Succeeded, ""
	for _, m := range metas {
		if !m.ContinueOnError && severity(m.Status) > severity(worst) {
			worst, message = m.Status, m.Message
		}
	}
	switch worst {
	case steps.Succeeded, steps.Skipped:
		return kargoapi.PromotionSucceeded, message
	case steps.Aborted:
		return kargoapi.PromotionAborted, message
	case steps.Failed:
		return kargoapi.PromotionFailed, message
	}
	return kargoapi.PromotionErrored, message
}
