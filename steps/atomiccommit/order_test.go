package atomiccommit_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
)

// superseded runs and wants a terminal refusal because of a newer promotion.
func (p *promotion) superseded() {
	p.b.t.Helper()
	_, err := p.run()
	var ce *atomiccommit.ConflictError
	if !errors.As(err, &ce) || !ce.Superseded || !steps.IsTerminal(err) {
		p.b.t.Fatalf("err = %v, want superseded", err)
	}
}

// A promotion is stuck while the server fails; a newer one of its stage, a
// rollback to what is there, finds nothing to change. When the stuck one is
// tried again it must not undo that.
func TestNewerPromotionThatFoundNothingToChange(t *testing.T) {
	b := newBench(t)
	before := b.seed(map[string]string{"a.yaml": "1\n"})
	failed := make(chan struct{})
	var once sync.Once
	b.inject(isPush, -1, func(w http.ResponseWriter, r *http.Request, backend http.Handler) {
		status(500)(w, r, backend)
		once.Do(func() { close(failed) })
	})
	stuck := b.promote(name(1), map[string]string{"a.yaml": "2\n"})
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-failed
		// A rollback while the other waits for its next try.
		if out := b.promote(name(2), map[string]string{"a.yaml": "1\n"}).must(); out["changed"] != false {
			t.Errorf("the rollback: %v", out)
		}
		b.Wrap(nil)
	}()
	stuck.superseded()
	<-done
	if b.tip() != before {
		t.Error("the older promotion landed")
	}
	// Of other paths and other stages it says nothing.
	b.promote(name(1), map[string]string{"b.yaml": "2\n"}).must()
	other := b.promote(name(1), map[string]string{"a.yaml": "2\n"})
	other.sc.Stage = "prd-ca"
	other.must()
	b.check()
}

// made names a promotion that was made at a time.
func made(at time.Time) string {
	return "prd-us." + strings.ToLower(ulid.MustNew(ulid.Timestamp(at), ulid.DefaultEntropy()).String()) + ".abc1234"
}

func TestExhaustedLookBack(t *testing.T) {
	for reason, tc := range map[string]struct {
		touched bool // the path, among the commits that are looked at
		intent  bool // a record of an earlier attempt
		refused bool
	}{
		"the path was not changed":               {},
		"the path was changed":                   {touched: true, refused: true},
		"changed, but there is a record of base": {touched: true, intent: true, refused: true},
	} {
		t.Run(reason, func(t *testing.T) {
			b := newBench(t)
			start := time.Now().Add(-5 * time.Hour)
			p := b.promote(made(start), map[string]string{"svc/a.yaml": "mine\n"})
			seed := func(files map[string]string, at time.Time, message string) {
				t.Helper()
				if _, err := b.Commit(repo, gittest.Change{Message: message, Files: gittest.Files(files), When: at}); err != nil {
					t.Fatal(err)
				}
			}
			seed(map[string]string{"svc/a.yaml": "1\n", "n": "0"}, start.Add(-time.Hour), "seed")
			if tc.intent {
				b.inject(isPush, -1, status(500))
				p.set(map[string]any{"deadline": "500ms"})
				if _, err := p.run(); err == nil {
					t.Fatal("the push succeeded")
				}
				p.set(map[string]any{"deadline": "1m"})
				b.Wrap(nil)
				b.restart()
			}
			var in strings.Builder
			for i := range 2100 {
				if i == 0 {
					fmt.Fprintf(&in, "commit refs/heads/main\ncommitter A <a@b> %d +0000\ndata 1\nx\nfrom %s\n", start.Unix(), b.tip())
				} else {
					fmt.Fprintf(&in, "commit refs/heads/main\ncommitter A <a@b> %d +0000\ndata 1\nx\n", start.Unix()+int64(i))
				}
				fmt.Fprintf(&in, "M 100644 inline n\ndata %d\n%d\n", len(fmt.Sprint(i)), i)
				if tc.touched && i == 1500 {
					fmt.Fprintf(&in, "M 100644 inline svc/a.yaml\ndata 7\ntheirs\n\n")
				}
			}
			cmd := exec.CommandContext(t.Context(), "git", "fast-import", "--quiet", "--date-format=raw")
			cmd.Dir, cmd.Stdin = b.Dir(repo), strings.NewReader(in.String())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			before := b.tip()
			_, err := p.run()
			if refused := errors.Is(err, steps.ErrConflict); refused != tc.refused || (err != nil) != tc.refused {
				t.Errorf("err = %v, want refused %t", err, tc.refused)
			}
			if moved := b.tip() != before; moved == tc.refused {
				t.Errorf("the branch moved: %t", moved)
			}
			b.check()
		})
	}
}

// Two steps of one promotion commit the same work tree one after the other; the
// second changes a file again that the first has committed.
func TestTwoStepsOnOneWorkTree(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n", "b.yaml": "1\n"})
	p := b.promote(name(1), nil)
	home, tree := filepath.Join(p.sc.WorkDir, "home"), filepath.Join(p.sc.WorkDir, "repo")
	for _, args := range [][]string{
		{"clone", "--quiet", "--bare", b.url, home},
		{"-C", home, "config", "kargo.repoOriginalURL", b.url},
		{"-C", home, "worktree", "add", "--quiet", tree, "main"},
	} {
		if out, err := exec.CommandContext(t.Context(), "git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	write := func(name, data string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(tree, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.sc.Config = map[string]any{"path": "repo"}
	write("a.yaml", "2\n")
	p.must()
	second := *p
	second.sc.Alias = "commit-2"
	write("a.yaml", "3\n")
	write("b.yaml", "3\n")
	out := second.must()
	if got := fmt.Sprint(out["paths"]); got != "[a.yaml b.yaml]" {
		t.Errorf("paths = %s", got)
	}
	b.restart()
	if again := second.must(); again["commit"] != out["commit"] {
		t.Errorf("retry = %v, want %v", again, out)
	}
	// Another promotion of that work tree is a conflict: it did not see these.
	third := *p
	third.sc.Promotion = name(2)
	write("a.yaml", "4\n")
	if _, err := third.run(); !errors.Is(err, steps.ErrConflict) {
		t.Errorf("err = %v, want a conflict", err)
	}
	b.check()
}

// Jobs of one batch may start their branch at different places; one that cannot
// start does not end the others.
func TestOneBadBaseBranchDoesNotHoldUpTheOthers(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	// One goes first, so that the others gather behind it.
	arrived, release := make(chan struct{}), make(chan struct{})
	b.inject(isRead, 1, func(w http.ResponseWriter, r *http.Request, backend http.Handler) {
		close(arrived)
		<-release
		backend.ServeHTTP(w, r)
	})
	on := func(n int, base string) *promotion {
		return b.promote(name(n), map[string]string{fmt.Sprintf("f%d", n): "x\n"}).set(map[string]any{"branch": "new", "createBranch": true, "baseBranch": base})
	}
	first, bad, good := on(1, "nowhere"), on(2, "nowhere"), on(3, "main")
	var wg sync.WaitGroup
	wg.Go(func() { first.refused(`baseBranch "nowhere"`) })
	<-arrived
	wg.Go(func() {
		if _, err := bad.run(); err != nil && !errors.Is(err, steps.ErrConfig) { // fine when the branch is there by then
			t.Error(err)
		}
	})
	wg.Go(func() { good.must() })
	close(release)
	wg.Wait()
	b.check()
}

func TestAttributesThatCannotBeReadAtOnce(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n", ".gitattributes": "* text=auto\n"})
	var reads atomic.Int64
	b.Wrap(func(backend http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isRead(r) {
				if n := reads.Add(1); n == 3 || n == 4 { // references, the tip with its root, then .gitattributes, twice
					http.Error(w, "busy", http.StatusServiceUnavailable)
					return
				}
			}
			backend.ServeHTTP(w, r)
		})
	})
	b.promote(name(1), map[string]string{"a.yaml": "2\n"}).must()
	b.check()
}

func TestNewNamesThatDifferInCaseOnly(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"old/X.yaml": "1\n", "old/x.yaml": "1\n"})
	b.promote(name(1), map[string]string{"dir/A.yaml": "1\n", "dir/a.yaml": "1\n"}).refused("upper and lower case")
	b.promote(name(1), map[string]string{"new/a.yaml": "1\n", "New/b.yaml": "1\n"}).refused("upper and lower case")
	b.promote(name(1), map[string]string{"old/X.yaml": "2\n", "old/x.yaml": "2\n"}).must()
	b.check()
}

func TestPushSpacing(t *testing.T) {
	const spacing = 400 * time.Millisecond
	b := newBench(t, func(o *atomiccommit.Options) { o.PushSpacing = spacing })
	b.seed(map[string]string{"a.yaml": "1\n"})
	var mu sync.Mutex
	var pushes []time.Time
	b.Wrap(func(backend http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isPush(r) {
				mu.Lock()
				pushes = append(pushes, time.Now())
				mu.Unlock()
			}
			backend.ServeHTTP(w, r)
		})
	})
	// The first goes at once; all that come before the next may go are one push.
	b.promote(name(1), map[string]string{"f0": "x\n"}).must()
	var wg sync.WaitGroup
	for i := range 10 {
		p := b.promote(name(i+2), map[string]string{fmt.Sprintf("f%d", i+1): "x\n"})
		wg.Go(func() { p.must() })
	}
	wg.Wait()
	b.promote(name(20), map[string]string{"f20": "x\n"}).must()
	for i := 1; i < len(pushes); i++ {
		// They need different times to arrive, but not that different.
		if gap := pushes[i].Sub(pushes[i-1]); gap < spacing/2 {
			t.Errorf("%s between pushes %d and %d, want %s", gap, i, i+1, spacing)
		}
	}
	if got := b.git("rev-list", "--count", "main"); got != "13" {
		t.Errorf("%s commits, want 13", got)
	}
	b.check()
}

// A change is how a work tree differs from its HEAD: a commit made in it that
// nobody pushed is no part of that, and must not get lost.
func TestWorkTreeWithACommitOfItsOwn(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n", "b.yaml": "1\n", "dir/f": "1\n"})
	p := b.promote(name(1), nil)
	tree := filepath.Join(p.sc.WorkDir, "repo")
	git := func(args ...string) {
		t.Helper()
		args = append([]string{"-C", p.sc.WorkDir, "-c", "user.name=x", "-c", "user.email=x@example.com"}, args...)
		if out, err := exec.CommandContext(t.Context(), "git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	write := func(name, data string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(tree, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git("clone", "--quiet", b.url, "repo")
	p.sc.Config = map[string]any{"path": "repo"}
	write("a.yaml", "2\n")
	git("-C", "repo", "commit", "--quiet", "--all", "--message=local")
	p.refused("leave those out") // nothing differs from HEAD
	write("b.yaml", "2\n")
	p.refused("leave those out")
	b.restart()
	b.seed(map[string]string{"other": "1\n"})
	p.refused("leave those out")

	git("-C", "repo", "pull", "--quiet", "--rebase", "--autostash")
	git("-C", "repo", "push", "--quiet", "origin", "main")
	b.seed(map[string]string{"other": "2\n"}) // HEAD is on the server, but not the tip
	if err := errors.Join(os.RemoveAll(filepath.Join(tree, "dir")), os.WriteFile(filepath.Join(tree, "dir"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	p.refused(`"dir" is a file, but a directory in HEAD`)
	if err := os.Remove(filepath.Join(tree, "dir")); err != nil {
		t.Fatal(err)
	}
	git("-C", "repo", "checkout", "--quiet", "HEAD", "dir")
	p.must()
	if got := b.git("show", "main:a.yaml") + b.git("show", "main:b.yaml"); got != "22" {
		t.Errorf("files = %q", got)
	}
	b.check()
}

// Kargo starts a promotion again with a lost work dir: the new clone has what the
// promotion committed, and shows as changed only what others changed since.
func TestNewCloneOfACommitThatWasMade(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n", "b.yaml": "1\n"})
	clone := func() *promotion {
		p := b.promote(name(1), nil)
		if out, err := exec.CommandContext(t.Context(), "git", "clone", "--quiet", b.url, filepath.Join(p.sc.WorkDir, "repo")).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, f := range []string{"a.yaml", "b.yaml"} {
			if err := os.WriteFile(filepath.Join(p.sc.WorkDir, "repo", f), []byte("2\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p.sc.Config = map[string]any{"path": "repo"}
		return p
	}
	first := clone().must()
	b.seed(map[string]string{"a.yaml": "somebody's\n"})
	b.restart()
	if again := clone().must(); again["commit"] != first["commit"] || fmt.Sprint(again["paths"]) != "[a.yaml b.yaml]" {
		t.Errorf("retry = %v, want %v", again, first)
	}
	if got := b.git("show", "main:a.yaml"); got != "somebody's" {
		t.Errorf("a.yaml = %q", got)
	}
	b.check()
}

// Git follows no symbolic link to .gitattributes, and in a sparse checkout it
// reads from the index what is not there.
func TestAttributesThatAreNoFilesOfTheWorkTree(t *testing.T) {
	b := newBench(t)
	if _, err := b.Commit(repo, gittest.Change{Message: "seed", Files: map[string]gittest.Entry{
		"linked/.gitattributes": {Mode: "120000", Data: "attributes"},
		"linked/attributes":     {Data: "* filter=lfs\n"},
		"left/.gitattributes":   {Data: "* filter=lfs\n"},
	}}); err != nil {
		t.Fatal(err)
	}
	p := b.promote(name(1), nil)
	tree := filepath.Join(p.sc.WorkDir, "repo")
	for _, args := range [][]string{{"clone", "--quiet", b.url, tree}, {"-C", tree, "sparse-checkout", "set", "--cone", "linked"}} {
		if out, err := exec.CommandContext(t.Context(), "git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	p.sc.Config = map[string]any{"path": "repo"}
	if err := os.WriteFile(filepath.Join(tree, "linked", "f"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.must()
	pipe := filepath.Join(tree, ".gitignore") // reading it would block
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	p.refused("a named pipe")
	left := filepath.Join(tree, "left")
	if err := errors.Join(os.Remove(pipe), os.Mkdir(left, 0o755), os.WriteFile(filepath.Join(left, "f"), []byte("1\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	p.refused("filter=lfs")
	b.check()
}
