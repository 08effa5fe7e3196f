package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/runner/lint"
	"github.com/stepd/stepd/runner/load"
)

const lintHelp = `lint checks Kargo documents without running anything: their structure and Kargo's
admission rules, the config of every step against its schema, expressions, references to
variables and outputs, and what Kargo accepts but people regret, such as tags that turn
into numbers.

It exits with 2 if there are errors, with --strict also if there are only warnings.

  stepd lint kargo/
  stepd lint promotiontask.yaml -o sarif > lint.sarif`

func newLintCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lint FILE|DIR|-…",
		Short: "Check Kargo documents without running them",
		Long:  lintHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.UsageErrorf("nothing to check: name files or directories with Kargo documents, or - for stdin")
			}
			return nil
		},
	}
	strict := cmd.Flags().Bool("strict", false, "exit with 2 on warnings too")
	known := cmd.Flags().StringArray("known-step", nil, "kind of step that a plugin has; its config is not checked (repeatable)")
	output := outputFlag(cmd, "text", "json", "sarif")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		set, err := load.Documents(cmd.Context(), args, a.In)
		errs := load.AsErrors(err)
		if err != nil && errs == nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: errors.New("interrupted")}
		}
		registry, err := stepKinds()
		if err != nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: err}
		}
		findings, err := lint.Run(cmd.Context(), set, errs, lint.Options{Registry: registry, KnownSteps: *known})
		if err != nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: err}
		}
		if err := printFindings(a, output.value, findings); err != nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("cannot write the findings: %w", err)}
		}
		errorCount, warnings := count(findings)
		a.Statusf("%d documents, %d errors, %d warnings", len(set.Documents)+len(set.Partial), errorCount, warnings)
		if errorCount > 0 || *strict && warnings > 0 {
			return &cli.ExitError{Code: cli.ExitUsage}
		}
		return nil
	}
	return cmd
}

// lintReport is the JSON output of lint.
type lintReport struct {
	Errors   int            `json:"errors"`
	Warnings int            `json:"warnings"`
	Findings []lint.Finding `json:"findings"`
}

func count(findings []lint.Finding) (errorCount, warnings int) {
	for _, f := range findings {
		if f.Severity == lint.Error {
			errorCount++
		} else {
			warnings++
		}
	}
	return errorCount, warnings
}

func printFindings(a *cli.App, format string, findings []lint.Finding) error {
	switch format {
	case "json":
		r := lintReport{Findings: append([]lint.Finding{}, findings...)}
		r.Errors, r.Warnings = count(findings)
		return writeJSON(a.Out, r)
	case "sarif":
		return writeJSON(a.Out, sarif(findings))
	}
	var failed error
	for _, f := range findings {
		_, err := fmt.Fprintln(a.Out, cli.Printable(f.String()))
		failed = errors.Join(failed, err)
	}
	return failed
}
