package kargo_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// others' are messages in docs/kargo.md that Kubernetes and Kargo say.
var othersMessages = []string{"failed calling webhook", "x509: certificate signed by unknown authority", "unable to find Argo CD Application"}

// TestDocumentedMessagesAreSaid looks for every symptom of docs/kargo.md in the
// sources.
func TestDocumentedMessagesAreSaid(t *testing.T) {
	sources := goFiles(t, func(name string) bool { return !strings.HasSuffix(name, "_test.go") })
	text := strings.Join(sources, "\n")
	// A message that goes over lines of source is one message.
	text = regexp.MustCompile(`"\s*\+\s*"`).ReplaceAllString(text, "")
	_, table, ok := strings.Cut(readDocs(t), "| symptom |")
	if !ok {
		t.Fatal("docs/kargo.md has no table of symptoms")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	found := 0
	for _, row := range strings.Split(table, "\n")[2:] {
		symptom := strings.SplitN(row, "|", 3)[1]
		for _, span := range regexp.MustCompile("`[^`]+`").FindAllString(symptom, -1) {
			message := strings.TrimSpace(strings.Trim(strings.ReplaceAll(span, "…", ""), "`"))
			if slices.ContainsFunc(othersMessages, func(o string) bool { return strings.Contains(message, o) }) {
				continue
			}
			found++
			if !strings.Contains(text, message) {
				t.Errorf("nothing says %q", message)
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d messages were looked for", found)
	}
}

// TestDocumentedTestsExist looks for every test that docs/kargo.md names.
func TestDocumentedTestsExist(t *testing.T) {
	tests := strings.Join(goFiles(t, func(name string) bool { return strings.HasSuffix(name, "_test.go") }), "\n")
	names := regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(readDocs(t), -1)
	if len(names) < 10 {
		t.Errorf("only %d tests are named", len(names))
	}
	for _, name := range names {
		if !strings.Contains(tests, "func "+name+"(") {
			t.Errorf("there is no test %s", name)
		}
	}
}

func readDocs(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "kargo.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// goFiles reads the Go files of the checkout that are wanted.
func goFiles(t *testing.T, wanted func(name string) bool) []string {
	t.Helper()
	var out []string
	root := filepath.Join("..", "..")
	for _, dir := range []string{"cmd", "kargo", "e2e", "examples", "internal", "runner", "steps"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || !wanted(path) {
				return err
			}
			text, err := os.ReadFile(path)
			out = append(out, string(text))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}
