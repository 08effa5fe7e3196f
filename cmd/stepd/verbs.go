package main

import "github.com/spf13/cobra"

// verbs returns stepd's sub-commands.
func verbs(a *app) []*cobra.Command {
	return []*cobra.Command{
		newLintCommand(a),
		newRunCommand(a),
		newSchemaCommand(a),
		newVerifyCommand(a),
		newVersionCommand(a),
	}
}
