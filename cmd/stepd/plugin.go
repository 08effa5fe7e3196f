package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/hosting"
	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/credentials"
	"github.com/stepd/stepd/internal/sandbox"
	sdk "github.com/stepd/stepd/plugin"
	"github.com/stepd/stepd/runner/plugin"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/ociverified"
)

const pluginHelp = `A plugin is a program with steps of its own, which stepd starts when a promotion uses them:
confined to the promotion's work dir where the kernel has Landlock, without the environment of
stepd, and with no credentials but those it was granted when it was installed.

Only programs whose sha256 was pinned by "stepd plugin install" start; one that has changed
since is refused. How to write one is in docs/plugins.md.`

const pluginInstallHelp = `install copies a program into the plugin directory, starts it once to hear which steps it
has, and pins its sha256.

PROGRAM is a file, or oci://REPOSITORY:TAG for an artifact, which is verified first, by the
policy in --verify: the config block of the step oci-download-verified (see stepd verify). Its
layer has the media type application/vnd.stepd.plugin.v1.OS-ARCH unless the policy names one.

  stepd plugin install ./stepd-step-hello
  stepd plugin install oci://ghcr.io/acme/stepd-step-hello:v1 --verify policy.yaml \
    --grant access-credentials`

func newPluginCommand(a *cli.App) *cobra.Command {
	var f hosting.PluginFlags
	cmd := &cobra.Command{
		Use:   "plugin",
		Short: "Install, list, verify, remove and be plugins",
		Long:  pluginHelp,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f.Add(cmd.PersistentFlags())
	cmd.AddCommand(
		newPluginInstallCommand(a, &f),
		newPluginListCommand(a, &f),
		newPluginVerifyCommand(a, &f),
		newPluginRemoveCommand(a, &f),
		newPluginServeCommand(),
	)
	return cmd
}

func newPluginInstallCommand(a *cli.App, f *hosting.PluginFlags) *cobra.Command {
	var name, verify string
	var grants []string
	cmd := &cobra.Command{
		Use:   "install PROGRAM",
		Short: "Pin a program and make its steps available",
		Long:  pluginInstallHelp,
		Args:  cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the plugin (default: the program's file name, or the repository's last part)")
	cmd.Flags().StringVar(&verify, "verify", "", "file with the verification policy of an oci:// program")
	cmd.Flags().StringArrayVar(&grants, "grant", nil, "capability that the plugin may have: access-argocd, access-control-plane, access-credentials or access-git-user (repeatable)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		host, err := f.Options(a.Log())
		if err != nil {
			return cli.UsageErrorf("%w", err)
		}
		opts := plugin.InstallOptions{Path: args[0], Name: name, Reserved: schemas.Kinds(), Now: time.Now().UTC()}
		for _, g := range grants {
			opts.Grants = append(opts.Grants, steps.Capability(g))
		}
		ref, isImage := strings.CutPrefix(args[0], "oci://")
		switch {
		case isImage && verify == "":
			return cli.UsageErrorf("say with --verify whose signature makes %s acceptable", args[0])
		case !isImage && verify != "":
			return cli.UsageErrorf("--verify is for oci:// programs: a file has no signature to verify")
		case isImage:
			dir, err := os.MkdirTemp("", "stepd-plugin-")
			if err != nil {
				return &cli.ExitError{Code: cli.ExitFailed, Err: err}
			}
			defer func() { _ = os.RemoveAll(dir) }()
			if err := fetchPlugin(cmd.Context(), a, ref, verify, dir, &opts); err != nil {
				return err
			}
		default:
			if opts.Source.File, err = filepath.Abs(args[0]); err != nil {
				return cli.UsageErrorf("%w", err)
			}
		}
		entry, err := plugin.Install(cmd.Context(), host, opts)
		if err != nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: err}
		}
		a.Statusf("pinned %s to %s", entry.Name, entry.Digest)
		for _, s := range entry.Steps {
			a.Statusf("step %s asks for %v, granted %v", s.Name, s.RequiredCapabilities, entry.Grants)
		}
		a.Statusf("%s", sandbox.Detect())
		return nil
	}
	return cmd
}

// fetchPlugin downloads a program by the digest that was verified.
func fetchPlugin(ctx context.Context, a *cli.App, ref, policy, dir string, opts *plugin.InstallOptions) error {
	sc := &steps.Context{Log: a.Log()}
	if err := readVerifyConfig(ctx, sc, policy, a.In); err != nil {
		return inputError(err)
	}
	sc.Config["imageRef"], sc.Config["outPath"] = ref, "program"
	if _, ok := sc.Config["mediaType"]; !ok {
		sc.Config["mediaType"] = fmt.Sprintf("application/vnd.stepd.plugin.v1.%s-%s", runtime.GOOS, runtime.GOARCH)
	}
	if err := checkConfig(ociverified.Kind, sc.Config); err != nil {
		return cli.UsageErrorf("%w", err)
	}
	accepted, err := ociverified.Verify(ctx, ociverified.Options{
		Credentials: a.Redactor.Credentials(credentials.Local(credentials.LocalOptions{})),
		Trust:       ociverified.BesideConfig{},
		TUF:         tufCache(),
		UserAgent:   "stepd/" + cli.ReadVersion().Version,
	}, sc, nil)
	if errors.Is(err, steps.ErrConfig) {
		return cli.UsageErrorf("%w", err)
	}
	if err != nil {
		return &cli.ExitError{Code: exitCode(err), Err: err}
	}
	if opts.Name == "" {
		opts.Name = filepath.Base(accepted.Repository)
	}
	opts.Path = filepath.Join(dir, "program")
	if err := accepted.Download(ctx, opts.Path); err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("cannot download the plugin: %w", err)}
	}
	signer, err := asMap(accepted.Signer)
	if err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	opts.Source = plugin.Source{ImageRef: accepted.Repository + "@" + accepted.Digest, Signer: signer}
	return nil
}

func newPluginListCommand(a *cli.App, f *hosting.PluginFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the installed plugins and their steps",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(*cobra.Command, []string) error {
		dir, index, err := pluginIndex(f)
		if err != nil {
			return err
		}
		if output.value == "json" {
			if err := writeJSON(a.Out, index); err != nil {
				return &cli.ExitError{Code: cli.ExitFailed, Err: err}
			}
			return nil
		}
		w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "PLUGIN\tSTEP\tGRANTED\tDIGEST") // buffered; Flush has the error
		for _, e := range index.Plugins {
			for _, s := range e.Steps {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", e.Name, cli.Printable(s.Name), grantsOf(e), e.Digest)
			}
		}
		if err := w.Flush(); err != nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("cannot write the list: %w", err)}
		}
		unpinned, err := index.Unpinned(dir)
		if err != nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: err}
		}
		for _, name := range unpinned {
			a.Statusf("warning: %s is not pinned and does not start; run `stepd plugin install %s`", name, filepath.Join(dir, name))
		}
		a.Statusf("%s", sandbox.Detect())
		return nil
	}
	return cmd
}

func grantsOf(e plugin.Entry) string {
	if len(e.Grants) == 0 {
		return "-"
	}
	names := make([]string, len(e.Grants))
	for i, g := range e.Grants {
		names[i] = string(g)
	}
	return strings.Join(names, ",")
}

func newPluginVerifyCommand(a *cli.App, f *hosting.PluginFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Compare every installed plugin with its pinned digest; exit 3 if one differs",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, index, err := pluginIndex(f)
			if err != nil {
				return err
			}
			checks := index.Check(dir)
			for i, e := range index.Plugins {
				if checks[i] == nil {
					a.Statusf("%s is what was pinned: %s", e.Name, e.Digest)
				}
			}
			unpinned, err := index.Unpinned(dir)
			if err != nil {
				return &cli.ExitError{Code: cli.ExitFailed, Err: err}
			}
			for _, name := range unpinned {
				checks = append(checks, fmt.Errorf("%s is not pinned", name))
			}
			if err := errors.Join(checks...); err != nil {
				return &cli.ExitError{Code: cli.ExitRefused, Err: err}
			}
			return nil
		},
	}
}

func newPluginRemoveCommand(a *cli.App, f *hosting.PluginFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a plugin and its pin",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := plugin.Remove(f.Path(), args[0]); err != nil {
				return cli.UsageErrorf("%w", err)
			}
			a.Statusf("removed %s", args[0])
			return nil
		},
	}
}

func newPluginServeCommand() *cobra.Command {
	var f hosting.StepFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Be a plugin with stepd's own steps",
		Long: `serve makes stepd itself a go-plugin guest, for a Kargo controller, or another engine, that
hosts plugins. It is started by that host and not by people.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			own, err := f.Steps(ociverified.Below{}, nil, nil)
			if err != nil {
				return cli.UsageErrorf("%w", err)
			}
			sdk.Serve(own...)
			return nil
		},
	}
	f.Add(cmd.Flags())
	return cmd
}

// pluginIndex reads the index of the plugin directory.
func pluginIndex(f *hosting.PluginFlags) (string, plugin.Index, error) {
	dir := f.Path()
	index, err := plugin.ReadIndex(dir)
	if err != nil {
		return "", plugin.Index{}, &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	return dir, index, nil
}

// checkConfig holds a config against the schema of its step.
func checkConfig(kind string, config map[string]any) error {
	text, _ := schemas.Config(kind)
	schema, err := configschema.Compile(text)
	if err != nil {
		return err
	}
	if v := schema.Validate(config); len(v) > 0 {
		return fmt.Errorf("the policy is not valid: %s", configschema.Messages(v))
	}
	return nil
}

func asMap(v any) (map[string]any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, json.Unmarshal(b, &m)
}
