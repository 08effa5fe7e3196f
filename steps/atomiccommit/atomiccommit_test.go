package atomiccommit_test

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
)

const repo = "gitops.git"

// bench is a repository on a server and a step that commits to it.
type bench struct {
	*gittest.Server
	t      *testing.T
	url    string
	opts   atomiccommit.Options
	live   gitrepo.LiveOptions // of a restarted process
	reg    steps.Registration
	ledger *verification.Memory
	log    *effects.Log
}

func newBench(t *testing.T, change ...func(*atomiccommit.Options)) *bench {
	t.Helper()
	b := &bench{Server: gittest.New(t), t: t, ledger: &verification.Memory{}, log: &effects.Log{}}
	b.url = b.MustCreate(t, repo)
	b.opts = atomiccommit.Options{
		Dialer:    gitrepo.NewLive(gitrepo.LiveOptions{}),
		IntentDir: filepath.Join(t.TempDir(), "intents"),
		Ledger:    b.ledger,
	}
	for _, c := range change {
		c(&b.opts)
	}
	b.reg = atomiccommit.New(b.opts)
	return b
}

// restart is a new process: nothing but the intents survives.
func (b *bench) restart() {
	b.opts.Dialer = gitrepo.NewLive(b.live)
	b.reg = atomiccommit.New(b.opts)
}

func (b *bench) seed(files map[string]string) string {
	b.t.Helper()
	return b.MustCommit(b.t, repo, "seed", files)
}

// promotion is one run of the step.
type promotion struct {
	b    *bench
	caps steps.Capabilities
	sc   steps.Context
}

// promote prepares a run that lays files over main.
func (b *bench) promote(name string, files map[string]string) *promotion {
	b.t.Helper()
	work := b.t.TempDir()
	for p, data := range files {
		p = filepath.Join(work, "overlay", p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	return &promotion{b: b, sc: steps.Context{
		WorkDir: work, Alias: "commit", Project: "shop", Stage: "prd-us", Promotion: name, PromotionActor: "admin",
		Config: map[string]any{"path": "overlay", "repoURL": b.url, "branch": "main"},
		Log:    slog.New(slog.DiscardHandler),
	}}
}

func (p *promotion) set(kv map[string]any) *promotion {
	maps.Copy(p.sc.Config, kv)
	return p
}

func (p *promotion) run() (steps.Result, error) {
	p.b.t.Helper()
	return p.b.reg.New(p.caps).Run(p.b.t.Context(), &p.sc)
}

// must runs and wants success.
func (p *promotion) must() map[string]any {
	p.b.t.Helper()
	r, err := p.run()
	if err != nil || r.Status != steps.Succeeded {
		p.b.t.Fatalf("promotion %s: %s, %v", p.sc.Promotion, r.Status, err)
	}
	return r.Output
}

// name makes a promotion name as Kargo does; a greater n is a newer promotion.
// The times are in the past, so that every look-back goes all the way.
func name(n int) string { return fmt.Sprintf("prd-us.01hzzzzzzz%016d.abc1234", n) }

func (b *bench) git(args ...string) string {
	b.t.Helper()
	return b.MustGit(b.t, repo, args...)
}

func (b *bench) tip() string { return b.git("rev-parse", "main") }

func (b *bench) trailers(rev string) map[string]string {
	b.t.Helper()
	out := map[string]string{}
	for line := range strings.SplitSeq(b.git("log", "-1", "--format=%(trailers)", rev), "\n") {
		if k, v, ok := strings.Cut(line, ": "); ok {
			out[k] = v
		}
	}
	return out
}

// check is what must hold after every test.
func (b *bench) check() {
	b.t.Helper()
	b.Fsck(b.t, repo)
}

func TestOverlayIsOneCommit(t *testing.T) {
	b := newBench(t)
	first := b.seed(map[string]string{"env/prd-us/values.yaml": "tag: v1\n", "env/prd-ca/values.yaml": "tag: v1\n", "bin/run.sh": "#!/bin/sh\n"})
	out := b.promote(name(1), map[string]string{"env/prd-us/values.yaml": "tag: v2\n", "env/prd-us/extra/x.yaml": "x\n"}).must()

	if got := b.git("rev-list", "--count", "main"); got != "2" {
		t.Errorf("%s commits, want 2", got)
	}
	if got := b.git("rev-parse", "main~1"); got != first {
		t.Errorf("parent = %s, want %s", got, first)
	}
	if got, want := out["commit"], b.tip(); got != want {
		t.Errorf("output commit = %v, want %s", got, want)
	}
	if got, want := fmt.Sprint(out["paths"]), "[env/prd-us/extra/x.yaml env/prd-us/values.yaml]"; got != want {
		t.Errorf("paths = %s, want %s", got, want)
	}
	if out["changed"] != true || out["attempts"] != int64(1) || out["commitURL"] != nil || out["branch"] != "main" {
		t.Errorf("output = %v", out)
	}
	if got, want := b.git("diff", "--name-only", "main~1", "main"), "env/prd-us/extra/x.yaml\nenv/prd-us/values.yaml"; got != want {
		t.Errorf("changed %q, want %q", got, want)
	}
	tr := b.trailers("main")
	for k, want := range map[string]string{
		"Kargo-Promotion": "shop/" + name(1), "Kargo-Stage": "shop/prd-us", "Promoted-By": "admin",
	} {
		if tr[k] != want {
			t.Errorf("trailer %s = %q, want %q", k, tr[k], want)
		}
	}
	if !strings.HasPrefix(tr["Stepd-Change"], "sha256:") {
		t.Errorf("trailers = %v", tr)
	}
	b.check()
}

func TestRetryFindsItsCommit(t *testing.T) {
	for reason, between := range map[string]func(b *bench, p *promotion){
		"same process":      func(*bench, *promotion) {},
		"another process":   func(b *bench, _ *promotion) { b.restart() },
		"intents were lost": func(b *bench, _ *promotion) { b.opts.IntentDir = filepath.Join(t.TempDir(), "x"); b.restart() },
		"others came after": func(b *bench, _ *promotion) { b.seed(map[string]string{"other": "1\n"}); b.restart() },
		"same path, later":  func(b *bench, _ *promotion) { b.seed(map[string]string{"a.yaml": "somebody's\n"}); b.restart() },
		"lost, then changed": func(b *bench, _ *promotion) {
			b.seed(map[string]string{"a.yaml": "z\n"})
			b.opts.IntentDir += "2"
			b.restart()
		},
	} {
		t.Run(reason, func(t *testing.T) {
			b := newBench(t)
			b.seed(map[string]string{"a.yaml": "1\n"})
			p := b.promote(name(1), map[string]string{"a.yaml": "2\n"})
			first := p.must()
			between(b, p)
			tip := b.tip()
			again := p.must()
			if again["commit"] != first["commit"] || again["changed"] != true || fmt.Sprint(again["paths"]) != "[a.yaml]" {
				t.Errorf("retry = %v, want %v", again, first)
			}
			if b.tip() != tip {
				t.Errorf("the retry moved the branch")
			}
			b.check()
		})
	}
}

func TestConflictSupersessionAndIdentity(t *testing.T) {
	newest := map[string]string{"a.yaml": "newer\n"}
	for reason, tc := range map[string]struct {
		do   func(b *bench) *promotion
		want string // "conflict", "superseded", "unchanged" or "pushed"
	}{
		"a newer promotion is on the branch": {func(b *bench) *promotion {
			b.promote(name(2), newest).must()
			return b.promote(name(1), map[string]string{"a.yaml": "older\n"})
		}, "superseded"},
		"a newer promotion, seen by another process": {func(b *bench) *promotion {
			b.promote(name(2), newest).must()
			b.restart()
			return b.promote(name(1), map[string]string{"a.yaml": "older\n"})
		}, "superseded"},
		"an older promotion is on the branch": {func(b *bench) *promotion {
			b.promote(name(1), newest).must()
			return b.promote(name(2), map[string]string{"a.yaml": "2\n"})
		}, "pushed"},
		"a rollback is a newer promotion": {func(b *bench) *promotion {
			b.promote(name(1), newest).must()
			return b.promote(name(2), map[string]string{"a.yaml": "1\n"})
		}, "pushed"},
		"a newer promotion of other paths": {func(b *bench) *promotion {
			b.promote(name(2), map[string]string{"b.yaml": "x\n"}).must()
			return b.promote(name(1), map[string]string{"a.yaml": "2\n"})
		}, "pushed"},
		"another stage": {func(b *bench) *promotion {
			p := b.promote(name(2), newest)
			p.sc.Stage = "prd-ca"
			p.must()
			return b.promote(name(1), map[string]string{"a.yaml": "2\n"})
		}, "pushed"},
		"forged: claims a newer promotion, changes something else": {func(b *bench) *promotion {
			b.MustCommit(b.t, repo, "x\n\nKargo-Promotion: shop/"+name(9)+"\nKargo-Stage: shop/prd-us\nStepd-Change: sha256:00\n", map[string]string{"z": "1\n"})
			return b.promote(name(1), map[string]string{"a.yaml": "2\n"})
		}, "pushed"},
		"the same content is there": {func(b *bench) *promotion {
			return b.promote(name(1), map[string]string{"a.yaml": "1\n"})
		}, "unchanged"},
	} {
		t.Run(reason, func(t *testing.T) {
			b := newBench(t)
			b.seed(map[string]string{"a.yaml": "1\n"})
			p := tc.do(b)
			before := b.tip()
			r, err := p.run()
			var ce *atomiccommit.ConflictError
			got := "pushed"
			switch {
			case errors.As(err, &ce) && ce.Superseded:
				got = "superseded"
			case errors.As(err, &ce):
				got = "conflict"
			case err != nil:
				t.Fatal(err)
			case r.Output["changed"] == false:
				got = "unchanged"
				if r.Output["commit"] != before {
					t.Errorf("commit = %v, want the tip %s", r.Output["commit"], before)
				}
			}
			if got != tc.want {
				t.Errorf("%s, want %s (%v)", got, tc.want, err)
			}
			if err != nil && (!errors.Is(err, steps.ErrConflict) || !steps.IsTerminal(err) || r.Status != steps.Failed) {
				t.Errorf("status %s, terminal %t: %v", r.Status, steps.IsTerminal(err), err)
			}
			if moved := b.tip() != before; moved != (got == "pushed") {
				t.Errorf("branch moved: %t", moved)
			}
			b.check()
		})
	}
}

func TestForgedTrailerOfThisVeryChange(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	p := b.promote(name(1), map[string]string{"a.yaml": "2\n"})
	// Learn the trailer from a dry run, then let somebody else commit it.
	dry := &effects.Log{}
	opts := b.opts
	opts.Dialer = gitrepo.NewRecording(gitrepo.NewLive(gitrepo.LiveOptions{}), dry)
	opts.IntentDir = t.TempDir()
	if _, err := atomiccommit.New(opts).New(steps.Capabilities{}).Run(t.Context(), &p.sc); err != nil {
		t.Fatal(err)
	}
	forged := b.MustCommit(t, repo, dry.Commits()[0].Message, map[string]string{"other": "1\n"})
	if out := p.must(); out["commit"] == forged || out["commit"] != b.tip() {
		t.Errorf("output = %v, forged %s", out, forged)
	}
	b.check()
}

func TestDryRunPushesNothing(t *testing.T) {
	log := &effects.Log{}
	b := newBench(t, func(o *atomiccommit.Options) {
		o.Dialer = gitrepo.NewRecording(gitrepo.NewLive(gitrepo.LiveOptions{}), log)
	})
	before := b.seed(map[string]string{"a.yaml": "1\n"})
	out := b.promote(name(1), map[string]string{"a.yaml": "2\n"}).must()
	b.promote(name(2), map[string]string{"a.yaml": "3\n"}).must()
	if b.tip() != before {
		t.Error("the dry run moved the branch")
	}
	c := log.Commits()
	if len(c) != 2 || c[0].Pushed || c[0].Commit != out["commit"] || c[0].Step != "commit" ||
		!strings.Contains(c[0].Diff, "-1\n+2\n") || !strings.Contains(c[1].Diff, "-2\n+3\n") {
		t.Errorf("effects = %+v", c)
	}
}

func TestWorktree(t *testing.T) {
	b := newBench(t)
	head := b.seed(map[string]string{"a.yaml": "1\n", "b.yaml": "1\n", "gone.yaml": "1\n", ".gitignore": "*.tmp\n", "run.sh": "#!/bin/sh\n"})
	p := b.promote(name(1), nil)
	home := filepath.Join(p.sc.WorkDir, "repo-home")
	git := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("clone", "--quiet", "--bare", b.url, home)
	git("-C", home, "config", "kargo.repoOriginalURL", b.url)
	tree := filepath.Join(p.sc.WorkDir, "repo")
	git("-C", home, "worktree", "add", "--quiet", tree, "main")
	for f, data := range map[string]string{"a.yaml": "2\n", "new/n.yaml": "n\n", "x.tmp": "ignored\n"} {
		f = filepath.Join(tree, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o755), os.WriteFile(f, []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Remove(filepath.Join(tree, "gone.yaml")), os.Chmod(filepath.Join(tree, "run.sh"), 0o755)); err != nil {
		t.Fatal(err)
	}
	p.sc.Config = map[string]any{"path": "repo"}
	b.seed(map[string]string{"unrelated": "1\n"}) // the branch moved after the clone
	out := p.must()
	if got, want := fmt.Sprint(out["paths"]), "[a.yaml gone.yaml new/n.yaml run.sh]"; got != want {
		t.Errorf("paths = %s, want %s", got, want)
	}
	if got := b.git("ls-tree", "main", "run.sh"); !strings.HasPrefix(got, "100755") {
		t.Errorf("run.sh is %s", got)
	}
	if again := p.must(); again["commit"] != out["commit"] {
		t.Errorf("retry = %v", again)
	}
	// The same file changed on the branch since HEAD: conflict.
	b.seed(map[string]string{"b.yaml": "theirs\n"})
	if err := os.WriteFile(filepath.Join(tree, "b.yaml"), []byte("ours\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.sc.Promotion = name(2)
	_, err := p.run()
	if !errors.Is(err, steps.ErrConflict) {
		t.Errorf("err = %v, want a conflict (HEAD is %s)", err, head)
	}
	b.check()
}

func TestManyWritersFewPushes(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	b.ResetStats()
	const writers = 100
	var wg sync.WaitGroup
	for i := range writers {
		p := b.promote(name(i+1), map[string]string{fmt.Sprintf("svc/f%03d.yaml", i): "x\n"})
		wg.Go(func() { p.must() })
	}
	wg.Wait()
	if n := b.Stats().Pushes; n > 5 {
		t.Errorf("%d pushes for %d writers, want at most 5", n, writers)
	}
	if got := b.git("rev-list", "--count", "main"); got != fmt.Sprint(writers+1) {
		t.Errorf("%s commits, want %d", got, writers+1)
	}
	if got := b.git("log", "--format=", "--name-only", "--diff-filter=A", "main"); strings.Count(got, "svc/") != writers {
		t.Errorf("files in commits: %d", strings.Count(got, "svc/"))
	}
	b.check()
}

func TestVerifiedTrailers(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	rec := verification.Record{
		Repository: "ghcr.io/acme/configs", Tag: "svc-v1.2.0-prd-us", Digest: "sha256:abc",
		Signer: verification.Signer{Subject: "https://github.com/acme/svc/.github/workflows/r.yml@refs/tags/v1.2.0", SourceCommit: "0123456", RunURL: "https://github.com/acme/svc/actions/runs/1"},
	}
	if err := b.ledger.Put(t.Context(), verification.Key{Project: "shop", Promotion: name(1), Alias: "config"}, rec); err != nil {
		t.Fatal(err)
	}
	b.promote(name(1), map[string]string{"a.yaml": "2\n"}).set(map[string]any{
		"verified": "config", "message": "checkout v1.2.0\n\nbody", "trailers": map[string]any{"Ticket": "OPS-1\nKargo-Stage: x/y"},
	}).must()
	tr := b.trailers("main")
	for k, want := range map[string]string{
		"Config-Artifact": "ghcr.io/acme/configs:svc-v1.2.0-prd-us@sha256:abc", "Signed-By": rec.Signer.Subject,
		"Source-Commit": "0123456", "Source-Run": rec.Signer.RunURL, "Ticket": "OPS-1Kargo-Stage: x/y", "Kargo-Stage": "shop/prd-us",
	} {
		if tr[k] != want {
			t.Errorf("trailer %s = %q, want %q", k, tr[k], want)
		}
	}
	b.check()
}

func TestClockIsOnlyForCommitTimes(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b := newBench(t, func(o *atomiccommit.Options) { o.Clock = func() time.Time { return at } })
	b.seed(map[string]string{"a.yaml": "1\n"})
	b.promote(name(1), map[string]string{"a.yaml": "2\n"}).must()
	if got := b.git("log", "-1", "--format=%cI", "main"); got != "2026-01-02T03:04:05+00:00" {
		t.Errorf("commit time = %s", got)
	}
}
