package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/cmd/internal/cli"
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
		values, err := asText(map[string]any{"k": tc.value, "last": "z"})
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		if diff := cmp.Diff(map[string]string{"k": tc.want, "last": "z"}, readKeyValue(t, string(keyValue(values)))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
	for _, key := range []string{"", "a=b", "a\nb", "a<<b"} {
		if v, err := asText(map[string]any{key: "v"}); err == nil || !strings.Contains(err.Error(), "--format json") {
			t.Errorf("key %q: %q, %v", key, v, err)
		}
	}
}

func TestOutputsUpToKargosLimit(t *testing.T) {
	const frame = len(`{"k":""}`)
	list := func(n int) map[string]any { // in key=value a text of JSON, whose quotes Kargo's own JSON escapes
		return map[string]any{"k": slices.Repeat([]any{"x"}, n)}
	}
	for _, tc := range []struct {
		reason, format string
		output         map[string]any
		tooLong        string // how many bytes, in the error; none means that it fits
	}{
		{"as long as it can be", "json", map[string]any{"k": strings.Repeat("x", maxKargoOutput-frame)}, ""},
		{"a byte too long", "json", map[string]any{"k": strings.Repeat("x", maxKargoOutput+1-frame)}, "262145"},
		{"text as long as it can be", "keyvalue", map[string]any{"k": strings.Repeat("x", maxKargoOutput-frame)}, ""},
		{"text, a byte too long", "keyvalue", map[string]any{"k": strings.Repeat("x", maxKargoOutput+1-frame)}, "262145"},
		{"a list that fits", "json", list(60_000), ""},
		{"the same list as text, which does not", "keyvalue", list(60_000), "360009"},
	} {
		path := filepath.Join(t.TempDir(), "output")
		t.Setenv("KARGO_OUTPUT", path)
		var stdout bytes.Buffer
		err := writeOutputs(&cli.App{Stdio: cli.Stdio{Out: &stdout}}, tc.output, tc.format)
		if tc.tooLong != "" {
			if err == nil || !strings.Contains(err.Error(), tc.tooLong) {
				t.Errorf("%s: %v, want an error that says how many", tc.reason, err)
			}
			if _, statErr := os.Stat(path); !os.IsNotExist(statErr) {
				t.Errorf("%s: something was written: %v", tc.reason, statErr)
			}
			continue
		}
		if err != nil || stdout.Len() > 0 {
			t.Errorf("%s: %v; stdout %q", tc.reason, err, stdout.String())
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]any{}
		if tc.format == "json" {
			err = json.Unmarshal(b, &got)
		} else {
			for k, v := range readKeyValue(t, string(b)) {
				got[k] = v
			}
		}
		if diff := cmp.Diff(tc.output, got); err != nil || diff != "" {
			t.Errorf("%s: %v, %d bytes were written", tc.reason, err, len(b))
		}
	}
}

// TestOutputsAreWrittenAgain: a command may be run several times.
func TestOutputsAreWrittenAgain(t *testing.T) {
	for _, tc := range []struct{ format, want string }{
		{"json", `{"n":2}` + "\n"},
		{"keyvalue", "before=1\nn=1\nn=2\n"}, // the last line counts
	} {
		path := filepath.Join(t.TempDir(), "output")
		writeFile(t, path, "before=1\n")
		t.Setenv("KARGO_OUTPUT", path)
		for n := range 2 {
			if err := writeOutputs(&cli.App{}, map[string]any{"n": n + 1}, tc.format); err != nil {
				t.Fatal(err)
			}
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.format, b, err, tc.want)
		}
	}
}
