// Package cli is the command line that stepd's programs have in common: what a
// process has of its terminal, how it logs and masks secrets, the flags of
// every verb, exit codes, and the version. What a verb does belongs beside its
// program, in cmd.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/internal/redact"
)

// Exit codes of every verb.
const (
	ExitOK       = 0
	ExitFailed   = 1 // the promotion failed
	ExitUsage    = 2 // usage, schema or lint
	ExitRefused  = 3 // verification refused
	ExitConflict = 4 // conflict, or superseded by a newer promotion
	ExitExpect   = 5 // the report is not the expected one
)

// App is what the verbs of one command line share.
type App struct {
	Stdio
	// Args is the command line, without the program's name.
	Args []string
	// Redactor masks every secret this process learns.
	Redactor *redact.Redactor
	// LogLevel is set by --log-level.
	LogLevel slog.LevelVar
	// signals tells that those of the process are for this command line.
	signals bool
	// failed is what Fail was told.
	failed error
}

// Stdio is the process's terminal: data goes to Out, status to Err.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs a program on the process's arguments and returns its exit code.
// Interrupt and SIGTERM end the context of a verb. Before one runs they end the
// process.
func Main(root func(*App) *cobra.Command) int {
	a := &App{Args: os.Args[1:], Stdio: Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, signals: true}
	return a.run(context.Background(), root)
}

// Run executes one command line and returns the exit code.
func Run(ctx context.Context, root func(*App) *cobra.Command, args []string, std Stdio) int {
	return (&App{Stdio: std, Args: args}).run(ctx, root)
}

func (a *App) run(ctx context.Context, root func(*App) *cobra.Command) int {
	a.Redactor = redact.New()
	cmd := root(a)
	cmd.SetArgs(a.Args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		err = a.failed
	}
	if err == nil {
		return ExitOK
	}
	var exit *ExitError
	if !errors.As(err, &exit) {
		exit = &ExitError{Code: ExitUsage, Err: err}
	}
	if exit.Err != nil {
		a.Statusf("stepd: %v", exit.Err)
	}
	return exit.Code
}

// NewRoot makes the command "stepd", which is what its users call it whichever
// program answers, with the flags of every verb. A verb with a PersistentPreRun
// of its own has a context that no signal ends.
func NewRoot(a *App, short, long string, verbs ...*cobra.Command) *cobra.Command {
	a.LogLevel.Set(slog.LevelWarn)
	root := &cobra.Command{
		Use:           "stepd",
		Short:         short,
		Long:          long,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			if a.signals {
				// The second signal ends the process the hard way.
				ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
				context.AfterFunc(ctx, stop)
				cmd.SetContext(ctx)
			}
		},
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.PersistentFlags().TextVar(&a.LogLevel, "log-level", &a.LogLevel, "what to log on stderr: DEBUG, INFO, WARN or ERROR")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return UsageErrorf("%w; see `%s --help`", err, cmd.CommandPath())
	})
	root.AddCommand(verbs...)
	return root
}

// Fail makes this command line end with err where cobra has no way to return
// one, such as in help.
func (a *App) Fail(err error) { a.failed = err }

// Log returns the logger of a verb: text on stderr, secrets masked.
func (a *App) Log() *slog.Logger {
	h := slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: &a.LogLevel})
	return slog.New(a.Redactor.Handler(h))
}

// Statusf writes a line of status to stderr, masked and harmless for a terminal.
func (a *App) Statusf(format string, args ...any) {
	_, _ = fmt.Fprintln(a.Err, Printable(a.Redactor.String(fmt.Sprintf(format, args...)))) // nowhere to report a broken stderr
}

// ExitError ends the process with a code. A nil Err means that everything
// there is to say was said.
type ExitError struct {
	Code int
	Err  error
}

// Error implements error.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

// UsageErrorf is an ExitError with ExitUsage; it formats as fmt.Errorf does.
func UsageErrorf(format string, args ...any) error {
	return &ExitError{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}
