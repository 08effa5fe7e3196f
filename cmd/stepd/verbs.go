package main

import "github.com/spf13/cobra"

// verbs returns stepd's sub-commands.
func verbs(a *app) []*cobra.Command {
	return []*cobra.Command{
		newExecCommand(a),
		newLintCommand(a),
		newPluginCommand(a),
		newRunCommand(a),
		newSchemaCommand(a),
		newServeCommand(a),
		newVerifyCommand(a),
		newVersionCommand(a),
		newWebhookCommand(a),
	}
}
