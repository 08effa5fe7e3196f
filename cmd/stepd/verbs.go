package main

import (
	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
)

// verbs returns stepd's sub-commands.
func verbs(a *cli.App) []*cobra.Command {
	return append([]*cobra.Command{
		newExecCommand(a),
		newLintCommand(a),
		newPluginCommand(a),
		newRunCommand(a),
		newSchemaCommand(a),
		newVerifyCommand(a),
		newVersionCommand(a),
	}, served(a)...)
}
