package plugin_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stepd/stepd/internal/sandbox"
	sdk "github.com/stepd/stepd/plugin"
	"github.com/stepd/stepd/runner/contracttest"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/plugin"
	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// TestMain lets the test binary play the plugins, by the name it is started
// under, and a host that is going to be killed.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "stepd-step-contract":
		sdk.Serve(contracttest.Steps()...)
	case "stepd-step-naughty":
		sdk.Serve(naughty()...)
	case "stepd-step-badname":
		sdk.Serve(steps.Registration{Name: "\x1b[31mred", New: nobody})
	case "stepd-step-badschema":
		sdk.Serve(steps.Registration{Name: "odd", New: nobody, ConfigSchema: []byte(`{"type": 5}`)})
	case "stepd-step-badcapability":
		sdk.Serve(steps.Registration{Name: "odd", New: nobody, Metadata: steps.Metadata{RequiredCapabilities: []steps.Capability{"access-everything"}}})
	case "stepd-step-caller":
		if conn, err := net.Dial("udp", "127.0.0.1:9"); err == nil {
			conn.Close()
			fmt.Fprintln(os.Stderr, "the network is there")
			os.Exit(1)
		}
		sdk.Serve(naughty()...)
	case "stepd-step-link":
		// The socket is a link to one of another program's.
		if err := os.Symlink("/run/other.sock", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Printf("1|1|unix|%s|grpc||true\n", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s"))
		select {}
	case "stepd-step-hangs":
		select {}
	case "stepd-step-exits":
		fmt.Fprintln(os.Stderr, "no licence found")
		os.Exit(3)
	case "stepd-step-babbles":
		fmt.Println("Hello, I am a plugin!")
		select {}
	case "stepd-step-elsewhere":
		fmt.Println("1|1|tcp|127.0.0.1:22|grpc")
		select {}
	case "stepd-step-future":
		fmt.Println("1|99|unix|/tmp/x|grpc")
		select {}
	case "stepd-step-mute":
		mute()
	default:
		if dir := os.Getenv("PLUGIN_HOST_ROLE"); dir != "" {
			doomedHost(dir)
		}
		os.Exit(m.Run())
	}
}

// mute opens its socket as it should and never answers.
func mute() {
	path := filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("1|1|unix|%s|grpc||true\n", path)
	select {}
}

func nobody(steps.Capabilities) steps.Runner { return nil }

// naughty are steps that misbehave.
func naughty() []steps.Registration {
	step := func(name string, run steps.RunnerFunc) steps.Registration {
		return steps.Registration{Name: name, New: func(steps.Capabilities) steps.Runner { return run }}
	}
	return []steps.Registration{
		step("pid", func(context.Context, *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Succeeded, Output: map[string]any{"pid": os.Getpid()}}, nil
		}),
		{
			Name:     "identity",
			Metadata: steps.Metadata{RequiredCapabilities: []steps.Capability{steps.AccessCredentials}},
			New: func(c steps.Capabilities) steps.Runner {
				return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
					creds, err := c.Credentials.Get(ctx, sc.Project, steps.CredentialsGit, "https://example.com/x.git")
					if err != nil {
						return steps.Result{}, err
					}
					return steps.Result{Status: steps.Succeeded, Output: map[string]any{"pid": os.Getpid(), "user": creds.Username}}, nil
				})
			},
		},
		step("obedient", func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			if err := os.WriteFile(filepath.Join(sc.WorkDir, "started"), nil, 0); err != nil {
				return steps.Result{}, err
			}
			<-ctx.Done()
			return steps.Result{}, ctx.Err()
		}),
		step("suicide", func(context.Context, *steps.Context) (steps.Result, error) {
			fmt.Fprintln(os.NewFile(2, "stderr"), "farewell")
			return steps.Result{}, unix.Kill(os.Getpid(), unix.SIGKILL)
		}),
		step("deaf", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			pid := []byte(strconv.Itoa(os.Getpid()))
			if err := os.WriteFile(filepath.Join(sc.WorkDir, "pid"), pid, 0o600); err != nil {
				return steps.Result{}, err
			}
			select {} // whatever the context says
		}),
		step("flood", func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			line := []byte(strings.Repeat("x", 200) + "\n")
			stderr := os.NewFile(2, "stderr")
			for range 50_000 {
				sc.Log.Info("x")
				if _, err := stderr.Write(line); err != nil {
					return steps.Result{}, err
				}
			}
			return steps.Result{Status: steps.Succeeded}, ctx.Err()
		}),
		step("peek", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			_, outside := os.ReadFile(sc.Config["path"].(string))
			inside := os.WriteFile(filepath.Join(sc.WorkDir, "f"), nil, 0o600)
			return steps.Result{Status: steps.Succeeded, Output: map[string]any{
				"outside": outside == nil, "inside": inside == nil, "environ": len(os.Getenv("PLUGIN_TEST_SECRET")),
			}}, nil
		}),
		step("progress", func(ctx context.Context, _ *steps.Context) (steps.Result, error) {
			sdk.Progress(ctx, "half way", 5, 10)
			return steps.Result{Status: steps.Succeeded}, nil
		}),
	}
}

// install puts the test binary under a name into a plugin directory of its own.
func install(t testing.TB, name string, grants ...steps.Capability) plugin.HostOptions {
	t.Helper()
	opts := plugin.HostOptions{
		Dir:    t.TempDir(),
		Limits: sandbox.Limits{OpenFiles: 4096}, // the race detector needs more memory than any limit
		// What else the machine does is not what is tested.
		StartTimeout: time.Minute,
		MaxProcesses: 4,
	}
	if _, err := plugin.Install(t.Context(), opts, plugin.InstallOptions{Path: self(t), Name: name, Grants: grants}); err != nil {
		t.Fatal(err)
	}
	return opts
}

func open(t testing.TB, opts plugin.HostOptions) *plugin.Host {
	t.Helper()
	h, err := plugin.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func lookup(h *plugin.Host) func(testing.TB, string) steps.Registration {
	return func(t testing.TB, kind string) steps.Registration {
		t.Helper()
		regs, err := h.Registrations()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range regs {
			if r.Name == kind {
				return r
			}
		}
		t.Fatalf("no step %q", kind)
		return steps.Registration{}
	}
}

func run(t testing.TB, h *plugin.Host, kind string, sc *steps.Context) (steps.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return lookup(h)(t, kind).New(steps.Capabilities{}).Run(ctx, sc)
}

func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestContract(t *testing.T) {
	h := open(t, install(t, "stepd-step-contract", steps.AccessCredentials, steps.AccessArgoCD))
	contracttest.Run(t, contracttest.Subject{
		Lookup: lookup(h), GrantsOnCall: true, SeparateProcess: true, MaxOutput: rpc.MaxOutputBytes,
	})
}

func BenchmarkPlugin(b *testing.B) {
	contracttest.Benchmark(b, contracttest.Subject{Lookup: lookup(open(b, install(b, "stepd-step-contract")))})
}

func TestNothingIsGrantedThatTheOperatorDidNotGrant(t *testing.T) {
	h := open(t, install(t, "stepd-step-contract"))
	reg := lookup(h)(t, "contract-credentials")
	r, err := reg.New(steps.Capabilities{Credentials: contracttest.Credentials{}}).Run(t.Context(), contracttest.Subject{}.NewContext(t))
	if err != nil || r.Output["credentials"] != false {
		t.Errorf("got %v, %v; want no credentials", r.Output, err)
	}
	r, err = lookup(h)(t, "contract-cluster").New(steps.Capabilities{ArgoCD: contracttest.Cluster{}}).Run(t.Context(), contracttest.Subject{}.NewContext(t))
	if err != nil || r.Output["argocd"] != nil {
		t.Errorf("got %v, %v; want no cluster", r.Output, err)
	}
}

func TestCrash(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	var logged counter
	opts.Log = slog.New(slog.NewTextHandler(&logged, nil))
	h := open(t, opts)
	sc := &steps.Context{WorkDir: t.TempDir()}
	before, err := run(t, h, "pid", sc)
	if err != nil {
		t.Fatal(err)
	}
	r, err := run(t, h, "suicide", sc)
	if r.Status != steps.Errored || err == nil || steps.IsTerminal(err) {
		t.Fatalf("got %q, %v; want a retryable error", r.Status, err)
	}
	for _, want := range []string{"killed", "farewell"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	after, err := run(t, h, "pid", sc)
	if err != nil || after.Output["pid"] == before.Output["pid"] {
		t.Errorf("after the crash: %v, %v; want another process than %v", after.Output, err, before.Output)
	}
	h.Close()
	exits := 0
	for line := range strings.Lines(logged.text()) {
		if strings.Contains(line, "plugin process exited") && strings.Contains(line, "signal: killed") {
			exits++
			if strings.Count(line, " plugin=") != 1 {
				t.Errorf("the record does not say once which plugin it is: %s", line)
			}
		}
	}
	if exits != 1 {
		t.Errorf("the crash is logged %d times:\n%s", exits, logged.text())
	}
}

func TestCrashWhileIdle(t *testing.T) {
	h := open(t, install(t, "stepd-step-naughty"))
	sc := &steps.Context{WorkDir: t.TempDir()}
	before, err := run(t, h, "pid", sc)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(int(before.Output["pid"].(int64)), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if after, err := run(t, h, "pid", sc); err != nil || after.Output["pid"] == before.Output["pid"] {
		t.Errorf("got %v, %v; want the step to run in a new process", after.Output, err)
	}
}

func TestDeafStepIsKilled(t *testing.T) {
	h := open(t, install(t, "stepd-step-naughty"))
	sc := &steps.Context{WorkDir: t.TempDir()}
	if _, err := run(t, h, "pid", sc); err != nil { // start is not what is timed out
		t.Fatal(err)
	}
	var b []byte
	// A machine with much else to do may need longer than that to start a step.
	for limit := 500 * time.Millisecond; b == nil; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		r, err := lookup(h)(t, "deaf").New(steps.Capabilities{}).Run(ctx, sc)
		cancel()
		if r.Status != steps.Errored || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %q, %v", r.Status, err)
		}
		if b, err = os.ReadFile(filepath.Join(sc.WorkDir, "pid")); err != nil && limit > time.Minute {
			t.Fatal(err)
		}
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("when Run returned, the plugin was still there: %v", err)
	}
}

// TestStepsThatShareAProcess: a step that has to be killed takes those with it
// that run for the same work dir, and they say so and can be retried.
func TestStepsThatShareAProcess(t *testing.T) {
	h := open(t, install(t, "stepd-step-naughty"))
	sc := &steps.Context{WorkDir: t.TempDir()}
	for _, name := range []string{"started", "pid"} {
		if err := unix.Mkfifo(filepath.Join(sc.WorkDir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bystander := make(chan error, 1)
	go func() {
		_, err := lookup(h)(t, "obedient").New(steps.Capabilities{}).Run(t.Context(), sc)
		bystander <- err
	}()
	if _, err := os.ReadFile(filepath.Join(sc.WorkDir, "started")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	deaf := make(chan error, 1)
	go func() {
		_, err := lookup(h)(t, "deaf").New(steps.Capabilities{}).Run(ctx, sc)
		deaf <- err
	}()
	if _, err := os.ReadFile(filepath.Join(sc.WorkDir, "pid")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-deaf; !errors.Is(err, context.Canceled) {
		t.Errorf("the cancelled step: %v", err)
	}
	if err := <-bystander; err == nil || steps.IsTerminal(err) || !strings.Contains(err.Error(), "another step that ran in it at the same time") {
		t.Errorf("the other step: %v", err)
	}
	if _, err := run(t, h, "pid", sc); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestFlood(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	var logged counter
	opts.Log = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h := open(t, opts)
	sc := &steps.Context{WorkDir: t.TempDir(), Alias: "task::loud", Log: opts.Log}
	if r, err := run(t, h, "flood", sc); err != nil || r.Status != steps.Succeeded {
		t.Errorf("got %q, %v", r.Status, err)
	}
	if !strings.Contains(logged.text(), `plugin=stepd-step-naughty step=task::loud`) {
		t.Error("standard error is not logged under the step's alias")
	}
	// 10,000 of the step's records, as many of standard error, and few besides.
	if n := logged.lines(); n > 20_200 {
		t.Errorf("%d lines were logged", n)
	}
}

func TestPluginsThatDoNotStart(t *testing.T) {
	for _, tc := range []struct {
		name, says string
		patience   time.Duration
	}{
		{"stepd-step-hangs", "timeout", 2 * time.Second},
		{"stepd-step-exits", "no licence found", 30 * time.Second},
		{"stepd-step-babbles", "Hello, I am a plugin!", 30 * time.Second},
		{"stepd-step-elsewhere", "not a socket in its own directory", 30 * time.Second},
		{"stepd-step-link", "not a socket in its own directory", 30 * time.Second},
		{"stepd-step-badname", `a step "\x1b[31mred"`, 30 * time.Second},
		{"stepd-step-badschema", "its config schema", 30 * time.Second},
		{"stepd-step-badcapability", `the capability "access-everything"`, 30 * time.Second},
		{"stepd-step-future", "99", 30 * time.Second},
		{"stepd-step-mute", "cannot start plugin", 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var logged counter
			_, err := plugin.Install(t.Context(), plugin.HostOptions{
				Dir: dir, StartTimeout: tc.patience, Limits: sandbox.Limits{OpenFiles: 4096}, Log: slog.New(slog.NewTextHandler(&logged, nil)),
			},
				plugin.InstallOptions{Path: self(t), Name: tc.name})
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want an error that says %q", err, tc.says)
			}
			if strings.Contains(logged.text(), "cannot remove") {
				t.Errorf("it does not clean up: %s", logged.text())
			}
			if files, err := os.ReadDir(dir); err != nil || len(files) != 1 { // the lock
				t.Errorf("left behind: %v, %v", files, err)
			}
		})
	}
}

func TestChangedAndUnpinnedPrograms(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	path := filepath.Join(opts.Dir, "stepd-step-naughty")
	h := open(t, opts)
	sc := &steps.Context{WorkDir: t.TempDir()}
	if _, err := run(t, h, "pid", sc); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, err = run(t, h, "pid", &steps.Context{WorkDir: t.TempDir()})
	if _, ok := errors.AsType[*sandbox.DigestError](err); !ok || !steps.IsTerminal(err) || !strings.Contains(err.Error(), "stepd plugin install") {
		t.Errorf("a changed program: %v; want a terminal DigestError with the remedy", err)
	}
	index, err := plugin.ReadIndex(opts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if errs := index.Check(opts.Dir); len(errs) != 1 || errs[0] == nil {
		t.Errorf("Check: %v, want one error", errs)
	}
	if err := os.WriteFile(filepath.Join(opts.Dir, "stepd-step-stray"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if stray, err := index.Unpinned(opts.Dir); err != nil || len(stray) != 1 || stray[0] != "stepd-step-stray" {
		t.Errorf("Unpinned: %v, %v", stray, err)
	}
	if err := plugin.Remove(opts.Dir, "stepd-step-naughty"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the removed program: %v", err)
	}
	if err := plugin.Remove(opts.Dir, "stepd-step-naughty"); err == nil {
		t.Error("removed twice")
	}
}

func TestInstallRefuses(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	pipe := filepath.Join(t.TempDir(), "stepd-step-pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		reason, says string
		in           plugin.InstallOptions
	}{
		{"a name that is not a plugin's", "begins with stepd-step-", plugin.InstallOptions{Path: self(t), Name: "evil"}},
		{"a name with a path in it", "begins with stepd-step-", plugin.InstallOptions{Path: self(t), Name: "stepd-step-../x"}},
		{"stepd's own step", "would replace", plugin.InstallOptions{Path: self(t), Name: "stepd-step-contract", Reserved: []string{"contract-fail"}}},
		{"a grant that nothing asks for", "asks for", plugin.InstallOptions{Path: self(t), Name: "stepd-step-naughty", Grants: []steps.Capability{steps.AccessArgoCD}}},
		{"no such program", "no such file", plugin.InstallOptions{Path: "/nowhere/stepd-step-x"}},
		{"a named pipe", "not a file", plugin.InstallOptions{Path: pipe}},
		{"a directory", "not a file", plugin.InstallOptions{Path: t.TempDir(), Name: "stepd-step-x"}},
	} {
		if _, err := plugin.Install(t.Context(), opts, tc.in); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", tc.reason, err, tc.says)
		}
	}
}

func TestInstallRemovesWhatAKilledOneLeft(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	left := filepath.Join(opts.Dir, ".install-1", "stepd-step-half")
	if err := errors.Join(os.Mkdir(filepath.Dir(left), 0o700), os.WriteFile(left, nil, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := plugin.Install(t.Context(), opts, plugin.InstallOptions{Path: self(t), Name: "stepd-step-naughty"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(left)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestInstallGivesNoNetwork: a program that looks for the network when it starts
// finds it only in a live run, in which it then refuses to start.
func TestInstallGivesNoNetwork(t *testing.T) {
	opts := install(t, "stepd-step-caller")
	if _, err := run(t, open(t, opts), "pid", &steps.Context{WorkDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "the network is there") {
		t.Errorf("in a live run: %v", err)
	}
	opts.NoNetwork = true
	if _, err := run(t, open(t, opts), "pid", &steps.Context{WorkDir: t.TempDir()}); err != nil {
		t.Errorf("in a dry run: %v", err)
	}
}

func TestIndexesThatOthersCanWrite(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "parent")
	dir := filepath.Join(parent, "plugins")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(dir, "index.json")
	if err := os.WriteFile(index, []byte(`{"version": 1, "plugins": []}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		reason, path string
		mode         os.FileMode
		group        int // -1 for the usual one
		says         string
	}{
		{"nobody else can", index, 0o644, -1, ""},
		{"the file, by everybody", index, 0o666, -1, "everybody"},
		{"the directory, by everybody", dir, 0o777, -1, "everybody"},
		{"the directory's parent, by everybody", parent, 0o777, -1, "everybody"},
		{"a sticky parent keeps what is ours", parent, 0o777 | os.ModeSticky, -1, ""},
		{"one's own group", index, 0o664, -1, ""},
		{"another group", index, 0o664, 12345, "group 12345"},
		{"a parent, by another group", parent, 0o775, 12345, "group 12345"},
	} {
		if tc.group >= 0 {
			if os.Geteuid() != 0 {
				continue // only root can give files away
			}
			if err := os.Chown(tc.path, -1, tc.group); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(tc.path, tc.mode); err != nil {
			t.Fatal(err)
		}
		_, err := plugin.ReadIndex(dir)
		if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", tc.reason, err, tc.says)
		}
		if err := errors.Join(os.Chmod(tc.path, 0o700), os.Chown(tc.path, -1, os.Getegid())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dir, filepath.Join(parent, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := plugin.ReadIndex(filepath.Join(parent, "link")); err == nil {
		t.Error("a link hides a directory that everybody can write")
	}
}

func TestSandbox(t *testing.T) {
	if sandbox.Detect().LandlockABI == 0 {
		t.Skip("this kernel has no Landlock")
	}
	t.Setenv("PLUGIN_TEST_SECRET", "x")
	opts := install(t, "stepd-step-naughty")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	sc := &steps.Context{WorkDir: t.TempDir(), Config: map[string]any{"path": secret}}
	r, err := run(t, open(t, opts), "peek", sc)
	if err != nil || r.Output["outside"] != false || r.Output["inside"] != true || r.Output["environ"] != int64(0) {
		t.Errorf("got %v, %v; want access to the work dir and nothing else", r.Output, err)
	}
}

func TestProgress(t *testing.T) {
	var logged counter
	sc := &steps.Context{WorkDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&logged, nil))}
	if _, err := run(t, open(t, install(t, "stepd-step-naughty")), "progress", sc); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(logged.text(), `msg="half way" completed=5 total=10`) {
		t.Errorf("no progress in %s", logged.text())
	}
}

func TestFewProcesses(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	opts.MaxProcesses = 2
	h := open(t, opts)
	pids := map[any]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 6 {
		sc := &steps.Context{WorkDir: t.TempDir()}
		wg.Go(func() {
			r, err := run(t, h, "pid", sc)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			pids[r.Output["pid"]] = true
		})
	}
	wg.Wait()
	if len(pids) != 6 {
		t.Errorf("6 work dirs were served by %d processes; each must have its own", len(pids))
	}
}

func TestIdlePluginsEnd(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	opts.IdleTimeout = 50 * time.Millisecond
	r, err := run(t, open(t, opts), "pid", &steps.Context{WorkDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(int(r.Output["pid"].(int64)), 0)
	if errors.Is(err, unix.ESRCH) {
		return // it has ended already
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 30_000); n != 1 {
		t.Errorf("an idle plugin goes on: %v", err)
	}
}

// doomedHost runs a step that never ends, says the plugin's pid and waits to
// be killed.
func doomedHost(dir string) {
	h, err := plugin.Open(plugin.HostOptions{Dir: dir, Limits: sandbox.Limits{OpenFiles: 4096}})
	if err == nil {
		var regs []steps.Registration
		if regs, err = h.Registrations(); err == nil {
			for _, r := range regs {
				if r.Name == "pid" {
					var result steps.Result
					if result, err = r.New(steps.Capabilities{}).Run(context.Background(), &steps.Context{WorkDir: dir}); err == nil {
						fmt.Println(result.Output["pid"])
						select {}
					}
				}
			}
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

func TestNoPluginSurvivesItsHost(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	cmd := exec.Command(self(t))
	cmd.Env = append(os.Environ(), "PLUGIN_HOST_ROLE="+opts.Dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the host says %q", line)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 2000); n != 1 {
		t.Errorf("2 s after the host was killed the plugin is still there: %v", err)
	}
}

// TestWhatAKilledHostLeftIsRemoved: and nothing else is.
func TestWhatAKilledHostLeftIsRemoved(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	tmp, err := os.MkdirTemp("", "left-") // shorter than t.TempDir, for the sockets below it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	t.Setenv("TMPDIR", tmp)
	doomed := exec.Command(self(t))
	doomed.Env = append(os.Environ(), "PLUGIN_HOST_ROLE="+opts.Dir)
	stdout, err := doomed.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := doomed.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the host says %q, %v", line, err)
	}
	if err := doomed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = doomed.Wait()
	left, err := filepath.Glob(filepath.Join(tmp, "stepd-host-*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("the killed host left %v, %v; want one directory", left, err)
	}
	alive := open(t, opts)
	sc := &steps.Context{WorkDir: t.TempDir()}
	before, err := run(t, alive, "pid", sc)
	if err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	all, err := filepath.Glob(filepath.Join(tmp, "stepd-host-*"))
	if err != nil || len(all) != 2 {
		t.Fatalf("directories: %v, %v", all, err)
	}
	for _, dir := range all {
		if err := os.Chtimes(dir, long, long); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	young := filepath.Join(tmp, "stepd-host-young")
	link := filepath.Join(tmp, "stepd-host-link")
	if err := errors.Join(os.Mkdir(elsewhere, 0o700), os.Mkdir(young, 0o700), os.Symlink(elsewhere, link), os.Chtimes(elsewhere, long, long)); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, open(t, opts), "pid", &steps.Context{WorkDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what the killed host left is still there: %v", err)
	}
	for _, path := range []string{young, link, elsewhere} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("what is nobody's to remove is gone: %v", err)
		}
	}
	if after, err := run(t, alive, "pid", sc); err != nil || after.Output["pid"] != before.Output["pid"] {
		t.Errorf("the host that lives: %v, %v", after.Output, err)
	}
}

// TestDebuggingByTwoHosts: while the first step of a debugged plugin waits for
// the user, another host runs steps in the same process, with its own
// credentials; afterwards the first goes on as if nothing had been.
func TestDebuggingByTwoHosts(t *testing.T) {
	for _, tc := range []struct {
		reason    string
		noNetwork bool
	}{
		{"a live run", false},
		{"a dry run, in which the plugin cannot connect to anything", true},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			opts := install(t, "stepd-step-naughty", steps.AccessCredentials)
			opts.NoNetwork = tc.noNetwork
			sc := &steps.Context{WorkDir: t.TempDir(), Project: "acme"}
			var second any
			var socket string
			announced := 0
			first := opts
			first.Debug = debugging(t, func(ctx context.Context, name string, at protocol.Reattach) error {
				announced++
				socket = at.Address
				if info, err := os.Stat(filepath.Dir(at.Address)); err != nil || info.Mode().Perm() != 0o700 {
					t.Errorf("the relay's directory can be entered by others: %v, %v", info, err)
				}
				visitor := opts
				visitor.Debug = debugging(t, func(context.Context, string, protocol.Reattach) error { return errors.New("it started a plugin") })
				visitor.Reattach = map[string]protocol.Reattach{name: at}
				for _, user := range []string{"second", "third"} { // one after the other
					h, err := plugin.Open(visitor)
					if err != nil {
						return err
					}
					r, err := lookup(h)(t, "identity").New(steps.Capabilities{Credentials: login(user)}).Run(ctx, sc)
					if err != nil || r.Output["user"] != user {
						t.Errorf("through the relay: %v, %v; want the credentials of %s", r.Output, err, user)
					}
					second = r.Output["pid"]
					elsewhere := &steps.Context{WorkDir: t.TempDir()}
					if _, err := run(t, h, "pid", elsewhere); err == nil || !steps.IsTerminal(err) || !strings.Contains(err.Error(), "--workdir "+sc.WorkDir) {
						t.Errorf("in another work dir: %v, want a terminal error with the remedy", err)
					}
					h.Close()
				}
				return nil
			})
			h := open(t, first)
			for range 2 {
				r, err := lookup(h)(t, "identity").New(steps.Capabilities{Credentials: login("first")}).Run(t.Context(), sc)
				if err != nil || r.Output["user"] != "first" || r.Output["pid"] != second {
					t.Errorf("got %v, %v; want the first's credentials and the process %v that the second used", r.Output, err, second)
				}
			}
			if announced != 1 {
				t.Errorf("the user was told %d times", announced)
			}
			h.Close()
			if _, err := os.Stat(filepath.Dir(socket)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the relay's directory is left behind: %v", err)
			}
			gone := opts
			gone.Reattach = map[string]protocol.Reattach{"stepd-step-naughty": {Pid: 1, Network: "unix", Address: socket}}
			if _, err := run(t, open(t, gone), "pid", sc); err == nil || !strings.Contains(err.Error(), "it ends with the stepd that started it") {
				t.Errorf("after the first host's end: %v", err)
			}
		})
	}
}

func debugging(t *testing.T, announce func(context.Context, string, protocol.Reattach) error) *plugin.Debugging {
	t.Helper()
	return &plugin.Debugging{Announce: announce, Run: t.Context()}
}

func goOn(context.Context, string, protocol.Reattach) error { return nil }

// TestTheDebuggedPluginEndsUnderAnother: the run that started the plugin ends
// while another uses it.
func TestTheDebuggedPluginEndsUnderAnother(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	sc := &steps.Context{WorkDir: t.TempDir()}
	started := filepath.Join(sc.WorkDir, "started")
	if err := unix.Mkfifo(started, 0o600); err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	first := opts
	first.Debug = debugging(t, func(_ context.Context, name string, at protocol.Reattach) error {
		visitor := opts
		visitor.Reattach = map[string]protocol.Reattach{name: at}
		h := open(t, visitor)
		go func() {
			_, err := lookup(h)(t, "obedient").New(steps.Capabilities{}).Run(t.Context(), sc)
			second <- err
		}()
		_, err := os.ReadFile(started)
		return err
	})
	h := open(t, first)
	if _, err := run(t, h, "pid", sc); err != nil {
		t.Fatal(err)
	}
	h.Close()
	if err := <-second; err == nil || steps.IsTerminal(err) || !strings.Contains(err.Error(), "or the stepd that started it, has ended") {
		t.Errorf("got %v", err)
	}
}

func TestDebuggingStopsAtUnixSockets(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	opts.Reattach = map[string]protocol.Reattach{"stepd-step-naughty": {Network: "tcp", Address: "127.0.0.1:1"}}
	if _, err := run(t, open(t, opts), "pid", &steps.Context{WorkDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "only unix sockets") {
		t.Errorf("got %v", err)
	}
}

// TestInTheDebuggerNoTimeRunsOut: a step's timeout does not end it, but the
// user's cancellation does.
func TestInTheDebuggerNoTimeRunsOut(t *testing.T) {
	opts := install(t, "stepd-step-naughty")
	user, interrupt := context.WithCancel(t.Context())
	opts.Debug = &plugin.Debugging{Announce: goOn, Run: user}
	h := open(t, opts)
	sc := &steps.Context{WorkDir: t.TempDir()}
	started := filepath.Join(sc.WorkDir, "started")
	if err := unix.Mkfifo(started, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(user, time.Nanosecond, guard.ErrTimeout)
	defer cancel()
	<-ctx.Done()
	ended := make(chan error, 1)
	go func() {
		_, err := lookup(h)(t, "obedient").New(steps.Capabilities{}).Run(ctx, sc)
		ended <- err
	}()
	f, err := os.Open(started) // until the step runs, whose time was over before
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	interrupt()
	if err := <-ended; err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancellation", err)
	}
}

// TestContractDebugged: what is debugged is the plugin, not another behaviour.
func TestContractDebugged(t *testing.T) {
	opts := install(t, "stepd-step-contract", steps.AccessCredentials, steps.AccessArgoCD)
	t.Run("started by a host", func(t *testing.T) {
		debugged := opts
		debugged.Debug = debugging(t, goOn)
		contracttest.Run(t, contracttest.Subject{
			Lookup: lookup(open(t, debugged)), GrantsOnCall: true, SeparateProcess: true, MaxOutput: rpc.MaxOutputBytes,
		})
	})
	t.Run("started by a person", func(t *testing.T) {
		attached := opts
		attached.Reattach = startByHand(t, opts.Dir, "stepd-step-contract")
		contracttest.Run(t, contracttest.Subject{
			Lookup: lookup(open(t, attached)), GrantsOnCall: true, SeparateProcess: true, MaxOutput: rpc.MaxOutputBytes,
		})
	})
}

func TestDebuggingByHand(t *testing.T) {
	opts := install(t, "stepd-step-naughty", steps.AccessCredentials)
	opts.Reattach = startByHand(t, opts.Dir, "stepd-step-naughty")
	for _, user := range []string{"first", "second"} { // as often as one likes
		h := open(t, opts)
		r, err := lookup(h)(t, "identity").New(steps.Capabilities{Credentials: login(user)}).Run(t.Context(), &steps.Context{WorkDir: t.TempDir()})
		if err != nil || r.Output["pid"] != int64(opts.Reattach["stepd-step-naughty"].Pid) || r.Output["user"] != user {
			t.Errorf("got %v, %v; want the step to run in %v with the credentials of %s", r.Output, err, opts.Reattach, user)
		}
		h.Close()
	}
}

// startByHand starts a plugin as a person would, and reads what it prints.
func startByHand(t *testing.T, dir, name string) map[string]protocol.Reattach {
	t.Helper()
	cmd := exec.Command(filepath.Join(dir, name))
	cmd.Env = []string{protocol.EnvDebug + "=1", "TMPDIR=" + t.TempDir()}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("interrupted, the plugin ends with %v", err)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	value, ok := strings.CutPrefix(strings.TrimSpace(line), protocol.EnvReattach+"='")
	if !ok {
		t.Fatalf("no reattach line: %s", line)
	}
	at, err := protocol.ParseReattach(strings.TrimSuffix(value, "'"))
	if err != nil || at[name].Pid != cmd.Process.Pid {
		t.Fatalf("the line says %v, %v", at, err)
	}
	return at
}

// login is a source with the credentials of one user.
type login string

func (u login) Get(context.Context, string, steps.CredentialType, string) (*steps.Credentials, error) {
	return &steps.Credentials{Username: string(u)}, nil
}

// counter is a log's writer; safe for concurrent use.
type counter struct {
	mu sync.Mutex
	b  strings.Builder
}

func (c *counter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *counter) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

func (c *counter) lines() int { return strings.Count(c.text(), "\n") }
