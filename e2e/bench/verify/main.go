// Command verify measures what it costs to turn a reference into verified
// bytes, per form of signature: by oci-download-verified in this process, by
// `stepd verify --download` as a process, and, as the baseline, by `cosign
// verify` (v3) and a pull by tag as two processes. The registry is a process
// of its own, so that its work is nobody's.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/e2e/sigstore"
	"github.com/stepd/stepd/e2e/tools"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/ociverified"
)

// rounds is how often each is measured; the median counts.
const rounds = 15

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "registry":
		err = serveRegistry(ctx)
	case len(os.Args) == 4 && os.Args[1] == "pull":
		err = pull(ctx, os.Args[2], os.Args[3])
	default:
		err = bench(ctx, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "stepd-bench-")
	if err != nil {
		return fmt.Errorf("cannot make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bencher{dir: dir}
	if b.self, err = os.Executable(); err != nil {
		return fmt.Errorf("cannot find this program: %w", err)
	}
	if b.stepd, err = tools.Stepd(ctx, dir); err != nil {
		return err
	}
	if b.stack, err = sigstore.Start(ctx, dir); err != nil {
		return err
	}
	defer b.stack.Close()
	if b.registry, err = startRegistry(ctx, b.self); err != nil {
		return err
	}
	defer b.registry.stop()
	b.step = ociverified.New(ociverified.Options{Trust: ociverified.BesideConfig{}, Ledger: &verification.Memory{}})

	w := &table{tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)}
	w.printf("medians of %d, %s/%s, %d CPUs, %s\n", rounds, runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	w.printf("\tin process\t\t\tstepd verify\t\t\t\tcosign + pull\t\t\t\tratio\t\t\n")
	w.printf("form\twall ms\tCPU ms\trequests\twall ms\tCPU ms\tMiB\trequests\twall ms\tCPU ms\tMiB\trequests\tin process\tstepd verify\t\n")
	for _, form := range sigstore.Forms() {
		if form.Attest {
			continue // `cosign verify` does not look at attestations
		}
		inProcess, process, baseline, err := b.form(ctx, form)
		if err != nil {
			return fmt.Errorf("%s: %w", form, err)
		}
		w.printf("%s\t%s\t%s\t%d\t%s\t%s\t%.1f\t%d\t%s\t%s\t%.1f\t%d\t%.1fx\t%.1fx\t\n", form,
			ms(inProcess.wall), ms(inProcess.cpu), inProcess.requests,
			ms(process.wall), ms(process.cpu), process.mib, process.requests,
			ms(baseline.wall), ms(baseline.cpu), baseline.mib, baseline.requests,
			float64(baseline.wall)/float64(inProcess.wall), float64(baseline.wall)/float64(process.wall))
	}
	return w.Flush()
}

// table is a tabwriter whose errors show when it is flushed.
type table struct{ *tabwriter.Writer }

func (t *table) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(t.Writer, format, args...) // Flush reports it
}

// cost is what one verification and download takes.
type cost struct {
	wall, cpu time.Duration
	// mib is the peak of the resident set, of the largest process.
	mib      float64
	requests int
}

type bencher struct {
	dir, self, stepd string
	stack            *sigstore.Stack
	registry         *registryProcess
	step             steps.Registration
	files            int
}

// form measures the three ways on one form.
func (b *bencher) form(ctx context.Context, form sigstore.Form) (inProcess, process, baseline cost, err error) {
	repository := b.registry.host + "/bench/" + form.String()
	config := sandbox.Config(sandbox.RegionUS)
	manifest, err := artifact.Push(ctx, repository, config)
	if err != nil {
		return
	}
	run := sandbox.Release()
	if err = b.stack.Sign(ctx, form, run, repository+"@"+manifest.Digest.String(), sigstore.SignOptions{}); err != nil {
		return
	}
	ref := repository + ":" + config.Tag()
	costs, err := b.measure(ctx,
		func() (cost, error) { return b.inProcess(ctx, form, ref) },
		func() (cost, error) {
			return command(exec.CommandContext(ctx, b.stepd, append(b.stepdArgs(form, ref), "--download", b.file())...))
		},
		func() (cost, error) {
			verify, err := command(b.stack.CosignCommand(ctx, 3, b.stack.VerifyArgs(form, run, ref)...))
			if err != nil {
				return cost{}, err
			}
			pull, err := command(exec.CommandContext(ctx, b.self, "pull", ref, b.file()))
			return cost{wall: verify.wall + pull.wall, cpu: verify.cpu + pull.cpu, mib: max(verify.mib, pull.mib)}, err
		})
	if err != nil {
		return
	}
	return costs[0], costs[1], costs[2], nil
}

// measure runs each of fs once to warm up and then rounds times, in turn, so
// that a machine whose speed changes meanwhile changes all of them.
func (b *bencher) measure(ctx context.Context, fs ...func() (cost, error)) ([]cost, error) {
	all := make([][]cost, len(fs))
	for round := range 1 + rounds {
		for i, f := range fs {
			if _, err := b.registry.requests(ctx); err != nil {
				return nil, err
			}
			c, err := f()
			if err != nil {
				return nil, err
			}
			if c.requests, err = b.registry.requests(ctx); err != nil {
				return nil, err
			}
			if round > 0 {
				all[i] = append(all[i], c)
			}
		}
	}
	medians := make([]cost, len(fs))
	for i := range fs {
		median := func(less func(a, b cost) int) cost { slices.SortFunc(all[i], less); return all[i][len(all[i])/2] }
		medians[i] = cost{
			wall:     median(func(a, b cost) int { return int(a.wall - b.wall) }).wall,
			cpu:      median(func(a, b cost) int { return int(a.cpu - b.cpu) }).cpu,
			mib:      median(func(a, b cost) int { return int(1000 * (a.mib - b.mib)) }).mib,
			requests: median(func(a, b cost) int { return a.requests - b.requests }).requests,
		}
	}
	return medians, nil
}

func (b *bencher) inProcess(ctx context.Context, form sigstore.Form, ref string) (cost, error) {
	work := b.file()
	if err := os.Mkdir(work, 0o700); err != nil {
		return cost{}, fmt.Errorf("cannot make a work dir: %w", err)
	}
	sc := &steps.Context{
		WorkDir: work, Alias: "config", Project: "bench", Promotion: "bench", Log: slog.New(slog.DiscardHandler),
		ConfigFile: filepath.Join(b.dir, "task.yaml"),
		Config:     map[string]any{"imageRef": ref, "outPath": "values.yaml", "verify": b.policy(form)},
	}
	cpu, start := ownCPU(), time.Now()
	result, err := b.step.New(steps.Capabilities{}).Run(ctx, sc)
	c := cost{wall: time.Since(start), cpu: ownCPU() - cpu}
	if err != nil {
		return c, err
	}
	if result.Status != steps.Succeeded {
		return c, fmt.Errorf("%s: %s", result.Status, result.Message)
	}
	return c, nil
}

// policy is the verify block that accepts one form.
func (b *bencher) policy(form sigstore.Form) map[string]any {
	verify := map[string]any{"trustedRoot": map[string]any{"path": b.stack.TrustedRoot}}
	if form.Key {
		verify["keys"] = []any{map[string]any{"path": b.stack.PublicKey}}
	} else {
		verify["identities"] = []any{map[string]any{"issuer": b.stack.Issuer(), "subject": sandbox.Release().Subject()}}
	}
	if form.Log == sigstore.NoLog {
		verify["requireTransparencyLog"] = false
	}
	return verify
}

// stepdArgs are the same policy as flags.
func (b *bencher) stepdArgs(form sigstore.Form, ref string) []string {
	args := []string{"verify", ref, "--trusted-root", b.stack.TrustedRoot}
	if form.Key {
		args = append(args, "--key", b.stack.PublicKey)
	} else {
		args = append(args, "--issuer", b.stack.Issuer(), "--subject", sandbox.Release().Subject())
	}
	if form.Log == sigstore.NoLog {
		args = append(args, "--require-transparency-log=false")
	}
	return args
}

// file returns a path that is not in use.
func (b *bencher) file() string {
	b.files++
	return filepath.Join(b.dir, "out-"+strconv.Itoa(b.files))
}

// command runs a process to its end and says what it cost.
func command(cmd *exec.Cmd) (cost, error) {
	start := time.Now()
	out, err := cmd.CombinedOutput()
	c := cost{wall: time.Since(start)}
	if err != nil {
		return c, fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, out)
	}
	c.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.mib = float64(usage.Maxrss) / 1024 // KiB on Linux
	}
	return c, nil
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }

// pull fetches the one layer of ref into file: the baseline's second process.
func pull(ctx context.Context, ref, file string) error {
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return fmt.Errorf("cannot use %q: %w", ref, err)
	}
	repo.PlainHTTP = true
	desc, raw, err := repo.FetchReference(ctx, repo.Reference.Reference)
	if err != nil {
		return fmt.Errorf("cannot fetch the manifest: %w", err)
	}
	defer raw.Close() //nolint:errcheck // read to the end
	manifest, err := content.ReadAll(raw, desc)
	if err != nil {
		return fmt.Errorf("cannot read the manifest: %w", err)
	}
	layer, err := artifact.Layer(manifest)
	if err != nil {
		return err
	}
	blob, err := content.FetchAll(ctx, repo, layer)
	if err != nil {
		return fmt.Errorf("cannot fetch the layer: %w", err)
	}
	return os.WriteFile(file, blob, 0o600)
}
