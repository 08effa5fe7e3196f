package builtin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/steps"
)

type httpConfig struct {
	httpRequest
	Method              string `json:"method"`
	Body                string `json:"body"`
	Proxy               string `json:"proxy"`
	PollInterval        string `json:"pollInterval"`
	ResponseContentType string `json:"responseContentType"`
	SuccessExpression   string `json:"successExpression"`
	FailureExpression   string `json:"failureExpression"`
	ErrorExpression     string `json:"errorExpression"`
	Outputs             []struct {
		Name           string `json:"name"`
		FromExpression string `json:"fromExpression"`
	} `json:"outputs"`
}

// httpRequest is what http and http-download have in common.
type httpRequest struct {
	URL                   string     `json:"url"`
	Headers               []httpPair `json:"headers"`
	QueryParams           []httpPair `json:"queryParams"`
	InsecureSkipTLSVerify bool       `json:"insecureSkipTLSVerify"`
	Timeout               string     `json:"timeout"`
}

type httpPair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

const (
	maxHTTPBody         = 2 << 20
	defaultHTTPTimeout  = 10 * time.Second
	defaultPollInterval = 30 * time.Second
)

// HTTP is `http`: one request, whose response decides, through expressions, if
// the step succeeded, failed or is to be polled again.
//
// Where the edge only records the request there is no response to decide on:
// the step is Succeeded, says so in its message, and its outputs are null.
func HTTP(edge httpedge.Edge) steps.Registration {
	return stateless("http", func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		cfg, err := decodeConfig[httpConfig](sc)
		if err != nil {
			return failed(err)
		}
		return runHTTP(ctx, sc, edge, cfg)
	})
}

func runHTTP(ctx context.Context, sc *steps.Context, edge httpedge.Edge, cfg httpConfig) (steps.Result, error) {
	poll, err := duration(cfg.PollInterval, defaultPollInterval)
	if err != nil {
		return errored(steps.Terminal(fmt.Errorf("error parsing pollInterval: %w", err)))
	}
	ctx, cancel, client, err := cfg.client(ctx, sc, edge, cfg.Proxy, defaultHTTPTimeout)
	if err != nil {
		return errored(steps.Terminal(fmt.Errorf("error creating HTTP client: %w", err)))
	}
	defer cancel()
	method := cfg.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := cfg.request(ctx, method, cfg.Body)
	if err != nil {
		return errored(steps.Terminal(fmt.Errorf("error building HTTP request: %w", err)))
	}
	resp, err := client.Do(req)
	if unsent := (*httpedge.NotSentError)(nil); errors.As(err, &unsent) {
		outputs := map[string]any{}
		for _, o := range cfg.Outputs {
			outputs[o.Name] = nil
		}
		return steps.Result{Status: steps.Succeeded, Message: unsent.Error() + "; its outputs are null", Output: outputs}, nil
	}
	if err != nil {
		return errored(fmt.Errorf("error sending HTTP request: %w", withoutQuery(err)))
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := readBody(resp, cfg.ResponseContentType)
	if err != nil {
		return errored(fmt.Errorf("error reading HTTP response: %w", err))
	}
	return cfg.judge(responseEnv(resp, body), resp.StatusCode, poll)
}

// client returns the client for one attempt and ctx limited to its timeout.
func (c httpRequest) client(ctx context.Context, sc *steps.Context, edge httpedge.Edge, proxy string, timeout time.Duration) (context.Context, context.CancelFunc, *http.Client, error) {
	limit, err := duration(c.Timeout, timeout)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("error parsing timeout: %w", err)
	}
	if limit <= 0 { // in Kargo no limit; here a request is never without one
		limit = timeout
	}
	transport, err := edge.Transport(httpedge.Options{
		Proxy: proxy, InsecureSkipTLSVerify: c.InsecureSkipTLSVerify, Step: sc.Alias,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	return ctx, cancel, &http.Client{Transport: transport}, nil
}

func duration(text string, otherwise time.Duration) (time.Duration, error) {
	if text == "" {
		return otherwise, nil
	}
	return time.ParseDuration(text)
}

func (c httpRequest) request(ctx context.Context, method, body string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL, strings.NewReader(body))
	if err != nil {
		var invalid *url.Error
		if errors.As(err, &invalid) {
			invalid.URL = c.URL
		}
		return nil, fmt.Errorf("error creating HTTP request: %w", err)
	}
	if body == "" {
		req.Body, req.GetBody, req.ContentLength = http.NoBody, nil, 0
	}
	for _, h := range c.Headers {
		req.Header.Add(h.Name, h.Value)
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		}
	}
	if len(c.QueryParams) > 0 {
		query := req.URL.Query()
		for _, p := range c.QueryParams {
			query.Add(p.Name, p.Value)
		}
		req.URL.RawQuery = query.Encode()
	}
	return req, nil
}

// withoutQuery takes the query and user info, where tokens travel, out of an
// HTTP client's error.
func withoutQuery(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		if u, perr := url.Parse(failed.URL); perr == nil {
			u.User, u.RawQuery, u.ForceQuery = nil, "", false
			failed.URL = u.String()
		}
	}
	return err
}

// readBody parses a response's body: as the overriding or else the declared
// content type says, JSON if the type is unknown and the text is valid JSON.
// What cannot be used is an empty object.
func readBody(resp *http.Response, override string) (any, error) {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxHTTPBody+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxHTTPBody {
		return nil, fmt.Errorf("the body exceeds the limit of %d bytes", maxHTTPBody)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return map[string]any{}, nil
	}
	contentType := override
	if contentType == "" {
		contentType, _, _ = mime.ParseMediaType(resp.Header.Get("Content-Type"))
	}
	var body any
	switch contentType {
	case "application/json":
		if err := json.Unmarshal(text, &body); err != nil {
			return nil, fmt.Errorf("the body is not JSON: %w", err)
		}
	case "application/yaml", "text/yaml", "application/x-yaml":
		if err := yaml.Unmarshal(text, &body); err != nil {
			return nil, fmt.Errorf("the body is not YAML: %w", err)
		}
	case "text/plain":
		body = string(text)
	default:
		if json.Unmarshal(text, &body) != nil {
			body = map[string]any{}
		}
	}
	return body, nil
}

// responseEnv is what expressions see.
func responseEnv(resp *http.Response, body any) map[string]any {
	return map[string]any{
		"response": map[string]any{
			"status":  int64(resp.StatusCode),
			"header":  resp.Header.Get,
			"headers": map[string][]string(resp.Header),
			"body":    body,
		},
	}
}

// judge is Kargo's table: failure beats success; without expressions the
// status code decides; with neither verdict the request is repeated.
func (c httpConfig) judge(env map[string]any, code int, poll time.Duration) (steps.Result, error) {
	success, err := criterion("success", c.SuccessExpression, env)
	if err != nil {
		return errored(err)
	}
	failure, err := criterion("failure", c.FailureExpression, env)
	if err != nil {
		return errored(err)
	}
	undecided := c.SuccessExpression == "" && c.FailureExpression == ""
	switch {
	case failure:
		message := fmt.Sprintf("HTTP (%d) response met failure criteria", code)
		detail, err := c.errorDetail(env)
		if err != nil {
			return errored(err)
		}
		if detail != "" {
			message += fmt.Sprintf(": %q", detail)
		}
		return failed(errors.New(message))
	case success, undecided && code/100 == 2:
		return c.outputs(env)
	case undecided:
		// Kargo returns no error here, so its engine polls for ever.
		return steps.Result{Status: steps.Failed, Message: fmt.Sprintf("HTTP request was answered with status %d", code)}, nil
	}
	return steps.Result{Status: steps.Running, RetryAfter: &poll}, nil
}

// criterion evaluates one expression; without one it is false.
func criterion(name, expression string, env map[string]any) (bool, error) {
	if expression == "" {
		return false, nil
	}
	program, err := expr.Compile(expression)
	if err != nil {
		return false, steps.Terminal(fmt.Errorf("error compiling %s expression: %w", name, err))
	}
	value, err := expr.Run(program, env)
	if err != nil {
		return false, fmt.Errorf("error evaluating %s expression: %w", name, err)
	}
	met, ok := value.(bool)
	if !ok {
		return false, fmt.Errorf("%s expression did not evaluate to a boolean (got %T)", name, value)
	}
	return met, nil
}

// errorDetail evaluates errorExpression. Only an error in the expression's
// own text matters.
func (c httpConfig) errorDetail(env map[string]any) (string, error) {
	if c.ErrorExpression == "" {
		return "", nil
	}
	program, err := expr.Compile(c.ErrorExpression)
	if err != nil {
		return "", steps.Terminal(fmt.Errorf("error compiling error expression: %w", err))
	}
	value, err := expr.Run(program, env)
	if err != nil {
		return "", nil //nolint:nilerr // the failure is reported, with or without detail
	}
	detail, _ := value.(string)
	return detail, nil
}

func (c httpConfig) outputs(env map[string]any) (steps.Result, error) {
	outputs := map[string]any{}
	for _, o := range c.Outputs {
		program, err := expr.Compile(o.FromExpression)
		if err != nil {
			return errored(steps.Terminal(fmt.Errorf("error compiling expression of output %q: %w", o.Name, err)))
		}
		value, err := expr.Run(program, env)
		if err != nil {
			return errored(fmt.Errorf("error evaluating expression of output %q: %w", o.Name, err))
		}
		if outputs[o.Name], err = jsonValue(value); err != nil {
			return errored(fmt.Errorf("output %q cannot be stored: %w", o.Name, err))
		}
	}
	return succeeded(outputs)
}

// jsonValue turns an expression's result into JSON types; Kargo's next step
// panics on any other.
func jsonValue(value any) (any, error) {
	switch v := value.(type) {
	case nil, bool, string, float64, int64:
		return v, nil
	case int:
		return int64(v), nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var out any
	return out, json.Unmarshal(text, &out)
}
