// Package serving is the program stepd-serve: the verbs serve and webhook of
// stepd, which replaces itself by that program for them. What only these link
// is here: HTTP and gRPC servers, metrics, traces, clients of Kubernetes. See
// docs/decisions/0014-serve-program.md. How calls are served belongs in
// runner/rpc/serve, kargo/sidecar and kargo/admission; flags and their meaning
// belong here.
package serving

import (
	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
)

const rootHelp = `This is what stepd becomes for "stepd serve" and "stepd webhook": use stepd.`

// NewRoot makes the command line of stepd-serve: that of stepd, with two verbs.
func NewRoot(a *cli.App) *cobra.Command {
	root := cli.NewRoot(a, "Kargo promotion steps, served", rootHelp, newServeCommand(a), newWebhookCommand(a))
	root.CompletionOptions.DisableDefaultCmd = true // stepd has one, for all verbs
	return root
}
