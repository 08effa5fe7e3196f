package sidecar_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/kargo/sidecar"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
)

// likeKargo asks for the step until it is done: after Running it comes again
// later, and after an answer it did not hear, with one more error.
func (p *promotion) likeKargo(send func(r *http.Request) (int, wire.Answer), pause func()) wire.Answer {
	for {
		r := p.request()
		// Now and then Kargo does not hear the answer.
		if rand.N(4) == 0 {
			ctx, cancel := context.WithTimeout(r.Context(), rand.N(20*time.Millisecond))
			send(r.WithContext(ctx))
			cancel()
			p.at.ErrorCount++
			pause()
			continue
		}
		if _, a := send(r); a.Status != steps.Running {
			return a
		}
		pause()
	}
}

// TestQueue: 200 Promotions at once on a small sidecar, and answers that get
// lost. All are done, and each once.
func TestQueue(t *testing.T) {
	const n = 200
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(o *sidecar.Options) { o.MaxRunning, o.MaxOperations, o.Log = 4, 64, nil })
		var mu sync.Mutex
		done := map[string]int{}
		var now, most atomic.Int64
		b.does(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return steps.Result{}, ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			done[sc.Promotion]++
			return steps.Result{Status: steps.Succeeded, Message: sc.Promotion, Output: map[string]any{"of": sc.Promotion}}, nil
		})
		large := `{"x":"` + strings.Repeat("v", 4<<10) + `"}`
		_, skeleton, err := wire.DecodeConfig([]byte(large))
		if err != nil {
			t.Fatal(err)
		}
		all := make([]*promotion, n)
		for i := range all {
			all[i] = b.promote("acme", fmt.Sprintf("p%03d", i), func(c *wire.Claims) { c.Skeleton = skeleton })
			all[i].config = []byte(large)
		}
		var before runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var peak atomic.Uint64
		answers := make(chan wire.Answer, n)
		var wg sync.WaitGroup
		for _, p := range all {
			wg.Go(func() {
				a := p.likeKargo(b.send, func() { time.Sleep(wire.PollInterval) })
				if a.Status == steps.Succeeded && a.Output["of"] != p.claims.Promotion {
					t.Errorf("%s got the answer of %v", p.claims.Promotion, a.Output["of"])
				}
				answers <- a
			})
		}
		stop := make(chan struct{})
		var watching sync.WaitGroup
		watching.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(15 * time.Second):
				}
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapAlloc))
			}
		})
		wg.Wait()
		close(stop)
		watching.Wait()
		close(answers)
		for a := range answers {
			if a.Status != steps.Succeeded {
				t.Errorf("answered %s: %s", a.Status, a.Message)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for _, p := range all {
			if done[p.claims.Promotion] != 1 {
				t.Errorf("%s was done %d times", p.claims.Promotion, done[p.claims.Promotion])
			}
		}
		if most.Load() > 4 {
			t.Errorf("%d ran at once", most.Load())
		}
		grown := int64(peak.Load()) - int64(before.HeapAlloc) //nolint:gosec // bytes of a heap
		t.Logf("%d Promotions with configs of %d KiB, 4 at a time, 64 kept: the heap grew by at most %d KiB", n, len(large)>>10, grown>>10)
		if grown > 32<<20 {
			t.Error("that is too much")
		}
		b.server.Drain(0)
	})
}

// TestFiftyAtOnce is over the network, in real time.
func TestFiftyAtOnce(t *testing.T) {
	b := newBench(t, func(o *sidecar.Options) { o.Log = nil })
	var mu sync.Mutex
	done := map[string]int{}
	b.does(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		done[sc.Promotion]++
		err := os.WriteFile(filepath.Join(sc.WorkDir, "out"), []byte(sc.Promotion), 0o600)
		return steps.Result{Status: steps.Succeeded, Output: map[string]any{"path": "out", "of": sc.Promotion}}, err
	})
	url := b.serve(t)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 50}}
	defer client.CloseIdleConnections()
	all := make([]*promotion, 50)
	for i := range all {
		all[i] = b.promote("acme", fmt.Sprintf("p%02d", i))
	}
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() {
			for range 2 { // the second time, the stored answer
				code, a, err := p.over(client, url)
				if err != nil || code != http.StatusOK || a.Status != steps.Succeeded || a.Output["of"] != p.claims.Promotion {
					t.Errorf("%s: %d, %s: %s, %v", p.claims.Promotion, code, a.Status, a.Message, err)
				}
			}
		})
	}
	wg.Wait()
	for _, p := range all {
		if done[p.claims.Promotion] != 1 {
			t.Errorf("%s was done %d times", p.claims.Promotion, done[p.claims.Promotion])
		}
	}
}

// TestCommits runs the real atomic-commit step against a git server. A
// Promotion that is aborted while its commit is on the way commits nothing; the
// others, in the same batch, do.
func TestCommits(t *testing.T) {
	const n = 8
	git := gittest.New(t)
	repo := git.MustCreate(t, "gitops.git")
	git.MustCommit(t, "gitops.git", "seed", map[string]string{"seed": "x"})
	var aborted *promotion
	var once sync.Once
	b := newBench(t, func(o *sidecar.Options) {
		o.MaxRunning = n
		o.Steps = func(e sidecar.Edges) ([]steps.Registration, error) {
			check := func(ctx context.Context, p gitrepo.Pusher) error {
				if p.Promotion == aborted.claims.Promotion {
					once.Do(func() { // the last moment
						aborted.change(func(o *kargoapi.Promotion) { o.Annotations[kargoapi.AnnotationAbort] = "terminate" })
					})
				}
				return e.CheckPush(ctx, p)
			}
			return []steps.Registration{atomiccommit.New(atomiccommit.Options{
				Dialer:    gitrepo.Guarded(gitrepo.NewLive(gitrepo.LiveOptions{}), check),
				IntentDir: filepath.Join(o.StateDir, "intents"),
			})}, nil
		}
	})
	all := make([]*promotion, n)
	for i := range all {
		config := fmt.Sprintf(`{"path":"overlay","repoURL":%q,"branch":"main"}`, repo)
		_, skeleton, err := wire.DecodeConfig([]byte(config))
		if err != nil {
			t.Fatal(err)
		}
		p := b.promote("acme", fmt.Sprintf("p%d", i), func(c *wire.Claims) { c.Kind, c.Skeleton = atomiccommit.Kind, skeleton })
		p.config = []byte(config)
		if err := os.Mkdir(filepath.Join(p.workDir(), "overlay"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.workDir(), "overlay", p.claims.Promotion), []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		all[i] = p
	}
	aborted = all[3]
	answers := make([]wire.Answer, n)
	var wg sync.WaitGroup
	for i, p := range all {
		wg.Go(func() { _, answers[i] = b.send(p.request()) })
	}
	wg.Wait()
	files := git.MustGit(t, "gitops.git", "ls-tree", "--name-only", "main")
	for i, p := range all {
		name := p.claims.Promotion
		commits := git.MustGit(t, "gitops.git", "log", "--format=%H", "--grep", "Kargo-Promotion: acme/"+name+"$", "main")
		if p == aborted {
			if answers[i].Status != steps.Running || !strings.Contains(answers[i].Message, "aborted") || commits != "" || strings.Contains(files, name) {
				t.Errorf("the aborted one: %s: %s; commits %q", answers[i].Status, answers[i].Message, commits)
			}
			continue
		}
		if answers[i].Status != steps.Succeeded || answers[i].Output["commit"] != commits {
			t.Errorf("%s: %s: %s; commits %q", name, answers[i].Status, answers[i].Message, commits)
		}
	}
	// And once more, as after an answer that was lost.
	for i, p := range all {
		if p == aborted {
			continue
		}
		p.at.ErrorCount++
		if a := p.post(); a.Output["commit"] != answers[i].Output["commit"] {
			t.Errorf("%s: %s, then %s", p.claims.Promotion, answers[i].Message, a.Message)
		}
	}
	if got := git.MustGit(t, "gitops.git", "rev-list", "--count", "main"); got != fmt.Sprint(n) {
		t.Errorf("%s commits, want %d", got, n)
	}
}
