package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// readKeyValue reads the format as compat.md section 7.2 describes it. A
// marker counts wherever << stands, which is the stricter of two readings.
func readKeyValue(t *testing.T, text string) map[string]string {
	t.Helper()
	got := map[string]string{}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		if key, end, ok := strings.Cut(lines[i], "<<"); ok {
			var value []string
			for i++; ; i++ {
				if i == len(lines) {
					t.Fatalf("%s has no end", key)
				}
				if lines[i] == end {
					break
				}
				value = append(value, lines[i])
			}
			got[key] = strings.Join(value, "\n")
		} else if key, value, ok := strings.Cut(lines[i], "="); ok {
			got[key] = value
		}
	}
	return got
}

func TestOutputsAsKeyValue(t *testing.T) {
	for _, tc := range []struct {
		reason string
		value  any
		want   string
	}{
		{"text", "a b", "a b"},
		{"quotes are part of the value", `"a"`, `"a"`},
		{"an equals sign", "a=b", "a=b"},
		{"what looks like a marker", "a<<EOF", "a<<EOF"},
		{"several lines", "a\nb=c\nEOF\n", "a\nb=c\nEOF\n"},
		{"an attempt to end early", "x\nEND_\nevil=1", "x\nEND_\nevil=1"},
		{"a carriage return", "a\rb", "a\rb"},
		{"nothing", "", ""},
		{"null", nil, "null"},
		{"a number", 3, "3"},
		{"a list", []any{"a", true}, `["a",true]`},
	} {
		b, err := keyValue(map[string]any{"k": tc.value, "last": "z"})
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		if diff := cmp.Diff(map[string]string{"k": tc.want, "last": "z"}, readKeyValue(t, string(b))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
	for _, key := range []string{"", "a=b", "a\nb", "a<<b"} {
		if b, err := keyValue(map[string]any{key: "v"}); err == nil || !strings.Contains(err.Error(), "--format json") {
			t.Errorf("key %q: %q, %v", key, b, err)
		}
	}
}

func TestOutputsUpToKargosLimit(t *testing.T) {
	const frame = len(`{"k":""}`)
	for _, tc := range []struct {
		size int
		ok   bool
	}{{maxKargoOutput, true}, {maxKargoOutput + 1, false}} {
		path := filepath.Join(t.TempDir(), "output")
		t.Setenv("KARGO_OUTPUT", path)
		var stdout bytes.Buffer
		output := map[string]any{"k": strings.Repeat("x", tc.size-frame)}
		err := writeOutputs(&app{stdio: stdio{out: &stdout}}, output, "json")
		if !tc.ok {
			if err == nil || !strings.Contains(err.Error(), "262145") {
				t.Errorf("%d bytes: %v, want an error that says how many", tc.size, err)
			}
			if _, statErr := os.Stat(path); !os.IsNotExist(statErr) {
				t.Errorf("%d bytes: something was written: %v", tc.size, statErr)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d bytes: %v", tc.size, err)
		}
		b, err := os.ReadFile(path)
		var got map[string]any
		if err != nil || json.Unmarshal(b, &got) != nil || cmp.Diff(output, got) != "" || stdout.Len() > 0 {
			t.Errorf("%d bytes: %d bytes were written, %v; stdout %q", tc.size, len(b), err, stdout.String())
		}
	}
}
