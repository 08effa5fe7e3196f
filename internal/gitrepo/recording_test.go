package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

// What another edge kept reads as it would from a server that has it: merges,
// moved directories and all.
func TestKeptPushesReadLikeTheServers(t *testing.T) {
	s := gittest.New(t)
	when := time.Now().Add(-24 * time.Hour).Truncate(time.Second)
	commit := func(name, branch, message string, files map[string]gittest.Entry) {
		t.Helper()
		when = when.Add(time.Minute)
		if _, err := s.Commit(name, gittest.Change{Branch: branch, Message: message, Files: files, When: when}); err != nil {
			t.Fatal(err)
		}
	}
	base := s.MustCreate(t, "base.git")
	for i := range 4 {
		commit("base.git", "main", fmt.Sprint("base ", i), gittest.Files(map[string]string{"a/b/c.yaml": fmt.Sprint(i, "\n"), "z.yaml": "z\n"}))
	}
	s.MustGit(t, "base.git", "branch", "side", "main~1")
	commit("base.git", "side", "side", gittest.Files(map[string]string{"side.yaml": "1\n"}))

	full := s.RepoURL("full.git")
	s.MustGit(t, "base.git", "clone", "--quiet", "--bare", ".", s.Dir("full.git"))
	s.MustGit(t, "full.git", "config", "uploadpack.allowFilter", "true")
	s.MustGit(t, "full.git", "config", "uploadpack.allowAnySHA1InWant", "true")
	commit("full.git", "main", "moved", map[string]gittest.Entry{"a": {Mode: "0"}, "m/n/b/c.yaml": {Data: "3\n"}})
	commit("full.git", "main", "changed", gittest.Files(map[string]string{"m/n/b/c.yaml": "new\n"}))
	commit("full.git", "side", "more", gittest.Files(map[string]string{"side.yaml": "2\n"}))
	when = when.Add(time.Minute)
	merge := s.MustGit(t, "full.git", "-c", "user.name=n", "-c", "user.email=e@example.com", "commit-tree", "main^{tree}", "-p", "main", "-p", "side", "-m", "merge")
	s.MustGit(t, "full.git", "update-ref", "refs/heads/main", merge)
	commit("full.git", "main", "last", gittest.Files(map[string]string{"z.yaml": "zz\n"}))

	log := &effects.Log{}
	d := NewRecording(NewLive(LiveOptions{}), log)
	elsewhere := Elsewhere{Branch: "main", New: plumbing.NewHash(s.MustGit(t, "full.git", "rev-parse", "main")), Read: readFrom(s.Dir("full.git"))}
	var err error
	var ids []Hash
	for id := range strings.FieldsSeq(s.MustGit(t, "full.git", "rev-list", "main", "^"+s.MustGit(t, "base.git", "rev-parse", "main"), "^"+s.MustGit(t, "base.git", "rev-parse", "side"))) {
		ids = append(ids, plumbing.NewHash(id))
	}
	if elsewhere.Commits, err = elsewhere.Read(t.Context(), ids); err != nil || len(ids) != 5 {
		t.Fatalf("%d commits, err %v", len(ids), err)
	}
	if err := d.Keep(strings.TrimSuffix(base, ".git")+"/", elsewhere); err != nil {
		t.Fatal(err)
	}
	kept, real := dial(t, d, base), dial(t, NewLive(LiveOptions{}), full)

	if got, want := mustTip(t, kept), mustTip(t, real); got != want {
		t.Fatalf("tip = %s, want %s", got, want)
	}
	all, err := real.History(t.Context(), HistoryQuery{Tip: mustTip(t, real), Max: 100})
	if err != nil || len(all.Commits) != 10 {
		t.Fatalf("%d commits, err %v", len(all.Commits), err)
	}
	paths := []string{"a/b/c.yaml", "m/n/b/c.yaml", "side.yaml", "z.yaml"}
	for _, c := range all.Commits {
		for _, until := range append([]*Commit{{}}, all.Commits...) {
			for _, q := range []HistoryQuery{
				{Tip: c.ID, Until: until.ID, Max: 100},
				{Tip: c.ID, Until: until.ID, Max: 3},
				{Tip: c.ID, Until: until.ID, Max: 100, Since: all.Commits[4].When},
			} {
				if !until.ID.IsZero() && !ancestor(s, until.ID, c.ID) {
					continue // what a base never is
				}
				if diff := cmp.Diff(historyText(t, real, q), historyText(t, kept, q)); diff != "" {
					t.Errorf("history of %q until %q, at most %d, since %v (-server +kept):\n%s", c.Message, until.Message, q.Max, q.Since, diff)
				}
			}
		}
		want, err := real.Trees(t.Context(), c.ID, paths, ZeroHash)
		if err != nil {
			t.Fatal(err)
		}
		got, err := kept.Trees(t.Context(), c.ID, paths, ZeroHash)
		if err != nil {
			t.Errorf("trees of %q: %v", c.Message, err)
			continue
		}
		for _, p := range paths {
			if got.Entry(p) != want.Entry(p) {
				t.Errorf("%s in %q is %v, want %v", p, c.Message, got.Entry(p), want.Entry(p))
			}
		}
	}
	// A commit on top is built on it, and its diff has the old content.
	commitOnce(t, kept, file("m/n/b/c.yaml", "newer\n"), file("a/b/d.yaml", "d\n"))
	if got := log.Commits(); len(got) != 1 || !strings.Contains(got[0].Diff, "-new\n+newer\n") {
		t.Errorf("effects = %+v", got)
	}
	if got := s.MustGit(t, "base.git", "log", "-1", "--format=%s", "main"); got != "base 3" {
		t.Errorf("the server's tip is %q", got)
	}
}

func historyText(t *testing.T, r Remote, q HistoryQuery) []string {
	t.Helper()
	h, err := r.History(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{fmt.Sprint("complete: ", h.Complete)}
	for _, c := range h.Commits {
		out = append(out, c.Message)
	}
	return out
}

func ancestor(s *gittest.Server, a, b Hash) bool {
	_, err := s.Git("full.git", "merge-base", "--is-ancestor", a.String(), b.String())
	return err == nil
}

// readFrom reads objects out of a repository with git.
func readFrom(dir string) ReadObjects {
	return func(ctx context.Context, ids []Hash) ([]Object, error) {
		var objects []Object
		for _, id := range ids {
			typ, err := exec.CommandContext(ctx, "git", "-C", dir, "cat-file", "-t", id.String()).Output()
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				continue
			}
			data, err := exec.CommandContext(ctx, "git", "-C", dir, "cat-file", strings.TrimSpace(string(typ)), id.String()).Output()
			if err != nil {
				return nil, err
			}
			for _, t := range []Object{newObject(treeObject, data), newObject(blobObject, data), newObject(plumbing.CommitObject, data)} {
				if t.Type.String() == strings.TrimSpace(string(typ)) {
					objects = append(objects, t)
				}
			}
		}
		return objects, nil
	}
}
