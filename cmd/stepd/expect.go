package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/aymanbagabas/go-udiff"
)

// expectation is a report that another run has to agree with.
type expectation struct {
	file string
	text string
}

// readExpectation reads a report written by `stepd run -o json`.
func readExpectation(file string) (*expectation, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read --expect: %w; make it with `stepd run … -o json > %s`", err, file)
	}
	text, err := normalised(b, "")
	if err != nil {
		return nil, fmt.Errorf("cannot read --expect %s: %w; make it with `stepd run … -o json > %s`", file, err, file)
	}
	return &expectation{file: file, text: text}, nil
}

// compare returns nil if the report is the expected one, whatever its phase.
// Else it prints the difference to stderr.
func (e *expectation) compare(a *app, r report, workDir string) error {
	var b bytes.Buffer
	if err := writeJSON(&b, r); err != nil {
		return &exitError{code: exitFailed, err: fmt.Errorf("cannot compare with --expect: %w", err)}
	}
	got, err := normalised(b.Bytes(), workDir)
	if err != nil {
		return &exitError{code: exitFailed, err: fmt.Errorf("cannot compare with --expect: %w", err)}
	}
	if got == e.text {
		a.statusf("the report is as expected by %s", e.file)
		return nil
	}
	a.statusf("%s", printable(udiff.Unified(e.file, "this run", e.text, got)))
	return &exitError{code: exitExpect, err: fmt.Errorf("the report differs from %s; write it anew if the change is wanted", e.file)}
}

// normalised rewrites a report so that two runs of the same promotion give the
// same text: times, the names Kargo generates (they hold a ULID), commit ids,
// which depend on both, and the work directory are replaced by placeholders.
func normalised(doc []byte, workDir string) (string, error) {
	var r map[string]any
	if err := json.Unmarshal(doc, &r); err != nil {
		return "", err
	}
	if _, ok := r["phase"].(string); !ok {
		return "", fmt.Errorf("it is not a report: it has no phase")
	}
	replace := []string{}
	if workDir != "" {
		replace = append(replace, workDir, "<workdir>")
	}
	commits, _ := r["commits"].([]any)
	for i, c := range commits {
		if c, ok := c.(map[string]any); ok {
			if id, ok := c["commit"].(string); ok && id != "" {
				replace = append(replace, id, "<commit "+strconv.Itoa(i+1)+">")
			}
		}
	}
	for _, s := range list(r["steps"]) {
		for _, key := range []string{"startedAt", "finishedAt"} {
			if s[key] != nil {
				s[key] = "<time>"
			}
		}
	}
	literal := strings.NewReplacer(replace...)
	r = rewrite(r, func(s string) string {
		s = literal.Replace(s)
		s = temporaryDir.ReplaceAllString(s, "<workdir>")
		s = changeID.ReplaceAllString(s, "Stepd-Change: <id>")
		return ulid.ReplaceAllString(s, "<ulid>")
	}).(map[string]any)
	var b bytes.Buffer
	if err := writeJSON(&b, r); err != nil {
		return "", err
	}
	return b.String(), nil
}

var (
	temporaryDir = regexp.MustCompile(`[^\s"']*/stepd-run-\d+`)
	// changeID is the trailer that hashes, among others, the promotion's name.
	changeID = regexp.MustCompile(`Stepd-Change: sha256:[0-9a-f]{64}`)
	// ulid is a ULID as in the names of promotions: lower-case Crockford base 32.
	ulid = regexp.MustCompile(`\b[0-7][0-9a-hjkmnp-tv-z]{25}\b`)
)

func list(v any) []map[string]any {
	items, _ := v.([]any)
	var out []map[string]any
	for _, it := range items {
		if m, ok := it.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

func rewrite(v any, f func(string) string) any {
	switch v := v.(type) {
	case string:
		return f(v)
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			out[f(k)] = rewrite(x, f)
		}
		return out
	case []any:
		for i, x := range v {
			v[i] = rewrite(x, f)
		}
	}
	return v
}
