package wire_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/steps"
)

func TestAnswerBytes(t *testing.T) {
	big := strings.Repeat("x", wire.MaxAnswer)
	for _, tc := range []struct {
		reason string
		answer wire.Answer
		want   string
	}{
		{"the status is first", wire.Answer{Status: steps.Succeeded, Message: "m", Output: map[string]any{"a": 1, "A": nil}}, `{"status":"Succeeded","message":"m","output":{"A":null,"a":1}}`},
		{"no output", wire.Answer{Status: steps.Running}, `{"status":"Running","message":"","output":null}`},
		{"one line", wire.Answer{Status: steps.Failed, Message: "\n a: \"b\"\r\n\n\tc\u2028"}, `{"status":"Failed","message":"a: 'b'; c","output":null}`},
		{"too large an output", wire.Answer{Status: steps.Succeeded, Output: map[string]any{"a": big}},
			`{"status":"Failed","message":"the step's answer has 1048629 bytes, more than the 1048576 that Kargo can store","output":null}`},
		{"an output that is no JSON", wire.Answer{Status: steps.Succeeded, Output: map[string]any{"a": math.NaN()}},
			`{"status":"Failed","message":"the step's output cannot be sent: json: unsupported value: NaN","output":null}`},
	} {
		if d := cmp.Diff(tc.want, string(tc.answer.Bytes())); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, d)
		}
	}
	long := wire.Answer{Status: steps.Failed, Message: strings.Repeat("é", 10_000)}.Bytes()
	var got wire.Answer
	if err := json.Unmarshal(long, &got); err != nil || len(got.Message) > 8200 || !strings.HasSuffix(got.Message, "é…") {
		t.Errorf("a long message has %d bytes: %v", len(got.Message), err)
	}
}

func TestParseRequest(t *testing.T) {
	got, err := wire.ParseRequest([]byte(`{"attempt":{"startedAt":"2026-11-22T03:04:05Z","errorCount":2},"config":{"a":1}}`))
	want := wire.Request{Attempt: wire.Attempt{StartedAt: time.Date(2026, 11, 22, 3, 4, 5, 0, time.UTC), ErrorCount: 2}, Config: json.RawMessage(`{"a":1}`)}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v, (-want +got):\n%s", err, d)
	}
	for _, tc := range []struct{ reason, body string }{
		{"nothing", ``},
		{"no JSON", `{"attempt":`},
		{"more after it", `{"attempt":{"startedAt":"2026-11-22T03:04:05Z"},"config":{}} {}`},
		{"rubbish after it", `{"attempt":{"startedAt":"2026-11-22T03:04:05Z"},"config":{}}]`},
		{"an unknown field", `{"attempt":{"startedAt":"2026-11-22T03:04:05Z"},"config":{},"project":"x"}`},
		{"no attempt", `{"config":{}}`},
		{"no start", `{"attempt":{"startedAt":null,"errorCount":null},"config":{}}`},
		{"no config", `{"attempt":{"startedAt":"2026-11-22T03:04:05Z"}}`},
		{"errors below zero", `{"attempt":{"startedAt":"2026-11-22T03:04:05Z","errorCount":-1},"config":{}}`},
	} {
		if _, err := wire.ParseRequest([]byte(tc.body)); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: got %v", tc.reason, err)
		}
	}
}

func TestProjectKeyHeader(t *testing.T) {
	good := strings.Repeat("k", 31)
	for _, tc := range []struct{ reason, key, want string }{
		{"long enough", good + "k", good + "k"},
		{"with a newline at the end, as files have", good + "k\n", good + "k"},
		{"with what quote() escapes", good + "\"\\\x00é", good + `\"\\\x00é`},
	} {
		got, err := wire.ProjectKeyHeader("demo", map[string][]byte{"key": []byte(tc.key)})
		if err != nil || got != tc.want {
			t.Errorf("%s: got %q, %v", tc.reason, got, err)
		}
	}
	for _, tc := range []struct {
		reason, want string
		data         map[string][]byte
	}{
		{"no Secret", "does not exist", nil},
		{"no key", "does not exist or has no such key", map[string][]byte{"other": []byte(good + "k")}},
		{"blank", "does not exist or has no such key", map[string][]byte{"key": []byte(" \n")}},
		{"too short", "is shorter than 32 characters", map[string][]byte{"key": []byte(good + "\n")}},
	} {
		got, err := wire.ProjectKeyHeader("demo", tc.data)
		if err == nil || got != "" || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "kubectl -n demo create secret generic stepd-project-key") ||
			strings.Contains(err.Error(), "kkkk") {
			t.Errorf("%s: got %q, %v", tc.reason, got, err)
		}
	}
}
