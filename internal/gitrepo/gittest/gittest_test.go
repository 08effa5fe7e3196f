package gittest

import (
	"net/http"
	"path/filepath"
	"testing"
)

func TestCloneCommitPush(t *testing.T) {
	s := New(t)
	url := s.MustCreate(t, "team/repo.git")
	first := s.MustCommit(t, "team/repo.git", "first", map[string]string{"a/b.yaml": "x: 1\n"})

	work := filepath.Join(t.TempDir(), "w")
	git := func(args ...string) {
		t.Helper()
		if _, err := run(t.Context(), "/", nil, args...); err != nil {
			t.Fatal(err)
		}
	}
	git("clone", "--quiet", url, work)
	git("-C", work, "commit", "--quiet", "--allow-empty", "-m", "second")
	git("-C", work, "push", "--quiet", "origin", "HEAD:main")

	if got := s.MustGit(t, "team/repo.git", "rev-parse", "main~1"); got != first {
		t.Errorf("parent of the pushed commit = %s, want %s", got, first)
	}
	if st := s.Stats(); st.Pushes != 1 || st.Up == 0 || st.Down == 0 {
		t.Errorf("stats = %+v, want one push and bytes both ways", st)
	}
	s.Fsck(t, "team/repo.git")
}

func TestRequireAuthAndWrap(t *testing.T) {
	s := New(t)
	url := s.MustCreate(t, "r.git") + "/info/refs?service=git-upload-pack"
	status := func(user, password string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(user, password)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	s.RequireAuth(map[string]string{"u": "p"})
	if got := status("u", "p"); got != http.StatusOK {
		t.Errorf("right password: status %d", got)
	}
	if got := status("u", "x"); got != http.StatusUnauthorized {
		t.Errorf("wrong password: status %d", got)
	}
	s.Wrap(func(http.Handler) http.Handler { return http.NotFoundHandler() })
	if got := status("u", "p"); got != http.StatusNotFound {
		t.Errorf("wrapped: status %d", got)
	}
}
