package atomiccommit_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
)

// fault answers instead of the backend, or calls it.
type fault func(w http.ResponseWriter, r *http.Request, backend http.Handler)

func status(code int, header ...string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		http.Error(w, "no", code)
	}
}

// cut drops the connection without an answer.
func cut(_ http.ResponseWriter, _ *http.Request, _ http.Handler) { panic(http.ErrAbortHandler) }

// cutInside reads half of the request first.
func cutInside(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
	panic(http.ErrAbortHandler)
}

// cutAfter lets the backend do its work and drops the connection instead of
// answering.
func cutAfter(_ http.ResponseWriter, r *http.Request, backend http.Handler) {
	backend.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// cutAnswer sends only the beginning of the answer.
func cutAnswer(w http.ResponseWriter, r *http.Request, backend http.Handler) {
	rec := httptest.NewRecorder()
	backend.ServeHTTP(rec, r)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// answer is a 200 of the right type with that body, without asking the backend.
func answer(body string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/x-git-receive-pack-result")
		_, _ = io.WriteString(w, body)
	}
}

// answerAfter does the work, then answers so.
func answerAfter(body string) fault {
	return func(w http.ResponseWriter, r *http.Request, backend http.Handler) {
		backend.ServeHTTP(httptest.NewRecorder(), r)
		w.Header().Set("Content-Type", "application/x-git-receive-pack-result")
		_, _ = io.WriteString(w, body)
	}
}

// stall never answers; it ends with the client.
func stall(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// truncated ends the pack of a fetch early, in a well-formed HTTP answer.
func truncated(w http.ResponseWriter, r *http.Request, backend http.Handler) {
	rec := httptest.NewRecorder()
	backend.ServeHTTP(rec, r)
	body := rec.Body.Bytes()
	w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
	_, _ = w.Write(body[:len(body)*2/3])
}

// corrupted flips a byte in the answer.
func corrupted(w http.ResponseWriter, r *http.Request, backend http.Handler) {
	rec := httptest.NewRecorder()
	backend.ServeHTTP(rec, r)
	body := bytes.Clone(rec.Body.Bytes())
	if len(body) > 60 {
		body[len(body)-40] ^= 0xff
	}
	w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
	_, _ = w.Write(body)
}

func isPush(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/git-receive-pack") }
func isRead(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/git-upload-pack") }
func isAny(*http.Request) bool    { return true }

// inject makes the first times requests that match meet a fault; -1 is all.
func (b *bench) inject(match func(*http.Request) bool, times int, f fault) {
	var n atomic.Int64
	b.Wrap(func(backend http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if match(r) && (times < 0 || n.Add(1) <= int64(times)) {
				f(w, r, backend)
				return
			}
			backend.ServeHTTP(w, r)
		})
	})
}

// report builds the body of a push's answer.
func report(lines ...string) string {
	var in strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&in, "%04x%s", len(l)+4, l)
	}
	in.WriteString("0000")
	return fmt.Sprintf("%04x\x01%s0000", in.Len()+5, in.String())
}

func TestServerFailsAndRecovers(t *testing.T) {
	for reason, tc := range map[string]struct {
		match func(*http.Request) bool
		times int
		fault fault
	}{
		"500 on everything, three times":        {isAny, 3, status(500)},
		"502 on the push":                       {isPush, 2, status(502)},
		"503 on reads":                          {isRead, 2, status(503)},
		"429 with Retry-After":                  {isPush, 1, status(429, "Retry-After", "1")},
		"connection cut before the push":        {isPush, 2, cut},
		"connection cut inside the push":        {isPush, 2, cutInside},
		"connection cut after the push":         {isPush, 1, cutAfter},
		"connection cut inside the report":      {isPush, 1, cutAnswer},
		"connection cut on a read":              {isRead, 2, cut},
		"connection cut inside a read's answer": {isRead, 2, cutAnswer},
		"200 with an empty body, nothing done":  {isPush, 2, answer("")},
		"200 with an empty body, but done":      {isPush, 1, answerAfter("")},
		"a report about another reference":      {isPush, 2, answer(report("unpack ok\n", "ok refs/heads/other\n"))},
		"a report without references":           {isPush, 2, answer(report("unpack ok\n"))},
		"a report that unpacking failed":        {isPush, 2, answer(report("unpack index-pack abnormal exit\n", "ng refs/heads/main unpacker error\n"))},
		"refused, though it was done":           {isPush, 1, answerAfter(report("unpack ok\n", "ng refs/heads/main failed to update ref\n"))},
		"refused ref update (lock contention)":  {isPush, 3, answer(report("unpack ok\n", "ng refs/heads/main failed to update ref\n"))},
		"an HTML page from a proxy":             {isAny, 2, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = io.WriteString(w, "<html>") }},
		"garbage for a report":                  {isPush, 2, answer("what?")},
		"the pack of a fetch truncated":         {isRead, 3, truncated},
		"the pack of a fetch corrupted":         {isRead, 3, corrupted},
		"the server stalls on a read":           {isRead, 1, stall},
		"the server stalls on the push":         {isPush, 1, stall},
		"an error inside the protocol": {isRead, 2, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
			_, _ = io.WriteString(w, "000cERR oops")
		}},
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(o *atomiccommit.Options) {
				o.Dialer = gitrepo.NewLive(gitrepo.LiveOptions{RequestTimeout: 3 * time.Second})
			})
			b.seed(map[string]string{"a.yaml": "1\n"})
			b.inject(tc.match, tc.times, tc.fault)
			out := b.promote(name(1), map[string]string{"a.yaml": "2\n"}).must()
			b.Wrap(nil)
			if out["commit"] != b.tip() || b.git("rev-list", "--count", "main") != "2" {
				t.Errorf("output %v, tip %s, %s commits", out, b.tip(), b.git("rev-list", "--count", "main"))
			}
			b.check()
		})
	}
}

func TestServerRefusesForGood(t *testing.T) {
	for reason, tc := range map[string]struct {
		match    func(*http.Request) bool
		fault    fault
		code     int
		requests int
	}{
		"401":                  {isAny, status(401), 401, 1},
		"403":                  {isAny, status(403), 403, 2}, // once more, to learn what the server can do
		"404":                  {isAny, status(404), 404, 2},
		"403 on the push only": {isPush, status(403), 403, 5},
	} {
		t.Run(reason, func(t *testing.T) {
			b := newBench(t)
			before := b.seed(map[string]string{"a.yaml": "1\n"})
			b.inject(tc.match, -1, tc.fault)
			b.ResetStats()
			r, err := b.promote(name(1), map[string]string{"a.yaml": "2\n"}).run()
			var st *gitrepo.StatusError
			if !errors.As(err, &st) || st.Code != tc.code || !steps.IsTerminal(err) || r.Status != steps.Errored {
				t.Errorf("%s, %v; want a terminal %d", r.Status, err, tc.code)
			}
			if n := b.Stats().Requests; n > tc.requests {
				t.Errorf("%d requests, want it to end at once: %+v", n, b.Requests())
			}
			if b.tip() != before {
				t.Error("the branch moved")
			}
		})
	}
}

// hook installs a server-side hook.
func (b *bench) hook(name, script string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.Dir(repo), "hooks", name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		b.t.Fatal(err)
	}
}

func TestHookRefusal(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	b.hook("pre-receive", "echo 'policy 7: not today' >&2\nexit 1\n")
	b.ResetStats()
	_, err := b.promote(name(1), map[string]string{"a.yaml": "2\n"}).run()
	var rejected *gitrepo.RejectedError
	if !errors.As(err, &rejected) || !strings.Contains(err.Error(), "policy 7: not today") || !strings.Contains(err.Error(), "git-open-pr") {
		t.Errorf("err = %v, want the hook's words and the remedy", err)
	}
	if n := b.Stats().Pushes; n != 5 {
		t.Errorf("%d pushes, want 5 on an unchanged tip", n)
	}
}

// The files differ from those of the attempt before, and what was there then is
// gone from the server: nobody can tell whether something would be overwritten.
func TestBaseThatTheServerLost(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	hook := filepath.Join(b.Dir(repo), "hooks", "pre-receive")
	b.hook("pre-receive", "exit 1\n")
	if r, err := b.promote(name(1), map[string]string{"a.yaml": "2\n"}).run(); err == nil {
		t.Fatal(r)
	}
	if err := os.Remove(hook); err != nil {
		t.Fatal(err)
	}
	b.git("update-ref", "-d", "refs/heads/main")
	b.seed(map[string]string{"a.yaml": "other\n"})
	b.git("reflog", "expire", "--expire=now", "--all")
	b.git("gc", "--quiet", "--prune=now")
	b.restart()
	b.ResetStats()
	_, err := b.promote(name(1), map[string]string{"a.yaml": "3\n", "b.yaml": "3\n"}).run()
	if !errors.Is(err, steps.ErrConflict) || !steps.IsTerminal(err) || !strings.Contains(err.Error(), "promote again") {
		t.Errorf("err = %v, want a conflict", err)
	}
	if out := b.promote(name(2), map[string]string{"a.yaml": "3\n"}).must(); out["changed"] != true {
		t.Errorf("output = %v", out)
	}
	b.check()
}

func TestOneRefusedChangeDoesNotHoldUpTheOthers(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	b.hook("pre-receive", `while read old new ref; do
git diff --name-only $old $new | grep -q '^bad' && { echo 'bad file' >&2; exit 1; }
done
exit 0
`)
	// One goes first, so that the others gather behind it.
	const writers = 12
	var wg sync.WaitGroup
	var mu sync.Mutex
	results := map[string]error{}
	for i := range writers {
		file := fmt.Sprintf("good/%d.yaml", i)
		if i == 5 {
			file = "bad.yaml"
		}
		p := b.promote(name(i+1), map[string]string{file: "x\n"})
		wg.Go(func() {
			_, err := p.run()
			mu.Lock()
			defer mu.Unlock()
			results[file] = err
		})
	}
	wg.Wait()
	for file, err := range results {
		if (err != nil) != (file == "bad.yaml") {
			t.Errorf("%s: %v", file, err)
		}
	}
	if got := b.git("rev-list", "--count", "main"); got != fmt.Sprint(writers) {
		t.Errorf("%s commits, want %d", got, writers)
	}
	b.check()
}

func TestRealLockContention(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	lock := filepath.Join(b.Dir(repo), "refs", "heads", "main.lock")
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var pushes atomic.Int64
	b.Wrap(func(backend http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isPush(r) && pushes.Add(1) == 3 {
				_ = os.Remove(lock)
			}
			backend.ServeHTTP(w, r)
		})
	})
	if out := b.promote(name(1), map[string]string{"a.yaml": "2\n"}).must(); out["attempts"] != int64(3) {
		t.Errorf("output = %v, want 3 attempts", out)
	}
	b.check()
}

func TestMovedTip(t *testing.T) {
	for reason, tc := range map[string]struct {
		file string
		want error
	}{
		"another path is re-applied":      {"other.yaml", nil},
		"the same path is a conflict":     {"a.yaml", steps.ErrConflict},
		"a file below the same directory": {"dir/x.yaml", nil},
	} {
		for _, warm := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, warm %t", reason, warm), func(t *testing.T) {
				b := newBench(t)
				b.seed(map[string]string{"a.yaml": "1\n", "dir/y.yaml": "1\n"})
				if warm {
					b.promote(name(1), map[string]string{"warm.yaml": "1\n"}).must()
				}
				var foreign string
				var once sync.Once
				b.Wrap(func(backend http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if isPush(r) {
							once.Do(func() { foreign = b.seed(map[string]string{tc.file: "theirs\n"}) })
						}
						backend.ServeHTTP(w, r)
					})
				})
				p := b.promote(name(2), map[string]string{"a.yaml": "2\n", "dir/z.yaml": "2\n"})
				// A warm process pushes on a remembered tip: its first contact is the
				// push, and what came before that is overwritten like any old content.
				want := tc.want
				if warm {
					want = nil
				}
				r, err := p.run()
				if !errors.Is(err, want) {
					t.Fatalf("err = %v, want %v", err, want)
				}
				if want != nil {
					if !strings.Contains(err.Error(), foreign) {
						t.Errorf("error does not name %s: %v", foreign, err)
					}
					if b.tip() != foreign {
						t.Error("the branch moved")
					}
					return
				}
				if r.Output["attempts"] != int64(2) || b.git("rev-parse", "main~1") != foreign {
					t.Errorf("output %v; parent %s, want %s", r.Output, b.git("rev-parse", "main~1"), foreign)
				}
				b.check()
			})
		}
	}
}

func TestConflictAfterACrash(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	p := b.promote(name(1), map[string]string{"a.yaml": "2\n"})
	b.inject(isPush, -1, status(500))
	p.set(map[string]any{"deadline": "300ms"})
	if _, err := p.run(); err == nil {
		t.Fatal("the push succeeded")
	}
	b.Wrap(nil)
	foreign := b.seed(map[string]string{"a.yaml": "theirs\n"})
	b.restart()
	p.set(map[string]any{"deadline": "1m"})
	if _, err := p.run(); !errors.Is(err, steps.ErrConflict) || !strings.Contains(err.Error(), foreign) {
		t.Errorf("err = %v, want a conflict with %s: the intent says what the base was", err, foreign)
	}
	if b.tip() != foreign {
		t.Error("somebody's change was overwritten")
	}
}

func TestDeadlineAndAttempts(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	b.inject(isPush, -1, stall)
	start := time.Now()
	_, err := b.promote(name(1), map[string]string{"a.yaml": "2\n"}).set(map[string]any{"deadline": "500ms"}).run()
	if err == nil || steps.IsTerminal(err) {
		t.Errorf("err = %v, want one that can be retried", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	// Every push loses its race.
	n := 0
	b.Wrap(func(backend http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isPush(r) {
				n++
				b.seed(map[string]string{"theirs": fmt.Sprint(n)})
			}
			backend.ServeHTTP(w, r)
		})
	})
	if _, err := b.promote(name(2), map[string]string{"b.yaml": "2\n"}).set(map[string]any{"maxAttempts": 3}).run(); err == nil || !strings.Contains(err.Error(), "maxAttempts") {
		t.Errorf("err = %v", err)
	}
	if n != 3 {
		t.Errorf("%d pushes, want 3", n)
	}
}

func TestAbandonedWriterDoesNotHoldUpTheOthers(t *testing.T) {
	b := newBench(t)
	b.seed(map[string]string{"a.yaml": "1\n"})
	// The first push hangs until its writer gives up; the second writer waits
	// behind it with a deadline of its own.
	stalled := make(chan struct{})
	b.inject(isPush, 1, func(w http.ResponseWriter, r *http.Request, backend http.Handler) {
		close(stalled)
		stall(w, r, backend)
	})
	first := b.promote(name(1), map[string]string{"a.yaml": "2\n"}).set(map[string]any{"deadline": "1s"})
	second := b.promote(name(2), map[string]string{"b.yaml": "2\n"})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := first.run(); err == nil {
			t.Error("the first writer succeeded")
		}
	})
	<-stalled
	second.must()
	wg.Wait()
	b.check()
}
