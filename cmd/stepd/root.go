package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/steps"
)

// Exit codes of every verb.
const (
	exitOK       = 0
	exitFailed   = 1 // the promotion failed
	exitUsage    = 2 // usage, schema or lint
	exitRefused  = 3 // verification refused
	exitConflict = 4 // conflict, or superseded by a newer promotion
	exitExpect   = 5 // the report is not the expected one
)

const rootHelp = `stepd runs Kargo promotion steps: signature-verified config downloads, byte-exact
config edits and atomic commits, in Kargo, as a plugin, or on your laptop.

Exit codes:
  0  ok
  1  the promotion failed
  2  usage, schema or lint error
  3  a signature verification was refused
  4  conflict with somebody else's change, or superseded by a newer promotion
  5  the report differs from the one given with --expect`

// app is what the verbs share.
type app struct {
	stdio
	// redactor masks every secret this process learns.
	redactor *redact.Redactor
	// logLevel is set by --log-level.
	logLevel slog.LevelVar
}

// log returns the logger of a verb: text on stderr, secrets masked.
func (a *app) log() *slog.Logger {
	h := slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: &a.logLevel})
	return slog.New(a.redactor.Handler(h))
}

// statusf writes a line of status to stderr, masked and harmless for a terminal.
func (a *app) statusf(format string, args ...any) {
	_, _ = fmt.Fprintln(a.err, printable(a.redactor.String(fmt.Sprintf(format, args...)))) // nowhere to report a broken stderr
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, io stdio) int {
	a := &app{stdio: io, redactor: redact.New()}
	root := newRootCommand(a) //nolint:contextcheck // cobra hands the context to each RunE
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{code: exitUsage, err: err}
	}
	if exit.err != nil {
		a.statusf("stepd: %v", exit.err)
	}
	return exit.code
}

func newRootCommand(a *app) *cobra.Command {
	a.logLevel.Set(slog.LevelWarn)
	root := &cobra.Command{
		Use:           "stepd",
		Short:         "Kargo promotion steps, with or without a cluster",
		Long:          rootHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.PersistentFlags().TextVar(&a.logLevel, "log-level", &a.logLevel, "what to log on stderr: DEBUG, INFO, WARN or ERROR")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w; see `%s --help`", err, cmd.CommandPath())
	})
	root.AddCommand(verbs(a)...)
	return root
}

// exitError ends the process with a code. A nil err means that everything
// there is to say was said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// exitCode returns the code for a step that failed with err.
func exitCode(err error) int {
	switch {
	case errors.Is(err, steps.ErrRefused):
		return exitRefused
	case errors.Is(err, steps.ErrConflict):
		return exitConflict
	}
	return exitFailed
}

// outputFlag adds -o, which takes one of formats; the first is the default.
func outputFlag(cmd *cobra.Command, formats ...string) *choice {
	c := &choice{value: formats[0], of: formats}
	cmd.Flags().VarP(c, "output", "o", "output format: "+strings.Join(formats, ", "))
	// The values are fixed, so the registration cannot fail.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// choice is a flag that takes one of some words.
type choice struct {
	value string
	of    []string
}

// String implements pflag.Value.
func (c *choice) String() string { return c.value }

// Type implements pflag.Value.
func (c *choice) Type() string { return strings.Join(c.of, "|") }

// Set implements pflag.Value.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.of, ", "))
	}
	c.value = s
	return nil
}
