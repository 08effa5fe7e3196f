package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/schemas"
)

const schemaHelp = `Without an argument, schema lists the kinds of step. With one, it prints the JSON
Schema (draft 2020-12) of that step's config, or with --outputs of its outputs.

--kind prints one schema for a whole document with every known step, for editors:

  stepd schema --kind PromotionTask > promotiontask.schema.json
  # yaml-language-server: $schema=promotiontask.schema.json`

func newSchemaCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "schema [KIND]",
		Short:             "Print the JSON Schema of a step's config, or of a whole document",
		Long:              schemaHelp,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions(schemas.Kinds(), cobra.ShellCompDirectiveNoFileComp),
	}
	outputs := cmd.Flags().Bool("outputs", false, "print the schema of the step's outputs")
	document := cmd.Flags().String("kind", "", "print the schema of a document: "+strings.Join(documentKinds(), ", "))
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		switch {
		case *document != "":
			if len(args) > 0 || *outputs {
				return cli.UsageErrorf("--kind stands alone: it prints the schema of a document, not of a step")
			}
			s, err := documentSchema(*document)
			if err != nil {
				return cli.UsageErrorf("%w", err)
			}
			return writeJSON(a.Out, s)
		case len(args) == 1:
			return printSchema(a, args[0], *outputs)
		case *outputs:
			return cli.UsageErrorf("--outputs needs a kind of step: stepd schema --outputs KIND")
		case output.value == "json":
			return writeJSON(a.Out, schemas.Kinds())
		}
		_, err := fmt.Fprintln(a.Out, strings.Join(schemas.Kinds(), "\n"))
		return err
	}
	return cmd
}

func printSchema(a *cli.App, kind string, outputs bool) error {
	read, what := schemas.Config, "config"
	if outputs {
		read, what = schemas.Output, "outputs"
	}
	b, ok := read(kind)
	if ok {
		_, err := fmt.Fprintln(a.Out, strings.TrimSpace(string(b)))
		return err
	}
	if _, known := schemas.Config(kind); known {
		return cli.UsageErrorf("no schema for the %s of step %q: it has none", what, kind)
	}
	if near := nearname.Nearest(kind, schemas.Kinds(), 3); len(near) > 0 {
		return cli.UsageErrorf("unknown kind of step %q; did you mean %s?", kind, strings.Join(near, ", "))
	}
	return cli.UsageErrorf("unknown kind of step %q; `stepd schema` lists them", kind)
}

func mustParse(b []byte) map[string]any {
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		panic(fmt.Errorf("an embedded schema is not JSON: %w", err))
	}
	return m
}
