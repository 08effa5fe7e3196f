package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/internal/sharedata"
)

// TestArticleTask runs a PromotionTask that a platform team published, with
// Kargo's own steps. Its last step has a misspelt field.
func TestArticleTask(t *testing.T) {
	task := sharedata.Path(t, "inputs", "article-promotiontask.yaml")
	text, err := os.ReadFile(task)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "desiredCommit"); n != 1 {
		t.Fatalf("the article's mistake occurs %d times, want once", n)
	}
	corrected := filepath.Join(t.TempDir(), "corrected.yaml")
	if err := os.WriteFile(corrected, []byte(strings.Replace(string(text), "desiredCommit", "desiredRevision", 1)), 0o600); err != nil {
		t.Fatal(err)
	}

	for name, tc := range map[string]struct {
		reason string
		file   string
		live   bool
		code   int
		phase  string
	}{
		"as published, live":    {"six steps succeed and push, the seventh is told the field's name", task, true, 1, "Failed"},
		"as published, dry run": {"a dry run ends the same and pushes nothing", task, false, 1, "Failed"},
		"corrected, live":       {"one word makes it work", corrected, true, 0, "Succeeded"},
		"corrected, dry run":    {"a dry run ends the same and pushes nothing", corrected, false, 0, "Succeeded"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startSandbox(t)
			if _, err := artifact.Push(t.Context(), s.Repository(), sandbox.Config(sandbox.RegionUS)); err != nil {
				t.Fatal(err)
			}
			base := s.Git.MustGit(t, sandbox.GitOps, "rev-parse", "main")
			args := []string{
				"run", "-f", tc.file, "-o", "json",
				"--var", "service=" + sandbox.Service, "--var", "region=" + sandbox.RegionUS,
				"--var", "imageRepo=ghcr.io/yourorg/svc", "--image", "ghcr.io/yourorg/svc:" + sandbox.Version,
				"--var", "gitopsRepo=" + s.RepoURL(), "--var", "configRepo=" + s.Repository(),
			}
			if tc.live {
				args = append(args, "--live")
			}
			r, err := s.Command(t.Context(), args...)
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != tc.code {
				t.Fatalf("%s: exit code %d, want %d\n%s%s", tc.reason, r.Code, tc.code, r.Stderr, r.Stdout)
			}
			checkArticle(t, r, tc.phase, tc.live)

			h, err := s.History(base)
			if err != nil {
				t.Fatal(err)
			}
			if !tc.live {
				if len(h.Commits) != 0 {
					t.Errorf("%s: the dry run pushed %+v", tc.reason, h.Commits)
				}
				return
			}
			if len(h.Commits) != 1 || !h.Linear {
				t.Fatalf("%s: one commit is wanted, got %+v", tc.reason, h.Commits)
			}
			if got := h.Files[sandbox.ValuesPath(sandbox.RegionUS)]; !strings.Contains(got, sandbox.Version) || !strings.Contains(got, "replicas: 6") {
				t.Errorf("%s: config and tag are not both on main:\n%s", tc.reason, got)
			}
		})
	}
}

// checkArticle reads the JSON report: six steps that succeeded, and the last.
func checkArticle(t *testing.T, r sandbox.Result, phase string, live bool) {
	t.Helper()
	var report struct {
		Phase string `json:"phase"`
		Live  bool   `json:"live"`
		Steps []struct {
			Uses    string `json:"uses"`
			Status  string `json:"status"`
			Message string `json:"message"`
		} `json:"steps"`
		Commits []struct {
			Pushed bool     `json:"pushed"`
			Paths  []string `json:"paths"`
			Diff   string   `json:"diff"`
		} `json:"commits"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatalf("the report is not JSON: %v\n%s", err, r.Stdout)
	}
	if report.Phase != phase || report.Live != live {
		t.Errorf("phase %q live %v, want %q %v", report.Phase, report.Live, phase, live)
	}
	uses := []string{"git-clone", "oci-download", "copy", "yaml-update", "git-commit", "git-push", "argocd-update"}
	if len(report.Steps) != len(uses) {
		t.Fatalf("%d steps, want %d: %+v", len(report.Steps), len(uses), report.Steps)
	}
	for i, step := range report.Steps {
		want := "Succeeded"
		if i == len(uses)-1 {
			want = phase
		}
		if step.Uses != uses[i] || step.Status != want {
			t.Errorf("step %d is %s %s (%s), want %s %s", i+1, step.Uses, step.Status, step.Message, uses[i], want)
		}
	}
	// The message is Kargo's, word for word; the hint stands beside it.
	if phase == "Failed" && !strings.Contains(r.Stderr, "desiredRevision") {
		t.Errorf("the failure does not name desiredRevision:\n%s", r.Stderr)
	}
	if len(report.Commits) != 1 || report.Commits[0].Pushed != live {
		t.Fatalf("one commit with pushed=%v is wanted, got %+v", live, report.Commits)
	}
	if got := report.Commits[0].Diff; !strings.Contains(got, sandbox.Version) {
		t.Errorf("the diff does not show the tag:\n%s", got)
	}
}

// TestLintFindsTheArticlesMistake checks that lint points at the field.
func TestLintFindsTheArticlesMistake(t *testing.T) {
	task := sharedata.Path(t, "inputs", "article-promotiontask.yaml")
	text, err := os.ReadFile(task)
	if err != nil {
		t.Fatal(err)
	}
	line := 1 + strings.Count(string(text[:strings.Index(string(text), "desiredCommit")]), "\n")
	s := startSandbox(t)
	r, err := s.Command(t.Context(), "lint", task)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 2 {
		t.Errorf("exit code %d, want 2", r.Code)
	}
	out := r.Stdout + r.Stderr
	for _, want := range []string{filepath.Base(task) + ":" + strconv.Itoa(line) + ":", "desiredCommit", "desiredRevision"} {
		if !strings.Contains(out, want) {
			t.Errorf("lint does not say %q:\n%s", want, out)
		}
	}
}

// TestLintAcceptsTheExamples checks that there is nothing to say about them.
func TestLintAcceptsTheExamples(t *testing.T) {
	s := startSandbox(t)
	r, err := s.Command(t.Context(), "lint", filepath.Join("examples", "promotiontasks"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Errorf("exit code %d\n%s%s", r.Code, r.Stderr, r.Stdout)
	}
}
