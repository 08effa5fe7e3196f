package builtin

import (
	"context"
	"fmt"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/steps"
)

func noWait(context.Context, time.Duration) error { return nil }

// gitSteps are the git steps on live remotes.
type gitSteps struct{ clone, commit, push steps.Registration }

func liveGit(p *promotion) gitSteps { return gitOn(gitremote.Live(p.log)) }

func gitOn(remotes gitremote.Remotes) gitSteps {
	return gitSteps{GitClone(remotes), GitCommit(), GitPush(remotes, "", noWait)}
}

func gitopsServer(t *testing.T) *gittest.Server {
	t.Helper()
	s := gittest.New(t)
	s.MustCreate(t, "gitops.git")
	s.MustCommit(t, "gitops.git", "first", map[string]string{
		"services/checkout/values.yaml": "image:\n  tag: v1\n",
		"services/cart/values.yaml":     "image:\n  tag: v1\n",
	})
	return s
}

func TestCloneCommitPush(t *testing.T) {
	server := gitopsServer(t)
	p := newPromotion(t)
	git := liveGit(p)
	url := server.RepoURL("gitops.git")

	out := p.must(git.clone, config{"repoURL": url, "checkout": []any{config{"branch": "main", "path": "./gitops"}}})
	tip := server.MustGit(t, "gitops.git", "rev-parse", "main")
	if diff := cmp.Diff(map[string]any{"commits": map[string]any{"./gitops": tip}}, out); diff != "" {
		t.Errorf("git-clone output (-want +got):\n%s", diff)
	}

	r, err := p.run(git.commit, config{"path": "./gitops", "message": "nothing"})
	outcome{status: steps.Skipped}.check(t, "nothing changed", r, err)
	if r.Output["commit"] != tip {
		t.Errorf("a skipped commit reports %v, want HEAD %s", r.Output["commit"], tip)
	}

	p.write("gitops/services/checkout/values.yaml", "image:\n  tag: v2\n")
	committed := p.must(git.commit, config{"path": "./gitops", "message": "promote\n\nbody # kept\n# kept too\n"})
	pushed := p.must(git.push, config{"path": "./gitops"})
	want := map[string]any{"commit": committed["commit"], "branch": "main"}
	if diff := cmp.Diff(want, pushed); diff != "" {
		t.Errorf("git-push output (-want +got):\n%s", diff)
	}
	if got := server.MustGit(t, "gitops.git", "rev-parse", "main"); got != committed["commit"] {
		t.Errorf("main is at %s, want %s", got, committed["commit"])
	}
	if got := server.MustGit(t, "gitops.git", "log", "-1", "--format=%an <%ae> %cn%n%B", "main"); got != "Kargo <no-reply@kargo.io> Kargo\npromote\n\nbody # kept\n# kept too\n" {
		t.Errorf("commit is %q", got)
	}
	commits := p.log.Commits()
	if len(commits) != 1 {
		t.Fatalf("%d commits logged, want 1: %v", len(commits), commits)
	}
	c := commits[0]
	if !c.Pushed || c.RepoURL != url || c.Branch != "main" || c.Step != "git-push" || !cmp.Equal(c.Paths, []string{"services/checkout/values.yaml"}) ||
		!strings.Contains(c.Diff, "-  tag: v1\n+  tag: v2\n") || c.Message != "promote\n\nbody # kept\n# kept too\n" {
		t.Errorf("logged %+v", c)
	}
}

// Conformance G9: disjoint changes are rebased onto the moved branch.
func TestG9PushRebases(t *testing.T) {
	server := gitopsServer(t)
	p := newPromotion(t)
	git := liveGit(p)
	p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "g"}}})
	p.write("g/services/checkout/values.yaml", "image:\n  tag: v2\n")
	committed := p.must(git.commit, config{"path": "g", "message": "mine"})
	theirs := server.MustCommit(t, "gitops.git", "theirs", map[string]string{"services/cart/values.yaml": "image:\n  tag: v9\n"})

	pushed := p.must(git.push, config{"path": "g"})
	if pushed["commit"] == committed["commit"] {
		t.Error("the output is the commit before the rebase")
	}
	if got := server.MustGit(t, "gitops.git", "log", "--format=%s", "main"); got != "mine\ntheirs\nfirst" {
		t.Errorf("history is %q", got)
	}
	if parent := server.MustGit(t, "gitops.git", "rev-parse", "main^"); parent != theirs {
		t.Errorf("parent is %s, want %s", parent, theirs)
	}
	if got := p.log.Commits(); len(got) != 1 || got[0].Commit != pushed["commit"] {
		t.Errorf("logged %+v, want the one pushed commit", got)
	}
}

func TestPushConflictIsFailed(t *testing.T) {
	server := gitopsServer(t)
	p := newPromotion(t)
	git := liveGit(p)
	p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "g"}}})
	p.write("g/services/checkout/values.yaml", "image:\n  tag: v2\n")
	p.must(git.commit, config{"path": "g", "message": "mine"})
	theirs := server.MustCommit(t, "gitops.git", "theirs", map[string]string{"services/checkout/values.yaml": "image:\n  tag: v3\n"})
	r, err := p.run(git.push, config{"path": "g"})
	outcome{status: steps.Failed, terminal: true, text: "merge conflict"}.check(t, "same line", r, err)
	if got := server.MustGit(t, "gitops.git", "rev-parse", "main"); got != theirs {
		t.Error("a conflict changed the remote branch")
	}
}

// Conformance G1, G2, G4, G7 and F1: what the config refuses.
func TestGitConfigs(t *testing.T) {
	server := gitopsServer(t)
	url := server.RepoURL("gitops.git")
	for _, tc := range []struct {
		reason string
		step   func(gitSteps) steps.Registration
		config config
		want   outcome
	}{
		{"F1 a required field is missing", func(g gitSteps) steps.Registration { return g.clone },
			config{"repoURL": url}, outcome{steps.Failed, true, "invalid git-clone config: (root): checkout is required"}},
		{"G1 an alias twice", func(g gitSteps) steps.Registration { return g.clone },
			config{"repoURL": url, "checkout": []any{config{"path": "a", "as": "x"}, config{"path": "b", "as": "x"}}},
			outcome{steps.Failed, true, `duplicate checkout alias "x" at checkout[1]`}},
		{"G2 branch and commit", func(g gitSteps) steps.Registration { return g.clone },
			config{"repoURL": url, "checkout": []any{config{"path": "a", "branch": "main", "commit": "abc"}}},
			outcome{steps.Failed, true, "oneOf"}},
		{"G4 a missing branch without create", func(g gitSteps) steps.Registration { return g.clone },
			config{"repoURL": url, "checkout": []any{config{"path": "a", "branch": "stage/dev"}}},
			outcome{steps.Errored, false, `remote branch "stage/dev" of repo ` + url + ` does not exist; set create=true`}},
		{"G7 tag and targetBranch", func(g gitSteps) steps.Registration { return g.push },
			config{"path": "a", "tag": "v1", "targetBranch": "main"}, outcome{steps.Failed, true, "oneOf"}},
		{"not a work tree", func(g gitSteps) steps.Registration { return g.push },
			config{"path": "nope"}, outcome{steps.Errored, false, "error loading working tree from nope"}},
		{"fromFreight is in Kargo's docs but not in its schema", func(g gitSteps) steps.Registration { return g.clone },
			config{"repoURL": url, "checkout": []any{config{"path": "a", "fromFreight": true}}},
			outcome{steps.Failed, true, "fromFreight"}},
		{"sparse patterns", func(g gitSteps) steps.Registration { return g.clone },
			config{"repoURL": url, "checkout": []any{config{"path": "a", "branch": "main", "sparse": []any{"serv*"}}}},
			outcome{steps.Errored, false, "pattern"}},
	} {
		p := newPromotion(t)
		r, err := p.run(tc.step(liveGit(p)), tc.config)
		tc.want.check(t, tc.reason, r, err)
	}
}

// Conformance G4: create makes an orphan branch.
func TestCreatedBranch(t *testing.T) {
	server := gitopsServer(t)
	p := newPromotion(t)
	git := liveGit(p)
	p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{
		config{"branch": "main", "path": "src"},
		config{"branch": "stage/dev", "path": "out", "create": true, "as": "o"},
	}})
	if got := server.MustGit(t, "gitops.git", "log", "--format=%s", "--name-only", "stage/dev"); got != "Initial commit" {
		t.Errorf("the orphan branch holds %q", got)
	}
}

func TestCloneVariants(t *testing.T) {
	server := gitopsServer(t)
	tip := server.MustGit(t, "gitops.git", "rev-parse", "main")
	server.MustGit(t, "gitops.git", "tag", "v1", tip)
	if _, err := server.Commit("gitops.git", gittest.Change{Branch: "v1", Message: "a branch named like the tag", Files: gittest.Files(map[string]string{"x": "x"})}); err != nil {
		t.Fatal(err)
	}
	p := newPromotion(t)
	git := liveGit(p)
	out := p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "blobless": true, "checkout": []any{
		config{"path": "default"},
		config{"path": "by-tag", "tag": "v1"},
		config{"path": "by-commit", "commit": tip, "sparse": []any{"services/cart"}},
	}})
	if want := (map[string]any{"default": tip, "by-tag": tip, "by-commit": tip}); !cmp.Equal(out["commits"], any(want)) {
		t.Errorf("commits %v, want %v", out["commits"], want)
	}
	if !p.exists("default/services/checkout/values.yaml") || !p.exists("by-commit/services/cart/values.yaml") || p.exists("by-commit/services/checkout") {
		t.Error("the sparse checkout is not sparse, or the full one not full")
	}
	r, err := p.run(git.push, config{"path": "by-tag"})
	outcome{steps.Errored, false, "on no branch"}.check(t, "a detached HEAD has no target", r, err)
	if got := p.must(git.push, config{"path": "by-tag", "targetBranch": "release"}); got["branch"] != "release" {
		t.Errorf("branch %v", got["branch"])
	}
}

func TestScratchRemoteKeepsPushes(t *testing.T) {
	server := gitopsServer(t)
	tip := server.MustGit(t, "gitops.git", "rev-parse", "main")
	p := newPromotion(t)
	scratch := gitremote.NewScratch(p.log, nil)
	t.Cleanup(func() {
		if err := scratch.Close(); err != nil {
			t.Error(err)
		}
	})
	git := gitOn(scratch)
	url := server.RepoURL("gitops.git")
	p.must(git.clone, config{"repoURL": url, "checkout": []any{config{"branch": "main", "path": "g"}, config{"branch": "new", "create": true, "path": "n"}}})
	p.write("g/services/checkout/values.yaml", "image:\n  tag: v2\n")
	p.must(git.commit, config{"path": "g", "message": "mine"})
	pushed := p.must(git.push, config{"path": "g", "provider": "gitea"})
	again := p.must(git.clone, config{"repoURL": url, "checkout": []any{config{"branch": "main", "path": "again"}}})
	if got := again["commits"].(map[string]any)["again"]; got != pushed["commit"] {
		t.Errorf("a later step sees %v, want the pushed commit %v", got, pushed["commit"])
	}
	if want := strings.TrimSuffix(strings.Replace(url, "http:", "https:", 1), ".git") + "/commit/" + pushed["commit"].(string); pushed["commitURL"] != want {
		t.Errorf("commitURL %v, want %s", pushed["commitURL"], want)
	}
	for _, c := range p.log.Commits() {
		if c.Pushed || c.RepoURL != url {
			t.Errorf("logged as pushed, or elsewhere: %+v", c)
		}
	}
	if got := server.MustGit(t, "gitops.git", "for-each-ref", "--format=%(refname) %(objectname)"); got != "refs/heads/main "+tip {
		t.Errorf("the server changed: %s", got)
	}
	if n := server.Stats().Pushes; n != 0 {
		t.Errorf("%d pushes reached the server", n)
	}
}

// The branch moved after the clone, and the push brings nothing in: what was on
// the server before is not reported with what is pushed.
func TestPushReportsItsOwnCommits(t *testing.T) {
	for reason, push := range map[string]config{
		"a branch that is not there yet": {"path": "g", "generateTargetBranch": true},
		"over others' commits":           {"path": "g", "force": true},
	} {
		server := gitopsServer(t)
		p := newPromotion(t)
		git := liveGit(p)
		p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "g"}}})
		server.MustCommit(t, "gitops.git", "theirs", map[string]string{"theirs": "x"})
		p.write("g/mine", "x")
		p.must(git.commit, config{"path": "g", "message": "mine"})
		p.must(git.push, push)
		var got []string
		for _, c := range p.log.Commits() {
			got = append(got, c.Message)
		}
		if diff := cmp.Diff([]string{"mine\n"}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", reason, diff)
		}
	}
}

type fixedCredentials map[string]steps.Credentials

func (f fixedCredentials) Get(_ context.Context, _ string, typ steps.CredentialType, repoURL string) (*steps.Credentials, error) {
	if c, ok := f[string(typ)+" "+repoURL]; ok {
		return &c, nil
	}
	return nil, nil
}

func TestCredentialsStayOutOfSight(t *testing.T) {
	const password = "s3cr3t/+%"
	server := gitopsServer(t)
	server.RequireAuth(map[string]string{"bot@acme": password})
	url := server.RepoURL("gitops.git")
	p := newPromotion(t)
	git := liveGit(p)
	clone := config{"repoURL": url, "checkout": []any{config{"branch": "main", "path": "g"}}}

	r, err := p.run(git.clone, clone)
	outcome{steps.Errored, false, "error cloning"}.check(t, "anonymous", r, err)

	p.caps.Credentials = fixedCredentials{"git " + url: {Username: "bot@acme", Password: password}}
	p.must(git.clone, clone)
	p.write("g/a", "a")
	p.must(git.commit, config{"path": "g", "message": "m"})
	p.must(git.push, config{"path": "g"})

	p.caps.Credentials = fixedCredentials{"git " + url: {Username: "bot@acme", Password: password + "x"}}
	r, err = p.run(git.push, config{"path": "g"})
	outcome{steps.Errored, false, "Authentication failed"}.check(t, "wrong password", r, err)
	if strings.Contains(fmt.Sprint(err), "s3cr3t") {
		t.Errorf("the error holds the password: %v", err)
	}
	found, err := exec(t, p.dir, "grep", "-rl", "s3cr3t", ".")
	if err == nil {
		t.Errorf("the work dir holds the password, in %s", found)
	}
}

// A redirect to another server must not be answered with this one's password.
func TestCredentialsAreForOneServer(t *testing.T) {
	other := gitopsServer(t)
	var seen []string
	var mu sync.Mutex
	other.Wrap(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen = append(seen, r.Header.Get("Authorization"))
			mu.Unlock()
			w.Header().Set("WWW-Authenticate", "Basic realm=other")
			w.WriteHeader(http.StatusUnauthorized)
		})
	})
	server := gitopsServer(t)
	server.Wrap(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+r.URL.RequestURI(), http.StatusFound)
		})
	})
	url := server.RepoURL("gitops.git")
	p := newPromotion(t)
	p.caps.Credentials = fixedCredentials{"git " + url: {Username: "bot", Password: "s3cr3t"}}
	r, err := p.run(liveGit(p).clone, config{"repoURL": url, "checkout": []any{config{"branch": "main", "path": "g"}}})
	outcome{steps.Errored, false, "error cloning"}.check(t, "redirected", r, err)
	mu.Lock()
	defer mu.Unlock()
	if len(seen) == 0 {
		t.Fatal("the redirect was not followed")
	}
	for _, h := range seen {
		if h != "" {
			t.Errorf("the other server was given %q", h)
		}
	}
}

// Conformance G11.
func TestG11Rejected(t *testing.T) {
	for out, want := range map[string]bool{
		" ! [remote rejected] HEAD -> main (incorrect old value provided)\n":    true,
		" ! [rejected]        HEAD -> main (fetch first)\nerror: failed\n":      true,
		" ! [rejected] HEAD -> main (non-fast-forward)":                         true,
		" ! [remote rejected] HEAD -> main (cannot lock ref 'refs/heads/main')": true,
		" ! [remote rejected] HEAD -> main (pre-receive hook declined)":         false,
		"fatal: unable to access":                                               false,
	} {
		if got := rejected.MatchString(out); got != want {
			t.Errorf("%q: retryable is %v, want %v", out, got, want)
		}
	}
}

// The branch moves between the integration and the push, more than once.
func TestPushRetriesARace(t *testing.T) {
	for _, tc := range []struct {
		reason   string
		races    int
		attempts int
		want     outcome
	}{
		{"two lost races of ten", 2, 0, outcome{status: steps.Succeeded}},
		{"every attempt lost", 3, 3, outcome{steps.Errored, false, "error pushing commits to remote"}},
	} {
		server := gitopsServer(t)
		p := newPromotion(t)
		git := liveGit(p)
		p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "g"}}})
		p.write("g/mine", "mine")
		p.must(git.commit, config{"path": "g", "message": "mine"})
		races := 0
		server.Wrap(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/info/refs") && r.URL.Query().Get("service") == "git-receive-pack" && races < tc.races {
					races++
					if _, err := server.Commit("gitops.git", gittest.Change{Message: "race", Files: gittest.Files(map[string]string{fmt.Sprintf("theirs-%d", races): "x"})}); err != nil {
						t.Error(err)
					}
				}
				next.ServeHTTP(w, r)
			})
		})
		cfg := config{"path": "g"}
		if tc.attempts > 0 {
			cfg["maxAttempts"] = tc.attempts
		}
		r, err := p.run(git.push, cfg)
		tc.want.check(t, tc.reason, r, err)
		if races != tc.races {
			t.Errorf("%s: %d races, want %d", tc.reason, races, tc.races)
		}
	}
}

// The answer to the push is lost although the push went through.
func TestPushFindsItsCommitAfterALostAnswer(t *testing.T) {
	server := gitopsServer(t)
	p := newPromotion(t)
	git := liveGit(p)
	p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "g"}}})
	p.write("g/mine", "mine")
	committed := p.must(git.commit, config{"path": "g", "message": "mine"})
	server.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/git-receive-pack") {
				next.ServeHTTP(discard{http.Header{}}, r)
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	if out := p.must(git.push, config{"path": "g"}); out["commit"] != committed["commit"] {
		t.Errorf("commit %v, want %v", out["commit"], committed["commit"])
	}
	if n := len(p.log.Commits()); n != 1 {
		t.Errorf("%d commits logged, want 1", n)
	}
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

func TestConcurrentPushesAllLand(t *testing.T) {
	server := gitopsServer(t)
	log := newPromotion(t).log
	git := gitOn(gitremote.Live(log))
	var wg sync.WaitGroup
	const writers = 4
	errs := make([]error, writers)
	for i := range writers {
		p := newPromotion(t)
		p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "g"}}})
		p.write(fmt.Sprintf("g/writer-%d", i), "x")
		p.must(git.commit, config{"path": "g", "message": fmt.Sprint("writer ", i)})
		wg.Go(func() { _, errs[i] = p.run(git.push, config{"path": "g"}) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if got := server.MustGit(t, "gitops.git", "rev-list", "--count", "main"); got != fmt.Sprint(writers+1) {
		t.Errorf("%s commits on main, want %d", got, writers+1)
	}
}

type gitUserFunc func() (steps.GitUser, error)

func (f gitUserFunc) GitUser(context.Context) (steps.GitUser, error) { return f() }

func TestClearAndTag(t *testing.T) {
	server := gitopsServer(t)
	p := newPromotion(t)
	git := liveGit(p)
	p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "g"}}})
	p.write("g/untracked", "x")
	if out := p.must(GitClear(), config{"path": "g"}); out != nil {
		t.Errorf("git-clear has output %v", out)
	}
	if p.exists("g/untracked") || p.exists("g/services") || !p.exists("g/.git") {
		t.Error("git-clear left files, or took .git")
	}
	p.must(GitClear(), config{"path": "g"}) // nothing to clear
	p.write("g/rendered", "r")
	committed := p.must(git.commit, config{"path": "g", "message": "m"})
	tagged := p.must(GitTag(), config{"path": "g", "tag": "v1", "message": "release\n# one"})
	if tagged["commit"] != committed["commit"] {
		t.Errorf("tagged %v, want %v", tagged["commit"], committed["commit"])
	}
	r, err := p.run(GitTag(), config{"path": "g", "tag": "v1", "message": "again"})
	outcome{steps.Errored, false, "already exists"}.check(t, "an existing tag", r, err)
	p.must(GitTag(), config{"path": "g", "tag": "v1", "message": "again", "force": true, "extra": "is not forbidden"})

	pushed := p.must(git.push, config{"path": "g", "tag": "v1"})
	if want := map[string]any{"commit": committed["commit"], "branch": "main"}; !cmp.Equal(want, pushed) {
		t.Errorf("git-push of a tag: %v, want %v", pushed, want)
	}
	if got := server.MustGit(t, "gitops.git", "cat-file", "-p", "v1"); !strings.Contains(got, "\nagain") {
		t.Errorf("the tag is %q", got)
	}
	if got := server.MustGit(t, "gitops.git", "log", "--format=%s", "main"); got != "first" {
		t.Errorf("pushing a tag pushed the branch: %q", got)
	}
	if got := p.log.Requests(); len(got) != 1 || got[0].Kind != "git-tag" || !got[0].Done || got[0].Detail["tag"] != "v1" {
		t.Errorf("logged %+v", got)
	}
}

// Kargo's integration policies, with and without signatures to lose.
func TestIntegrationPolicies(t *testing.T) {
	key := signingKey(t)
	const rebased, merged = "mine\ntheirs\nfirst", "merge"
	for _, tc := range []struct {
		reason         string
		policy         IntegrationPolicy
		key            string
		unsignedCommit bool
		history        string
		want           outcome
	}{
		{"always a merge", AlwaysMerge, "", false, merged, outcome{status: steps.Succeeded}},
		{"nothing is signed", RebaseOrMerge, "", false, rebased, outcome{status: steps.Succeeded}},
		{"all is signed, and signed anew", RebaseOrFail, key, false, rebased, outcome{status: steps.Succeeded}},
		{"an unsigned commit would be signed", RebaseOrMerge, key, true, merged, outcome{status: steps.Succeeded}},
		{"and that is forbidden", RebaseOrFail, key, true, "", outcome{steps.Failed, true, "rebase is unsafe"}},
		{"which nobody asks by default", AlwaysRebase, key, true, rebased, outcome{status: steps.Succeeded}},
	} {
		server := gitopsServer(t)
		p := newPromotion(t)
		p.caps.GitUser = gitUserFunc(func() (steps.GitUser, error) {
			return steps.GitUser{Name: "System", Email: "sys@example.com", SigningKey: tc.key, SigningKeyType: "ssh"}, nil
		})
		git := liveGit(p)
		push := GitPush(gitremote.Live(p.log), tc.policy, noWait)
		p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "g"}}})
		p.write("g/mine", "x")
		commit := config{"path": "g", "message": "mine"}
		if tc.unsignedCommit {
			commit["author"] = config{"name": "Ada", "email": "ada@example.com"}
		}
		p.must(git.commit, commit)
		server.MustCommit(t, "gitops.git", "theirs", map[string]string{"theirs": "x"})
		r, err := p.run(push, config{"path": "g"})
		tc.want.check(t, tc.reason, r, err)
		parents := len(strings.Fields(server.MustGit(t, "gitops.git", "log", "-1", "--format=%P", "main")))
		switch tc.history {
		case merged:
			if parents != 2 {
				t.Errorf("%s: the tip has %d parents, want a merge", tc.reason, parents)
			}
		case rebased:
			if got := server.MustGit(t, "gitops.git", "log", "--format=%s", "main"); got != rebased {
				t.Errorf("%s: history is %q", tc.reason, got)
			}
			raw := server.MustGit(t, "gitops.git", "cat-file", "commit", "main")
			if signed := strings.Contains(raw, "gpgsig"); signed != (tc.key != "") {
				t.Errorf("%s: signed is %v", tc.reason, signed)
			}
		}
	}
}

// signingKey makes an OpenSSH key, which needs no agent.
func signingKey(t *testing.T) string {
	t.Helper()
	if _, err := osexec.LookPath("ssh-keygen"); err != nil {
		t.Skip("ssh-keygen is not installed")
	}
	file := filepath.Join(t.TempDir(), "key")
	if _, err := exec(t, t.TempDir(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(key)
}

func TestKeyedLocks(t *testing.T) {
	locks := &keyedLocks{held: map[string]*keyedLock{}}
	unlock, err := locks.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := locks.lock(t.Context(), "b")
	if err != nil {
		t.Fatal("another name is locked too")
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locks.lock(ctx, "a"); err == nil {
		t.Error("locked twice")
	}
	next := make(chan struct{})
	go func() {
		defer close(next)
		again, err := locks.lock(t.Context(), "a")
		if err != nil {
			t.Error(err)
			return
		}
		again()
	}()
	unlock()
	<-next
	if len(locks.held) != 0 {
		t.Errorf("%d locks are kept", len(locks.held))
	}
}
