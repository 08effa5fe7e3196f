package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/hosting"
	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

const runHelp = `run executes a promotion on this machine, without a cluster: the steps of a Stage's
promotion template, or of a single PromotionTask, exactly as Kargo would run them.

It is a dry run unless --live is given. A dry run executes the same steps: it clones,
downloads, verifies signatures, edits files and builds the commits for real. Only these
effects are suppressed, recorded and reported instead:
  - git pushes, of branches and tags
  - artifacts pushed to a registry
  - Argo CD Applications synced or refreshed
  - pull requests opened or merged
  - HTTP requests of the http step, except reading ones below a URL given with --allow-http
Steps of plugins run without network, and those of a --step-server do not run.

Documents come from -f: Stages, PromotionTasks, Freight, Warehouses, Promotions, Secrets and
ConfigMaps in any mix. The only Stage, or else the only task, is selected by itself.

Credentials come from Kargo credential Secrets among the documents, then from the Docker
config and its credential helpers for registries; for git from GIT_USERNAME and
GIT_PASSWORD, the netrc file and the SSH agent.

  stepd run -f stage.yaml -f freight.yaml
  stepd run -f task.yaml --var service=shop --image ghcr.io/acme/shop:v1.2.0 -o json
  stepd run -f kargo/ --stage prd-us --live`

// defaultRunTimeout ends what Kargo would poll for ever; with a debugger people
// take longer.
const (
	defaultRunTimeout   = 30 * time.Minute
	defaultDebugTimeout = 24 * time.Hour
)

type runFlags struct {
	files                           []string
	task, stage                     string
	vars, images, commits           []string
	freight                         string
	project, stageName, name, actor string
	uiBaseURL                       string
	workDir                         string
	keep, live                      bool
	timeout                         time.Duration
	expect                          string
	edges                           edgeFlags
}

func newRunCommand(a *cli.App) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run -f FILE…",
		Short: "Run a promotion locally; a dry run unless --live",
		Long:  runHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return cli.UsageErrorf("documents are given with -f: stepd run -f %s", args[0])
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringArrayVarP(&f.files, "file", "f", nil, "file or directory with Kargo documents, or - for stdin (repeatable)")
	fl.StringVar(&f.stage, "stage", "", "run the promotion template of this Stage")
	fl.StringVar(&f.task, "task", "", "run this PromotionTask or ClusterPromotionTask by itself")
	fl.StringArrayVar(&f.vars, "var", nil, "variable as NAME=VALUE; wins over those in the documents (repeatable)")
	fl.StringArrayVar(&f.images, "image", nil, "image in the Freight as REPO:TAG[@DIGEST] (repeatable)")
	fl.StringArrayVar(&f.commits, "commit", nil, "commit in the Freight as REPO@ID (repeatable)")
	fl.StringVar(&f.freight, "freight", "", "name of the Freight among the documents, or a file with one")
	fl.StringVar(&f.project, "project", "", "Kargo project (default: the documents' namespace)")
	fl.StringVar(&f.stageName, "stage-name", "", "value of ctx.stage for a task that runs without a Stage")
	fl.StringVar(&f.name, "promotion", "", "name of the promotion (default: the document's, or made the way Kargo makes it)")
	fl.StringVar(&f.actor, "actor", "", "who promotes, ctx.meta.promotion.actor")
	fl.StringVar(&f.uiBaseURL, "ui-base-url", "", "base URL of Kargo's UI, ctx.uiBaseUrl")
	fl.BoolVar(&f.live, "live", false, "act for real: push, sync, send")
	fl.StringVar(&f.workDir, "workdir", "", "directory to work in; what is in it stays (default: a temporary one)")
	fl.BoolVar(&f.keep, "keep", false, "keep a work directory that this run made")
	fl.DurationVar(&f.timeout, "timeout", defaultRunTimeout, "bound of the whole run; with --debug-plugin the default is 24h")
	fl.StringVar(&f.expect, "expect", "", "compare the JSON report with this file; exit 5 if they differ")
	f.edges.add(fl)
	output := outputFlag(cmd, "text", "json")
	cmd.MarkFlagsMutuallyExclusive("stage", "task")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.edges.plugins.Debug && !cmd.Flags().Changed("timeout") {
			f.timeout = defaultDebugTimeout
		}
		return runPromotion(cmd.Context(), a, f, output.value)
	}
	return cmd
}

func runPromotion(ctx context.Context, a *cli.App, f runFlags, format string) error {
	if f.timeout <= 0 {
		return cli.UsageErrorf("--timeout must be positive, not %s: it is what ends steps that Kargo would poll for ever", f.timeout)
	}
	opts, err := f.options()
	if err != nil {
		return err
	}
	var golden *expectation
	if f.expect != "" {
		if golden, err = readExpectation(f.expect); err != nil {
			return cli.UsageErrorf("%w", err)
		}
	}
	if len(f.files) == 0 {
		return cli.UsageErrorf("nothing to run: give the Stage or PromotionTask with -f FILE, DIR or - (see `stepd run --help`)")
	}
	set, err := loadDocuments(ctx, a, f, &opts)
	if err != nil {
		return err
	}
	stateSecrets := redact.NewLiteral()
	hosting.MaskSecrets(set, a.Redactor, stateSecrets)
	resolved, err := runner.Resolve(set, opts)
	if err != nil {
		return &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	if f.stageName != "" && resolved.Document.Kind == kargoapi.KindStage {
		return cli.UsageErrorf("--stage-name is for a task that runs without a Stage; ctx.stage is the name of Stage %q", resolved.Document.Name)
	}
	for _, w := range append(set.Warnings, resolved.Warnings...) {
		a.Statusf("warning: %s", warningText(w))
	}
	resolved.Data.Missing = func(kind, namespace, name string) {
		a.Statusf("warning: %s %q of namespace %q is not among the documents", kind, name, namespace)
	}

	workDir, cleanup, err := openWorkDir(f.workDir, f.keep)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	defer cleanup(a)
	p := resolved.Promotion
	p.WorkDir = workDir
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	if f.edges.plugins.Debug {
		f.edges.plugins.Debugging = newDebugging(ctx, a, workDir, f.live)
	}
	e, err := newEdges(ctx, a, f.edges, f.live, set, resolved.Data, stateSecrets)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	defer e.close(a)

	stepLines := a.Out
	if format == "json" {
		stepLines = a.Err
	}
	pr := newPrinter(a, stepLines, e.ledger, p)
	if !f.live {
		a.Statusf("dry run: %s (--live acts for real)", f.edges.suppressed())
	}
	engine := &runner.Engine{
		Registry: e.registry, Data: resolved.Data, Capabilities: e.capabilities, Observer: pr, Log: a.Log(), Redactor: a.Redactor,
	}
	began := time.Now()
	outcome, err := stopping(ctx, stopGrace, func() (runner.Outcome, error) { return engine.RunToCompletion(ctx, p) })
	if err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("cannot run the promotion: %w", err)}
	}
	r := newReport(outcome, e.effects, f.live, a.Redactor, stateSecrets)
	if format == "json" {
		if err := writeJSON(a.Out, r); err != nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("cannot write the report: %w", err)}
		}
	} else {
		pr.finish(r, time.Since(began))
	}
	switch err := ctx.Err(); {
	case errors.Is(err, context.DeadlineExceeded):
		return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("the promotion was not finished within %s; --timeout allows more", f.timeout)}
	case err != nil:
		return &cli.ExitError{Code: cli.ExitFailed, Err: errors.New("interrupted")}
	case golden != nil:
		return golden.compare(a, r, workDir)
	}
	if c := code(outcome); c != cli.ExitOK {
		return &cli.ExitError{Code: c}
	}
	return nil
}

// stopGrace is how long a promotion may take to stop when its time is up or it
// is interrupted.
const stopGrace = 15 * time.Second

// stopping is what run returns, unless it goes on for longer than grace after
// the end of ctx. Steps stop when they are told to, or are killed; an expression
// that computes for hours does not listen, and ends with the process.
func stopping[T any](ctx context.Context, grace time.Duration, run func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := run()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-t.C:
		var none T
		return none, fmt.Errorf("it did not stop within %s of the end (%w): look for an expression that computes without end", grace, context.Cause(ctx))
	}
}

// options turns flags into what Resolve wants to know.
func (f *runFlags) options() (runner.Options, error) {
	o := runner.Options{
		Stage: f.stage, Task: f.task, Project: f.project, StageName: f.stageName, PromotionName: f.name,
		Actor: f.actor, UIBaseURL: f.uiBaseURL, Freight: f.freight, SharedNamespace: hosting.SharedNamespace(), Now: time.Now(),
	}
	for _, v := range f.vars {
		name, value, ok := strings.Cut(v, "=")
		if !ok || !variableName.MatchString(name) {
			return o, cli.UsageErrorf("--var %q is not NAME=VALUE with a name of letters, digits and _", v)
		}
		o.Vars = append(o.Vars, kargoapi.Variable{Name: name, Value: value})
	}
	for _, s := range f.images {
		image, err := parseImage(s)
		if err != nil {
			return o, cli.UsageErrorf("--image %q: %w", s, err)
		}
		o.Images = append(o.Images, image)
	}
	for _, s := range f.commits {
		at := strings.LastIndexByte(s, '@')
		if at <= 0 || at+1 == len(s) || strings.ContainsAny(s[at+1:], "/:") {
			return o, cli.UsageErrorf("--commit %q is not REPO@ID, such as https://github.com/acme/shop.git@9e107d9", s)
		}
		o.Commits = append(o.Commits, steps.GitCommit{RepoURL: s[:at], ID: s[at+1:]})
	}
	return o, nil
}

// variableName is the CRD's pattern for names of variables.
var variableName = regexp.MustCompile(`^[a-zA-Z_]\w*$`)

var imageDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// parseImage reads REPO:TAG, REPO@DIGEST or REPO:TAG@DIGEST. The repository is
// kept as it is written: imageFrom() compares it as text.
func parseImage(s string) (steps.Image, error) {
	var img steps.Image
	rest, digest, pinned := strings.Cut(s, "@")
	if pinned && !imageDigest.MatchString(digest) {
		return img, fmt.Errorf("%q is not a digest; it is sha256: and 64 hex digits", digest)
	}
	img.RepoURL, img.Digest = rest, digest
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		img.RepoURL, img.Tag = rest[:i], rest[i+1:]
	}
	if img.RepoURL == "" || img.Tag == "" && !pinned {
		return img, errors.New("it is not REPO:TAG[@DIGEST], such as ghcr.io/acme/shop:v1.2.0")
	}
	return img, nil
}

// loadDocuments loads all -f files and a --freight that is a file.
func loadDocuments(ctx context.Context, a *cli.App, f runFlags, opts *runner.Options) (*load.Set, error) {
	paths := f.files
	freightFile := ""
	if f.freight != "" {
		if info, err := os.Stat(f.freight); err == nil && info.Mode().IsRegular() {
			freightFile = f.freight
			paths = append(append([]string(nil), paths...), freightFile)
		}
	}
	set, err := load.Documents(ctx, paths, a.In)
	if ctx.Err() != nil {
		return nil, &cli.ExitError{Code: cli.ExitFailed, Err: errors.New("interrupted")}
	}
	if err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	if freightFile == "" {
		return set, nil
	}
	opts.Freight = ""
	for _, d := range load.Of[*kargoapi.Freight](set) {
		if d.File != freightFile {
			continue
		}
		if opts.Freight != "" {
			return nil, cli.UsageErrorf("--freight %s holds more than one Freight; load it with -f and name one", freightFile)
		}
		opts.Freight = d.Name
	}
	if opts.Freight == "" {
		return nil, cli.UsageErrorf("--freight %s holds no document of kind Freight", freightFile)
	}
	return set, nil
}

func warningText(w load.Warning) string {
	if at := w.String(); at != "" {
		return at + ": " + w.Message
	}
	return w.Message
}

// openWorkDir returns the directory to work in, absolute, and what to call at
// the end. A directory that was there before is never removed.
func openWorkDir(dir string, keep bool) (string, func(*cli.App), error) {
	remove := !keep
	if dir == "" {
		tmp, err := os.MkdirTemp("", "stepd-run-")
		if err != nil {
			return "", nil, fmt.Errorf("cannot make a work directory: %w", err)
		}
		dir = tmp
	} else {
		switch info, err := os.Stat(dir); {
		case err == nil && !info.IsDir():
			return "", nil, fmt.Errorf("--workdir %s is not a directory", dir)
		case err == nil:
			remove = false
		case os.IsNotExist(err):
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return "", nil, fmt.Errorf("cannot make --workdir: %w", err)
			}
		default:
			return "", nil, fmt.Errorf("cannot use --workdir: %w", err)
		}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, fmt.Errorf("cannot use --workdir: %w", err)
	}
	return abs, func(a *cli.App) {
		if !remove {
			if keep {
				a.Statusf("work directory: %s", abs)
			}
			return
		}
		if err := os.RemoveAll(abs); err != nil {
			a.Statusf("warning: cannot remove the work directory: %v", err)
		}
	}, nil
}
