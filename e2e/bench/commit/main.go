// Command commit measures what one commit costs with atomic-commit against what
// it costs with the git CLI, on real repositories behind git's http-backend on
// loopback, all in one run:
//
//	(a) the sequence that Kargo performs: full bare clone, worktree, add,
//	    commit, pull --rebase, push
//	(b) git clone --depth 1, commit, push
//	(c) the git CLI at its best: a partial clone without checkout and index
//	    plumbing, or a sparse checkout, whichever is faster
//
// Cold is `stepd run --live` from process start; warm is a further promotion in
// a process that has made one. Then it measures contention. Absolute times
// depend on the machine, ratios hardly.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/stepd/stepd/e2e/tools"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
)

func main() {
	runs := flag.Int("runs", 5, "runs of each method; medians are printed")
	sizes := flag.String("sizes", "10x10,100x100,1000x100", "repositories, as directories x files in each")
	contention := flag.Bool("contention", true, "measure contention, too")
	childSpec := flag.String("child", "", "for the program's own use")
	seedSpec := flag.String("seed", "", "for the program's own use")
	flag.Parse()
	var err error
	switch {
	case *childSpec != "":
		err = child(*childSpec)
	case *seedSpec != "":
		err = seedChild(*seedSpec)
	default:
		err = run(*runs, strings.Split(*sizes, ","), *contention)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	server  *gittest.Server
	scratch string // on tmpfs where there is one
	stepd   string
	self    string
	n       int
}

func run(runs int, sizes []string, contention bool) error {
	root, err := os.MkdirTemp("", "bench-commit-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(root) }()
	shm := "/dev/shm"
	if _, err := os.Stat(shm); err != nil {
		shm = root
	}
	scratch, err := os.MkdirTemp(shm, "bench-commit-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	server, err := gittest.Start(root)
	if err != nil {
		return err
	}
	defer server.Close()
	b := &bench{server: server, scratch: scratch}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.stepd, err = tools.Stepd(context.Background(), scratch); err != nil {
		return err
	}
	for _, size := range sizes {
		d, f, ok := strings.Cut(size, "x")
		dirs, err1 := strconv.Atoi(d)
		perDir, err2 := strconv.Atoi(f)
		if !ok || err1 != nil || err2 != nil {
			return fmt.Errorf("size %q is not DIRSxFILES", size)
		}
		if err := b.size(dirs, perDir, runs); err != nil {
			return err
		}
	}
	if contention {
		return b.contention()
	}
	return nil
}

// sample is the cost of one commit.
type sample struct {
	wall, cpu, server time.Duration
	rss               int64 // KiB; at least this program's own, which a process inherits
	up, down          int64
	requests          int
}

func (b *bench) size(dirs, perDir, runs int) error {
	name := fmt.Sprintf("r%d.git", dirs*perDir)
	if _, err := b.server.Create(name); err != nil {
		return err
	}
	if err := b.seed(name, dirs, perDir, 1000); err != nil {
		return err
	}
	methods := []struct {
		name string
		run  func(url, file string) (sample, error)
	}{
		{"(a) Kargo's sequence", b.script(kargoScript)},
		{"(b) git --depth 1", b.script(shallowScript)},
		{"(c) git, blobless + index plumbing", b.script(plumbingScript)},
		{"(c) git, sparse checkout", b.script(sparseScript)},
		{"atomic-commit, cold", b.cold},
		{"atomic-commit, warm", b.warm},
	}
	// Every method has a copy of its own, so that none meets the others' commits.
	copies := make([]string, len(methods))
	for i := range methods {
		copies[i] = fmt.Sprintf("m%d-%s", i, name)
		if err := os.CopyFS(b.server.Dir(copies[i]), os.DirFS(b.server.Dir(name))); err != nil {
			return err
		}
	}
	results := make([][]sample, len(methods))
	for r := range runs {
		for i, m := range methods {
			b.n++
			file := fmt.Sprintf("d%04d/f%04d.yaml", (b.n*7)%dirs, b.n%perDir)
			s, err := m.run(b.server.RepoURL(copies[i]), file)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			results[i] = append(results[i], s)
		}
		fmt.Fprintf(os.Stderr, "%s: run %d of %d\n", name, r+1, runs)
	}
	fmt.Printf("\n%d files (%d x %d), history 1,000, medians of %d\n", dirs*perDir, dirs, perDir, runs)
	fmt.Printf("%-36s %9s %9s %9s %9s %10s %6s %9s\n", "", "wall ms", "CPU ms", "peak MiB", "up B", "down B", "req", "server ms")
	medians := make([]sample, len(methods))
	for i, m := range methods {
		medians[i] = median(results[i])
		s := medians[i]
		fmt.Printf("%-36s %9.0f %9.1f %9.1f %9d %10d %6d %9.0f\n", m.name, ms(s.wall), ms(s.cpu), float64(s.rss)/1024, s.up, s.down, s.requests, ms(s.server))
	}
	best := min(medians[2].wall, medians[3].wall)
	cold, warm := medians[4], medians[5]
	fmt.Printf("cold: %.1fx faster than (a), %.1fx than (c); warm: %.1fx faster than (a)\n",
		ratio(medians[0].wall, cold.wall), ratio(best, cold.wall), ratio(medians[0].wall, warm.wall))
	for _, c := range copies {
		if out, err := b.server.Git(c, "fsck", "--strict", "--no-dangling"); err != nil || out != "" {
			return fmt.Errorf("git fsck of %s: %w %s", c, err, out)
		}
		if err := os.RemoveAll(b.server.Dir(c)); err != nil {
			return err
		}
	}
	return nil
}

// seed fills a repository in a process of its own: a process that is started
// inherits its parent's peak memory.
func (b *bench) seed(name string, dirs, perDir, commits int) error {
	spec := fmt.Sprintf("%d %d %d %s", dirs, perDir, commits, b.server.Dir(name))
	if out, err := exec.CommandContext(context.Background(), b.self, "-seed", spec).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot seed %s: %w: %s", name, err, out)
	}
	return nil
}

func seedChild(spec string) error {
	var dirs, perDir, commits int
	var dir string
	if _, err := fmt.Sscanf(spec, "%d %d %d %s", &dirs, &perDir, &commits, &dir); err != nil {
		return err
	}
	s := &gittest.Server{Root: filepath.Dir(dir)}
	return s.Seed(filepath.Base(dir), dirs, perDir, commits)
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
func ms(d time.Duration) float64       { return float64(d) / float64(time.Millisecond) }

func median(s []sample) sample {
	pick := func(f func(sample) int64) int64 {
		v := make([]int64, len(s))
		for i := range s {
			v[i] = f(s[i])
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return sample{
		wall:     time.Duration(pick(func(s sample) int64 { return int64(s.wall) })),
		cpu:      time.Duration(pick(func(s sample) int64 { return int64(s.cpu) })),
		server:   time.Duration(pick(func(s sample) int64 { return int64(s.server) })),
		rss:      pick(func(s sample) int64 { return s.rss }),
		up:       pick(func(s sample) int64 { return s.up }),
		down:     pick(func(s sample) int64 { return s.down }),
		requests: int(pick(func(s sample) int64 { return int64(s.requests) })),
	}
}

// measure runs a process and adds up what it, and what it started, cost.
func (b *bench) measure(cmd *exec.Cmd) (sample, []byte, error) {
	b.server.ResetStats()
	start := time.Now()
	out, err := cmd.Output()
	wall := time.Since(start)
	if err != nil {
		text := ""
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // straight from exec
			text = string(exit.Stderr)
		}
		return sample{}, out, fmt.Errorf("%w: %s%s", err, out, text)
	}
	st := b.server.Stats()
	s := sample{wall: wall, server: st.Time, up: st.Up, down: st.Down, requests: st.Requests}
	if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.cpu = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
		s.rss = ru.Maxrss
	}
	return s, out, nil
}

const gitSetup = `set -e
export HOME="$PWD" GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
git config --global user.name Bench; git config --global user.email bench@example.com
git config --global gc.auto 0; git config --global advice.detachedHead false
`

// kargoScript is every git command of Kargo's git-clone, git-commit and
// git-push: a full bare clone that remembers where it came from, a look whether
// the branch exists before it is checked out and again before the push, which
// comes after a rebase, and a commit id for the outputs of each step.
const kargoScript = gitSetup + `
git clone --quiet --bare "$URL" repo
git -C repo config kargo.repoDir "$PWD/repo"
git -C repo config kargo.repoHomeDir "$PWD"
git -C repo config kargo.repoOriginalURL "$URL"
git -C repo ls-remote --quiet --heads --exit-code origin main > exists
git -C repo worktree add --quiet ../tree main
git -C tree rev-parse HEAD > cloned
printf '%s\n' "$CONTENT" > "tree/$FILE"
cd tree
git add .
test -n "$(git status -s)"
git commit --quiet -m bench
git rev-parse HEAD > ../committed
git ls-remote --quiet --heads --exit-code origin main > ../exists
git pull --quiet --rebase origin main
git push --quiet origin HEAD:main
git rev-parse HEAD > ../pushed
`

const shallowScript = gitSetup + `
git clone --quiet --depth 1 "$URL" tree
cd tree
printf '%s\n' "$CONTENT" > "$FILE"
git add "$FILE"
git commit --quiet -m bench
git push --quiet origin HEAD:main
`

const plumbingScript = gitSetup + `
git clone --quiet --depth 1 --filter=blob:none --no-checkout "$URL" tree
cd tree
git read-tree HEAD
id=$(printf '%s\n' "$CONTENT" | git hash-object -w --stdin)
git update-index --cacheinfo "100644,$id,$FILE"
tree=$(git write-tree --missing-ok)
commit=$(git commit-tree "$tree" -p HEAD -m bench)
git push --quiet origin "$commit:refs/heads/main"
`

const sparseScript = gitSetup + `
git clone --quiet --depth 1 --filter=blob:none --sparse "$URL" tree
cd tree
git sparse-checkout set "$(dirname "$FILE")"
printf '%s\n' "$CONTENT" > "$FILE"
git add "$FILE"
git commit --quiet -m bench
git push --quiet origin HEAD:main
`

func (b *bench) script(text string) func(url, file string) (sample, error) {
	return func(url, file string) (sample, error) {
		dir, err := os.MkdirTemp(b.scratch, "git-")
		if err != nil {
			return sample{}, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		cmd := exec.CommandContext(context.Background(), "sh", "-c", text)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "URL=" + url, "FILE=" + file, "CONTENT=" + b.content()}
		s, _, err := b.measure(cmd)
		return s, err
	}
}

func (b *bench) content() string {
	return fmt.Sprintf("# generated\nservice: svc\nreplicas: %d\nimage:\n  tag: \"v2.%d.0\"", b.n%7, b.n)
}

// overlay makes a work dir with one file to commit.
func (b *bench) overlay(file string) (string, error) {
	work, err := os.MkdirTemp(b.scratch, "work-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(work, "overlay", file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return work, os.WriteFile(path, []byte(b.content()+"\n"), 0o600)
}

// cold is the whole command, from process start to exit.
func (b *bench) cold(url, file string) (sample, error) {
	work, err := b.overlay(file)
	if err != nil {
		return sample{}, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	task := fmt.Sprintf(`apiVersion: kargo.akuity.io/v1alpha1
kind: PromotionTask
metadata: {name: bench, namespace: shop}
spec:
  steps:
  - uses: atomic-commit
    as: commit
    config: {path: ./overlay, repoURL: %q, branch: main}
`, url)
	taskFile := filepath.Join(b.scratch, "task.yaml")
	if err := os.WriteFile(taskFile, []byte(task), 0o600); err != nil {
		return sample{}, err
	}
	cmd := exec.CommandContext(context.Background(), b.stepd, "run", "--live", "-f", taskFile, "--task", "bench", "--stage-name", "prd", "--workdir", work, "-o", "json")
	cmd.Env = []string{"HOME=" + b.scratch, "XDG_STATE_HOME=" + filepath.Join(b.scratch, "state"), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + b.scratch}
	s, _, err := b.measure(cmd)
	return s, err
}

// childRequest tells a child which overlays to commit; it prints what the
// second took, or nothing when they go in parallel.
type childRequest struct {
	URL, Intents string
	Works        []string
	Parallel     bool
}

type childAnswer struct {
	Wall, CPU time.Duration
	RSS       int64
	Attempts  int64
	Failed    []string
}

// warm measures the second promotion of a process.
func (b *bench) warm(url, file string) (sample, error) {
	req := childRequest{URL: url, Intents: filepath.Join(b.scratch, "intents")}
	for range 2 {
		b.n++
		work, err := b.overlay(file)
		if err != nil {
			return sample{}, err
		}
		defer func() { _ = os.RemoveAll(work) }()
		req.Works = append(req.Works, work)
	}
	_, answer, err := b.child(req)
	if err != nil {
		return sample{}, err
	}
	// The server's log tells the second promotion's requests: the last push and
	// what came after the one before.
	reqs := b.server.Requests()
	last := len(reqs) - 1
	first := last
	for first > 0 && !strings.HasSuffix(reqs[first-1].Path, "git-receive-pack") {
		first--
	}
	s := sample{wall: answer.Wall, cpu: answer.CPU, rss: answer.RSS}
	for _, r := range reqs[first:] {
		s.up += r.Up
		s.down += r.Down
		s.server += r.Time
		s.requests++
	}
	return s, nil
}

func (b *bench) child(req childRequest) (sample, childAnswer, error) {
	text, err := json.Marshal(req)
	if err != nil {
		return sample{}, childAnswer{}, err
	}
	s, out, err := b.measure(exec.CommandContext(context.Background(), b.self, "-child", string(text)))
	if err != nil {
		return s, childAnswer{}, err
	}
	var answer childAnswer
	err = json.Unmarshal(out, &answer)
	if err == nil && len(answer.Failed) > 0 {
		err = fmt.Errorf("%d promotions failed: %s", len(answer.Failed), answer.Failed[0])
	}
	return s, answer, err
}

func child(text string) error {
	var req childRequest
	if err := json.Unmarshal([]byte(text), &req); err != nil {
		return err
	}
	reg := atomiccommit.New(atomiccommit.Options{Dialer: gitrepo.NewLive(gitrepo.LiveOptions{}), IntentDir: req.Intents})
	var answer childAnswer
	var mu sync.Mutex
	var wg sync.WaitGroup
	one := func(work string) {
		start, before := time.Now(), cpu()
		r, err := reg.New(steps.Capabilities{}).Run(context.Background(), &steps.Context{
			WorkDir: work, Alias: "commit", Project: "shop", Stage: "prd",
			Promotion: "prd." + strings.ToLower(ulid.Make().String()) + ".abc1234",
			Config:    map[string]any{"path": "overlay", "repoURL": req.URL, "branch": "main"},
			Log:       slog.New(slog.DiscardHandler),
		})
		mu.Lock()
		defer mu.Unlock()
		answer.Wall, answer.CPU = time.Since(start), cpu()-before
		if err != nil {
			answer.Failed = append(answer.Failed, err.Error())
			return
		}
		n, _ := r.Output["attempts"].(int64)
		answer.Attempts = max(answer.Attempts, n)
	}
	for _, w := range req.Works {
		if req.Parallel {
			wg.Go(func() { one(w) })
		} else {
			one(w)
		}
	}
	wg.Wait()
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return err
	}
	answer.RSS = ru.Maxrss
	return json.NewEncoder(os.Stdout).Encode(answer)
}

func cpu() time.Duration {
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// contention lets many writers commit to one branch of 10,000 files at once.
func (b *bench) contention() error {
	fmt.Printf("\ncontention, 10,000 files, one file per writer\n%8s %10s %8s %8s %8s %9s %9s\n", "writers", "processes", "landed", "commits", "pushes", "attempts", "wall ms")
	for _, writers := range []int{8, 32, 100} {
		for _, processes := range []int{1, 8} {
			if err := b.contend(writers, processes); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) contend(writers, processes int) error {
	name := fmt.Sprintf("c%d-%d.git", writers, processes)
	url, err := b.server.Create(name)
	if err != nil {
		return err
	}
	if err := b.seed(name, 100, 100, 100); err != nil {
		return err
	}
	reqs := make([]childRequest, processes)
	for i := range writers {
		b.n++
		work, err := b.overlay(fmt.Sprintf("d%04d/w%04d.yaml", i%100, i))
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(work) }()
		r := &reqs[i%processes]
		r.URL, r.Intents, r.Parallel = url, filepath.Join(b.scratch, "intents"), true
		r.Works = append(r.Works, work)
	}
	b.server.ResetStats()
	answers := make([]childAnswer, processes)
	errs := make([]error, processes)
	var wg sync.WaitGroup
	start := time.Now()
	for i, r := range reqs {
		wg.Go(func() {
			text, err := json.Marshal(r)
			if err == nil {
				var out []byte
				if out, err = exec.CommandContext(context.Background(), b.self, "-child", string(text)).Output(); err == nil {
					err = json.Unmarshal(out, &answers[i])
				}
			}
			errs[i] = err
		})
	}
	wg.Wait()
	wall := time.Since(start)
	failed, attempts := 0, int64(0)
	for i, a := range answers {
		if errs[i] != nil {
			return errs[i]
		}
		failed += len(a.Failed)
		attempts = max(attempts, a.Attempts)
	}
	count, err := b.server.Git(name, "rev-list", "--count", "--grep=Stepd-Change", "main")
	if err != nil {
		return err
	}
	fmt.Printf("%8d %10d %8d %8s %8d %9d %9.0f\n", writers, processes, writers-failed, count, b.server.Stats().Pushes, attempts, ms(wall))
	return nil
}
