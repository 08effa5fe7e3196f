package runner_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stepd/stepd/internal/sharedata"
)

// TestEveryConformanceCase makes sure that every case of the conformance list
// is a test by its number, and that those that no test of Kargo's pins are in
// files of their own (conformance_code_test.go).
func TestEveryConformanceCase(t *testing.T) {
	list, err := os.ReadFile(sharedata.Path(t, "kargo", "conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]bool{} // by number; set for what only Kargo's code says
	for _, m := range regexp.MustCompile(`(?m)^\| ([A-H][0-9]+) \|.*\| ([TCE])[^|]*\|$`).FindAllStringSubmatch(string(list), -1) {
		cases[m[1]] = m[2] != "T"
	}
	if len(cases) < 100 {
		t.Fatalf("%d cases in the list, want more than a hundred", len(cases))
	}
	number := regexp.MustCompile(`\b([A-H][0-9]+)[a-z]?\b`) // A11b is a part of A11
	found := map[string][]string{}
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range number.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = append(found[m[1]], filepath.Base(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, codeOnly := range cases {
		switch files := found[id]; {
		case len(files) == 0:
			t.Errorf("no test names case %s", id)
		case codeOnly && !strings.Contains(strings.Join(files, " "), "conformance_code_test.go"):
			t.Errorf("case %s is not in a conformance_code_test.go but in %v", id, files)
		}
	}
}
