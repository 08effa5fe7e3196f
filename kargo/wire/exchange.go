package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/stepd/stepd/steps"
)

// Request is the body of a POST.
type Request struct {
	Attempt Attempt `json:"attempt"`
	// Config is for DecodeConfig.
	Config json.RawMessage `json:"config"`
}

// Attempt says which attempt of a step a request belongs to. Kargo sends the
// same attempt for every poll of a step that is running.
type Attempt struct {
	// StartedAt is when Kargo first started the step, in whole seconds. It
	// changes when Kargo starts the promotion again because a work dir was lost.
	StartedAt time.Time `json:"startedAt"`
	// ErrorCount is how many answers were lost so far.
	ErrorCount uint32 `json:"errorCount"`
}

// Where an Attempt comes from: the metadata of the step itself, which Kargo
// keeps before it evaluates the step's config.
const (
	startedAt  = `${{ toJSON(stepMetas[ctx.meta.step.alias]?.StartedAt) }}`
	errorCount = `${{ toJSON(stepMetas[ctx.meta.step.alias]?.ErrorCount) }}`
)

// MaxRequest is the most bytes of a Request that are read.
const MaxRequest = 1 << 20

// ParseRequest decodes the body of a POST. A config that is absent, an attempt
// without a start, and a field of another version are ErrMalformed.
func ParseRequest(body []byte) (Request, error) {
	if !json.Valid(body) {
		return Request{}, fmt.Errorf("%w: the request is not JSON", ErrMalformed)
	}
	var r Request
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Request{}, fmt.Errorf("%w: cannot decode the request: %w", ErrMalformed, err)
	}
	if r.Attempt.StartedAt.IsZero() || len(r.Config) == 0 {
		return Request{}, fmt.Errorf("%w: the request has no attempt.startedAt or no config", ErrMalformed)
	}
	return r, nil
}

// Headers of a request.
const (
	// HeaderToken has "Bearer " and a token. It is literal in the step, so the
	// API object says what it has to be.
	HeaderToken = "Authorization"
	// HeaderProjectKey has what Kargo read from the project's Secret.
	HeaderProjectKey = "Stepd-Project-Key"
)

// Bearer returns the value of HeaderToken for a token.
func Bearer(token string) string { return "Bearer " + token }

// The project key: a Secret of the project, which only those can read who can
// read the project's Secrets, and Kargo at run time.
const (
	ProjectKeySecret = "stepd-project-key"
	ProjectKeyField  = "key"
	// MinProjectKey is the least number of bytes, without surrounding white space.
	MinProjectKey = 32
	// ProjectKeyTemplate is the value of HeaderProjectKey in a step. A header may
	// be neither empty nor hold control characters, hence 'missing' and quote().
	ProjectKeyTemplate = `${{ let k = trim(secret('` + ProjectKeySecret + `').` + ProjectKeyField + ` ?? ''); quote(k == '' ? 'missing' : k) }}`
)

// ProjectKeyHeader returns what ProjectKeyTemplate yields for a Secret's data,
// to be compared with HeaderProjectKey in constant time. A key that is absent or
// too short is an error with the remedy.
func ProjectKeyHeader(namespace string, data map[string][]byte) (string, error) {
	key := strings.TrimSpace(string(data[ProjectKeyField]))
	if len(key) < MinProjectKey {
		problem := "does not exist or has no such key"
		if key != "" {
			problem = fmt.Sprintf("is shorter than %d characters", MinProjectKey)
		}
		return "", fmt.Errorf("%s of Secret %s in namespace %s %s; create it with: kubectl -n %s create secret generic %s --from-literal=%s=$(openssl rand -hex 32)",
			ProjectKeyField, ProjectKeySecret, namespace, problem, namespace, ProjectKeySecret, ProjectKeyField)
	}
	quoted := strconv.Quote(key)
	return quoted[1 : len(quoted)-1], nil
}

// PathPrefix is the path of all steps; the kind follows it.
const PathPrefix = "/v1/steps/"

// StepURL returns the URL of a kind of step at the sidecar.
func StepURL(sidecar, kind string) string {
	return strings.TrimSuffix(sidecar, "/") + PathPrefix + url.PathEscape(kind)
}

// Answer is every answer of the sidecar, refusals included. Only Bytes writes
// it as the criteria need it.
type Answer struct {
	// Status is Succeeded, Running, Failed or Errored. Kargo's http step has no
	// way to be Errored for good: Errored ends a step as Failed, too.
	Status steps.Status `json:"status"`
	// Message is what Kargo shows if the step failed.
	Message string `json:"message"`
	// Output is the step's output. It is stored if the status is Succeeded.
	Output map[string]any `json:"output"`
}

// MaxAnswer is the most bytes of an answer: half of what Kargo reads, and what
// a Promotion can store of a step.
const MaxAnswer = 1 << 20

// ContentType is the type of requests and answers.
const ContentType = "application/json"

// maxMessage is the most bytes of a message.
const maxMessage = 8 << 10

// Bytes returns the JSON text of an answer, with the status first. An output
// that is too large or no JSON makes it a Failed answer that says so. The message
// becomes one line without double quotes: Kargo prints it as by %q.
func (a Answer) Bytes() []byte {
	a.Message = oneLine(a.Message)
	text, err := json.Marshal(a)
	switch {
	case err != nil:
		err = fmt.Errorf("the step's output cannot be sent: %w", err)
	case len(text) > MaxAnswer:
		err = fmt.Errorf("the step's answer has %d bytes, more than the %d that Kargo can store", len(text), MaxAnswer)
	default:
		return text
	}
	text, _ = json.Marshal(Answer{Status: steps.Failed, Message: oneLine(err.Error())}) //nolint:errchkjson // strings only
	return text
}

func oneLine(message string) string {
	var lines []string
	for line := range strings.Lines(message) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	message = strings.ReplaceAll(strings.Join(lines, "; "), `"`, "'")
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "…"
	}
	return message
}

// The criteria of the http step, over the text of an answer. Kargo parses a
// body by its type where the step declares one, and what does not parse is an
// error that is retried; text is always text, or an empty map if it is empty.
const (
	ResponseContentType = "text/plain"

	isText      = `type(response.body) == "string"`
	isSucceeded = `response.status == 200 && ` + isText + ` && response.body startsWith '{"status":"Succeeded",'`
	isRunning   = `response.status == 200 && ` + isText + ` && response.body startsWith '{"status":"Running",'`

	// SuccessExpression holds for a Succeeded answer.
	SuccessExpression = isSucceeded
	// FailureExpression holds for everything but Succeeded and Running, from
	// whomever, so that nothing else is polled.
	FailureExpression = `not (` + isSucceeded + ` || ` + isRunning + `)`
	// ErrorExpression is an answer's message, or says that it is not an answer.
	ErrorExpression = `(` + isText + ` && response.body startsWith '{"status":"' ? fromJSON(response.body).message : nil)` +
		` ?? ("the answer is not one of stepd's sidecar: HTTP status " + string(response.status))`
)

// OutputExpression returns the expression of one output: null if it is absent.
func OutputExpression(name string) string {
	return `(fromJSON(response.body).output ?? {})[` + strconv.Quote(name) + `]`
}

// Times of the http step.
const (
	// RequestTimeout is when Kargo gives up a POST. The sidecar answers sooner.
	RequestTimeout = 90 * time.Second
	// PollInterval is the pause after an answer Running; Kargo has no shorter one.
	PollInterval = 10 * time.Second
	// DefaultTimeout is a step's time where the user set no retry.timeout.
	DefaultTimeout = time.Hour
	// TimeoutMargin is how much longer Kargo waits than the step may take, so
	// that it is the sidecar that says why time is up.
	TimeoutMargin = 5 * time.Minute
	// LostAnswers is how many requests may get no answer, one after another or
	// not. Only a sidecar that is not there, or not stepd's, causes them.
	LostAnswers = 1000
)
