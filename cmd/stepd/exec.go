package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/hosting"
	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/strictyaml"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/ociverified"
)

const execHelp = `exec runs one step as a command: the config is YAML or JSON, the work dir is the current
directory, and the outputs go to the file that $KARGO_OUTPUT names, or to stdout without one.

That is the contract of a CustomPromotionStep, in which Kargo runs a command for every use of
the step, see examples/akuity. A config that templates produced is best passed in the
environment, where no shell sees it:

  command: ["stepd", "exec", "oci-download-verified", "--config", "env:STEPD_CONFIG", "--format", "json",
            "--project", "${{ ctx.project }}", "--promotion", "${{ ctx.promotion }}", "--alias", "${{ ctx.meta.step.alias }}"]
  env: [{name: STEPD_CONFIG, value: "${{ toJSON(config) }}"}]

A step that answers Running is run again after the time it asks for. The exit code is that of
stepd run: 0 success, 1 failure, 2 config, 3 refused, 4 conflict.

  stepd exec config-apply < config.yaml
  stepd exec atomic-commit --config commit.yaml --project acme --promotion prd-us.01J9 --alias commit`

// maxKargoOutput is Kargo's hard limit of a step's outputs, 256 KiB (compat.md
// section 7.2). Exceeding it there is an error without a remedy.
const maxKargoOutput = 256 << 10

// kargoTail is how much of a command's stderr Kargo shows, from its end: 16 KiB
// (compat.md section 7.2). maxLastLine leaves room in it for what goes before.
const (
	kargoTail   = 16 << 10
	maxLastLine = kargoTail / 2
)

// maxExecConfig bounds a config; 4 MiB.
const maxExecConfig = 4 << 20

type execFlags struct {
	config, project, stage, promotion, alias, actor string
	timeout                                         time.Duration
	secrets                                         []string
	hosted                                          hosting.StepFlags
	clusters                                        hosting.ClusterFlags
	plugins                                         hosting.PluginFlags
}

func newExecCommand(a *cli.App) *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec KIND",
		Short: "Run one step as a command",
		Long:  execHelp,
		Args:  cobra.ExactArgs(1),
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.config, "config", "-", "file with the step's config, - for stdin, or env:NAME for a variable")
	fl.StringVar(&f.project, "project", "", "Kargo project of the promotion")
	fl.StringVar(&f.stage, "stage", "", "Stage of the promotion")
	fl.StringVar(&f.promotion, "promotion", "", "name of the promotion")
	fl.StringVar(&f.alias, "alias", "", "alias of the step (default: KIND)")
	fl.StringVar(&f.actor, "actor", "", "who promotes")
	fl.DurationVar(&f.timeout, "timeout", defaultRunTimeout, "bound of the whole step")
	fl.StringArrayVar(&f.secrets, "secrets", nil, "file or directory with Kargo credential Secrets (repeatable)")
	format := &choice{value: "keyvalue", of: []string{"keyvalue", "json"}}
	fl.Var(format, "format", "format of the outputs; output.source.format of the CustomPromotionStep has to say the same")
	f.hosted.Add(fl)
	f.clusters.Add(fl)
	f.plugins.Add(fl)
	f.plugins.AddServers(fl)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.timeout <= 0 {
			return cli.UsageErrorf("--timeout must be positive, not %s", f.timeout)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
		defer cancel()
		return withinTail(a, f.run(ctx, a, args[0], format.value))
	}
	return cmd
}

// withinTail shortens an error whose beginning, which says what failed and
// where, would not be in what Kargo shows of stderr. It is masked before it is
// cut, so that no part of a secret is left.
func withinTail(a *cli.App, err error) error {
	exit, ok := errors.AsType[*cli.ExitError](err)
	if !ok || exit.Err == nil {
		return err
	}
	text := cli.Printable(a.Redactor.String(exit.Err.Error()))
	if len(text) <= maxLastLine {
		return err
	}
	return &cli.ExitError{Code: exit.Code, Err: fmt.Errorf("%s… (and %d bytes more)", strings.ToValidUTF8(text[:maxLastLine], ""), len(text)-maxLastLine)}
}

func (f *execFlags) run(ctx context.Context, a *cli.App, kind, format string) error {
	sc, err := f.context(ctx, a, kind)
	if err != nil {
		return inputError(err)
	}
	set, err := hosting.ReadSecrets(ctx, a, f.secrets)
	if err != nil {
		return inputError(err)
	}
	own, err := f.hosted.Steps(ociverified.BesideConfig{}, a.Redactor.Secrets(hosting.DocumentSecrets{Set: set}), nil)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	fromPlugins, donePlugins, err := f.plugins.Open(ctx, sc.Log)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	defer donePlugins()
	registry, err := runner.NewRegistry(append(own, fromPlugins...)...)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	reg, ok := registry.Lookup(kind)
	if !ok {
		return cli.UsageErrorf("no step is named %q; there are %s", kind, strings.Join(registry.Kinds(), ", "))
	}
	caps, err := hosting.DocumentCapabilities(a, set, f.clusters, true, nil)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	result, err := runToEnd(ctx, a, reg, caps, sc)
	// What a failed step put out is put out all the same: Kargo shows it.
	if writeErr := writeOutputs(a, result.Output, format); writeErr != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: errors.Join(err, writeErr)}
	}
	return execOutcome(a, kind, result, err)
}

// execOutcome is the exit code and the last line on stderr.
func execOutcome(a *cli.App, kind string, r steps.Result, err error) error {
	switch {
	case errors.Is(err, steps.ErrConfig):
		return cli.UsageErrorf("%w", err)
	case err != nil:
		return &cli.ExitError{Code: exitCode(err), Err: fmt.Errorf("step %s %s: %w", kind, strings.ToLower(string(r.Status)), err)}
	case r.Status == steps.Succeeded, r.Status == steps.Skipped:
		if r.Message != "" {
			a.Statusf("%s", cli.Printable(r.Message))
		}
		return nil
	}
	return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("step %s %s: %s", kind, strings.ToLower(string(r.Status)), cli.Printable(r.Message))}
}

// context is the step's, from flags, config and current directory.
func (f *execFlags) context(ctx context.Context, a *cli.App, kind string) (*steps.Context, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("cannot find the work dir: %w", err)
	}
	sc := &steps.Context{
		WorkDir: dir, SharedState: map[string]any{}, Alias: f.alias, Project: f.project, Stage: f.stage,
		Promotion: f.promotion, PromotionActor: f.actor, Log: a.Log(),
	}
	if sc.Alias == "" {
		sc.Alias = kind
	}
	text, err := f.readConfig(ctx, a, sc)
	if err != nil {
		return nil, err
	}
	if err := strictyaml.Unmarshal(text, &sc.Config); err != nil {
		return nil, fmt.Errorf("cannot parse the config: %w", err)
	}
	if sc.Config == nil {
		sc.Config = map[string]any{}
	}
	sc.Config, _ = wholeNumbers(sc.Config).(map[string]any)
	return sc, nil
}

func (f *execFlags) readConfig(ctx context.Context, a *cli.App, sc *steps.Context) ([]byte, error) {
	if name, ok := strings.CutPrefix(f.config, "env:"); ok {
		text, set := os.LookupEnv(name)
		if !set {
			return nil, fmt.Errorf("cannot read the config: the variable %s is not set", name)
		}
		return []byte(text), nil
	}
	text, path, err := readInput(ctx, f.config, a.In, maxExecConfig)
	if err != nil {
		return nil, fmt.Errorf("cannot read the config: %w", err)
	}
	sc.ConfigFile = path
	return text, nil
}

// wholeNumbers makes whole numbers int, as steps.Context.Config promises.
func wholeNumbers(v any) any {
	switch v := v.(type) {
	case float64:
		if whole := int(v); float64(whole) == v {
			return whole
		}
	case map[string]any:
		for k, item := range v {
			v[k] = wholeNumbers(item)
		}
	case []any:
		for i, item := range v {
			v[i] = wholeNumbers(item)
		}
	}
	return v
}

// runToEnd makes attempts until the step does not answer Running.
func runToEnd(ctx context.Context, a *cli.App, reg steps.Registration, caps steps.Capabilities, sc *steps.Context) (steps.Result, error) {
	var schema *configschema.Schema
	if reg.ConfigSchema != nil {
		var err error
		if schema, err = configschema.Compile(reg.ConfigSchema); err != nil {
			return steps.Result{Status: steps.Errored}, err
		}
	}
	granted := caps.Only(reg.RequiredCapabilities)
	for {
		attempt := guard.Redacted(guard.Recovered(guard.Limited(
			guard.Validated(reg.New(granted), reg.Name, schema), reg.DefaultTimeout), sc.Log), a.Redactor)
		r, err := attempt.Run(ctx, sc)
		if err != nil && r.Status != steps.Failed {
			r.Status = steps.Errored
		}
		if err != nil || r.Status != steps.Running {
			return r, err
		}
		wait := 10 * time.Second
		if r.RetryAfter != nil {
			wait = max(*r.RetryAfter, time.Second)
		}
		if err := (runner.SystemClock{}).Sleep(ctx, wait); err != nil {
			return steps.Result{Status: steps.Errored}, fmt.Errorf("the step still runs: %w", err)
		}
	}
}

// writeOutputs writes to $KARGO_OUTPUT, or stdout.
func writeOutputs(a *cli.App, output map[string]any, format string) error {
	if output == nil {
		output = map[string]any{}
	}
	var final any = output
	if format == "keyvalue" {
		values, err := asText(output)
		if err != nil {
			return fmt.Errorf("cannot write the outputs: %w", err)
		}
		final = values
	}
	text, err := json.Marshal(final)
	if err != nil {
		return fmt.Errorf("cannot write the outputs: %w", err)
	}
	if len(text) > maxKargoOutput {
		return fmt.Errorf("cannot write the outputs: they take %d bytes, and Kargo accepts %d", len(text), maxKargoOutput)
	}
	text = append(text, '\n')
	if values, ok := final.(map[string]string); ok {
		text = keyValue(values)
	}
	path := os.Getenv("KARGO_OUTPUT")
	if path == "" {
		_, err = a.Out.Write(text)
	} else {
		// Kargo made the file, or the pipe. Lines may follow those of somebody else; a
		// JSON document stands alone, also when the command is run again.
		how := os.O_WRONLY | os.O_CREATE | os.O_APPEND
		if format == "json" {
			how |= os.O_TRUNC
		}
		var f *os.File
		if f, err = os.OpenFile(path, how, 0o600); err == nil {
			_, err = f.Write(text)
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("cannot write the outputs: %w", err)
	}
	return nil
}

// asText makes outputs what Kargo reads from key=value lines: text. Values that
// are not strings are JSON.
func asText(output map[string]any) (map[string]string, error) {
	values := make(map[string]string, len(output))
	for k, v := range output {
		if k == "" || strings.ContainsAny(k, "=\r\n") || strings.Contains(k, "<<") {
			return nil, fmt.Errorf("the key %q cannot be written as key=value; use --format json", k)
		}
		text, ok := v.(string)
		if !ok {
			j, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			text = string(j)
		}
		values[k] = text
	}
	return values, nil
}

// keyValue writes key=value lines, and key<<END … END for values of several
// lines.
func keyValue(values map[string]string) []byte {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(values)) {
		text := values[k]
		// A reader that looks for << anywhere in the line would take it for a marker.
		if !strings.ContainsAny(text, "\r\n") && !strings.Contains(text, "<<") {
			fmt.Fprintf(&b, "%s=%s\n", k, text)
			continue
		}
		// Nobody who writes a value can guess where it ends.
		end := "END_" + rand.Text()
		fmt.Fprintf(&b, "%s<<%s\n%s\n%s\n", k, end, text, end)
	}
	return []byte(b.String())
}
