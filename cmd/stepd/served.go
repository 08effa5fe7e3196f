package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/program"
)

// serveProgram has the verbs that serve, and what only they link
// (docs/decisions/0014-serve-program.md).
const serveProgram = "stepd-serve"

// served are the verbs of stepd-serve. For each of them, for its help and for
// what completes its command line, this process becomes that program.
func served(a *cli.App) []*cobra.Command {
	verbs := []*cobra.Command{
		{Use: "serve (--work-root DIR (--grpc ADDRESS | --http ADDRESS) | --kargo --public-keys DIR)", Short: "Serve steps over gRPC and HTTP/JSON"},
		{Use: "webhook", Short: "Let unmodified Kargo run stepd's steps"},
	}
	for _, cmd := range verbs {
		cmd.DisableFlagParsing = true
		// A signal that somebody has begun to handle is lost in the change.
		cmd.PersistentPreRun = func(*cobra.Command, []string) {}
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return becomeServe(a, cmd) }
		cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { a.Fail(becomeServe(a, cmd)) })
		cmd.ValidArgsFunction = func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			cobra.CompErrorln(becomeServe(a, cmd).Error())
			return nil, cobra.ShellCompDirectiveError
		}
	}
	return verbs
}

// becomeServe replaces this process by stepd-serve beside it: the same process
// id, command line, environment, directory and terminal. It returns only if it
// cannot.
func becomeServe(a *cli.App, cmd *cobra.Command) error {
	if self := os.Args[0]; filepath.Base(self) == serveProgram {
		return fmt.Errorf("%s needs %s: %s is a copy of stepd", cmd.CommandPath(), serveProgram, self) // and would become itself for ever
	}
	path, err := program.Beside(serveProgram)
	if err != nil {
		return fmt.Errorf("%s needs %s: %w", cmd.CommandPath(), serveProgram, err)
	}
	return fmt.Errorf("cannot start %s: %w", path, syscall.Exec(path, append([]string{path}, a.Args...), os.Environ()))
}
