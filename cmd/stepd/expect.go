package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"github.com/stepd/stepd/cmd/internal/cli"
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
func (e *expectation) compare(a *cli.App, r report, workDir string) error {
	var b bytes.Buffer
	if err := writeJSON(&b, r); err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("cannot compare with --expect: %w", err)}
	}
	got, err := normalised(b.Bytes(), workDir)
	if err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("cannot compare with --expect: %w", err)}
	}
	if got == e.text {
		a.Statusf("the report is as expected by %s", e.file)
		return nil
	}
	a.Statusf("%s", udiff.Unified(e.file, "this run", e.text, got))
	return &cli.ExitError{Code: cli.ExitExpect, Err: fmt.Errorf("the report differs from %s; write it anew if the change is wanted", e.file)}
}

// normalised rewrites a report so that two runs of the same promotion give the
// same text: times, the names Kargo generates (they hold a ULID), ids of commits
// that git steps made or met, and the work directory are replaced by placeholders.
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
	for i, id := range commitIDs(r) {
		replace = append(replace, id, "<commit "+strconv.Itoa(i+1)+">")
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

// commitIDs lists the ids of commits that were made, and those in the outputs of
// git steps: tips of branches, which move on. Ids from elsewhere, such as those in
// Freight, are part of what is compared.
func commitIDs(r map[string]any) []string {
	var ids []string
	collect := func(v any) {
		rewrite(v, func(s string) string {
			if objectID.MatchString(s) && !slices.Contains(ids, s) {
				ids = append(ids, s)
			}
			return s
		})
	}
	for _, c := range list(r["commits"]) {
		collect(c["commit"])
	}
	for _, s := range list(r["steps"]) {
		if uses, _ := s["uses"].(string); strings.HasPrefix(uses, "git-") || uses == "atomic-commit" {
			collect(s["output"])
		}
	}
	return ids
}

var (
	objectID     = regexp.MustCompile(`^[0-9a-f]{40}$`)
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

// rewrite returns v with f applied to every string, in a fixed order.
func rewrite(v any, f func(string) string) any {
	switch v := v.(type) {
	case string:
		return f(v)
	case map[string]any:
		out := make(map[string]any, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out[f(k)] = rewrite(v[k], f)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = rewrite(x, f)
		}
		return out
	}
	return v
}
