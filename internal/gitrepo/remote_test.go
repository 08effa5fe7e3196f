package gitrepo

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

var when = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func spec(message string) CommitSpec {
	s := Signature{Name: "Stepd", Email: "stepd@example.com", When: when}
	return CommitSpec{Author: s, Committer: s, Message: message}
}

func file(path, data string) Change {
	return Change{Path: path, Mode: ModeFile, ID: BlobID([]byte(data)), Data: []byte(data)}
}

// commitOnce makes one commit of the changes on the tip of main.
func commitOnce(t *testing.T, r Remote, changes ...Change) NewCommit {
	t.Helper()
	refs, err := r.Refs(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	tip := refs.Heads["main"]
	trees := EmptyTrees()
	if !tip.IsZero() {
		var paths []string
		for _, c := range changes {
			paths = append(paths, c.Path)
		}
		if trees, err = r.Trees(t.Context(), tip, paths, ZeroHash); err != nil {
			t.Fatal(err)
		}
	}
	c, _, err := NewCommitOn(trees, changes, spec("change\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), Push{Branch: "main", Old: tip, New: c.Commit.ID, Commits: []NewCommit{c}}); err != nil {
		t.Fatal(err)
	}
	return c
}

func dial(t *testing.T, d Dialer, url string) Remote {
	t.Helper()
	r, err := d.Dial(t.Context(), Target{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCommitOverEveryProtocol(t *testing.T) {
	noV2 := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Git-Protocol")
			h.ServeHTTP(w, r)
		})
	}
	for name, tc := range map[string]struct {
		reason string
		config map[string]string
		wrap   func(http.Handler) http.Handler
		// commitsOnly refuses to give other objects by id.
		commitsOnly bool
	}{
		"v2":            {reason: "what every host speaks"},
		"v2, no trees":  {reason: "JGit gives no objects by id but commits", commitsOnly: true},
		"v2, no filter": {reason: "filters are optional", config: map[string]string{"uploadpack.allowFilter": "false"}},
		"v0":            {reason: "old servers and proxies", wrap: noV2},
		"v0, any id":    {reason: "ids can be asked for", wrap: noV2, config: map[string]string{"uploadpack.allowAnySHA1InWant": "true"}},
		"v0, no filter": {reason: "the last rung", wrap: noV2, config: map[string]string{"uploadpack.allowFilter": "false"}},
		"v1": {reason: "the transition protocol", wrap: func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.Header.Set("Git-Protocol", "version=1")
				h.ServeHTTP(w, r)
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := gittest.New(t)
			url := s.MustCreate(t, "r.git")
			for k, v := range tc.config {
				s.MustGit(t, "r.git", "config", k, v)
			}
			s.MustCommit(t, "r.git", "one", map[string]string{"a/b/c.yaml": "x: 1\n", "a/other.yaml": "y: 1\n", "z/z.yaml": "z\n"})
			s.MustCommit(t, "r.git", "two", map[string]string{"a/b/c.yaml": "x: 2\n"})
			s.Wrap(tc.wrap)
			if tc.commitsOnly {
				s.Wrap(commitsOnly(s))
			}

			log := &effects.Log{}
			r := dial(t, NewLive(LiveOptions{Log: log}), url)
			commitOnce(t, r, file("a/b/c.yaml", "x: 3\n"), file("a/new/d.yaml", "d\n"))
			s.MustCommit(t, "r.git", "foreign", map[string]string{"z/z.yaml": "zz\n"})
			commitOnce(t, r, file("a/b/c.yaml", "x: 4\n"), Change{Path: "a/new/d.yaml"})

			hint := mustTip(t, r)
			m := merge(t, s, "main~3", "a/b/c.yaml", "x: 5\n")
			trees, err := r.Trees(t.Context(), m, []string{"a/b/c.yaml"}, hint)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := trees.Entry("a/b/c.yaml").ID, BlobID([]byte("x: 5\n")); got != want {
				t.Errorf("after a merge the file is %s, want %s", got, want)
			}
			since, err := r.History(t.Context(), HistoryQuery{Tip: m, Until: hint, Max: 100})
			if err != nil || len(since.Commits) != 2 || !since.Complete {
				t.Errorf("history since a merge: %d commits, complete %t, err %v; want the two of it", len(since.Commits), since.Complete, err)
			}

			s.Wrap(nil)
			s.Fsck(t, "r.git")
			if got, want := s.MustGit(t, "r.git", "ls-tree", "-r", "--name-only", "main"), "a/b/c.yaml\na/other.yaml\nz/z.yaml"; got != want {
				t.Errorf("files = %q, want %q", got, want)
			}
			if got := s.MustGit(t, "r.git", "show", "main:a/b/c.yaml"); got != "x: 5" {
				t.Errorf("content = %q", got)
			}
			if got := s.MustGit(t, "r.git", "rev-list", "--count", "main"); got != "7" {
				t.Errorf("%s commits, want 7", got)
			}
			if n := len(log.Commits()); n != 2 || !log.Commits()[0].Pushed {
				t.Errorf("effects = %+v", log.Commits())
			}
			h, err := r.History(t.Context(), HistoryQuery{Tip: mustTip(t, r), Max: 100})
			if err != nil || len(h.Commits) != 7 || !h.Complete {
				t.Errorf("history: %d commits, complete %t, err %v", len(h.Commits), h.Complete, err)
			}
		})
	}
}

// commitsOnly answers requests for other objects by id as JGit does.
func commitsOnly(s *gittest.Server) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body) // as it comes
			r.Body = io.NopCloser(bytes.NewReader(body))
			for line := range strings.Lines(string(body)) {
				_, id, ok := strings.Cut(strings.TrimSpace(line), "want ")
				if !ok {
					continue
				}
				if typ, _ := s.Git("r.git", "cat-file", "-t", id); typ != "commit" {
					w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
					_, _ = fmt.Fprintf(w, "%04xERR want %s not valid", 4+len("ERR want  not valid")+len(id), id)
					return
				}
			}
			h.ServeHTTP(w, r)
		})
	}
}

// merge makes a commit on a branch that begins at a commit of main, merges that
// branch into main, and returns the merge.
func merge(t *testing.T, s *gittest.Server, from, path, data string) Hash {
	t.Helper()
	s.MustGit(t, "r.git", "branch", "-f", "side", from)
	if _, err := s.Commit("r.git", gittest.Change{Branch: "side", Message: "side", Files: gittest.Files(map[string]string{path: data})}); err != nil {
		t.Fatal(err)
	}
	return mergeSide(t, s, "side")
}

// mergeSide merges into main, with the tree of the branch "of".
func mergeSide(t *testing.T, s *gittest.Server, of string) Hash {
	t.Helper()
	id := s.MustGit(t, "r.git", "commit-tree", of+"^{tree}", "-p", "main", "-p", "side", "-m", "merge")
	s.MustGit(t, "r.git", "update-ref", "refs/heads/main", id)
	return plumbing.NewHash(id)
}

// The merge of a branch that began before what is remembered brings the two
// commits, and not everything that the branch is built on.
func TestMergesCostWhatTheyChange(t *testing.T) {
	s := gittest.New(t)
	url := s.MustCreate(t, "r.git")
	if err := s.Seed("r.git", 50, 10, 300); err != nil {
		t.Fatal(err)
	}
	const path = "d0003/f0003.yaml"
	r := dial(t, NewLive(LiveOptions{}), url)
	hint := mustTip(t, r)
	if _, err := r.Trees(t.Context(), hint, []string{path}, ZeroHash); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		reason  string
		tip     func() Hash
		down    int64
		commits int
	}{
		{"a merge", func() Hash { return merge(t, s, "main~20", "d0004/new.yaml", "1\n") }, 2 << 10, 2},
		{"a branch that was reset", func() Hash { return plumbing.NewHash(s.MustGit(t, "r.git", "rev-parse", "side")) }, 6 << 10, 1},
	} {
		tip := tc.tip()
		s.ResetStats()
		if _, err := r.Trees(t.Context(), tip, []string{path}, hint); err != nil {
			t.Fatal(err)
		}
		if got := s.Stats().Down; got > tc.down {
			t.Errorf("%s: received %d bytes, want at most %d", tc.reason, got, tc.down)
		}
		h, err := r.History(t.Context(), HistoryQuery{Tip: tip, Until: hint, Max: 200})
		if err != nil || len(h.Commits) != tc.commits || !h.Complete {
			t.Errorf("%s: %d commits, complete %t, err %v; want %d", tc.reason, len(h.Commits), h.Complete, err, tc.commits)
		}
	}
}

func TestLookBackOnABusyBranch(t *testing.T) {
	s := gittest.New(t)
	url := s.MustCreate(t, "r.git")
	if err := s.Seed("r.git", 10, 10, 30); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	grow := func(branch string, n int) {
		for i := range n {
			if _, err := s.Commit("r.git", gittest.Change{
				Branch: branch, Message: "busy", When: now.Add(time.Duration(i-n) * time.Second),
				Files: gittest.Files(map[string]string{branch: strings.Repeat("x", i)}),
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.MustGit(t, "r.git", "branch", "side", "main~20")
	grow("side", 20)
	s.MustGit(t, "r.git", "branch", "linear", "main")
	grow("linear", 60)
	d := NewLive(LiveOptions{})
	for _, tc := range []struct {
		reason   string
		tip      Hash
		max      int
		recent   int
		complete bool
	}{
		{"what is not known may be newer than what is, here than the commits that were merged into", mergeSide(t, s, "main"), 100, 21, true},
		{"once it is long, the look-back goes on in long strides", plumbing.NewHash(s.MustGit(t, "r.git", "rev-parse", "linear")), 100, 60, true},
		{"no more is asked for than is wanted", plumbing.NewHash(s.MustGit(t, "r.git", "rev-parse", "linear")), 30, 30, false},
	} {
		r, err := d.Dial(t.Context(), Target{URL: url, Credentials: Credentials{Username: tc.reason}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Trees(t.Context(), tc.tip, []string{"d0003/f0003.yaml"}, ZeroHash); err != nil {
			t.Fatal(err)
		}
		s.ResetStats()
		since := now.Add(-5 * time.Minute)
		h, err := r.History(t.Context(), HistoryQuery{Tip: tc.tip, Since: since, Max: tc.max})
		recent := 0
		for _, c := range h.Commits {
			if !c.When.Before(since) {
				recent++
			}
		}
		if err != nil || recent != tc.recent || h.Complete != tc.complete {
			t.Errorf("%s: %d recent commits, complete %t, err %v; want %d, %t", tc.reason, recent, h.Complete, err, tc.recent, tc.complete)
		}
		if n := len(s.Requests()); n != 1 {
			t.Errorf("%s: %d requests, want 1", tc.reason, n)
		}
	}
}

// A repository that is itself a shallow clone has no more to look back on.
func TestLookBackOnAShallowRepository(t *testing.T) {
	s := gittest.New(t)
	s.MustCreate(t, "full.git")
	if err := s.Seed("full.git", 10, 10, 30); err != nil {
		t.Fatal(err)
	}
	for _, depth := range []int{1, 3, 12} {
		name := fmt.Sprintf("shallow%d.git", depth)
		s.MustGit(t, "full.git", "clone", "--quiet", "--bare", "--depth", fmt.Sprint(depth), "file://"+s.Dir("full.git"), s.Dir(name))
		s.MustGit(t, name, "config", "uploadpack.allowFilter", "true")
		r := dial(t, NewLive(LiveOptions{}), s.RepoURL(name))
		tip := mustTip(t, r)
		if _, err := r.Trees(t.Context(), tip, []string{"d0003/f0003.yaml"}, ZeroHash); err != nil {
			t.Fatal(err)
		}
		h, err := r.History(t.Context(), HistoryQuery{Tip: tip, Max: 100})
		if err != nil || len(h.Commits) != depth || h.Complete {
			t.Errorf("%d commits, complete %t, err %v; want %d, not complete", len(h.Commits), h.Complete, err, depth)
		}
	}
}

func TestDiffOfWhatWasPushed(t *testing.T) {
	for _, diffs := range []bool{false, true} {
		s := gittest.New(t)
		url := s.MustCreate(t, "r.git")
		s.MustCommit(t, "r.git", "one", map[string]string{"a.yaml": "x: 1\n"})
		log := &effects.Log{}
		r := dial(t, NewLive(LiveOptions{Log: log, Diffs: diffs}), url)
		commitOnce(t, r, file("a.yaml", "x: 2\n"))
		got := log.Commits()
		if len(got) != 1 || !got[0].Pushed || !cmp.Equal(got[0].Paths, []string{"a.yaml"}) || strings.Contains(got[0].Diff, "-x: 1\n+x: 2\n") != diffs {
			t.Errorf("diffs %t: effects = %+v", diffs, got)
		}
		want := 3 // the tip, its tree, the push
		if diffs {
			want++
		}
		if n := len(s.Requests()); n != want {
			t.Errorf("diffs %t: %d requests, want %d", diffs, n, want)
		}
	}
}

func mustTip(t *testing.T, r Remote) Hash {
	t.Helper()
	refs, err := r.Refs(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	return refs.Heads["main"]
}

func TestRecordingReadsItsOwnWrites(t *testing.T) {
	s := gittest.New(t)
	url := s.MustCreate(t, "r.git")
	before := s.MustCommit(t, "r.git", "one", map[string]string{"a/b.yaml": "x: 1\n", "c/d.yaml": "1\n"})

	log := &effects.Log{}
	d := NewRecording(NewLive(LiveOptions{}), log)
	commitOnce(t, dial(t, d, url), file("a/b.yaml", "x: 2\n"))
	c := commitOnce(t, dial(t, d, url), file("a/b.yaml", "x: 3\n"), file("c/d.yaml", "2\n"))

	if got := s.MustGit(t, "r.git", "rev-parse", "main"); got != before {
		t.Errorf("a dry run moved the branch to %s", got)
	}
	if got := mustTip(t, dial(t, d, url)); got != c.Commit.ID {
		t.Errorf("tip = %s, want the recorded %s", got, c.Commit.ID)
	}
	commits := log.Commits()
	if len(commits) != 2 || commits[1].Pushed || !strings.Contains(commits[1].Diff, "-x: 2\n+x: 3\n") {
		t.Errorf("effects = %+v", commits)
	}
	h, err := dial(t, d, url).History(t.Context(), HistoryQuery{Tip: c.Commit.ID, Max: 10})
	if err != nil || len(h.Commits) != 3 {
		t.Errorf("history = %d commits, err %v; want 3", len(h.Commits), err)
	}
}

func TestFirstCommitOfAnEmptyRepository(t *testing.T) {
	s := gittest.New(t)
	r := dial(t, NewLive(LiveOptions{}), s.MustCreate(t, "r.git"))
	refs, err := r.Refs(t.Context(), "main")
	if err != nil || !refs.Empty {
		t.Fatalf("refs = %+v, err %v; want empty", refs, err)
	}
	commitOnce(t, r, file("a.yaml", "1\n"))
	s.Fsck(t, "r.git")
}

func TestCostDoesNotGrowWithTheRepository(t *testing.T) {
	s := gittest.New(t)
	for _, tc := range []struct {
		name         string
		dirs, perDir int
	}{{"small.git", 10, 10}, {"large.git", 50, 100}} {
		url := s.MustCreate(t, tc.name)
		if err := s.Seed(tc.name, tc.dirs, tc.perDir, 20); err != nil {
			t.Fatal(err)
		}
		r := dial(t, NewLive(LiveOptions{}), url)
		s.ResetStats()
		commitOnce(t, r, file("d0003/f0003.yaml", "new\n"))
		cold := s.Stats()
		if cold.Requests != 4 {
			t.Errorf("%s: cold took %d requests, want refs, root, directory, push: %+v", tc.name, cold.Requests, s.Requests())
		}
		t.Logf("%s: up %d down %d", tc.name, cold.Up, cold.Down)
		if limit := int64(40*(tc.dirs+tc.perDir) + 4<<10); cold.Down > limit {
			t.Errorf("%s: cold received %d bytes, want at most %d", tc.name, cold.Down, limit)
		}
	}
}

// wrapBoth sees to the requests for trees and history in one answer.
func wrapBoth(f func(w http.ResponseWriter, r *http.Request, body []byte, h http.Handler)) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body) // one that is cut short is none of these
			r.Body = io.NopCloser(bytes.NewReader(body))
			if bytes.Contains(body, []byte("deepen ")) && bytes.Count(body, []byte("want ")) > 1 {
				f(w, r, body, h)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
}

// A server that had trouble once is not taken for one that can do less.
func TestTroubleIsNotRemembered(t *testing.T) {
	unavailable := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		http.Error(w, "later", http.StatusServiceUnavailable)
	}
	cut := func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
		_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()-30])
	}
	s := gittest.New(t)
	url := s.MustCreate(t, "r.git")
	if err := s.Seed("r.git", 10, 10, 20); err != nil {
		t.Fatal(err)
	}
	tip := plumbing.NewHash(s.MustGit(t, "r.git", "rev-parse", "main"))
	for _, tc := range []struct {
		reason string
		nth    int32
		fault  func(http.ResponseWriter, *http.Request, http.Handler)
	}{
		{"the tip, unavailable", 1, unavailable},
		{"the tip, cut off", 1, cut},
		{"the trees, unavailable", 2, unavailable},
		{"the trees, cut off", 2, cut},
	} {
		d := NewLive(LiveOptions{})
		able := profile{known: true, v2: true, filter: true, shallow: true, byID: true}
		d.profiles.set(url, able)
		read := func(user string) {
			t.Helper()
			r, err := d.Dial(t.Context(), Target{URL: url, Credentials: Credentials{Username: user}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Trees(t.Context(), tip, []string{"d0003/f0003.yaml"}, ZeroHash); err != nil {
				t.Fatalf("%s: %v", tc.reason, err)
			}
		}
		var n atomic.Int32
		s.Wrap(func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost && n.Add(1) == tc.nth {
					tc.fault(w, r, h)
					return
				}
				h.ServeHTTP(w, r)
			})
		})
		read("first")
		if want := 5 - tc.nth; n.Load() != want { // without the tip's root tree, that is one more
			t.Errorf("%s: %d requests, want %d", tc.reason, n.Load(), want)
		}
		if pr := d.profiles.get(url); pr != able {
			t.Errorf("%s: the server is taken for %+v", tc.reason, pr)
		}
		n.Store(10)
		read("second")
		if n.Load() != 12 {
			t.Errorf("%s: %d requests later, want 2", tc.reason, n.Load()-10)
		}
	}
}

// A server may pass over in silence what it does not give in one answer.
func TestTreesLeftOutOfAnAnswer(t *testing.T) {
	s := gittest.New(t)
	url := s.MustCreate(t, "r.git")
	if err := s.Seed("r.git", 10, 10, 20); err != nil {
		t.Fatal(err)
	}
	s.Wrap(wrapBoth(func(w http.ResponseWriter, r *http.Request, body []byte, h http.Handler) {
		tree := bytes.LastIndex(body, []byte("0032want "))
		body = slices.Delete(body, tree, tree+0x32)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		h.ServeHTTP(w, r)
	}))
	tip := plumbing.NewHash(s.MustGit(t, "r.git", "rev-parse", "main"))
	d := NewLive(LiveOptions{})
	// The tip, the answer without the tree, what the server can do, the tree; the
	// second time that is known, and the third, that it leaves trees out.
	for i, want := range []int{4, 3, 2} {
		r, err := d.Dial(t.Context(), Target{URL: url, Credentials: Credentials{Username: fmt.Sprint(i)}})
		if err != nil {
			t.Fatal(err)
		}
		s.ResetStats()
		if _, err := r.Trees(t.Context(), tip, []string{"d0003/f0003.yaml"}, ZeroHash); err != nil {
			t.Fatal(err)
		}
		if n := len(s.Requests()); n != want {
			t.Errorf("time %d: %d requests, want %d", i+1, n, want)
		}
	}
}

// The commits before the tip come with what is fetched anyway, and from a
// server that does not give them so, by themselves.
func TestLookBackComesWithTheTrees(t *testing.T) {
	var refused int
	refuse := wrapBoth(func(w http.ResponseWriter, _ *http.Request, _ []byte, _ http.Handler) {
		refused++
		w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
		_, _ = io.WriteString(w, "0010ERR not so\n")
	})
	for _, tc := range []struct {
		reason                 string
		path                   string
		wrap                   func(http.Handler) http.Handler
		trees, history, refuse int
	}{
		{"with the directory's tree", "d0003/f0003.yaml", nil, 2, 0, 0},
		{"with the tip, when no other tree is needed", "new.yaml", nil, 1, 0, 0},
		{"with nothing, when the directory is a new one", "new/new.yaml", nil, 1, 1, 0},
		// The tip, refused, what the server can do, refused, the directory.
		{"a server that gives one at a time", "d0003/f0003.yaml", refuse, 5, 1, 2},
	} {
		s := gittest.New(t)
		url := s.MustCreate(t, "r.git")
		if err := s.Seed("r.git", 10, 10, 20); err != nil {
			t.Fatal(err)
		}
		tip := plumbing.NewHash(s.MustGit(t, "r.git", "rev-parse", "main"))
		refused = 0
		s.Wrap(tc.wrap)
		d := NewLive(LiveOptions{})
		for i, round := range []string{"first", "after it was learned"} {
			// Other credentials: what is known of the server stays, no object does.
			r, err := d.Dial(t.Context(), Target{URL: url, Credentials: Credentials{Username: round}})
			if err != nil {
				t.Fatal(err)
			}
			s.ResetStats()
			if _, err := r.Trees(t.Context(), tip, []string{tc.path}, ZeroHash); err != nil {
				t.Fatalf("%s: %v", tc.reason, err)
			}
			if i > 0 && tc.wrap != nil { // the tip with the commits before it, the directory
				tc.trees, tc.history, tc.refuse = 2, 0, 0
			}
			if n := len(s.Requests()); n != tc.trees {
				t.Errorf("%s, %s: the trees took %d requests, want %d", tc.reason, round, n, tc.trees)
			}
			if refused != tc.refuse {
				t.Errorf("%s, %s: %d refusals, want %d", tc.reason, round, refused, tc.refuse)
			}
			refused = 0
			s.ResetStats()
			h, err := r.History(t.Context(), HistoryQuery{Tip: tip, Max: firstWindow})
			if err != nil || len(h.Commits) != firstWindow {
				t.Fatalf("%s, %s: %d commits, err %v", tc.reason, round, len(h.Commits), err)
			}
			if n := len(s.Requests()); n != tc.history {
				t.Errorf("%s, %s: the look-back took %d requests, want %d", tc.reason, round, n, tc.history)
			}
		}
	}
}
