package admission

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	kjson "sigs.k8s.io/json"

	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Rewriter turns steps of ours into steps of kind `http` that call the sidecar.
// It is pure, and safe for concurrent use if Now is.
type Rewriter struct {
	// SidecarURL is where Kargo's controller reaches the sidecar, such as
	// http://127.0.0.1:9470, without a path.
	SidecarURL string
	// Key signs the tokens that bind a step to its Promotion.
	Key ed25519.PrivateKey
	// Kinds are the kinds to rewrite, by the value of `uses`.
	Kinds map[string]Kind
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// Kind is what rewriting a step has to know of its kind.
type Kind struct {
	// Outputs are the names of the step's outputs, sorted.
	Outputs []string
}

// KindsOf returns the kinds of registered steps, with the properties of their
// output schemas as outputs.
func KindsOf(registrations []steps.Registration) (map[string]Kind, error) {
	kinds := make(map[string]Kind, len(registrations))
	for _, reg := range registrations {
		var schema struct {
			Properties map[string]json.RawMessage `json:"properties"`
		}
		if len(reg.OutputSchema) > 0 {
			if err := json.Unmarshal(reg.OutputSchema, &schema); err != nil {
				return nil, fmt.Errorf("cannot read the output schema of step kind %s: %w", reg.Name, err)
			}
		}
		kinds[reg.Name] = Kind{Outputs: slices.Sorted(maps.Keys(schema.Properties))}
	}
	return kinds, nil
}

// Rewrite returns the steps of a Promotion, given as the JSON of the whole
// object, with every step of ours rewritten. All that is not `uses`, `config`
// and `retry` of such a step stays as it is, and so do all other steps, byte for
// byte. changed is false if there was nothing to rewrite, as there is not when
// Rewrite is called again with its own result.
//
// The step is bound to the Promotion's final name and namespace: it must have
// both, and the step an alias of its own. These, and a config that no version
// of Kargo could evaluate, are the errors.
func (r *Rewriter) Rewrite(promotion []byte) (rewritten []json.RawMessage, changed bool, err error) {
	var p struct {
		Metadata struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Spec struct {
			Steps []json.RawMessage `json:"steps"`
		} `json:"spec"`
	}
	// As Kubernetes does, which tells metadata from Metadata.
	if err := kjson.UnmarshalCaseSensitivePreserveInts(promotion, &p); err != nil {
		return nil, false, fmt.Errorf("cannot decode the Promotion: %w", err)
	}
	parsed := make([]step, len(p.Spec.Steps))
	aliases := map[string]int{}
	for i, raw := range p.Spec.Steps {
		if err := parsed[i].parse(raw); err != nil {
			return nil, false, fmt.Errorf("cannot decode step %d of the Promotion: %w", i+1, err)
		}
		aliases[parsed[i].As]++
	}
	rewritten = slices.Clone(p.Spec.Steps)
	for i := range parsed {
		s := &parsed[i]
		kind, ours := r.Kinds[s.Uses]
		if !ours {
			continue
		}
		switch {
		case p.Metadata.Name == "" || p.Metadata.Namespace == "":
			return nil, false, errors.New("cannot bind steps to the Promotion: it has no name or no namespace yet; " +
				"stepd's webhook has to run after Kargo's, which names it")
		case s.As == "":
			return nil, false, fmt.Errorf("cannot bind step %d (uses: %s): it has no alias; stepd's webhook has to run after Kargo's, which gives it one", i+1, s.Uses)
		case aliases[s.As] > 1:
			return nil, false, fmt.Errorf("cannot bind step %q: %d steps have this alias", s.As, aliases[s.As])
		}
		if rewritten[i], err = r.step(s, kind, p.Metadata.Namespace, p.Metadata.Name); err != nil {
			return nil, false, fmt.Errorf("cannot rewrite step %q (uses: %s): %w", s.As, s.Uses, err)
		}
		changed = true
	}
	return rewritten, changed, nil
}

// step is a step with all its fields, and those that matter here.
type step struct {
	fields map[string]json.RawMessage
	Uses   string
	As     string
	Config json.RawMessage
}

func (s *step) parse(raw json.RawMessage) error {
	if err := json.Unmarshal(raw, &s.fields); err != nil {
		return err
	}
	for name, to := range map[string]any{"uses": &s.Uses, "as": &s.As, "config": &s.Config} {
		if text, ok := s.fields[name]; ok {
			if err := json.Unmarshal(text, to); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (r *Rewriter) step(s *step, kind Kind, namespace, promotion string) (json.RawMessage, error) {
	retry, theirs, err := rewriteRetry(s.fields["retry"])
	if err != nil {
		return nil, err
	}
	body, skeleton, err := wire.EncodeConfig(s.Config)
	if err != nil {
		return nil, err
	}
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	token, err := wire.Sign(r.Key, wire.Claims{
		Namespace: namespace, Promotion: promotion, Alias: s.As, Kind: s.Uses,
		Skeleton: skeleton, Retry: theirs, IssuedAt: now(),
	})
	if err != nil {
		return nil, err
	}
	url := wire.StepURL(r.SidecarURL, s.Uses)
	if expr.HasCode(url) {
		return nil, fmt.Errorf("the sidecar's URL %s has an expression in it", r.SidecarURL)
	}
	config := httpConfig{
		Method: "POST", URL: url, Body: body,
		Headers: []httpHeader{
			{"Content-Type", wire.ContentType},
			{wire.HeaderToken, wire.Bearer(token)},
			{wire.HeaderProjectKey, wire.ProjectKeyTemplate},
		},
		Timeout: wire.RequestTimeout.String(), PollInterval: wire.PollInterval.String(),
		ResponseContentType: wire.ResponseContentType,
		SuccessExpression:   wire.SuccessExpression, FailureExpression: wire.FailureExpression, ErrorExpression: wire.ErrorExpression,
	}
	for _, name := range kind.Outputs {
		config.Outputs = append(config.Outputs, httpOutput{name, wire.OutputExpression(name)})
	}
	fields := maps.Clone(s.fields)
	for name, value := range map[string]any{"uses": "http", "config": config, "retry": retry} {
		if fields[name], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return json.Marshal(fields)
}

// httpConfig is the config of Kargo's http step (pkg/promotion/runner/builtin,
// http-config.json), as far as it is used.
type httpConfig struct {
	Method              string       `json:"method"`
	URL                 string       `json:"url"`
	Headers             []httpHeader `json:"headers"`
	Body                string       `json:"body"`
	Timeout             string       `json:"timeout"`
	PollInterval        string       `json:"pollInterval"`
	ResponseContentType string       `json:"responseContentType"`
	SuccessExpression   string       `json:"successExpression"`
	FailureExpression   string       `json:"failureExpression"`
	ErrorExpression     string       `json:"errorExpression"`
	Outputs             []httpOutput `json:"outputs,omitempty"`
}

type httpHeader struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type httpOutput struct {
	Name           string `json:"name"`
	FromExpression string `json:"fromExpression"`
}

// rewriteRetry returns the retry policy of the http step and the user's own. What
// the step runs into is the sidecar's to count; Kargo counts lost answers only,
// and ends what the sidecar does not.
func rewriteRetry(raw json.RawMessage) (retry map[string]json.RawMessage, theirs wire.Retry, err error) {
	var user kargoapi.PromotionStepRetry
	if len(raw) > 0 {
		if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &user); err != nil {
			return nil, theirs, fmt.Errorf("retry: %w", err)
		}
		if err := json.Unmarshal(raw, &retry); err != nil {
			return nil, theirs, fmt.Errorf("retry: %w", err)
		}
	}
	theirs.ErrorThreshold = user.ErrorThreshold
	limit := wire.DefaultTimeout
	if user.Timeout != nil && user.Timeout.Duration > 0 {
		theirs.Timeout = user.Timeout.Duration
		limit = min(theirs.Timeout, math.MaxInt64-wire.TimeoutMargin)
	}
	timeout, err := json.Marshal(kargoapi.Duration{Duration: limit + wire.TimeoutMargin})
	if err != nil {
		return nil, theirs, err
	}
	threshold, err := json.Marshal(wire.LostAnswers)
	if err != nil {
		return nil, theirs, err
	}
	if retry == nil {
		retry = map[string]json.RawMessage{}
	}
	retry["timeout"], retry["errorThreshold"] = timeout, threshold
	return retry, theirs, nil
}
