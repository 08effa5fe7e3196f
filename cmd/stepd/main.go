// Command stepd runs the steps of Kargo promotions: in a Kargo controller, as a
// plugin, or, with no cluster at all, on a laptop.
//
// There is one file per verb, but for those of stepd-serve, a program of its
// own. What all verbs share is in cmd/internal/cli and root.go; edges.go builds
// the registry of steps and is the only place that knows whether a run is live.
// What steps do belongs in steps/, what an engine does in runner/.
package main

import (
	"os"

	"github.com/stepd/stepd/cmd/internal/cli"
	_ "github.com/stepd/stepd/internal/startup"
)

func main() { os.Exit(cli.Main(newRootCommand)) }
