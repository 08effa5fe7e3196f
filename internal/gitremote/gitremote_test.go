package gitremote

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitcli"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

func server(t *testing.T) *gittest.Server {
	t.Helper()
	s := gittest.New(t)
	s.MustCreate(t, "a.git")
	s.MustCommit(t, "a.git", "first", map[string]string{"f": "1\n"})
	return s
}

// One mirror serves all who ask at once, and one that could not be made is
// tried again.
func TestScratchMirrorsOnce(t *testing.T) {
	s := server(t)
	s.RequireAuth(map[string]string{"u": "p"})
	scratch := NewScratch(&effects.Log{}, nil)
	url := s.RepoURL("a.git")
	if _, err := scratch.Open(t.Context(), Repository{URL: url}); err == nil || !strings.Contains(err.Error(), "cannot mirror "+url) {
		t.Fatalf("error %v without credentials", err)
	}
	repo := Repository{URL: url, Auth: &gitcli.Auth{URL: url, Username: "u", Password: "p"}}
	if _, err := scratch.Open(t.Context(), repo); err != nil {
		t.Fatal(err)
	}
	s.ResetStats()
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for _, spelling := range []string{url, strings.TrimSuffix(url, ".git"), url + "/", url} {
		wg.Go(func() {
			settings, err := scratch.Open(t.Context(), Repository{URL: spelling, Auth: repo.Auth})
			if err != nil || len(settings) != 1 || settings[0].Value != spelling {
				t.Errorf("%s: %v, %v", spelling, settings, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[settings[0].Key] = true
		})
	}
	wg.Wait()
	if len(seen) != 1 || s.Stats().Requests != 0 {
		t.Errorf("%d mirrors, %d more requests", len(seen), s.Stats().Requests)
	}
	dir := scratch.dir
	if err := scratch.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("mirrors are left behind: %v", err)
	}
}

func TestPushedLogsNewCommitsOnly(t *testing.T) {
	s := server(t)
	first := s.MustGit(t, "a.git", "rev-parse", "main")
	s.MustCommit(t, "a.git", "second\n\nbody", map[string]string{"f": "2\n", "g/h": "x\n"})
	s.MustCommit(t, "a.git", "third", map[string]string{"big": strings.Repeat("0123456789\n", 200_000)})
	third := s.MustGit(t, "a.git", "rev-parse", "main")
	push := Push{RepoURL: "https://h.io/a", Branch: "main", New: third, Dir: s.Dir("a.git"), Step: "push"}
	for _, tc := range []struct {
		reason string
		old    string
		known  []string
		want   []string
	}{
		{"since the old tip", first, nil, []string{"second", "third"}},
		{"a new branch", "", []string{first}, []string{"second", "third"}},
		{"a tip that was never fetched", first, []string{strings.Repeat("ab", 20)}, []string{"second", "third"}},
		{"an empty repository", "", nil, []string{"first", "second", "third"}},
		{"nothing new", third, nil, nil},
	} {
		log := &effects.Log{}
		push.Old, push.Known = tc.old, tc.known
		if err := Live(log).Pushed(t.Context(), push); err != nil {
			t.Errorf("%s: %v", tc.reason, err)
		}
		var got []string
		for _, c := range log.Commits() {
			subject, _, _ := strings.Cut(c.Message, "\n")
			got = append(got, subject)
			switch {
			case !c.Pushed || c.Step != "push" || c.RepoURL != "https://h.io/a" || c.Branch != "main":
				t.Errorf("%s: logged %+v", tc.reason, c)
			case subject == "second" && (!cmp.Equal(c.Paths, []string{"f", "g/h"}) || !strings.Contains(c.Diff, "-1\n+2\n") || c.Message != "second\n\nbody\n"):
				t.Errorf("%s: logged %+v", tc.reason, c)
			case subject == "third" && (len(c.Diff) > maxDiff+100 || !strings.HasSuffix(c.Diff, "(diff cut after 1 MiB)\n")):
				t.Errorf("%s: a diff of %d bytes", tc.reason, len(c.Diff))
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
}

// What a mirror was made of is all a dry run asks of the server.
func TestScratchReadsOnly(t *testing.T) {
	s := server(t)
	s.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path+r.URL.RawQuery, "receive-pack") {
				t.Errorf("a dry run sent %s %s", r.Method, r.URL)
			}
			next.ServeHTTP(w, r)
		})
	})
	scratch := NewScratch(&effects.Log{}, nil)
	t.Cleanup(func() { _ = scratch.Close() })
	url := s.RepoURL("a.git")
	settings, err := scratch.Open(t.Context(), Repository{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	env := gitcli.Env{Settings: settings}
	tip := s.MustGit(t, "a.git", "rev-parse", "main")
	for _, args := range [][]string{{"push", "--quiet", url, tip + ":refs/heads/other"}, {"ls-remote", "--exit-code", url, "refs/heads/other"}} {
		if out, err := env.Run(t.Context(), s.Dir("a.git"), args...); err != nil {
			t.Errorf("%v: %v %s", args, err, out)
		}
	}
	if refs := fmt.Sprint(s.MustGit(t, "a.git", "for-each-ref", "--format=%(refname)")); refs != "refs/heads/main" {
		t.Errorf("the server has %s", refs)
	}
}

// The other edge reads the server at another time than the mirror was made.
func TestMirrorHasWhatTheOtherEdgeBuiltOn(t *testing.T) {
	s := server(t)
	url := s.RepoURL("a.git")
	recording := gitrepo.NewRecording(gitrepo.NewLive(gitrepo.LiveOptions{}), &effects.Log{})
	scratch := NewScratch(&effects.Log{}, recording)
	t.Cleanup(func() { _ = scratch.Close() })
	if _, err := scratch.Open(t.Context(), Repository{URL: url}); err != nil {
		t.Fatal(err)
	}
	commit := func() string {
		t.Helper()
		remote, err := recording.Dial(t.Context(), gitrepo.Target{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		refs, err := remote.Refs(t.Context(), "main")
		if err != nil {
			t.Fatal(err)
		}
		tip := refs.Heads["main"]
		trees, err := remote.Trees(t.Context(), tip, []string{"f"}, gitrepo.ZeroHash)
		if err != nil {
			t.Fatal(err)
		}
		data := []byte("on " + tip.String() + "\n")
		who := gitrepo.Signature{Name: "n", Email: "e@example.com"}
		c, _, err := gitrepo.NewCommitOn(trees, []gitrepo.Change{{Path: "f", Mode: gitrepo.ModeFile, ID: gitrepo.BlobID(data), Data: data}},
			gitrepo.CommitSpec{Author: who, Committer: who, Message: "recorded\n"})
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Push(t.Context(), gitrepo.Push{Branch: "main", Old: tip, New: c.Commit.ID, Commits: []gitrepo.NewCommit{c}}); err != nil {
			t.Fatal(err)
		}
		return c.Commit.ID.String()
	}
	check := func(reason, want string) {
		t.Helper()
		settings, err := scratch.Open(t.Context(), Repository{URL: url})
		if err != nil {
			t.Fatalf("%s: %v", reason, err)
		}
		dir := t.TempDir()
		env := gitcli.Env{Settings: settings}
		if _, err := env.Run(t.Context(), dir, "clone", "--quiet", url, "."); err != nil {
			t.Fatalf("%s: %v", reason, err)
		}
		got, err := env.Run(t.Context(), dir, "log", "--format=%H %s")
		if err != nil || !strings.HasPrefix(got, want+" recorded\n") || !strings.HasSuffix(got, " first\n") {
			t.Errorf("%s: %v, the clone has\n%s", reason, err, got)
		}
	}
	s.MustCommit(t, "a.git", "after the mirror", map[string]string{"g": "1\n"})
	tip := commit()
	check("built on what the mirror did not have", tip)
	s.MustCommit(t, "a.git", "after the recorded commit", map[string]string{"g": "2\n"})
	check("the server moved on", tip)
	check("the second recorded commit is built on the first", commit())
}
