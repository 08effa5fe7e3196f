package builtin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/internal/pullrequest"
	"github.com/stepd/stepd/steps"
)

// forge is a hosting provider with one repository and the pull request API of
// GitHub's enterprise server. Git requests go to a real git server.
type forge struct {
	t     *testing.T
	git   *gittest.Server
	pulls []map[string]any
	// refuse is the status of the next merges; 0 merges.
	refuse int
	seen   []string
}

const forgeToken = "t0ken"

func newForge(t *testing.T) (*forge, string) {
	t.Helper()
	f := &forge{t: t, git: gittest.New(t)}
	f.git.MustCreate(t, "org/repo.git")
	f.git.MustCommit(t, "org/repo.git", "first", map[string]string{"a": "1"})
	if _, err := f.git.Commit("org/repo.git", gittest.Change{Branch: "same", Message: "same", Files: gittest.Files(map[string]string{"a": "1"})}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.git.Commit("org/repo.git", gittest.Change{Branch: "topic", Message: "promote v2\n\nwhy\nso", Files: gittest.Files(map[string]string{"a": "2"})}); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(f)
	t.Cleanup(server.Close)
	return f, server.URL + "/org/repo.git"
}

func (f *forge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const pulls = "/api/v3/repos/org/repo/pulls"
	if strings.HasPrefix(r.URL.Path, "/org/repo.git/") {
		req := r.Clone(r.Context())
		req.RequestURI, req.URL.Scheme, req.URL.Host = "", "http", strings.TrimPrefix(f.git.URL, "http://")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			f.t.Error(err)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+forgeToken {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	f.seen = append(f.seen, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/api/v3/repos/org/repo"))
	var body map[string]any
	if text, err := io.ReadAll(r.Body); err != nil {
		f.t.Error(err)
	} else if len(text) > 0 {
		if err := json.Unmarshal(text, &body); err != nil {
			f.t.Error(err)
		}
	}
	var number int
	_, _ = fmt.Sscanf(strings.TrimPrefix(r.URL.Path, pulls), "/%d", &number)
	var answer any
	switch {
	case r.URL.Path == pulls && r.Method == http.MethodGet:
		answer = f.pulls
	case r.URL.Path == pulls && r.Method == http.MethodPost:
		answer = f.add(body["base"].(string), body["head"].(string), "open", "")
		f.pulls[len(f.pulls)-1]["sent"] = body
	case strings.HasSuffix(r.URL.Path, "/labels"):
		f.pulls[len(f.pulls)-1]["labels"] = body["labels"]
	case number < 1 || number > len(f.pulls):
		w.WriteHeader(http.StatusNotFound)
		answer = map[string]any{"message": "Not Found"}
	case strings.HasSuffix(r.URL.Path, "/merge") && f.refuse != 0:
		w.WriteHeader(f.refuse)
		answer = map[string]any{"message": "checks are running"}
	case strings.HasSuffix(r.URL.Path, "/merge"):
		pr := f.pulls[number-1]
		pr["state"], pr["merged"], pr["merge_commit_sha"], pr["method"] = "closed", true, "m3rge", body["merge_method"]
	default:
		answer = f.pulls[number-1]
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		f.t.Error(err)
	}
}

// add puts a pull request at the current tip of head.
func (f *forge) add(base, head, state, mergedAt string) map[string]any {
	n := len(f.pulls) + 1
	pr := map[string]any{
		"number": n, "html_url": fmt.Sprint("https://forge/pull/", n), "state": state,
		"created_at": time.Unix(int64(n), 0).UTC().Format(time.RFC3339),
		"base":       map[string]any{"ref": base},
		"head":       map[string]any{"ref": head, "sha": f.git.MustGit(f.t, "org/repo.git", "rev-parse", head)},
	}
	if mergedAt != "" {
		pr["merged_at"] = mergedAt
	}
	f.pulls = append(f.pulls, pr)
	return pr
}

func prConfigFor(url string, extra config) config {
	cfg := config{"repoURL": url, "provider": "github", "insecureSkipTLSVerify": true}
	for k, v := range extra {
		cfg[k] = v
	}
	return cfg
}

func TestOpenPR(t *testing.T) {
	topic := config{"sourceBranch": "topic", "targetBranch": "main"}
	const merged = "2026-11-22T10:00:00Z"
	for _, tc := range []struct {
		reason  string
		config  config
		before  func(*forge)
		want    outcome
		id      int64
		title   string
		body    string
		creates int
	}{
		{reason: "text from the commit", config: topic, id: 1, title: "promote v2", body: "why\nso", creates: 1},
		{reason: "own title, the whole message below it", config: config{"sourceBranch": "topic", "targetBranch": "main", "title": "T"}, id: 1, title: "T", body: "promote v2\n\nwhy\nso", creates: 1},
		{reason: "own description", config: config{"sourceBranch": "topic", "targetBranch": "main", "description": "D"}, id: 1, title: "promote v2", body: "D", creates: 1},
		{reason: "an open one is adopted before a newer merged one", config: topic, id: 2, before: func(f *forge) {
			f.add("main", "topic", "closed", "")
			f.add("main", "topic", "open", "")
			f.add("main", "topic", "closed", merged)
		}},
		{reason: "the newest merged one", config: topic, id: 2, before: func(f *forge) {
			f.add("main", "topic", "closed", merged)
			f.add("main", "topic", "closed", merged)
		}},
		{reason: "a closed one is not adopted", config: topic, id: 2, title: "promote v2", body: "why\nso", creates: 1, before: func(f *forge) { f.add("main", "topic", "closed", "") }},
		{reason: "nothing to merge", config: config{"sourceBranch": "same", "targetBranch": "main"}, want: outcome{status: steps.Skipped}},
		{reason: "no source", config: config{"sourceBranch": "nope", "targetBranch": "main"}, want: outcome{steps.Errored, false, `remote branch "nope"`}},
		{reason: "no target", config: config{"sourceBranch": "topic", "targetBranch": "nope"}, want: outcome{steps.Errored, false, `remote branch "nope"`}},
		{reason: "the short SSH form is no URI", config: config{"sourceBranch": "topic", "targetBranch": "main", "repoURL": "git@h.io:a/b"}, want: outcome{steps.Failed, true, "repoURL"}},
	} {
		f, url := newForge(t)
		if tc.before != nil {
			tc.before(f)
		}
		before := len(f.pulls)
		p := newPromotion(t)
		p.caps.Credentials = fixedCredentials{"git " + url: {Username: "x", Password: forgeToken}}
		step := GitOpenPR(gitremote.Live(p.log), pullrequest.Live(p.log))
		r, err := p.run(step, prConfigFor(url, tc.config))
		if tc.want.status == "" {
			tc.want.status = steps.Succeeded
		}
		tc.want.check(t, tc.reason, r, err)
		var want map[string]any
		if tc.id != 0 {
			want = map[string]any{"pr": map[string]any{"id": tc.id, "url": fmt.Sprint("https://forge/pull/", tc.id)}}
		}
		if diff := cmp.Diff(want, r.Output); diff != "" {
			t.Errorf("%s: output (-want +got):\n%s", tc.reason, diff)
		}
		if got := len(f.pulls) - before; got != tc.creates || len(p.log.Requests()) != tc.creates {
			t.Errorf("%s: %d created, %d logged, want %d", tc.reason, got, len(p.log.Requests()), tc.creates)
		}
		if tc.creates == 1 {
			sent := f.pulls[len(f.pulls)-1]["sent"].(map[string]any)
			if sent["title"] != tc.title || sent["body"] != tc.body {
				t.Errorf("%s: opened with %q and %q", tc.reason, sent["title"], sent["body"])
			}
		}
	}
}

func TestOpenPRAfterARestart(t *testing.T) {
	f, url := newForge(t)
	p := newPromotion(t)
	before := map[string]any{"pr": map[string]any{"id": int64(7), "url": "u"}}
	p.state["git-open-pr"] = before
	r, err := p.run(GitOpenPR(gitremote.Live(p.log), pullrequest.Live(p.log)), prConfigFor(url, config{"sourceBranch": "topic", "targetBranch": "main"}))
	if err != nil || !cmp.Equal(before, r.Output) || len(f.seen) != 0 {
		t.Errorf("output %v, %v, requests %v", r.Output, err, f.seen)
	}
}

// Conformance G12.
func TestG12WaitForPR(t *testing.T) {
	for _, tc := range []struct {
		reason, state, merged string
		want                  outcome
		open                  bool
	}{
		{"open", "open", "", outcome{status: steps.Running}, true},
		{"merged", "closed", "2026-11-22T10:00:00Z", outcome{status: steps.Succeeded}, false},
		{"closed", "closed", "", outcome{steps.Failed, true, "closed without being merged"}, false},
	} {
		f, url := newForge(t)
		f.add("main", "topic", tc.state, tc.merged)["merge_commit_sha"] = "m3rge"
		p := newPromotion(t)
		p.caps.Credentials = fixedCredentials{"git " + url: {Password: forgeToken}}
		r, err := p.run(GitWaitForPR(pullrequest.Live(p.log)), prConfigFor(url, config{"prNumber": 1}))
		tc.want.check(t, tc.reason, r, err)
		want := map[string]any{"pr": map[string]any{"id": int64(1), "url": "https://forge/pull/1", "open": tc.open, "merged": tc.merged != ""}}
		if tc.merged != "" {
			want["commit"] = "m3rge"
		}
		if diff := cmp.Diff(want, r.Output); diff != "" {
			t.Errorf("%s: output (-want +got):\n%s", tc.reason, diff)
		}
		if tc.open && (r.RetryAfter == nil || *r.RetryAfter != 30*time.Second) {
			t.Errorf("%s: RetryAfter %v, want 30s", tc.reason, r.RetryAfter)
		}
	}
}

func TestMergePR(t *testing.T) {
	for _, tc := range []struct {
		reason string
		config config
		refuse int
		state  string
		merged string
		want   outcome
	}{
		{"merged by us", config{"mergeMethod": "squash"}, 0, "open", "", outcome{status: steps.Succeeded}},
		{"merged before", nil, http.StatusMethodNotAllowed, "closed", "2026-11-22T10:00:00Z", outcome{status: steps.Succeeded}},
		{"not mergeable yet", nil, http.StatusMethodNotAllowed, "open", "", outcome{steps.Failed, true, "checks are running"}},
		{"not mergeable yet, but wait", config{"wait": true}, http.StatusMethodNotAllowed, "open", "", outcome{status: steps.Running}},
		{"closed, so waiting does not help", config{"wait": true}, http.StatusMethodNotAllowed, "closed", "", outcome{steps.Failed, true, "cannot be merged"}},
		{"forbidden, so waiting does not help", config{"wait": true}, http.StatusForbidden, "open", "", outcome{steps.Failed, true, "403"}},
	} {
		f, url := newForge(t)
		f.refuse = tc.refuse
		f.add("main", "topic", tc.state, tc.merged)["merge_commit_sha"] = "m3rge"
		p := newPromotion(t)
		p.caps.Credentials = fixedCredentials{"git " + url: {Password: forgeToken}}
		cfg := prConfigFor(url, config{"prNumber": 1})
		for k, v := range tc.config {
			cfg[k] = v
		}
		r, err := p.run(GitMergePR(pullrequest.Live(p.log)), cfg)
		tc.want.check(t, tc.reason, r, err)
		if r.Status == steps.Succeeded && !cmp.Equal(map[string]any{"commit": "m3rge"}, r.Output) {
			t.Errorf("%s: output %v", tc.reason, r.Output)
		}
		if method := tc.config["mergeMethod"]; method != nil && f.pulls[0]["method"] != method {
			t.Errorf("%s: merged by %v", tc.reason, f.pulls[0]["method"])
		}
		if r.Status == steps.Running && *r.RetryAfter != 10*time.Second {
			t.Errorf("%s: RetryAfter %v", tc.reason, *r.RetryAfter)
		}
	}
}

// A whole pull request flow in a dry run: nothing reaches the provider.
func TestPRFlowRecorded(t *testing.T) {
	f, url := newForge(t)
	p := newPromotion(t)
	scratch := gitremote.NewScratch(p.log, nil)
	t.Cleanup(func() { _ = scratch.Close() })
	hosts := pullrequest.NewRecorder(p.log)
	git := gitOn(scratch)
	p.must(git.clone, config{"repoURL": url, "insecureSkipTLSVerify": true, "checkout": []any{config{"branch": "main", "path": "g"}}})
	p.write("g/a", "3")
	committed := p.must(git.commit, config{"path": "g", "message": "promote v3"})
	pushed := p.must(git.push, config{"path": "g", "generateTargetBranch": true})
	opened := p.must(GitOpenPR(scratch, hosts), prConfigFor(url, config{"sourceBranch": pushed["branch"], "targetBranch": "main", "labels": []any{"x"}}))
	page := strings.TrimSuffix(url, ".git") + "/pull/1"
	if diff := cmp.Diff(map[string]any{"pr": map[string]any{"id": int64(1), "url": page}}, opened); diff != "" {
		t.Errorf("git-open-pr output (-want +got):\n%s", diff)
	}
	merged := p.must(GitMergePR(hosts), prConfigFor(url, config{"prNumber": 1}))
	waited := p.must(GitWaitForPR(hosts), prConfigFor(url, config{"prNumber": 1}))
	if merged["commit"] != committed["commit"] || waited["commit"] != committed["commit"] {
		t.Errorf("merged %v, waited %v, want %v", merged, waited, committed["commit"])
	}
	var logged []string
	for _, r := range p.log.Requests() {
		logged = append(logged, fmt.Sprint(r.Kind, " ", r.Done))
	}
	if diff := cmp.Diff([]string{"pull-request false", "pull-request-merge false"}, logged); diff != "" {
		t.Errorf("logged (-want +got):\n%s", diff)
	}
	if len(f.seen) != 0 || f.git.Stats().Pushes != 0 {
		t.Errorf("the provider saw %v and %d pushes", f.seen, f.git.Stats().Pushes)
	}
}
