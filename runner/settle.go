package runner

import (
	"errors"
	"fmt"
	"time"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// settle reconciles an attempt's result and error and decides whether the step
// is done. If it is not, the error is that of an attempt to be repeated.
func (r *pass) settle(
	step *Step, m *kargoapi.StepExecutionMetadata, res steps.Result, err error,
	timeout time.Duration, threshold uint32,
) (done bool, retryErr error) {
	m.Status, m.Message = res.Status, res.Message
	if err == nil && res.Status == steps.Errored {
		details := res.Message
		if details == "" {
			details = "no details provided"
		}
		err = fmt.Errorf("step %q errored: %s", step.As, details)
	}
	if err != nil {
		if m.Status != steps.Failed {
			m.Status = steps.Errored
		}
		m.Message = err.Error()
	}
	r.errs[step.As] = err
	timedOut := timeout > 0 && r.Clock.Now().Sub(*m.StartedAt) > timeout
	cutOff := errors.Is(err, errAttemptTimeout)
	switch {
	case err == nil && (m.Status == steps.Succeeded || m.Status == steps.Skipped):
		r.finishedNow(m)
		return true, nil
	case err != nil && steps.IsTerminal(err):
		if m.Status == steps.Failed {
			r.finishedNow(m)
			return true, nil
		}
		r.finish(m, steps.Errored, fmt.Errorf("an unrecoverable error occurred: %w", err))
		return true, nil
	case err != nil && !cutOff:
		m.ErrorCount++
		if m.ErrorCount >= threshold {
			r.finish(m, m.Status, fmt.Errorf("step %q met error threshold of %d: %w", step.As, threshold, err))
			return true, nil
		}
	}
	switch {
	case timedOut || cutOff:
		msg := fmt.Errorf("step %q timed out after %s", step.As, timeout)
		r.finish(m, steps.Errored, msg)
		if err != nil {
			r.errs[step.As] = &timeoutError{msg.Error(), err}
		}
		return true, nil
	case err != nil:
		m.Message += "; step will be retried"
		return false, err
	}
	return false, nil // Running, or Failed or Aborted without an error: polled
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
