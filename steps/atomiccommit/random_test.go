package atomiccommit_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
)

// TestRandomHistories lets promotions of three stages race through three
// processes for a few files, over a server that fails at random, with somebody
// else committing in between, and with every attempt repeated in another
// process. Whatever happens, each promotion has one commit with its files if it
// succeeded and none if it did not, and nobody's commit is lost.
func TestRandomHistories(t *testing.T) {
	rounds := 6
	if testing.Short() || raceEnabled {
		rounds = 2
	}
	b := newBench(t)
	b.seed(map[string]string{"f0": "0\n", "d/f1": "0\n"})
	var processes []steps.Registration
	for range 3 { // with one state directory
		o := b.opts
		o.Dialer = gitrepo.NewLive(gitrepo.LiveOptions{RequestTimeout: 5 * time.Second})
		processes = append(processes, atomiccommit.New(o))
	}
	b.Wrap(func(backend http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch n := rand.IntN(100); {
			case n < 4:
				status(500)(w, r, backend)
			case n < 7:
				cut(w, r, backend)
			case n < 12 && isPush(r):
				cutAfter(w, r, backend)
			case n < 15 && isPush(r):
				cutAnswer(w, r, backend)
			case n < 17 && isPush(r):
				answer(report("unpack ok\n", "ng refs/heads/main failed to update ref\n"))(w, r, backend)
			case n < 19 && isPush(r):
				answerAfter("")(w, r, backend)
			default:
				backend.ServeHTTP(w, r)
			}
		})
	})
	type promoted struct {
		*promotion
		files  map[string]string
		commit string // empty when it failed for good
		made   bool
	}
	var all []*promoted
	counts := map[string]int{}
	foreign := 0
	for range rounds {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 10 {
			n := len(all) + 1
			files := map[string]string{}
			for range 1 + rand.IntN(2) {
				files[[]string{"f0", "d/f1", "d/f2", "d/e/f3", "f4"}[rand.IntN(5)]] = fmt.Sprintf("%d\n", rand.IntN(4))
			}
			p := &promoted{promotion: b.promote(name(n), files), files: files}
			p.sc.Stage = fmt.Sprintf("stage-%d", rand.IntN(3))
			p.set(map[string]any{"maxAttempts": 100})
			all = append(all, p)
			wg.Go(func() {
				for { // as an engine that starts again and again
					r, err := processes[rand.IntN(3)].New(steps.Capabilities{}).Run(t.Context(), &p.sc)
					mu.Lock()
					switch {
					case err == nil:
						p.commit, _ = r.Output["commit"].(string)
						p.made, _ = r.Output["changed"].(bool)
						counts[fmt.Sprintf("changed %t", p.made)]++
					case errors.Is(err, steps.ErrConflict):
						counts["conflict or superseded"]++
					case steps.IsTerminal(err):
						t.Errorf("%s: %v", p.sc.Promotion, err)
					default:
						counts["tried again"]++
						mu.Unlock()
						continue
					}
					mu.Unlock()
					return
				}
			})
		}
		wg.Go(func() {
			for range 20 { // some lose their race with a push, and are refused by git
				if _, err := b.Commit(repo, gittest.Change{Message: "foreign", Files: gittest.Files(map[string]string{
					fmt.Sprintf("foreign/%d", foreign): "x\n", "d/f2": fmt.Sprintf("foreign %d\n", foreign),
				})}); err == nil {
					foreign++
				}
				if foreign%3 == 0 {
					return
				}
			}
		})
		wg.Wait()
	}
	b.Wrap(nil)
	check := func(when string) {
		t.Helper()
		for _, p := range all {
			found := b.git("log", "--format=%H", "--fixed-strings", "--grep", "Kargo-Promotion: shop/"+p.sc.Promotion, "main")
			switch {
			case p.made && found != p.commit:
				t.Errorf("%s: %s made %s, and on the branch is %q", when, p.sc.Promotion, p.commit, found)
			case !p.made && found != "":
				t.Errorf("%s: %s (commit %q) made nothing, but on the branch is %q", when, p.sc.Promotion, p.commit, found)
			}
			if p.commit == "" {
				continue
			}
			for f, data := range p.files {
				if got := b.git("cat-file", "blob", p.commit+":"+f) + "\n"; got != data {
					t.Errorf("%s: %s: %s holds %q in %s, want %q", when, p.sc.Promotion, p.commit, got, f, data)
				}
			}
		}
		if got := strings.Count(b.git("log", "--format=%s", "--first-parent", "main"), "foreign"); got != foreign {
			t.Errorf("%s: %d of %d foreign commits are on the branch", when, got, foreign)
		}
	}
	check("at the end")
	// Everything that succeeded once more, by a new process: nothing happens twice,
	// and what was there then is not put back over what others did since.
	tip := b.tip()
	b.restart()
	for _, p := range all {
		if p.commit == "" {
			continue
		}
		r, err := p.run()
		if p.made && (err != nil || r.Output["commit"] != p.commit) || !p.made && err != nil && !errors.Is(err, steps.ErrConflict) {
			t.Errorf("again: %s: %v, %v; want %s", p.sc.Promotion, r.Output, err, p.commit)
		}
	}
	if b.tip() != tip {
		t.Errorf("the branch moved on: %s", b.git("log", "--format=%h %s", tip+"..main"))
	}
	t.Logf("%d promotions: %v; %d foreign commits", len(all), counts, foreign)
	b.check()
}
