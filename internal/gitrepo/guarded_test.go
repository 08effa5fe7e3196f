package gitrepo_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

// TestGuarded: one refusal refuses the push, and what was refused can be pushed
// later.
func TestGuarded(t *testing.T) {
	git := gittest.New(t)
	url := git.MustCreate(t, "r.git")
	git.MustCommit(t, "r.git", "seed", map[string]string{"a": "1"})
	no := errors.New("no")
	refused := map[string]bool{}
	asked := make(chan string, 10)
	dialer := gitrepo.Guarded(gitrepo.NewLive(gitrepo.LiveOptions{}), func(_ context.Context, p gitrepo.Pusher) error {
		asked <- p.Promotion
		if refused[p.Promotion] {
			return no
		}
		return nil
	})
	remote, err := dialer.Dial(t.Context(), gitrepo.Target{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	refs, err := remote.Refs(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	old := refs.Heads["main"]
	trees, err := remote.Trees(t.Context(), old, []string{"b"}, gitrepo.ZeroHash)
	if err != nil {
		t.Fatal(err)
	}
	who := gitrepo.Signature{Name: "a", Email: "a@example.com", When: time.Unix(1e9, 0)}
	c, _, err := gitrepo.NewCommitOn(trees, []gitrepo.Change{{Path: "b", Mode: gitrepo.ModeFile, ID: gitrepo.BlobID([]byte("2")), Data: []byte("2")}}, gitrepo.CommitSpec{
		Author: who, Committer: who, Message: "b\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	push := gitrepo.Push{Branch: "main", Old: old, New: c.Commit.ID, Commits: []gitrepo.NewCommit{c}, For: []gitrepo.Pusher{{Promotion: "p1"}, {Promotion: "p2"}}}
	for _, tc := range []struct {
		reason string
		refuse string
		want   error
	}{
		{"one is refused", "p2", no},
		{"control: none is", "", nil},
	} {
		refused = map[string]bool{tc.refuse: true}
		if err := remote.Push(t.Context(), push); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", tc.reason, err)
		}
		both := []string{<-asked, <-asked}
		slices.Sort(both)
		if !slices.Equal(both, []string{"p1", "p2"}) {
			t.Errorf("%s: asked about %v", tc.reason, both)
		}
		tip := git.MustGit(t, "r.git", "rev-parse", "main")
		if moved := tip != old.String(); moved != (tc.want == nil) {
			t.Errorf("%s: the branch is at %s", tc.reason, tip)
		}
	}
}
