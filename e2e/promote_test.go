package e2e_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/e2e/sandbox"
)

// TestTwoRegionsAtOnce promotes both production regions at the same time from
// separate processes, as two operators would.
func TestTwoRegionsAtOnce(t *testing.T) {
	s := startSandbox(t)
	publish(t, s, sandbox.RegionUS, sandbox.RegionCA)
	base := s.Git.MustGit(t, sandbox.GitOps, "rev-parse", "main")

	var wg sync.WaitGroup
	for _, env := range []string{"prd-us", "prd-ca"} {
		wg.Go(func() {
			r, err := s.Example(t.Context(), env, "--live", "--actor", "alice@example.com")
			if err != nil {
				t.Error(err)
			} else if r.Code != 0 {
				t.Errorf("%s: exit code %d\n%s%s", env, r.Code, r.Stderr, r.Stdout)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}

	h, err := s.History(base)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Commits) != 2 || !h.Linear {
		t.Fatalf("two commits in a line are wanted, got linear=%v %+v", h.Linear, h.Commits)
	}
	var paths []string
	for _, c := range h.Commits {
		paths = append(paths, c.Paths...)
	}
	slices.Sort(paths)
	want := []string{sandbox.ValuesPath(sandbox.RegionCA), sandbox.ValuesPath(sandbox.RegionUS)}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Errorf("changed paths (-want +got):\n%s", diff)
	}
	for _, region := range []string{sandbox.RegionUS, sandbox.RegionCA} {
		if diff := cmp.Diff(string(sandbox.Promoted(region)), h.Files[sandbox.ValuesPath(region)]); diff != "" {
			t.Errorf("%s on main (-want +got):\n%s", region, diff)
		}
	}
	for _, c := range h.Commits {
		region := sandbox.RegionUS
		if strings.Contains(c.Paths[0], sandbox.RegionCA) {
			region = sandbox.RegionCA
		}
		for _, trailer := range []string{
			"\nConfig-Artifact: " + s.Repository() + ":" + sandbox.Config(region).Tag() + "@sha256:",
			"\nSigned-By: " + sandbox.Release().Subject(),
			"\nSource-Commit: " + sandbox.Release().Commit,
			"\nKargo-Promotion: devex-kargo/",
			"\nKargo-Stage: devex-kargo/prd-",
			"\nKargo-Freight: ",
			"\nPromoted-By: alice@example.com",
			"\nStepd-Change: sha256:",
		} {
			if !strings.Contains(c.Message, trailer) {
				t.Errorf("%s: no trailer %q in\n%s", region, strings.TrimSpace(trailer), c.Message)
			}
		}
	}
	s.Git.Fsck(t, sandbox.GitOps)
}

// TestPromotingAgainChangesNothing promotes what is already there.
func TestPromotingAgainChangesNothing(t *testing.T) {
	s := startSandbox(t)
	publish(t, s, sandbox.RegionUS)
	for i, reason := range []string{"the first promotion commits", "the second finds its result in place"} {
		before := s.Git.MustGit(t, sandbox.GitOps, "rev-parse", "main")
		r, err := s.Example(t.Context(), "prd-us", "--live")
		if err != nil {
			t.Fatal(err)
		}
		if r.Code != 0 {
			t.Fatalf("%s: exit code %d\n%s%s", reason, r.Code, r.Stderr, r.Stdout)
		}
		after := s.Git.MustGit(t, sandbox.GitOps, "rev-parse", "main")
		if moved := before != after; moved != (i == 0) {
			t.Errorf("%s: main moved: %v", reason, moved)
		}
	}
}

// TestDryRunPushesNothing looks at everything that a dry run could change, in
// every environment.
func TestDryRunPushesNothing(t *testing.T) {
	s := startSandbox(t)
	publish(t, s, sandbox.RegionUS)
	before, err := sandbox.Snapshot(s.Git.Dir(sandbox.GitOps))
	if err != nil {
		t.Fatal(err)
	}
	s.Git.ResetStats()
	r, err := s.Example(t.Context(), "prd-us")
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Fatalf("exit code %d\n%s%s", r.Code, r.Stderr, r.Stdout)
	}
	after, err := sandbox.Snapshot(s.Git.Dir(sandbox.GitOps))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the repository changed:\n%s", diff)
	}
	if n := s.Git.Stats().Pushes; n != 0 {
		t.Errorf("%d pushes were tried", n)
	}
	for _, want := range []string{
		"+  tag: \"" + sandbox.Version + "\"", sandbox.Release().Subject(), "Config-Artifact: " + s.Repository(),
	} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("the preview lacks %q:\n%s", want, r.Stdout)
		}
	}
}

// TestRefusalsWriteNothing plays the attacks of the demo.
func TestRefusalsWriteNothing(t *testing.T) {
	s := startSandbox(t)
	publish(t, s, sandbox.RegionUS, sandbox.RegionCA)
	for _, a := range s.Attacks() {
		t.Run(a.Name, func(t *testing.T) {
			got, err := s.Attempt(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			if got.Code != 3 {
				t.Errorf("exit code %d, want 3 (refused)\n%s%s", got.Code, got.Stderr, got.Stdout)
			}
			if !got.WorkDirUntouched {
				t.Error("something was written into the work dir")
			}
			if !got.RepositoryUntouched {
				t.Error("something was written into the gitops repository")
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		publish(t, s, sandbox.RegionUS)
		r, err := s.Example(t.Context(), "prd-us", "--live")
		if err != nil {
			t.Fatal(err)
		}
		if r.Code != 0 {
			t.Errorf("the real artifact under the same tag: exit code %d\n%s%s", r.Code, r.Stderr, r.Stdout)
		}
	})
}

// TestEveryExampleRuns dry-runs all four environments against what their own
// pipelines release.
func TestEveryExampleRuns(t *testing.T) {
	s := startSandbox(t)
	publish(t, s, sandbox.RegionUS, sandbox.RegionCA, "stg-us-east-2")
	dev, main := sandbox.Config("dev-us-east-2"), sandbox.Release()
	dev.Version, main.Ref = "sha-4f9c1d2", "refs/heads/main"
	if _, err := s.Publish(t.Context(), dev, main); err != nil {
		t.Fatal(err)
	}
	for _, env := range environments {
		t.Run(env, func(t *testing.T) {
			r, err := s.Example(t.Context(), env)
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != 0 {
				t.Errorf("exit code %d\n%s%s", r.Code, r.Stderr, r.Stdout)
			}
		})
	}
}
