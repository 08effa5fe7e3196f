package atomiccommit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
)

// The crash harness runs the step in a child process (this test binary again)
// whose file system and HTTP transport count every operation, before and after,
// and kill the process with SIGKILL at the n-th. Nobody chooses the points by
// hand: they are whatever the step does.

const childEnv = "STEPD_ATOMICCOMMIT_CHILD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		child(spec)
	}
	os.Exit(m.Run())
}

// childSpec is what a child is to do.
type childSpec struct {
	URL, IntentDir string
	// Runs are promotions to run one after the other in this process. Points
	// count in the last of them.
	Runs []childRun
	// DieAt kills at that point, 1 being the first; 0 only counts.
	DieAt int
	// Parallel makes the runs go at once.
	Parallel bool
}

type childRun struct {
	WorkDir, Promotion string
	Config             map[string]any
}

// childReport is the child's last line of output, when it lives to write it.
type childReport struct {
	Points   int
	Output   map[string]any
	Attempts int // the most of any run
	Error    string

	took time.Duration
}

func child(text string) {
	var spec childSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		panic(err)
	}
	c := &counter{dieAt: spec.DieAt}
	reg := atomiccommit.New(atomiccommit.Options{
		Dialer:    gitrepo.NewLive(gitrepo.LiveOptions{Transport: c.transport}),
		IntentDir: spec.IntentDir,
		FS:        countingFS{atomiccommit.OSFS(), c},
	})
	fmt.Println("ready")
	var report childReport
	var mu sync.Mutex
	run := func(r childRun) {
		res, err := reg.New(steps.Capabilities{}).Run(context.Background(), &steps.Context{
			WorkDir: r.WorkDir, Alias: "commit", Project: "shop", Stage: "prd-us", Promotion: r.Promotion,
			Config: r.Config, Log: slog.New(slog.DiscardHandler),
		})
		mu.Lock()
		defer mu.Unlock()
		report.Output = res.Output
		if err != nil {
			report.Error += r.Promotion + ": " + err.Error() + "\n"
			return
		}
		n, _ := res.Output["attempts"].(int64)
		report.Attempts = max(report.Attempts, int(n))
	}
	var wg sync.WaitGroup
	for i, r := range spec.Runs {
		if spec.Parallel {
			wg.Go(func() { run(r) })
			continue
		}
		c.on(i == len(spec.Runs)-1)
		run(r)
	}
	wg.Wait()
	report.Points = c.count()
	line, err := json.Marshal(report)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
	os.Exit(0)
}

// counter numbers the points and dies at one.
type counter struct {
	mu     sync.Mutex
	active bool
	n      int
	dieAt  int
}

func (c *counter) on(active bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active = active
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *counter) point() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.active {
		return
	}
	if c.n++; c.n == c.dieAt {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // never reached: nothing survives SIGKILL
	}
}

// around counts before and after an operation.
func around[T any](c *counter, op func() (T, error)) (T, error) {
	c.point()
	defer c.point()
	return op()
}

type countingFS struct {
	atomiccommit.IntentFS
	c *counter
}

func (f countingFS) MkdirAll(dir string) error {
	_, err := around(f.c, func() (int, error) { return 0, f.IntentFS.MkdirAll(dir) })
	return err
}

func (f countingFS) ReadFile(name string) ([]byte, error) {
	return around(f.c, func() ([]byte, error) { return f.IntentFS.ReadFile(name) })
}

// WriteSync also dies with half of the data written.
func (f countingFS) WriteSync(name string, data []byte) error {
	_, err := around(f.c, func() (int, error) {
		if err := os.WriteFile(name, data[:len(data)/2], 0o600); err != nil {
			return 0, err
		}
		f.c.point()
		return 0, f.IntentFS.WriteSync(name, data)
	})
	return err
}

func (f countingFS) Rename(from, to string) error {
	_, err := around(f.c, func() (int, error) { return 0, f.IntentFS.Rename(from, to) })
	return err
}

func (f countingFS) SyncDir(dir string) error {
	_, err := around(f.c, func() (int, error) { return 0, f.IntentFS.SyncDir(dir) })
	return err
}

func (f countingFS) Remove(name string) error {
	_, err := around(f.c, func() (int, error) { return 0, f.IntentFS.Remove(name) })
	return err
}

func (f countingFS) ReadDir(dir string) ([]fs.DirEntry, error) {
	return around(f.c, func() ([]fs.DirEntry, error) { return f.IntentFS.ReadDir(dir) })
}

func (c *counter) transport(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			r = r.Clone(r.Context())
			r.Body = countingBody{r.Body, c}
		}
		res, err := around(c, func() (*http.Response, error) { return next.RoundTrip(r) })
		if err == nil {
			res.Body = countingBody{res.Body, c}
		}
		return res, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type countingBody struct {
	io.ReadCloser
	c *counter
}

func (b countingBody) Read(p []byte) (int, error) {
	return around(b.c, func() (int, error) { return b.ReadCloser.Read(p) })
}

// crashBench runs children against a bench.
type crashBench struct {
	*bench
	n int // promotions so far
}

// next prepares a promotion with a file of its own.
func (b *crashBench) next() (childRun, string) {
	b.n++
	file := fmt.Sprintf("svc/f%04d.yaml", b.n)
	p := b.promote(name(b.n), map[string]string{file: fmt.Sprintf("n: %d\n", b.n), "shared/all.yaml": fmt.Sprintf("last: %d\n", b.n)})
	return childRun{WorkDir: p.sc.WorkDir, Promotion: p.sc.Promotion, Config: p.sc.Config}, file
}

// run starts a child and waits for it. started, if not nil, is called when it
// begins, with what kills it. died tells that it was killed.
func (b *crashBench) run(spec childSpec, started func(kill func())) (report childReport, died bool) {
	b.t.Helper()
	spec.URL, spec.IntentDir = b.url, b.opts.IntentDir
	text, err := json.Marshal(spec)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ready := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(stdout, ready); err != nil {
		b.t.Fatalf("child did not start: %v %s", err, stderr.String())
	}
	start := time.Now()
	if started != nil {
		started(func() { _ = cmd.Process.Kill() })
	}
	out, err := io.ReadAll(stdout)
	if err != nil {
		b.t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signal() == syscall.SIGKILL && ctx.Err() == nil {
			return report, true
		}
	}
	if err != nil {
		b.t.Fatalf("child: %v %s", err, stderr.String())
	}
	if err := json.Unmarshal(out, &report); err != nil {
		b.t.Fatalf("child said %q: %v", out, err)
	}
	report.took = time.Since(start)
	return report, false
}

// exactlyOne is the property: the promotion's commit is on the branch once,
// holds its file, and the retry names it.
func (b *crashBench) exactlyOne(where string, r childRun, file string, report childReport) {
	b.t.Helper()
	if report.Error != "" {
		b.t.Fatalf("%s: the retry failed: %s", where, report.Error)
	}
	found := b.git("log", "--format=%H", "--fixed-strings", "--grep", "Kargo-Promotion: shop/"+r.Promotion, "main")
	if strings.Count(found, "\n") != 0 || found == "" {
		b.t.Fatalf("%s: commits of the promotion: %q, want exactly one", where, found)
	}
	if report.Output["commit"] != found {
		b.t.Fatalf("%s: the retry reports %v, the commit is %s", where, report.Output["commit"], found)
	}
	if got := b.git("diff", "--name-only", found+"~1", found, "--", file); got != file {
		b.t.Fatalf("%s: commit %s does not bring %s", where, found, file)
	}
}

func newCrashBench(t *testing.T) *crashBench {
	b := &crashBench{bench: newBench(t)}
	b.seed(map[string]string{"svc/x.yaml": "x\n", "shared/all.yaml": "last: 0\n"})
	return b
}

func TestKilledAtEveryPoint(t *testing.T) {
	for _, tc := range []struct {
		name string
		// before are promotions that the process has made before.
		before int
		// meanwhile happens between the death and the retry.
		meanwhile func(b *crashBench)
	}{
		{name: "first promotion of a process"},
		{name: "second promotion of a process", before: 1},
		{name: "others commit before the retry", meanwhile: func(b *crashBench) {
			b.MustCommit(b.t, repo, "theirs", map[string]string{fmt.Sprintf("theirs/%d", b.n): "x\n"})
		}},
		{name: "intents are lost", meanwhile: func(b *crashBench) {
			if err := os.RemoveAll(b.opts.IntentDir); err != nil {
				b.t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if (testing.Short() || raceEnabled) && tc.meanwhile != nil {
				t.Skip("the end-to-end suite runs this")
			}
			b := newCrashBench(t)
			prepare := func(dieAt int) (childSpec, childRun, string) {
				var spec childSpec
				for range tc.before {
					r, _ := b.next()
					spec.Runs = append(spec.Runs, r)
				}
				r, file := b.next()
				spec.Runs, spec.DieAt = append(spec.Runs, r), dieAt
				return spec, r, file
			}
			spec, r, file := prepare(0)
			report, _ := b.run(spec, nil)
			b.exactlyOne("undisturbed", r, file, report)
			points := report.Points
			deaths := 0
			for n := 1; n <= points; n++ {
				spec, r, file := prepare(n)
				if _, died := b.run(spec, nil); died {
					deaths++
				}
				if tc.meanwhile != nil {
					tc.meanwhile(b)
				}
				report, _ := b.run(childSpec{Runs: []childRun{r}}, nil)
				b.exactlyOne(fmt.Sprintf("killed at point %d of %d", n, points), r, file, report)
			}
			if deaths < points-1 { // a run may have a point less, depending on how reads are split
				t.Errorf("only %d deaths at %d points", deaths, points)
			}
			t.Logf("%d points, %d processes killed, exactly one commit each time", points, deaths)
			b.check()
		})
	}
}

// pushWatch knows, from the server's side, how far the push of the process that
// runs has come.
type pushWatch struct {
	mu                sync.Mutex
	arrived, answered time.Time
	onArrival         func()
}

func (w *pushWatch) wrap(backend http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if isPush(r) {
			w.mu.Lock()
			w.arrived, w.answered = time.Now(), time.Time{}
			f := w.onArrival
			w.mu.Unlock()
			if f != nil {
				f()
			}
			defer func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.answered = time.Now()
			}()
		}
		backend.ServeHTTP(rw, r)
	})
}

func (w *pushWatch) reset(onArrival func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.arrived, w.answered, w.onArrival = time.Time{}, time.Time{}, onArrival
}

func (w *pushWatch) phase() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.arrived.IsZero():
		return "before"
	case w.answered.IsZero():
		return "during"
	}
	return "after"
}

// took is how long the server worked on the last push.
func (w *pushWatch) took() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answered.Sub(w.arrived)
}

// recent is the median of the last few durations: machines are busy at times.
type recent []time.Duration

func (r *recent) add(d time.Duration) { *r = append((*r)[max(0, len(*r)-8):], d) }

func (r *recent) median() time.Duration {
	s := slices.Sorted(slices.Values(*r))
	return s[len(s)/2]
}

func TestKilledAtRandomMoments(t *testing.T) {
	moments := 200
	if testing.Short() || raceEnabled {
		moments = 20
	}
	b := newCrashBench(t)
	var watch pushWatch
	b.Wrap(watch.wrap)
	var runs, pushes recent
	undisturbed := func(s childSpec) childReport {
		report, _ := b.run(s, nil)
		if n, _ := report.Output["attempts"].(float64); n > 0 {
			runs.add(report.took)
			pushes.add(watch.took())
		}
		return report
	}
	spec := func() (childSpec, childRun, string) {
		r, file := b.next()
		return childSpec{Runs: []childRun{r}}, r, file
	}
	s, _, _ := spec()
	undisturbed(s)
	killed := map[string]int{}
	found := 0
	for i := range moments {
		s, r, file := spec()
		var at atomic.Value
		_, died := b.run(s, func(kill func()) {
			now := func() {
				at.Store(watch.phase())
				kill()
			}
			// Half of the moments lie anywhere in the run, half around the push.
			if i%2 == 0 {
				watch.reset(nil)
				time.AfterFunc(rand.N(runs.median()), now)
				return
			}
			after := rand.N(pushes.median() * 5 / 4)
			watch.reset(func() { time.AfterFunc(after, now) })
		})
		watch.reset(nil)
		phase := "too late"
		if died {
			phase, _ = at.Load().(string)
		}
		killed[phase]++
		report := undisturbed(s)
		b.exactlyOne(fmt.Sprintf("random moment %d, %s", i, phase), r, file, report)
		if n, _ := report.Output["attempts"].(float64); n == 0 && died {
			found++
		}
	}
	deaths := moments - killed["too late"]
	t.Logf("%d moments, %d processes killed: %d before the push reached the server, %d during it, %d after its answer; %d retries found the commit, %d made it; exactly one commit each time",
		moments, deaths, killed["before"], killed["during"], killed["after"], found, deaths-found)
	// Few moments may miss a part; with the race detector a process lingers for
	// a second at its end, where most of them then are.
	if moments == 200 && (killed["before"] == 0 || killed["during"] == 0 || found == 0 || found == deaths) {
		t.Error("the moments do not cover the run")
	}
	b.check()
}

func TestManyWritersFromManyProcesses(t *testing.T) {
	const processes, writers = 8, 100
	b := newCrashBench(t)
	specs := make([]childSpec, processes)
	files := map[string]bool{}
	for i := range writers {
		file := fmt.Sprintf("svc/w%03d.yaml", i)
		files[file] = true
		p := b.promote(name(i+1), map[string]string{file: "x\n"})
		s := &specs[i%processes]
		s.Parallel = true
		s.Runs = append(s.Runs, childRun{WorkDir: p.sc.WorkDir, Promotion: p.sc.Promotion, Config: p.sc.Config})
	}
	b.ResetStats()
	var wg sync.WaitGroup
	reports := make([]childReport, processes)
	start := time.Now()
	for i, s := range specs {
		wg.Go(func() { reports[i], _ = b.run(s, nil) })
	}
	wg.Wait()
	took := time.Since(start)
	attempts := 0
	for _, r := range reports {
		if r.Error != "" {
			t.Error(r.Error)
		}
		attempts = max(attempts, r.Attempts)
	}
	// Linear, and each commit has exactly its own file.
	lines := strings.Split(b.git("log", "--format=%P", "--name-status", "--grep", "Stepd-Change", "main"), "\n")
	commits := 0
	for _, l := range lines {
		status, file, ok := strings.Cut(l, "\t")
		switch {
		case ok && status == "A" && files[file]:
			delete(files, file)
			commits++
		case ok:
			t.Errorf("a commit has %q", l)
		case strings.Contains(l, " "):
			t.Errorf("a commit has the parents %q", l)
		}
	}
	if commits != writers || len(files) != 0 || b.git("rev-list", "--count", "main") != fmt.Sprint(writers+1) {
		t.Errorf("%d of %d writers' commits, %s commits on the branch", commits, writers, b.git("rev-list", "--count", "main"))
	}
	t.Logf("%d writers, %d processes: %s, %d pushes, at most %d for one writer", writers, processes, took.Round(time.Millisecond), b.Stats().Pushes, attempts)
	b.check()
}
