package e2e_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestCommitSurvivesSIGKILL runs atomic-commit's crash harness in full: the
// process is killed before and after every write, rename and request, and at
// 200 random moments, and each time retried. `make test` runs a part of it,
// because processes with the race detector start slowly.
func TestCommitSurvivesSIGKILL(t *testing.T) {
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/stepd/stepd").Output()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=20m", "-v", "-run", "^TestKilled", "./steps/atomiccommit")
	cmd.Dir = strings.TrimSpace(string(module))
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	counts := regexp.MustCompile(`[0-9].*exactly one commit each time`).FindAllString(string(out), -1)
	if len(counts) != 5 { // four situations, and the random moments
		t.Fatalf("%d counts in\n%s", len(counts), out)
	}
	for _, c := range counts {
		t.Log(c)
	}
}
