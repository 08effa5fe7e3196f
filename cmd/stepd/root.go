package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/steps"
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

func newRootCommand(a *cli.App) *cobra.Command {
	return cli.NewRoot(a, "Kargo promotion steps, with or without a cluster", rootHelp, verbs(a)...)
}

// exitCode returns the code for a step that failed with err.
func exitCode(err error) int {
	switch {
	case errors.Is(err, steps.ErrRefused):
		return cli.ExitRefused
	case errors.Is(err, steps.ErrConflict):
		return cli.ExitConflict
	}
	return cli.ExitFailed
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
