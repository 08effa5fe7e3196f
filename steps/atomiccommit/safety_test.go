package atomiccommit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/steps"
)

// refused runs and wants a config refusal that contains words and moves
// nothing.
func (p *promotion) refused(words string) {
	p.b.t.Helper()
	before, _ := p.b.Git(repo, "rev-parse", "main")
	r, err := p.run()
	if !errors.Is(err, steps.ErrConfig) || !steps.IsTerminal(err) || r.Status != steps.Failed {
		p.b.t.Fatalf("%s, %v; want a terminal refusal", r.Status, err)
	}
	if !strings.Contains(err.Error(), words) {
		p.b.t.Errorf("err = %v, want %q in it", err, words)
	}
	if strings.Contains(err.Error(), p.sc.WorkDir) {
		p.b.t.Errorf("the error shows the work dir: %v", err)
	}
	if after, _ := p.b.Git(repo, "rev-parse", "main"); after != before {
		p.b.t.Error("the branch moved")
	}
}

func TestWhatTheRepositoryHoldsInTheWay(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"dir/f.yaml": "1\n", "plain": "1\n", "Upper/x": "1\n"})
	sub := b.tip()
	if _, err := b.Commit(repo, gittest.Change{Message: "odd entries", Files: map[string]gittest.Entry{
		"link":      {Mode: "120000", Data: "dir"},
		"a/filelnk": {Mode: "120000", Data: "../plain"},
		"module":    {Mode: "160000", Data: sub},
	}}); err != nil {
		t.Fatal(err)
	}
	for file, words := range map[string]string{
		"link/f.yaml":  `"link" is a symbolic link`,
		"a/filelnk":    "a symbolic link",
		"module/x":     `"module" is a submodule`,
		"module":       "a submodule",
		"dir":          "a directory",
		"plain/x.yaml": "a file, not a directory",
		"upper/y":      "upper and lower case",
		"PLAIN":        "upper and lower case",
	} {
		t.Run(file, func(t *testing.T) {
			b.t = t
			b.promote(name(1), map[string]string{file: "x\n"}).refused(words)
		})
	}
	b.t = t
	for path, words := range map[string]string{
		"link": "a symbolic link", "module": "a submodule", "dir": "a directory", "link/f.yaml": "a symbolic link",
		"../x": `component ".."`, "/etc/passwd": "absolute", ".git/config": "Git's own directory",
	} {
		b.promote(name(1), map[string]string{"ok": "x\n"}).set(map[string]any{"remove": []any{path}}).refused(words)
	}
}

func TestWhatTheOverlayHolds(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a": "1\n"})
	for reason, tc := range map[string]struct {
		make  func(dir string) error
		words string
	}{
		"symbolic link to a file": {func(d string) error { return os.Symlink("/etc/passwd", filepath.Join(d, "l")) }, "a symbolic link"},
		"symbolic link to a dir":  {func(d string) error { return os.Symlink("..", filepath.Join(d, "l")) }, "a symbolic link"},
		"a .GIT directory": {func(d string) error {
			return errors.Join(os.Mkdir(filepath.Join(d, ".GIT"), 0o755), os.WriteFile(filepath.Join(d, ".GIT", "config"), nil, 0o644))
		}, "Git's own directory"},
		"a short name of .git": {func(d string) error { return os.WriteFile(filepath.Join(d, "GIT~1"), nil, 0o644) }, "Git's own directory"},
		"a .git below": {func(d string) error {
			return errors.Join(os.Mkdir(filepath.Join(d, "x"), 0o755), os.WriteFile(filepath.Join(d, "x", ".git"), nil, 0o644))
		}, "Git's own directory"},
		"submodule config":    {func(d string) error { return os.WriteFile(filepath.Join(d, ".gitmodules"), nil, 0o644) }, "configures submodules"},
		"a newline in a name": {func(d string) error { return os.WriteFile(filepath.Join(d, "a\nb"), nil, 0o644) }, "control character"},
		"bytes, not text":     {func(d string) error { return os.WriteFile(filepath.Join(d, "a\xff"), nil, 0o644) }, "UTF-8"},
		"a backslash":         {func(d string) error { return os.WriteFile(filepath.Join(d, `a\b`), nil, 0o644) }, "backslash"},
	} {
		t.Run(reason, func(t *testing.T) {
			b.t = t
			p := b.promote(name(1), map[string]string{"ok": "x\n"})
			if err := tc.make(filepath.Join(p.sc.WorkDir, "overlay")); err != nil {
				t.Fatal(err)
			}
			p.refused(tc.words)
		})
	}
	b.t = t
	p := b.promote(name(1), nil)
	if err := os.Symlink("/etc", filepath.Join(p.sc.WorkDir, "overlay")); err != nil {
		t.Fatal(err)
	}
	p.refused("cannot open path")
	b.promote(name(1), nil).set(map[string]any{"path": "../.."}).refused("not inside the work dir")
	p = b.promote(name(1), nil)
	if err := os.Mkdir(filepath.Join(p.sc.WorkDir, "overlay"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.refused("holds no files")
}

func TestAttributes(t *testing.T) {
	for reason, tc := range map[string]struct {
		attributes map[string]string
		old, data  string
		words      string // of the refusal; empty when it goes through
	}{
		"LFS":                              {attributes: map[string]string{".gitattributes": "*.yaml filter=lfs diff=lfs merge=lfs -text\n"}, data: "x\n", words: "filter=lfs"},
		"LFS in the directory":             {attributes: map[string]string{"d/.gitattributes": "* filter=lfs\n"}, data: "x\n", words: "filter=lfs"},
		"LFS, taken back":                  {attributes: map[string]string{".gitattributes": "* filter=lfs\n", "d/.gitattributes": "* !filter\n"}, data: "x\n"},
		"LFS of other files":               {attributes: map[string]string{".gitattributes": "*.bin filter=lfs\n"}, data: "x\n"},
		"another encoding":                 {attributes: map[string]string{".gitattributes": "* working-tree-encoding=UTF-16\n"}, data: "x\n", words: "working-tree-encoding"},
		"CRLF, no attributes":              {data: "x\r\n"},
		"CRLF, eol=lf":                     {attributes: map[string]string{".gitattributes": "* eol=lf\n"}, data: "x\r\n", words: "CRLF"},
		"CRLF, eol=crlf is stored with LF": {attributes: map[string]string{".gitattributes": "* eol=crlf\n"}, data: "x\r\n", words: "CRLF"},
		"LF, eol=crlf":                     {attributes: map[string]string{".gitattributes": "* eol=crlf\n"}, data: "x\n"},
		"CRLF, text":                       {attributes: map[string]string{".gitattributes": "* text\n"}, data: "x\r\n", words: "CRLF"},
		"CRLF, -text":                      {attributes: map[string]string{".gitattributes": "* text=auto\n*.yaml -text\n"}, data: "x\r\n"},
		"CRLF, binary":                     {attributes: map[string]string{".gitattributes": "*.yaml binary\n"}, data: "x\r\n"},
		"CRLF, auto, new file":             {attributes: map[string]string{".gitattributes": "* text=auto\n"}, data: "x\r\n", words: "CRLF"},
		"CRLF, auto, stored with LF":       {attributes: map[string]string{".gitattributes": "* text=auto\n"}, old: "y\n", data: "x\r\n", words: "CRLF"},
		"CRLF, auto, stored with CRLF":     {attributes: map[string]string{".gitattributes": "* text=auto\n"}, old: "y\r\n", data: "x\r\n"},
		"CRLF and NUL, auto":               {attributes: map[string]string{".gitattributes": "* text=auto\n"}, data: "x\r\n\x00"},
	} {
		t.Run(reason, func(t *testing.T) {
			b := newBench(t)
			files := map[string]string{"seed": "1\n"}
			for k, v := range tc.attributes {
				files[k] = v
			}
			if tc.old != "" {
				files["d/f.yaml"] = tc.old
			}
			b.seed(files)
			p := b.promote(name(1), map[string]string{"d/f.yaml": tc.data})
			if tc.words != "" {
				p.refused(tc.words)
				return
			}
			p.must()
			if got := b.git("cat-file", "-s", "main:d/f.yaml"); got != fmt.Sprint(len(tc.data)) {
				t.Errorf("%s bytes are stored of %d", got, len(tc.data))
			}
			b.check()
		})
	}
}

func TestModes(t *testing.T) {
	b := newBench(t)
	if _, err := b.Commit(repo, gittest.Change{Message: "x", Files: map[string]gittest.Entry{"run.sh": {Mode: "100755", Data: "1\n"}, "f": {Data: "1\n"}}}); err != nil {
		t.Fatal(err)
	}
	p := b.promote(name(1), map[string]string{"run.sh": "2\n", "f": "2\n", "new": "1\n", "newx": "1\n"})
	if err := os.Chmod(filepath.Join(p.sc.WorkDir, "overlay", "newx"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.must()
	var modes []string
	for line := range strings.Lines(b.git("ls-tree", "main")) {
		modes = append(modes, strings.Fields(line)[0]+" "+strings.Fields(line)[3])
	}
	if got, want := strings.Join(modes, ","), "100644 f,100644 new,100755 newx,100755 run.sh"; got != want {
		t.Errorf("modes = %s, want %s", got, want)
	}
	before := b.tip()
	if out := p.must(); out["commit"] != before {
		t.Errorf("retry = %v", out)
	}
	b.check()
}

func TestRemove(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a/b/old.yaml": "1\n", "keep": "1\n"})
	p := b.promote(name(1), map[string]string{"a/new.yaml": "1\n"}).set(map[string]any{"remove": []any{"a/b/old.yaml", "./absent.yaml"}})
	out := p.must()
	if got := b.git("ls-tree", "-r", "--name-only", "main"); got != "a/new.yaml\nkeep" {
		t.Errorf("files = %q", got)
	}
	if got := fmt.Sprint(out["paths"]); got != "[a/b/old.yaml a/new.yaml]" {
		t.Errorf("paths = %s", got)
	}
	b.promote(name(2), map[string]string{"keep": "1\n"}).set(map[string]any{"remove": []any{"keep"}}).refused("to be removed")

	if _, err := b.Commit(repo, gittest.Change{Message: "link", Files: map[string]gittest.Entry{"link": {Mode: "120000", Data: "a"}}}); err != nil {
		t.Fatal(err)
	}
	n := 2
	for path, words := range map[string]string{
		"a":            `cannot remove "a": it is a directory in the repository; name the files in it`,
		"link":         `cannot remove "link": it is a symbolic link`,
		"link/x":       `cannot remove "link/x": "link" is a symbolic link`,
		"a/*":          "patterns are not supported",
		"**":           "patterns are not supported",
		"a/new.yaml/x": "", // not there, whatever the name resembles
		"KEEP":         "",
	} {
		for reason, files := range map[string]map[string]string{"alone": {"keep": "1\n"}, "with a change": {"keep": path}} {
			n++
			p := b.promote(name(n), files).set(map[string]any{"remove": []any{path}})
			if words != "" {
				p.refused(words)
			} else if out := p.must(); out["changed"] != (reason != "alone") {
				t.Errorf("remove %q %s: %v", path, reason, out)
			}
			b.MustCommit(t, repo, "back", map[string]string{"keep": "1\n"})
		}
	}
	b.check()
}

func TestAllowPaths(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a": "1\n"})
	allow := map[string]any{"allowPaths": []any{"svc/*/values.yaml", "shared/**"}}
	b.promote(name(1), map[string]string{"svc/x/values.yaml": "1\n", "shared/deep/er": "1\n"}).set(allow).must()
	for _, p := range []string{"./svc/**", "/svc/**", "svc/"} {
		b.promote(name(2), map[string]string{"svc/x/values.yaml": "2\n"}).set(map[string]any{"allowPaths": []any{p, "**"}}).refused("matches no path")
	}
	b.promote(name(2), map[string]string{"svc/x/values.yaml": "2\n", "svc/x/y/values.yaml": "1\n"}).set(allow).refused("allowPaths does not allow")
	b.promote(name(3), map[string]string{"svc/x/values.yaml": "3\n"}).set(allow).set(map[string]any{"remove": []any{"a"}}).refused("allowPaths does not allow")
	b.check()
}

func TestBranches(t *testing.T) {
	b := newBench(t)
	// An empty repository: the first commit creates the branch.
	out := b.promote(name(1), map[string]string{"a": "1\n"}).must()
	if out["commit"] != b.tip() || b.git("rev-list", "--count", "main") != "1" {
		t.Errorf("output = %v", out)
	}
	on := func(branch string, more map[string]any) *promotion {
		return b.promote(name(2), map[string]string{"a": "2\n"}).set(map[string]any{"branch": branch}).set(more)
	}
	on("missing", nil).refused("createBranch")
	on("x", map[string]any{"createBranch": true, "baseBranch": "nowhere"}).refused(`baseBranch "nowhere" does not exist`)
	for _, bad := range []string{"-x", "a..b", "refs/heads/main", "a b", "x.lock", "HEAD", "a\x01"} {
		on(bad, nil).refused("branch")
	}
	main := b.tip()
	on("promote/1", map[string]any{"createBranch": true}).must()
	if b.git("rev-parse", "promote/1~1") != main || b.tip() != main {
		t.Error("the new branch does not start at main")
	}
	// Nothing to change still makes the branch, for a pull request flow.
	p := b.promote(name(3), map[string]string{"a": "1\n"}).set(map[string]any{"branch": "promote/2", "createBranch": true, "baseBranch": "main"})
	if out := p.must(); out["changed"] != false || out["commit"] != main || b.git("rev-parse", "promote/2") != main {
		t.Errorf("output = %v", out)
	}
	// And again, on the branch that exists now.
	on("promote/1", map[string]any{"createBranch": true}).must()
	if got := b.git("rev-list", "--count", "promote/1"); got != "2" {
		t.Errorf("%s commits on the branch, want 2", got)
	}
	b.check()
}

func TestMessagesCannotForgeTrailers(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a": "1\n"})
	for reason, cfg := range map[string]map[string]any{
		"in the last paragraph":   {"message": "x\n\nSigned-By: me"},
		"anywhere":                {"message": "Stepd-Change: sha256:00\n\ny"},
		"in other case":           {"message": "x\n\nkArGo-StAgE : a/b"},
		"after a carriage return": {"message": "x\rKargo-Promotion: a/b"},
		"behind a line separator": {"message": "x\u2028Kargo-Promotion: a/b"},
		"indented":                {"message": "x\n\n  Config-Artifact: y"},
		"as a trailer":            {"trailers": map[string]any{"Source-Commit": "y"}},
		"as a trailer, new name":  {"trailers": map[string]any{"Kargo-Whatever": "y"}},
		"unknown verification":    {"verified": "nope"},
		"no name in the name":     {"author": map[string]any{"name": "<.>", "email": "a@example.com"}},
	} {
		t.Run(reason, func(t *testing.T) {
			b.t = t
			b.promote(name(1), map[string]string{"a": "2\n"}).set(cfg).refused("")
		})
	}
	b.t = t
	p := b.promote(name(1), map[string]string{"a": "2\n"}).set(map[string]any{
		"message":  "subject\x1b[31m\n\n---\nbody\n\n\nReviewed-by: A <a@example.com>\nFolded: one\n  two",
		"trailers": map[string]any{"Note": "one\r\nStepd-Change: sha256:00\x00"},
	})
	p.sc.PromotionActor = "mallory\nSigned-By: root"
	p.must()
	tr := b.trailers("main")
	if tr["Signed-By"] != "" || tr["Promoted-By"] != "mallorySigned-By: root" || tr["Reviewed-by"] != "A <a@example.com>" || tr["Folded"] != "one" || !strings.HasPrefix(tr["Stepd-Change"], "sha256:") {
		t.Errorf("trailers = %v", tr)
	}
	if got := b.git("log", "-1", "--format=%B", "main"); strings.Contains(got, "\x1b") {
		t.Errorf("message = %q", got)
	}
	b.check()
}

// credentials is a CredentialSource with one login per project.
type credentials map[string]steps.Credentials

func (c credentials) Get(_ context.Context, project string, _ steps.CredentialType, _ string) (*steps.Credentials, error) {
	if found, ok := c[project]; ok {
		return &found, nil
	}
	return nil, nil
}

func TestProjectsDoNotShareAnything(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a": "1\n"})
	b.RequireAuth(map[string]string{"shop": "secret-1", "bank": "secret-2"})
	caps := steps.Capabilities{Credentials: credentials{
		"shop": {Username: "shop", Password: "secret-1"}, "bank": {Username: "bank", Password: "secret-2"},
		"thief": {Username: "thief", Password: "secret-1"},
	}}
	run := func(project, file string, n int) (steps.Result, error) {
		p := b.promote(name(n), map[string]string{file: "x\n"})
		p.caps, p.sc.Project = caps, project
		return p.run()
	}
	if _, err := run("shop", "s0", 1); err != nil {
		t.Fatal(err)
	}
	b.ResetStats()
	// What shop's owner remembers is of no use to those who may not read.
	for i, project := range []string{"thief", "nobody"} {
		r, err := run(project, "t", i+2)
		if err == nil || !steps.IsTerminal(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %s, %v", project, r.Status, err)
		}
	}
	for _, req := range b.Requests() {
		if req.Status == 200 {
			t.Errorf("%+v was answered", req)
		}
	}
	b.ResetStats()
	var wg sync.WaitGroup
	for i := range 10 {
		for _, project := range []string{"shop", "bank"} {
			wg.Go(func() {
				if _, err := run(project, fmt.Sprintf("%s/%d", project, i), 10+i); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	// Every commit came in a push of its own project.
	for _, line := range strings.Split(b.git("log", "--format=%H %(trailers:key=Kargo-Stage,valueonly)", "--grep", "Kargo-Stage", "main"), "\n") {
		if line != "" && !strings.Contains(line, "shop/") && !strings.Contains(line, "bank/") {
			t.Errorf("commit %q", line)
		}
	}
	if got := b.git("rev-list", "--count", "main"); got != "22" {
		t.Errorf("%s commits, want 22", got)
	}
	b.check()
}

// expiring hands out a stale password once.
type expiring struct{ n int }

func (e *expiring) Get(context.Context, string, steps.CredentialType, string) (*steps.Credentials, error) {
	e.n++
	return &steps.Credentials{Username: "u", Password: fmt.Sprintf("p%d", min(e.n, 2))}, nil
}

func TestExpiredCredentialsAreRefreshed(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a": "1\n"})
	b.RequireAuth(map[string]string{"u": "p2"})
	p := b.promote(name(1), map[string]string{"a": "2\n"})
	p.caps.Credentials = &expiring{}
	p.must()
	b.RequireAuth(nil)
	b.check()
}

func TestDamagedIntentIsAnError(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a": "1\n"})
	p := b.promote(name(1), map[string]string{"a": "2\n"})
	p.must()
	files, err := filepath.Glob(filepath.Join(b.opts.IntentDir, "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("intents: %v, %v", files, err)
	}
	if err := os.WriteFile(files[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if _, err := p.run(); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("err = %v", err)
	}
}

func TestStepsOfOnePromotionWithTheSameFiles(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a": "1\n"})
	// The same step polled by several requests at once is one commit.
	p := b.promote(name(1), map[string]string{"a": "2\n"})
	var wg sync.WaitGroup
	var mu sync.Mutex
	commits := map[any]bool{}
	for range 8 {
		q := *p
		wg.Go(func() {
			r, err := q.run()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			commits[r.Output["commit"]] = true
		})
	}
	wg.Wait()
	if len(commits) != 1 || b.git("rev-list", "--count", "main") != "2" {
		t.Errorf("commits %v, %s on the branch", commits, b.git("rev-list", "--count", "main"))
	}
	b.check()
}
