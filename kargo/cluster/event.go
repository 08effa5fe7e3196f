package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/stepd/stepd/runner/kargoapi"
)

// Event is something that happened to a Promotion, for `kubectl describe` and
// for audit.
type Event struct {
	// Namespace, Promotion and UID name the Promotion.
	Namespace, Promotion, UID string
	// Reason is one word in CamelCase.
	Reason string
	// Warning marks an event that asks for attention.
	Warning bool
	// Message is for people; control characters are removed and it is cut to
	// what the API takes.
	Message string
	// Key tells events apart that may be reported more than once: two with the
	// same key and reason are one.
	Key string
	// Time is when it happened.
	Time time.Time
}

// RecordEvent makes a core/v1 Event. One that was recorded already is a success.
func (c *Client) RecordEvent(ctx context.Context, e Event) error {
	typ := "Normal"
	if e.Warning {
		typ = "Warning"
	}
	at := e.Time.UTC().Format(time.RFC3339)
	object := map[string]any{
		"apiVersion": "v1",
		"kind":       "Event",
		"metadata":   map[string]any{"name": e.name(), "namespace": e.Namespace},
		"involvedObject": map[string]any{
			"apiVersion": kargoapi.GroupVersion, "kind": kargoapi.KindPromotion,
			"namespace": e.Namespace, "name": e.Promotion, "uid": e.UID,
		},
		"type": typ, "reason": e.Reason, "message": eventText(e.Message),
		"source":         map[string]any{"component": "stepd"},
		"firstTimestamp": at, "lastTimestamp": at, "count": 1,
		"reportingComponent": "stepd", "reportingInstance": "",
	}
	err := c.do(ctx, "POST", path{"api", "v1", "namespaces", e.Namespace, "events"}, nil, object, nil)
	if err != nil && !errors.Is(err, ErrExists) {
		return fmt.Errorf("cannot record event %s of Promotion %q: %w", e.Reason, e.Promotion, err)
	}
	return nil
}

// maxName is how long a name of an object can be, maxEventText a message of an
// event (k8s.io/apimachinery validation, core/v1 events).
const (
	maxName      = 253
	maxEventText = 1024
)

// name is the same for the same event, which is what makes the API server drop
// a second one.
func (e Event) name() string {
	sum := sha256.Sum256([]byte(e.UID + "\x00" + e.Reason + "\x00" + e.Key))
	suffix := "." + hex.EncodeToString(sum[:8])
	name := e.Promotion
	if len(name)+len(suffix) > maxName {
		name = strings.TrimRight(name[:maxName-len(suffix)], ".-")
	}
	return name + suffix
}

func eventText(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > maxEventText {
		s = strings.ToValidUTF8(s[:maxEventText-len("…")], "") + "…"
	}
	return s
}
