package sidecar

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/steps"
)

// Reasons of events on Promotions.
const (
	// EventVerified names the signer and the digest of an artifact that was
	// accepted.
	EventVerified = "VerifiedSignature"
	// EventRefused says why nothing was accepted.
	EventRefused = "VerificationRefused"
	// EventPushed names a commit.
	EventPushed = "CommitPushed"
)

// eventTimeout bounds the recording of one event.
const eventTimeout = 10 * time.Second

// report records an event for an operation that has ended. That is a courtesy:
// the step's outcome does not depend on it.
func (s *Server) report(op *operation, a wire.Answer, stepErr error) {
	e := cluster.Event{
		Namespace: op.claims.Namespace, Promotion: op.claims.Promotion, UID: op.key.uid,
		Key: op.key.alias, Time: time.Now(),
	}
	output := func(key string) string {
		text, _ := a.Output[key].(string)
		return text
	}
	changed, _ := a.Output["changed"].(bool)
	switch {
	case a.Status == steps.Succeeded && output("digest") != "" && a.Output["signer"] != nil:
		e.Reason = EventVerified
		e.Key += "\x00" + output("digest")
		e.Message = fmt.Sprintf("step %s accepted %s, signed by %s", op.key.alias, output("imageRef"), signedBy(a.Output["signer"]))
	case a.Status == steps.Succeeded && output("commit") != "" && changed:
		e.Reason = EventPushed
		e.Key += "\x00" + output("commit")
		e.Message = fmt.Sprintf("step %s pushed commit %s to branch %s", op.key.alias, output("commit"), output("branch"))
	case errors.Is(stepErr, steps.ErrRefused):
		e.Reason, e.Warning = EventRefused, true
		e.Key += "\x00" + op.startedAt.Format(time.RFC3339)
		e.Message = fmt.Sprintf("step %s: %s", op.key.alias, a.Message)
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(op.ctx), eventTimeout)
	defer cancel()
	e.Message = op.redactor.String(e.Message)
	if err := s.Cluster.RecordEvent(ctx, e); err != nil {
		op.log.Warn("cannot record an event", "error", err)
	}
}

// signedBy names the signer that oci-download-verified reports.
func signedBy(v any) string {
	signer, _ := v.(map[string]any)
	text := func(key string) string {
		s, _ := signer[key].(string)
		return s
	}
	if id := text("keyID"); id != "" {
		return "key " + id
	}
	return fmt.Sprintf("%s (%s)", text("subject"), text("issuer"))
}
