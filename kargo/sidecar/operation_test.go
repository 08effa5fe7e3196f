package sidecar_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/kargo/sidecar"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// inBubble runs a test in which time passes when everybody waits for it.
func inBubble(t *testing.T, f func(t *testing.T, b *bench), change ...func(*sidecar.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, change...)
		f(t, b)
		b.server.Drain(0)
	})
}

// slow is a step that runs until it is released or cancelled, which it reports.
type slow struct {
	release chan struct{}
	ended   chan error
}

func newSlow() *slow { return &slow{make(chan struct{}), make(chan error, 100)} }

func (s *slow) run(ctx context.Context, _ *steps.Context) (steps.Result, error) {
	select {
	case <-s.release:
		s.ended <- nil
		return steps.Result{Status: steps.Succeeded, Message: "released"}, nil
	case <-ctx.Done():
		s.ended <- context.Cause(ctx)
		return steps.Result{Status: steps.Errored}, context.Cause(ctx)
	}
}

// posting sends a request on the side.
func (p *promotion) posting() <-chan wire.Answer {
	answers := make(chan wire.Answer, 1)
	at := *p
	go func() {
		_, a := at.b.send(at.request())
		answers <- a
	}()
	return answers
}

// givenUp sends a request whose sender leaves at once.
func (p *promotion) givenUp() {
	ctx, cancel := context.WithCancel(p.b.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.b.send(p.request().WithContext(ctx))
	}()
	synctest.Wait()
	cancel()
	<-done
}

func TestLongWork(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		step := newSlow()
		b.does(step.run)
		p := b.promote("acme", "p1")
		for range 3 {
			begin := time.Now()
			if a := p.post(); a.Status != steps.Running {
				t.Fatalf("answered %s: %s", a.Status, a.Message)
			}
			if took := time.Since(begin); took >= wire.RequestTimeout || took < 30*time.Second {
				t.Errorf("answered Running after %s", took)
			}
			time.Sleep(wire.PollInterval)
		}
		first, second := p.posting(), p.posting()
		synctest.Wait()
		close(step.release)
		for _, a := range []wire.Answer{<-first, <-second} {
			if a.Status != steps.Succeeded || a.Message != "released" {
				t.Errorf("answered %s: %s", a.Status, a.Message)
			}
		}
		if a := p.post(); a.Message != "released" {
			t.Errorf("afterwards: %s: %s", a.Status, a.Message)
		}
		if n := b.attempts(); n != 1 {
			t.Errorf("the step ran %d times", n)
		}
	})
}

// TestAttempts says for every relation of a request to what happened before
// whether the step runs again.
func TestAttempts(t *testing.T) {
	const file = "out.yaml"
	write := func(_ context.Context, sc *steps.Context) (steps.Result, error) {
		err := os.WriteFile(filepath.Join(sc.WorkDir, file), []byte("written\n"), 0o600)
		return steps.Result{Status: steps.Succeeded, Message: "wrote", Output: map[string]any{"path": file}}, err
	}
	for _, tc := range []struct {
		reason string
		// between the first answer and the second request
		between func(b *bench, p *promotion)
		runs    int
		stale   bool
	}{
		{"the same attempt: the answer is kept", func(*bench, *promotion) {}, 1, false},
		{"the answer was lost", func(_ *bench, p *promotion) { p.at.ErrorCount++ }, 1, false},
		{"the sidecar was restarted", func(b *bench, p *promotion) { b.restart(); p.at.ErrorCount += 3 }, 1, false},
		{"the same time with a fraction, as within Kargo's first pass", func(_ *bench, p *promotion) {
			p.at.StartedAt = p.at.StartedAt.Add(123 * time.Millisecond)
		}, 1, false},
		{"a later step changed the file", func(b *bench, p *promotion) {
			if err := os.WriteFile(filepath.Join(p.workDir(), file), []byte("changed\n"), 0o600); err != nil {
				b.t.Fatal(err)
			}
		}, 2, false},
		{"a later step removed the file", func(b *bench, p *promotion) {
			if err := os.Remove(filepath.Join(p.workDir(), file)); err != nil {
				b.t.Fatal(err)
			}
		}, 2, false},
		{"the file became a FIFO's symlink", func(b *bench, p *promotion) {
			path := filepath.Join(p.workDir(), file)
			if err := errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)); err != nil {
				b.t.Fatal(err)
			}
		}, 2, false},
		{"the work dir was lost and made again in the same second", func(_ *bench, p *promotion) {
			p.loseWorkDir()
			p.makeWorkDir()
		}, 2, false},
		{"the work dir was lost, and a restart of the sidecar, and the file is the same", func(b *bench, p *promotion) {
			p.loseWorkDir()
			p.makeWorkDir()
			if err := os.WriteFile(filepath.Join(p.workDir(), file), []byte("written\n"), 0o600); err != nil {
				b.t.Fatal(err)
			}
			b.restart()
		}, 2, false},
		{"Kargo started the step anew", func(_ *bench, p *promotion) { p.at.StartedAt = p.at.StartedAt.Add(time.Second) }, 2, false},
		{"the stored answer is damaged", func(b *bench, _ *promotion) {
			for _, f := range b.stored() {
				if err := os.WriteFile(f, []byte("{"), 0o600); err != nil {
					b.t.Fatal(err)
				}
			}
		}, 2, false},
		{"the stored answer is another step's", func(b *bench, _ *promotion) {
			mine := b.stored()
			b.promote("acme", "p2").post()
			b.runs = b.runs[:1]
			for _, f := range b.stored() {
				if f != mine[0] {
					if err := os.Rename(f, mine[0]); err != nil {
						b.t.Fatal(err)
					}
				}
			}
		}, 2, false},
		{"an older attempt", func(_ *bench, p *promotion) { p.at.StartedAt = p.at.StartedAt.Add(-time.Second) }, 1, true},
		{"an older attempt, after a restart", func(b *bench, p *promotion) {
			b.restart()
			p.at.StartedAt = p.at.StartedAt.Add(-time.Second)
		}, 1, true},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.does(write)
				p := b.promote("acme", "p1")
				first := p.post()
				tc.between(b, p)
				code, second := b.send(p.request())
				switch {
				case tc.stale && (code != http.StatusConflict || second.Status != steps.Failed):
					t.Errorf("a stale request was answered %d, %s", code, second.Status)
				case !tc.stale && (second.Status != first.Status || second.Message != first.Message || second.Output["path"] != file):
					t.Errorf("answered %+v, then %+v", first, second)
				}
				if n := b.attempts(); n != tc.runs {
					t.Errorf("the step ran %d times, want %d", n, tc.runs)
				}
			})
		})
	}
}

// stored are the files of kept answers.
func (b *bench) stored() []string {
	b.t.Helper()
	files, err := filepath.Glob(filepath.Join(b.opts.StateDir, "operations", "*"))
	if err != nil {
		b.t.Fatal(err)
	}
	return files
}

// TestNoPlaceForAnswers: an answer that cannot be kept is given all the same.
// What Kargo does not hear then is done again.
func TestNoPlaceForAnswers(t *testing.T) {
	b := newBench(t)
	if err := os.RemoveAll(filepath.Join(b.opts.StateDir, "operations")); err != nil {
		t.Fatal(err)
	}
	p := b.promote("acme", "p1")
	for range 2 {
		if a := p.post(); a.Status != steps.Succeeded {
			t.Errorf("answered %s: %s", a.Status, a.Message)
		}
	}
	if n := b.attempts(); n != 2 || !strings.Contains(b.log.String(), "cannot keep an answer") {
		t.Errorf("%d attempts; log: %s", n, b.log)
	}
	// Nor is one that says it wrote a file which is not there.
	b.restart()
	b.does(func(context.Context, *steps.Context) (steps.Result, error) {
		return steps.Result{Status: steps.Succeeded, Output: map[string]any{"path": "../elsewhere"}}, nil
	})
	q := b.promote("acme", "p2")
	if q.post(); len(b.stored()) != 0 {
		t.Errorf("kept %v", b.stored())
	}
}

func TestErrorCountsGoUp(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		step := newSlow()
		b.does(step.run)
		p := b.promote("acme", "p1")
		p.at.ErrorCount = 2
		p.givenUp()
		p.at.ErrorCount = 1
		if code, a := b.send(p.request()); code != http.StatusConflict {
			t.Errorf("a smaller error count joined: %d, %s", code, a.Message)
		}
		p.at.ErrorCount = 5
		p.givenUp()
		p.at.ErrorCount = 4
		if code, a := b.send(p.request()); code != http.StatusConflict {
			t.Errorf("a smaller error count than the greatest joined: %d, %s", code, a.Message)
		}
		p.at.ErrorCount = 5
		answer := p.posting()
		synctest.Wait()
		close(step.release)
		if a := <-answer; a.Status != steps.Succeeded || b.attempts() != 1 {
			t.Errorf("answered %s after %d attempts", a.Message, b.attempts())
		}
		p.at.ErrorCount = 4
		if code, a := b.send(p.request()); code != http.StatusConflict {
			t.Errorf("a smaller error count got the stored answer: %d, %s", code, a.Message)
		}
	})
}

// TestNeverTwoAtATime: what was started before is cancelled, and has ended
// before anything else of the Promotion begins.
func TestNeverTwoAtATime(t *testing.T) {
	for _, tc := range []struct {
		reason string
		again  func(p *promotion)
	}{
		{"Kargo started the step anew", func(p *promotion) { p.at.StartedAt = p.at.StartedAt.Add(time.Second) }},
		{"in the same second, in a new work dir", func(p *promotion) { p.loseWorkDir(); p.makeWorkDir() }},
		{"Kargo went back to another step", func(p *promotion) {
			p.claims.Alias = "task::earlier"
			var err error
			if p.token, err = wire.Sign(p.b.key, p.claims); err != nil {
				p.b.t.Fatal(err)
			}
			p.change(func(o *kargoapi.Promotion) {
				o.Spec.Steps = append(o.Spec.Steps, kargoapi.PromotionStep{Uses: "http", As: p.claims.Alias, Config: stepConfig(p.token)})
			})
		}},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				cancelled, mayEnd := make(chan struct{}), make(chan struct{})
				b.does(func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
					<-ctx.Done()
					close(cancelled)
					<-mayEnd // it takes its time
					return steps.Result{}, ctx.Err()
				})
				p := b.promote("acme", "p1")
				p.givenUp()
				b.does(func(context.Context, *steps.Context) (steps.Result, error) {
					return steps.Result{Status: steps.Succeeded, Message: "new"}, nil
				})
				tc.again(p)
				answer := p.posting()
				<-cancelled
				synctest.Wait()
				if n := b.attempts(); n != 1 {
					t.Fatalf("%d attempts before the first has ended", n)
				}
				// A request that has to wait for too long comes again.
				if a := <-answer; a.Status != steps.Running {
					t.Errorf("answered %s: %s", a.Status, a.Message)
				}
				close(mayEnd)
				if a := p.post(); a.Message != "new" || b.attempts() != 2 {
					t.Errorf("answered %s: %s after %d attempts", a.Status, a.Message, b.attempts())
				}
			})
		})
	}
}

// TestKargoHasGivenUp: an operation that Kargo does not want any more is
// cancelled, soon and without anybody asking.
func TestKargoHasGivenUp(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		reason string
		happen func(b *bench, p *promotion)
		within time.Duration
		says   string
	}{
		{"aborted", func(_ *bench, p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.Annotations[kargoapi.AnnotationAbort] = "terminate" })
		}, 3 * time.Second, "aborted"},
		{"over", func(_ *bench, p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.Status.Phase = kargoapi.PromotionErrored })
		}, 3 * time.Second, "Errored"},
		{"being deleted", func(_ *bench, p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.DeletionTimestamp = &now })
		}, 3 * time.Second, "deleted"},
		{"gone", func(b *bench, _ *promotion) {
			b.cluster.mu.Lock()
			defer b.cluster.mu.Unlock()
			delete(b.cluster.promotions, "acme/p1")
		}, 3 * time.Second, "deleted"},
		{"replaced by another of the same name", func(_ *bench, p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.UID = "another" })
		}, 3 * time.Second, "replaced"},
		{"the work dir is lost", func(_ *bench, p *promotion) { p.loseWorkDir() }, 3 * time.Second, "work dir"},
		{"the step is over, and the Promotion is at the next one", func(_ *bench, p *promotion) {
			time.Sleep(1500 * time.Millisecond)
			p.finishStep(time.Now())
		}, 5 * time.Second, "over"},
		{"nobody asks any more", func(*bench, *promotion) {}, 11 * time.Minute, "nobody has asked"},
		{"nobody asks, and the API server is down", func(b *bench, _ *promotion) {
			b.cluster.mu.Lock()
			defer b.cluster.mu.Unlock()
			b.cluster.down = errors.New("down")
		}, 11 * time.Minute, "nobody has asked"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				step := newSlow()
				b.does(step.run)
				p := b.promote("acme", "p1", func(c *wire.Claims) { c.Retry.Timeout = time.Hour })
				p.givenUp()
				begin := time.Now()
				tc.happen(b, p)
				err := <-step.ended
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("it ended with %v", err)
				}
				if took := time.Since(begin); took > tc.within {
					t.Errorf("after %s, want at most %s", took, tc.within)
				}
				b.server.Drain(time.Minute)
				if files := b.stored(); len(files) != 0 {
					t.Errorf("an answer was kept: %v", files)
				}
			})
		})
	}
	t.Run("control: Kargo ended the step before it began again", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			step := newSlow()
			b.does(step.run)
			p := b.promote("acme", "p1")
			p.finishStep(time.Now()) // and then the work dir was lost
			answer := p.posting()
			time.Sleep(10 * time.Second)
			close(step.release)
			if a := <-answer; a.Message != "released" {
				t.Errorf("answered %s: %s", a.Status, a.Message)
			}
		})
	})
	t.Run("control: it goes on while it is asked for", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			step := newSlow()
			b.does(step.run)
			p := b.promote("acme", "p1", func(c *wire.Claims) { c.Retry.Timeout = 3 * time.Hour })
			for range 8 {
				if a := p.post(); a.Status != steps.Running {
					t.Fatal(a.Message)
				}
				time.Sleep(9 * time.Minute) // Kargo backs off
			}
			close(step.release)
			if a := p.post(); a.Message != "released" || b.attempts() != 1 {
				t.Errorf("answered %s after %d attempts", a.Message, b.attempts())
			}
		})
	})
	t.Run("who waits is told", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			b.does(newSlow().run)
			p := b.promote("acme", "p1")
			answer := p.posting()
			synctest.Wait()
			p.change(func(o *kargoapi.Promotion) { o.Annotations[kargoapi.AnnotationAbort] = "terminate" })
			// Not Failed: Kargo shall say that somebody aborted it.
			if a := <-answer; a.Status != steps.Running || !strings.Contains(a.Message, "aborted") {
				t.Errorf("answered %s: %s", a.Status, a.Message)
			}
		})
	})
}

func TestDeadline(t *testing.T) {
	for _, tc := range []struct {
		reason string
		retry  wire.Retry
		meta   steps.Metadata
		want   time.Duration
	}{
		{"the user's", wire.Retry{Timeout: 5 * time.Minute}, steps.Metadata{DefaultTimeout: time.Minute}, 5 * time.Minute},
		{"the step's", wire.Retry{}, steps.Metadata{DefaultTimeout: 2 * time.Minute}, 2 * time.Minute},
		{"nobody's", wire.Retry{}, steps.Metadata{}, time.Hour},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.meta = tc.meta
				b.restart()
				step := newSlow()
				b.does(step.run)
				p := b.promote("acme", "p1", func(c *wire.Claims) { c.Retry = tc.retry })
				a := p.post()
				for a.Status == steps.Running {
					a = p.post()
				}
				want := fmt.Sprintf(`step 'task::step' timed out after %s`, tc.want)
				if a.Status != steps.Errored || a.Message != want {
					t.Errorf("answered %s: %s, want %s", a.Status, a.Message, want)
				}
				if took := time.Since(p.at.StartedAt); took < tc.want || took > tc.want+time.Second {
					t.Errorf("after %s", took)
				}
				if err := <-step.ended; err == nil {
					t.Error("the step was not cancelled")
				}
				// It stays over.
				if again := p.post(); again.Message != want || b.attempts() != 1 {
					t.Errorf("then %s, %d attempts", again.Message, b.attempts())
				}
			})
		})
	}
	t.Run("without a turn", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			b.does(newSlow().run)
			b.promote("acme", "p1").givenUp()
			p := b.promote("acme", "p2", func(c *wire.Claims) { c.Retry.Timeout = 30 * time.Second })
			if a := p.post(); a.Status != steps.Errored || !strings.Contains(a.Message, "no turn") || b.attempts() != 1 {
				t.Errorf("answered %s: %s", a.Status, a.Message)
			}
		}, func(o *sidecar.Options) { o.MaxRunning = 1 })
	})
	t.Run("before it is asked for", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			p := b.promote("acme", "p1", func(c *wire.Claims) { c.Retry.Timeout = time.Minute })
			time.Sleep(2 * time.Minute)
			if a := p.post(); a.Status != steps.Errored || b.attempts() != 0 {
				t.Errorf("answered %s: %s after %d attempts", a.Status, a.Message, b.attempts())
			}
		})
	})
}

// TestRetry: the user's policy is applied here, by Kargo's rules.
func TestRetry(t *testing.T) {
	fails := errors.New("no luck")
	for _, tc := range []struct {
		reason    string
		threshold uint32
		results   []steps.Result
		errs      []error
		status    steps.Status
		message   string
		runs      int
	}{
		{"no retry by default", 0, nil, []error{fails}, steps.Errored, `step 'task::step' met error threshold of 1: no luck`, 1},
		{"as often as asked for", 3, nil, []error{fails, fails, fails}, steps.Errored, `step 'task::step' met error threshold of 3: no luck`, 3},
		{"success after errors", 3, nil, []error{fails, fails, nil}, steps.Succeeded, "", 3},
		{"terminal errors are not retried", 3, nil, []error{steps.Terminal(fails)}, steps.Errored, "an unrecoverable error occurred: no luck", 1},
		{"a failure that is terminal", 3, []steps.Result{{Status: steps.Failed}}, []error{steps.Terminal(fails)}, steps.Failed, "no luck", 1},
		{"Errored without an error", 1, []steps.Result{{Status: steps.Errored}}, []error{nil}, steps.Errored,
			`step 'task::step' met error threshold of 1: step 'task::step' errored: no details provided`, 1},
		{"Running is asked again", 1, []steps.Result{{Status: steps.Running}, {Status: steps.Running}, {Status: steps.Skipped}}, []error{nil, nil, nil}, steps.Succeeded, "", 3},
		{"an unknown status", 1, []steps.Result{{Status: "Odd"}}, []error{nil}, steps.Errored, `step 'task::step' returned an invalid status: Odd`, 1},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				n := 0
				b.does(func(context.Context, *steps.Context) (steps.Result, error) {
					r := steps.Result{Status: steps.Succeeded}
					err := tc.errs[n]
					if n < len(tc.results) {
						r = tc.results[n]
					} else if err != nil {
						r.Status = steps.Errored
					}
					n++
					return r, err
				})
				p := b.promote("acme", "p1", func(c *wire.Claims) { c.Retry.ErrorThreshold = tc.threshold })
				a := p.post()
				for a.Status == steps.Running {
					a = p.post()
				}
				if a.Status != tc.status || a.Message != tc.message || b.attempts() != tc.runs {
					t.Errorf("after %d attempts %s: %s\nwant %d, %s: %s", b.attempts(), a.Status, a.Message, tc.runs, tc.status, tc.message)
				}
			})
		})
	}
	t.Run("errors before a restart of the sidecar count", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			b.does(func(context.Context, *steps.Context) (steps.Result, error) { return steps.Result{}, fails })
			p := b.promote("acme", "p1", func(c *wire.Claims) { c.Retry = wire.Retry{ErrorThreshold: 12, Timeout: 2 * time.Hour} })
			for b.attempts() < 5 {
				p.givenUp()
				time.Sleep(time.Second)
			}
			b.server.Drain(0)
			before := b.attempts()
			b.restart()
			p.at.ErrorCount++
			a := p.post()
			for a.Status == steps.Running {
				a = p.post()
			}
			if a.Status != steps.Errored || b.attempts() != 12 {
				t.Errorf("%d attempts before and %d after the restart: %s", before, b.attempts()-before, a.Message)
			}
		})
	})
}

// TestConfigs that Kargo could not evaluate natively either.
func TestConfigs(t *testing.T) {
	for _, tc := range []struct {
		reason, config string
		status         steps.Status
		says           string
	}{
		{"control", `{"x":{"$t":["v",["[1]"],""]}}`, steps.Succeeded, "map[x:v1]"},
		{"a number beyond float64", `{"x":1e999}`, steps.Errored, "failed to build step context: failed to get step config: number 1e999"},
		{"a character that Kargo's decoder refuses: no config", `{"x":{"$t":["","\u007f",""]}}`, steps.Succeeded, "map[]"},
	} {
		b := newBench(t)
		b.does(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Succeeded, Message: fmt.Sprint(sc.Config)}, nil
		})
		_, skeleton, _ := wire.DecodeConfig([]byte(tc.config))
		p := b.promote("acme", "p1", func(c *wire.Claims) { c.Skeleton = skeleton })
		p.config = []byte(tc.config)
		if a := p.post(); a.Status != tc.status || !strings.Contains(a.Message, tc.says) {
			t.Errorf("%s: %s: %s", tc.reason, a.Status, a.Message)
		}
	}
}

// TestAPIServerInBetween: what is known of a Promotion is read when its step
// runs. An API server that does not answer is waited for; what it will not say
// tomorrow either, is not.
func TestAPIServerInBetween(t *testing.T) {
	for _, tc := range []struct {
		reason string
		stage  error
		change func(p *promotion)
		status steps.Status
		says   string
	}{
		{"control: there is no Stage any more", cluster.ErrNotFound, nil, steps.Succeeded, "ran"},
		{"control: no Freight is named", cluster.ErrNotFound, func(p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.Spec.Freight = "" })
		}, steps.Succeeded, "ran"},
		{"it does not answer", errors.New("down"), nil, steps.Running, "cannot ask the API server yet: down"},
		{"it does not allow it", &cluster.StatusError{Code: 403, Message: "no"}, nil, steps.Errored, "403"},
		{"the state is no object", cluster.ErrNotFound, func(p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.Status.State = []byte(`[1]`) })
		}, steps.Errored, "its state"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.opts.Cluster = stagelessCluster{b.cluster, tc.stage}
				b.restart()
				p := b.promote("acme", "p1")
				if tc.change != nil {
					tc.change(p)
				}
				if a := p.post(); a.Status != tc.status || !strings.Contains(a.Message, tc.says) {
					t.Errorf("answered %s: %s", a.Status, a.Message)
				}
			})
		})
	}
}

type stagelessCluster struct {
	*memoryCluster
	err error
}

func (c stagelessCluster) Stage(context.Context, string, string) (*kargoapi.Stage, error) {
	return nil, c.err
}

// TestAPIServerThatJustStarted: for a moment it allows nothing to anybody.
func TestAPIServerThatJustStarted(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		p := b.promote("acme", "p1")
		allow := func(err error) {
			b.cluster.mu.Lock()
			defer b.cluster.mu.Unlock()
			b.cluster.down = err
		}
		allow(&cluster.StatusError{Code: http.StatusForbidden})
		time.AfterFunc(2*time.Second, func() { allow(nil) })
		if a := p.post(); a.Status != steps.Succeeded {
			t.Errorf("answered %s: %s", a.Status, a.Message)
		}
	})
}

func TestPending(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		p := b.promote("acme", "p1")
		p.change(func(o *kargoapi.Promotion) { o.Status.Phase = kargoapi.PromotionPending })
		if a := p.post(); a.Status != steps.Running || b.attempts() != 0 {
			t.Errorf("answered %s: %s after %d attempts", a.Status, a.Message, b.attempts())
		}
		answer := p.posting()
		time.Sleep(time.Second)
		p.change(func(o *kargoapi.Promotion) { o.Status.Phase = kargoapi.PromotionRunning })
		if a := <-answer; a.Status != steps.Succeeded {
			t.Errorf("answered %s: %s", a.Status, a.Message)
		}
		p.change(func(o *kargoapi.Promotion) {
			o.Status.Phase, o.Annotations[kargoapi.AnnotationAbort] = kargoapi.PromotionPending, "terminate"
		})
		if a := p.post(); a.Status != steps.Running || !strings.Contains(a.Message, "aborted") {
			t.Errorf("a pending Promotion that is aborted: %s: %s", a.Status, a.Message)
		}
	})
}

// TestTooMany: whoever cannot be served now is asked to come again.
func TestTooMany(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		step := newSlow()
		b.does(step.run)
		all := []*promotion{b.promote("acme", "p1"), b.promote("acme", "p2"), b.promote("acme", "p3")}
		for _, p := range all[:2] {
			p.givenUp()
		}
		if n := b.attempts(); n != 1 {
			t.Errorf("%d attempts at once, want 1", n)
		}
		begin := time.Now()
		if a := all[2].post(); a.Status != steps.Running || !strings.Contains(a.Message, "turn") || time.Since(begin) > time.Second {
			t.Errorf("answered %s: %s", a.Status, a.Message)
		}
		if a := all[1].post(); a.Status != steps.Running || a.Message != "waiting for a turn" {
			t.Errorf("answered %s: %s", a.Status, a.Message)
		}
		close(step.release)
		for _, p := range all {
			if a := p.post(); a.Status != steps.Succeeded {
				t.Errorf("answered %s: %s", a.Status, a.Message)
			}
		}
		if n := b.attempts(); n != 3 {
			t.Errorf("%d attempts, want 3", n)
		}
	}, func(o *sidecar.Options) { o.MaxRunning, o.MaxOperations = 1, 2 })
}

func TestPanics(t *testing.T) {
	b := newBench(t)
	b.does(func(context.Context, *steps.Context) (steps.Result, error) { panic("ouch") })
	if a := b.promote("acme", "p1").post(); a.Status != steps.Errored || a.Message != "an unrecoverable error occurred: step panicked: ouch" {
		t.Errorf("a step: %s: %s", a.Status, a.Message)
	}
	b.opts.Cluster = brokenCluster{b.cluster}
	b.restart()
	code, a := b.send(b.promote("acme", "p2").request())
	if code != http.StatusInternalServerError || a.Status != steps.Failed || strings.Contains(a.Message, "ouch") {
		t.Errorf("the sidecar itself: %d, %s: %s", code, a.Status, a.Message)
	}
}

// brokenCluster stands for a defect of the sidecar's own.
type brokenCluster struct{ *memoryCluster }

func (brokenCluster) Promotion(context.Context, string, string) (*kargoapi.Promotion, error) {
	panic("ouch")
}

// TestCheckPush is the last question before anything leaves.
func TestCheckPush(t *testing.T) {
	for _, tc := range []struct {
		reason  string
		happen  func(b *bench, p *promotion)
		allowed bool
		ends    bool // and the operation with it
	}{
		{"control: it runs", func(*bench, *promotion) {}, true, false},
		{"aborted a moment ago", func(_ *bench, p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.Annotations[kargoapi.AnnotationAbort] = "terminate" })
		}, false, true},
		{"over", func(_ *bench, p *promotion) {
			p.change(func(o *kargoapi.Promotion) { o.Status.Phase = kargoapi.PromotionFailed })
		}, false, true},
		{"replaced", func(_ *bench, p *promotion) { p.change(func(o *kargoapi.Promotion) { o.UID = "other" }) }, false, true},
		{"the API server does not answer", func(b *bench, _ *promotion) { b.cluster.down = errors.New("down") }, false, false},
		{"the work dir is gone", func(_ *bench, p *promotion) { p.loseWorkDir() }, false, true},
		{"Kargo has ended the step", func(_ *bench, p *promotion) { p.finishStep(time.Now().Add(time.Second)) }, false, true},
		{"control: another step has ended", func(_ *bench, p *promotion) {
			p.finishStep(time.Now().Add(time.Second))
			p.change(func(o *kargoapi.Promotion) { o.Status.StepExecutionMetadata[0].Alias = "before" })
		}, true, false},
		{"the key of the step's token was thrown away", func(b *bench, _ *promotion) {
			other, _, err := ed25519.GenerateKey(nil)
			if err != nil {
				b.t.Error(err)
			}
			b.keys = []ed25519.PublicKey{other}
		}, false, true},
		{"the keys cannot be read", func(b *bench, _ *promotion) { b.noKeys = errors.New("no keys") }, false, false},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				type verdict struct{ push, ctx error }
				verdicts := make(chan verdict, 1)
				p := b.promote("acme", "p1")
				pusher := gitrepo.Pusher{Project: "acme", Promotion: "p1", Alias: "task::step"}
				b.does(func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
					tc.happen(b, p)
					err := b.edges.CheckPush(context.Background(), pusher)
					verdicts <- verdict{err, ctx.Err()}
					return steps.Result{Status: steps.Succeeded}, nil
				})
				p.post()
				v := <-verdicts
				if (v.push == nil) != tc.allowed || (v.ctx != nil) != tc.ends {
					t.Errorf("checkPush: %v; the operation: %v", v.push, v.ctx)
				}
				if err := b.edges.CheckPush(t.Context(), pusher); err == nil {
					t.Error("something may be pushed after the step has ended")
				}
			})
		})
	}
}

// TestCheckPushOfAReplacedPromotion: while there are operations of a Promotion
// and of the one that replaced it, neither speaks for the other.
func TestCheckPushOfAReplacedPromotion(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		old := b.promote("acme", "p1")
		release := make(chan struct{})
		b.does(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			if sc.WorkDir == old.workDir() {
				<-release // does not hear that it was cancelled
			} else {
				time.Sleep(time.Hour)
			}
			return steps.Result{Status: steps.Succeeded}, nil
		})
		old.givenUp()
		replacement := *old
		replacement.uid = "another"
		replacement.makeWorkDir()
		replacement.change(func(o *kargoapi.Promotion) { o.UID = replacement.uid })
		replacement.givenUp()
		pusher := gitrepo.Pusher{Project: "acme", Promotion: "p1", Alias: "task::step"}
		for range 50 { // whichever is found first
			if err := b.edges.CheckPush(t.Context(), pusher); err == nil {
				t.Fatal("something may be pushed for a Promotion that was replaced")
			}
		}
		close(release)
		synctest.Wait()
		if err := b.edges.CheckPush(t.Context(), pusher); err != nil {
			t.Errorf("nothing may be pushed for the Promotion that is there: %v", err)
		}
	})
}

func TestDrain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		step := newSlow()
		b.does(step.run)
		p, q := b.promote("acme", "p1"), b.promote("acme", "p2")
		waiting := p.posting()
		synctest.Wait()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			b.server.Drain(30 * time.Second)
		}()
		begin := time.Now()
		if a := <-waiting; a.Status != steps.Running || time.Since(begin) > time.Second {
			t.Errorf("who waits is answered %s: %s", a.Status, a.Message)
		}
		if a := q.post(); a.Status != steps.Running {
			t.Errorf("who comes is answered %s: %s", a.Status, a.Message)
		}
		<-drained
		if err := <-step.ended; err == nil || time.Since(begin) < 30*time.Second {
			t.Errorf("it ended with %v after %s", err, time.Since(begin))
		}
		b.restart()
		close(step.release)
		for _, p := range []*promotion{p, q} {
			p.at.ErrorCount++
			if a := p.post(); a.Status != steps.Succeeded {
				t.Errorf("after a restart: %s: %s", a.Status, a.Message)
			}
		}
	})
}
