package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

// A dry run says what a live run of the same task then does, whichever steps
// push in whichever order: their edges keep pushes in different places.
func TestDryRunIsTheLiveRun(t *testing.T) {
	const (
		clone  = `{uses: git-clone, config: {repoURL: "${{ vars.repo }}", checkout: [{branch: main, path: w}]}}`
		write  = `{uses: file-write, config: {path: w/a/x.yaml, overwrite: true, contents: "x: written\n"}}`
		commit = `{uses: git-commit, config: {path: w, message: by git-commit}}`
		push   = `{uses: git-push, config: {path: w}}`
		// overlay writes over what the other edge pushed.
		overlay   = `{uses: file-write, config: {path: o/a/x.yaml, contents: "x: overlaid\n"}}`
		overlay2  = `{uses: file-write, config: {path: o/a/x.yaml, overwrite: true, contents: "x: overlaid again\n"}}`
		atomic    = `{uses: atomic-commit, config: {path: o, repoURL: "${{ vars.repo }}", branch: main, message: by atomic-commit}}`
		elsewhere = `{uses: file-write, config: {path: w/c/new.yaml, contents: "new: 1\n"}}`
		elseagain = `{uses: file-write, config: {path: w/c/new.yaml, overwrite: true, contents: "new: 2\n"}}`
	)
	for name, tc := range map[string]struct {
		reason string
		policy string
		steps  []string
		// branch is what is looked at; default main.
		branch string
		fails  bool
		// commits are those that would be pushed, by step alias.
		commits int
	}{
		"push, atomic-commit": {
			reason: "the pushed tip is what the next commit is judged and built on",
			steps:  []string{clone, write, commit, push, overlay, atomic}, commits: 2,
		},
		"nothing left to change": {
			reason: "git-push has put the same content in place",
			steps:  []string{clone, write, commit, push, `{uses: file-write, config: {path: o/a/x.yaml, contents: "x: written\n"}}`, atomic}, commits: 1,
		},
		"push, atomic-commit, push, atomic-commit": {
			reason: "each edge takes what the other has kept, twice",
			steps: []string{
				clone, write, commit, push, overlay, atomic,
				elsewhere, commit, push, overlay2, atomic,
			}, commits: 4,
		},
		"atomic-commit, push, atomic-commit": {
			reason: "the mirror is made after the first recorded commit",
			steps:  []string{overlay, atomic, clone, elsewhere, commit, push, overlay2, atomic}, commits: 3,
		},
		"atomic-commit of the pushed work tree": {
			reason: "its HEAD is a commit that only the mirror has",
			steps: []string{
				clone, write, commit, push, elsewhere,
				`{uses: atomic-commit, config: {path: w, message: by atomic-commit}}`,
			}, commits: 2,
		},
		"a new branch": {
			reason: "the server has no such branch",
			branch: "feature",
			steps: []string{
				clone, write, commit, `{uses: git-push, config: {path: w, targetBranch: feature}}`, overlay,
				`{uses: atomic-commit, config: {path: o, repoURL: "${{ vars.repo }}", branch: feature, message: by atomic-commit}}`,
			}, commits: 2,
		},
		"a branch that starts at a pushed one": {
			reason: "baseBranch is looked up as the branch itself is",
			branch: "feature",
			steps: []string{
				clone, write, commit, push, overlay,
				`{uses: atomic-commit, config: {path: o, repoURL: "${{ vars.repo }}", branch: feature, createBranch: true, baseBranch: main, message: by atomic-commit}}`,
			}, commits: 2,
		},
		"an orphan branch": {
			reason: "git-clone pushes it, and its tree is empty",
			branch: "orphan",
			steps: []string{
				`{uses: git-clone, config: {repoURL: "${{ vars.repo }}", checkout: [{branch: orphan, create: true, path: w}]}}`, overlay,
				`{uses: atomic-commit, config: {path: o, repoURL: "${{ vars.repo }}", branch: orphan, message: by atomic-commit}}`,
			}, commits: 2,
		},
		"merged": {
			reason: "a pushed merge has two parents, one of them recorded by the other edge", policy: "AlwaysMerge",
			steps: []string{clone, overlay, atomic, elsewhere, commit, push, overlay2, atomic}, commits: 4,
		},
		"a directory moved": {
			reason: "its tree is not new, only where it is",
			steps: []string{
				clone, `{uses: copy, config: {inPath: w/a, outPath: w/moved/deep}}`, `{uses: delete, config: {path: w/a}}`, commit, push,
				`{uses: file-write, config: {path: o/moved/deep/b/y.yaml, contents: "y: 2\n"}}`, atomic,
			}, commits: 2,
		},
		"forced": {
			reason: "the pushed tip is not built on what was recorded",
			steps: []string{
				clone, overlay, atomic, elsewhere, commit, `{uses: git-push, config: {path: w, force: true}}`,
				elseagain, commit, push, overlay2, atomic,
			}, commits: 4,
		},
		"a conflict": {
			reason: "another work tree of the old tip changes what was pushed",
			steps: []string{
				clone, `{uses: git-clone, config: {repoURL: "${{ vars.repo }}", checkout: [{branch: main, path: v}]}}`,
				write, commit, push, `{uses: file-write, config: {path: v/a/x.yaml, overwrite: true, contents: "x: other\n"}}`,
				`{uses: atomic-commit, config: {path: v, message: by atomic-commit}}`,
			}, commits: 1, fails: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := gittest.New(t)
			url := server.MustCreate(t, "r.git")
			began := time.Now().Add(-time.Hour)
			for i, files := range []map[string]string{{"a/x.yaml": "x: 1\n", "a/b/y.yaml": "y: 1\n"}, {"c/z.yaml": "z: 1\n"}} {
				change := gittest.Change{Message: "seed", Files: gittest.Files(files), When: began.Add(time.Duration(i) * time.Minute)}
				if _, err := server.Commit("r.git", change); err != nil {
					t.Fatal(err)
				}
			}
			if tc.branch == "" {
				tc.branch = "main"
			}
			steps := tc.steps
			if !tc.fails { // what a clone has at the end
				steps = append(steps[:len(steps):len(steps)],
					`{uses: git-clone, config: {repoURL: "${{ vars.repo }}", checkout: [{branch: `+tc.branch+`, path: end}]}}`)
			}
			task := `{apiVersion: kargo.akuity.io/v1alpha1, kind: PromotionTask, metadata: {name: both, namespace: demo},
				spec: {vars: [{name: repo}], steps: [` + strings.Join(steps, ", ") + `]}}`
			t.Setenv("GIT_PUSH_INTEGRATION_POLICY", tc.policy)
			for _, name := range []string{"HOME", "XDG_STATE_HOME", "DOCKER_CONFIG"} {
				t.Setenv(name, t.TempDir())
			}

			seeded := server.MustGit(t, "r.git", "for-each-ref")
			dry := runBoth(t, task, url, tc.branch)
			if got := server.MustGit(t, "r.git", "for-each-ref"); got != seeded {
				t.Fatalf("the dry run changed the server to\n%s", got)
			}
			live := runBoth(t, task, url, tc.branch, "--live", "--diff")
			if diff := cmp.Diff(live, dry); diff != "" {
				t.Errorf("%s (-live +dry):\n%s", tc.reason, diff)
			}
			if failed := live.Phase != "Succeeded"; failed != tc.fails || len(live.Commits) != tc.commits {
				t.Errorf("the live run %s with %d commits, want %d: %+v", live.Phase, len(live.Commits), tc.commits, live)
			}
			if !tc.fails {
				if got := server.MustGit(t, "r.git", logArgs(tc.branch)...); got != live.Log {
					t.Errorf("the server has\n%s\nand the last clone\n%s", got, live.Log)
				}
			}
		})
	}
}

// ran is what two runs of a task have to have in common.
type ran struct {
	Phase, Message string
	Steps          []stepReport
	Commits        []effects.Commit
	// Log has trees and subjects of the last clone, newest first.
	Log string
}

func runBoth(t *testing.T, task, url, branch string, flags ...string) ran {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "work")
	var stdout, stderr bytes.Buffer
	code := cli.Run(t.Context(), newRootCommand, append([]string{
		"run", "-f", "-", "--var", "repo=" + url, "--promotion", "both.01arz3ndektsv4rrffq69g5fav.abc", "--workdir", dir, "--keep", "-o", "json",
	}, flags...), cli.Stdio{In: strings.NewReader(task), Out: &stdout, Err: &stderr})
	var rep report
	if err := json.Unmarshal(stdout.Bytes(), &rep); err != nil {
		t.Fatalf("exit code %d: %v\n%s", code, err, &stderr)
	}
	out := ran{Phase: rep.Phase, Message: commitID.ReplaceAllString(rep.Message, "<commit>"), Steps: rep.Steps, Commits: rep.Commits}
	for i := range out.Steps {
		s := &out.Steps[i]
		s.StartedAt, s.FinishedAt = nil, nil
		s.Message = commitID.ReplaceAllString(s.Message, "<commit>")
		text, err := json.Marshal([]any{s.Output, s.Detail})
		if err != nil {
			t.Fatal(err)
		}
		var plain [2]map[string]any
		if err := json.Unmarshal(commitID.ReplaceAll(text, []byte("<commit>")), &plain); err != nil {
			t.Fatal(err)
		}
		s.Output, s.Detail = plain[0], plain[1]
	}
	for i := range out.Commits {
		out.Commits[i].Commit, out.Commits[i].Pushed = "", false
	}
	if rep.Phase == "Succeeded" {
		text, err := exec.Command("git", append([]string{"-C", filepath.Join(dir, "end")}, logArgs(branch)...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		out.Log = strings.TrimSpace(string(text))
	}
	return out
}

func logArgs(branch string) []string {
	return []string{"log", "--topo-order", "--format=%T %s", branch, "--"}
}
