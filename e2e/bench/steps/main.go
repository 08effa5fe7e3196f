// Command steps measures what it costs to call a step that does next to
// nothing, for each way an engine can reach it: through a plugin process, and
// through a server process by gRPC over a unix socket and by HTTP/JSON. The
// baseline is the same step in this process, under what surrounds it in every
// engine. Then a thousand calls are made at once, each way, and what memory
// the process with the step has for them is measured, and bounded.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/stepd/stepd/e2e/process"
	"github.com/stepd/stepd/internal/configschema"
	sdk "github.com/stepd/stepd/plugin"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/plugin"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/runner/rpc/serve"
	"github.com/stepd/stepd/steps"
)

const (
	// blocks of callsInBlock calls are made one way after the other, so that
	// what else the machine does hits all of them.
	blocks, callsInBlock = 12, 250
	// crowd is how many calls are made at once, and maxMiB what memory the
	// process with the step may have had meanwhile.
	crowd, maxMiB = 1000, 256
)

const pluginName = "stepd-step-bench"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case filepath.Base(os.Args[0]) == pluginName:
		sdk.Serve(registrations()...)
	case len(os.Args) == 5 && os.Args[1] == "serve":
		err = serveSteps(ctx, os.Args[2], os.Args[3], os.Args[4])
	default:
		err = bench(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // the signals go with the process
	}
}

// registrations are the steps that are called: echo, and pid, which says which
// process it runs in.
func registrations() []steps.Registration {
	step := func(name string, run steps.RunnerFunc) steps.Registration {
		return steps.Registration{
			Name: name, New: func(steps.Capabilities) steps.Runner { return run },
			ConfigSchema: []byte(`{"type": "object", "additionalProperties": false, "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}}`),
		}
	}
	return []steps.Registration{
		step("echo", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Succeeded, Output: map[string]any{"name": sc.Config["name"]}}, nil
		}),
		step("pid", func(context.Context, *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Succeeded, Output: map[string]any{"pid": os.Getpid()}}, nil
		}),
	}
}

// forgetPeak makes a process's peak what it has now, see proc_pid_clear_refs(5).
func forgetPeak(pid string) error {
	return os.WriteFile(filepath.Join("/proc", pid, "clear_refs"), []byte("5"), 0)
}

// peakMiB is the peak of a process's resident set, see proc_pid_status(5).
func peakMiB(pid string) (float64, error) {
	path := filepath.Join("/proc", pid, "status")
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("%s does not say VmHWM", path)
}

// serveSteps is the server process.
func serveSteps(ctx context.Context, root, socket, address string) error {
	dirs, err := rpc.OpenWorkDirs(root)
	if err != nil {
		return err
	}
	opts := serve.Options{Insecure: true, MaxWaiting: crowd, Steps: rpc.ServerOptions{Steps: registrations(), WorkDirs: dirs}}
	if opts.GRPC, err = rpc.ParseAddress("unix:" + socket); err != nil {
		return err
	}
	if opts.HTTP, err = rpc.ParseAddress(address); err != nil {
		return err
	}
	return serve.Run(ctx, opts)
}

// way is one way to reach the steps.
type way struct {
	name  string
	steps map[string]steps.Registration
	took  []time.Duration
}

func (w *way) call(ctx context.Context, kind, workDir string) (steps.Result, error) {
	sc := &steps.Context{
		WorkDir: workDir, Alias: "bench", Project: "acme", Promotion: "p", SharedState: map[string]any{}, Log: slog.New(slog.DiscardHandler),
		Config: map[string]any{"name": "a"},
	}
	r, err := w.steps[kind].New(steps.Capabilities{}).Run(ctx, sc)
	if err != nil || r.Status != steps.Succeeded {
		return r, fmt.Errorf("%s: %s: status %q, %w", w.name, kind, r.Status, errors.Join(err, errors.New("not what was expected")))
	}
	return r, nil
}

func bench(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "stepd-bench-")
	if err != nil {
		return fmt.Errorf("cannot make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	work := filepath.Join(dir, "work", "promotion")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}

	inProcess, err := fromHere()
	if err != nil {
		return err
	}
	host, fromPlugin, err := throughPlugin(ctx, self, filepath.Join(dir, "plugins"))
	if err != nil {
		return err
	}
	defer host.Close()
	overUnix, overHTTP, stop, err := throughServer(ctx, self, filepath.Dir(work), filepath.Join(dir, "s"))
	if err != nil {
		return err
	}
	defer stop()
	ways := []*way{inProcess, fromPlugin, overUnix, overHTTP}

	for block := range blocks + 1 {
		for _, w := range ways {
			for range callsInBlock {
				start := time.Now()
				if _, err := w.call(ctx, "echo", work); err != nil {
					return err
				}
				if block > 0 { // the first is for warming up
					w.took = append(w.took, time.Since(start))
				}
			}
		}
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	printf := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format, args...) } // Flush reports it
	printf("%d calls each, %s/%s, %d CPUs, %s\n", blocks*callsInBlock, runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	printf("\tp50 µs\tp99 µs\tp50 ratio\tp99 ratio\tp50 under 1 ms\t%d at once: ms\tpeak MiB\t\n", crowd)
	base := inProcess.quantiles()
	for _, w := range ways {
		q := w.quantiles()
		all, peak, err := w.crowd(ctx, work)
		if err != nil {
			return err
		}
		printf("%s\t%.1f\t%.1f\t%.0fx\t%.0fx\t%t\t%.0f\t%.0f\t\n", w.name, micros(q[0]), micros(q[1]),
			float64(q[0])/float64(base[0]), float64(q[1])/float64(base[1]), q[0] < time.Millisecond, micros(all)/1000, peak)
		if peak > maxMiB {
			err := fmt.Errorf("%s: %d calls at once took %.0f MiB, and the bound is %d", w.name, crowd, peak, maxMiB)
			return errors.Join(err, t.Flush())
		}
	}
	return t.Flush()
}

// quantiles are the median and the 99th percentile.
func (w *way) quantiles() [2]time.Duration {
	slices.Sort(w.took)
	return [2]time.Duration{w.took[len(w.took)/2], w.took[len(w.took)*99/100]}
}

// crowd makes calls at once, all of which have to succeed, and tells how long
// that took, and the most MiB that the step's process had meanwhile.
func (w *way) crowd(ctx context.Context, work string) (took time.Duration, peak float64, err error) {
	r, err := w.call(ctx, "pid", work)
	if err != nil {
		return 0, 0, err
	}
	pid := fmt.Sprint(r.Output["pid"])
	if err := forgetPeak(pid); err != nil {
		return 0, 0, err
	}
	failed := make(chan error, crowd)
	var wg sync.WaitGroup
	start := time.Now()
	for range crowd {
		wg.Go(func() {
			_, err := w.call(ctx, "echo", work)
			failed <- err
		})
	}
	wg.Wait()
	took = time.Since(start)
	for range crowd {
		if err := <-failed; err != nil {
			return 0, 0, err
		}
	}
	peak, err = peakMiB(pid)
	return took, peak, err
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func newWay(name string, regs []steps.Registration) *way {
	w := &way{name: name, steps: map[string]steps.Registration{}}
	for _, reg := range regs {
		w.steps[reg.Name] = reg
	}
	return w
}

// fromHere is the baseline: what an engine puts around a step of its own.
func fromHere() (*way, error) {
	regs := registrations()
	for i, reg := range regs {
		schema, err := configschema.Compile(reg.ConfigSchema)
		if err != nil {
			return nil, err
		}
		factory, log := reg.New, slog.New(slog.DiscardHandler)
		regs[i].New = func(caps steps.Capabilities) steps.Runner {
			return guard.Recovered(guard.Limited(guard.Validated(factory(caps), reg.Name, schema), time.Minute), log)
		}
	}
	return newWay("in process", regs), nil
}

func throughPlugin(ctx context.Context, self, dir string) (*plugin.Host, *way, error) {
	opts := plugin.HostOptions{Dir: dir}
	if _, err := plugin.Install(ctx, opts, plugin.InstallOptions{Path: self, Name: pluginName}); err != nil {
		return nil, nil, err
	}
	host, err := plugin.Open(opts)
	if err != nil {
		return nil, nil, err
	}
	regs, err := host.Registrations()
	if err != nil {
		host.Close()
		return nil, nil, err
	}
	return host, newWay("go-plugin", regs), nil
}

func throughServer(ctx context.Context, self, root, socket string) (overUnix, overHTTP *way, stop func(), err error) {
	ports, err := process.FreePorts(1)
	if err != nil {
		return nil, nil, nil, err
	}
	address := "127.0.0.1:" + ports[0]
	server, err := process.Start("step server", exec.CommandContext(ctx, self, "serve", root, socket, address))
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		if err != nil {
			server.Kill()
		}
	}()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: crowd, MaxConnsPerHost: 64}}
	if err := server.Ready(ctx, process.OK(client, "http://"+address+"/readyz")); err != nil {
		return nil, nil, nil, err
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, nil, err
	}
	regs, err := rpc.NewClient(conn, rpc.ClientOptions{}).Registrations(ctx)
	if err != nil {
		return nil, nil, nil, errors.Join(err, conn.Close())
	}
	var web []steps.Registration
	for _, reg := range regs {
		web = append(web, steps.Registration{Name: reg.Name, New: func(steps.Capabilities) steps.Runner {
			return httpStep{client, "http://" + address + "/v1/steps/" + reg.Name}
		}})
	}
	return newWay("gRPC, unix socket", regs), newWay("HTTP/JSON", web), func() {
		_ = conn.Close()
		server.Stop(10 * time.Second)
	}, nil
}

// httpStep is a step as a client with nothing but HTTP and JSON calls it.
type httpStep struct {
	client *http.Client
	url    string
}

// Run implements steps.Runner.
func (s httpStep) Run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	body, err := json.Marshal(map[string]any{
		"config":  sc.Config,
		"context": map[string]any{"workDir": sc.WorkDir, "alias": sc.Alias, "project": sc.Project, "promotion": sc.Promotion},
	})
	if err != nil {
		return steps.Result{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return steps.Result{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return steps.Result{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	var answer struct {
		Status  steps.Status
		Message string
		Output  map[string]any
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer); err != nil {
		return steps.Result{}, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return steps.Result{Status: answer.Status, Message: answer.Message, Output: answer.Output}, err
}
