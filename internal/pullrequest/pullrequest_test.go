package pullrequest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/effects"
)

// script answers requests, in order, and remembers them.
type script struct {
	t       *testing.T
	answers []string // "CODE BODY"
	seen    []string
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	line := r.Method + " " + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		line += "?" + r.URL.RawQuery
	}
	s.seen = append(s.seen, strings.TrimSpace(line+" "+string(body)))
	if r.Header.Get("Authorization") != "Bearer t" {
		s.t.Errorf("%s: authorization %q", line, r.Header.Get("Authorization"))
	}
	if len(s.answers) == 0 {
		s.t.Errorf("unexpected request %s", line)
		w.WriteHeader(http.StatusTeapot)
		return
	}
	var code int
	var rest string
	if _, err := fmt.Sscan(s.answers[0], &code); err != nil {
		s.t.Error(err)
	}
	_, rest, _ = strings.Cut(s.answers[0], " ")
	s.answers = s.answers[1:]
	w.WriteHeader(code)
	_, _ = io.WriteString(w, rest)
}

func TestProviders(t *testing.T) {
	n := New{Title: "T", Description: "D", Base: "main", Head: "topic", Labels: []string{"l"}}
	for _, tc := range []struct {
		reason, provider string
		answers, seen    []string
		act              func(*testing.T, Host) (any, error)
		want             any
		err              error
	}{
		{"GitLab lists", "gitlab",
			[]string{`200 [{"iid":3,"web_url":"u","state":"opened","sha":"h"},{"iid":2,"web_url":"v","state":"merged","sha":"h","squash_commit_sha":"s"}]`},
			[]string{"GET /api/v4/projects/group%2Fsub%2Frepo/merge_requests?per_page=100&source_branch=topic&state=all&target_branch=main"},
			func(t *testing.T, h Host) (any, error) { return h.List(t.Context(), "main", "topic") },
			[]PullRequest{{Number: 3, URL: "u", Open: true, HeadCommit: "h"}, {Number: 2, URL: "v", Merged: true, HeadCommit: "h", MergeCommit: "s"}}, nil},
		{"GitLab opens", "gitlab",
			[]string{`201 {"iid":3,"web_url":"u","state":"opened","sha":"h"}`},
			[]string{`POST /api/v4/projects/group%2Fsub%2Frepo/merge_requests {"description":"D","labels":"l","source_branch":"topic","target_branch":"main","title":"T"}`},
			func(t *testing.T, h Host) (any, error) { return h.Create(t.Context(), n) },
			PullRequest{Number: 3, URL: "u", Open: true, HeadCommit: "h"}, nil},
		{"GitLab merges", "gitlab",
			[]string{`200 {"iid":3,"state":"merged","sha":"h","merge_commit_sha":"m"}`},
			[]string{`PUT /api/v4/projects/group%2Fsub%2Frepo/merge_requests/3/merge {"squash":true}`},
			func(t *testing.T, h Host) (any, error) { return h.Merge(t.Context(), 3, "squash") },
			PullRequest{Number: 3, Merged: true, HeadCommit: "h", MergeCommit: "m"}, nil},
		{"GitLab cannot merge", "gitlab",
			[]string{`405 {"message":"405 Method Not Allowed"}`},
			[]string{`PUT /api/v4/projects/group%2Fsub%2Frepo/merge_requests/3/merge {}`},
			func(t *testing.T, h Host) (any, error) { return h.Merge(t.Context(), 3, "") },
			PullRequest{}, ErrNotMergeable},
		{"Gitea lists all pages", "gitea",
			[]string{`200 [{"number":1,"state":"open","base":{"ref":"main"},"head":{"ref":"other","sha":"x"}}]`, `200 [{"number":2,"state":"open","base":{"ref":"main"},"head":{"ref":"topic","sha":"h"}}]`, `200 []`},
			[]string{"GET /api/v1/repos/group%2Fsub/repo/pulls?state=all&limit=50&page=1", "GET /api/v1/repos/group%2Fsub/repo/pulls?state=all&limit=50&page=2", "GET /api/v1/repos/group%2Fsub/repo/pulls?state=all&limit=50&page=3"},
			func(t *testing.T, h Host) (any, error) { return h.List(t.Context(), "main", "topic") },
			[]PullRequest{{Number: 2, Open: true, HeadCommit: "h"}}, nil},
		{"Gitea opens, with the labels' ids", "gitea",
			[]string{`200 [{"id":7,"name":"l"}]`, `201 {"number":3,"html_url":"u","state":"open"}`},
			[]string{"GET /api/v1/repos/group%2Fsub/repo/labels?limit=50", `POST /api/v1/repos/group%2Fsub/repo/pulls {"base":"main","body":"D","head":"topic","labels":[7],"title":"T"}`},
			func(t *testing.T, h Host) (any, error) { return h.Create(t.Context(), n) },
			PullRequest{Number: 3, URL: "u", Open: true}, nil},
		{"Gitea merges", "gitea",
			[]string{`200 `, `200 {"number":3,"state":"closed","merged":true,"merge_commit_sha":"m"}`},
			[]string{`POST /api/v1/repos/group%2Fsub/repo/pulls/3/merge {"Do":"merge"}`, "GET /api/v1/repos/group%2Fsub/repo/pulls/3"},
			func(t *testing.T, h Host) (any, error) { return h.Merge(t.Context(), 3, "") },
			PullRequest{Number: 3, Merged: true, MergeCommit: "m"}, nil},
		{"GitHub labels", "github",
			[]string{`201 {"number":3,"html_url":"u","state":"open","merge_commit_sha":"test-merge"}`, `200 []`},
			[]string{`POST /api/v3/repos/group%2Fsub/repo/pulls {"base":"main","body":"D","head":"topic","title":"T"}`, `POST /api/v3/repos/group%2Fsub/repo/issues/3/labels {"labels":["l"]}`},
			func(t *testing.T, h Host) (any, error) { return h.Create(t.Context(), n) },
			PullRequest{Number: 3, URL: "u", Open: true}, nil},
	} {
		s := &script{t: t, answers: tc.answers}
		server := httptest.NewTLSServer(s)
		host, err := Live(&effects.Log{}).Open(Repository{
			URL: server.URL + "/group/sub/repo.git", Provider: tc.provider, Token: "t", InsecureSkipTLSVerify: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := tc.act(t, host)
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: error %v, want %v", tc.reason, err, tc.err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
		if diff := cmp.Diff(tc.seen, s.seen); diff != "" {
			t.Errorf("%s: requests (-want +got):\n%s", tc.reason, diff)
		}
		server.Close()
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tc := range []struct {
		reason string
		repo   Repository
		text   string
	}{
		{"an unknown host", Repository{URL: "https://git.example.com/a/b"}, "set provider"},
		{"a provider without support", Repository{URL: "https://bitbucket.org/a/b"}, "bitbucket are not supported"},
		{"a token in the clear", Repository{URL: "http://github.example.com/a/b", Token: "t"}, "plain HTTP"},
		{"no host", Repository{URL: "/srv/a", Provider: "github"}, "names no host"},
	} {
		if _, err := Live(&effects.Log{}).Open(tc.repo); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %q", tc.reason, err, tc.text)
		}
	}
}
