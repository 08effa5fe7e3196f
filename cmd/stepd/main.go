// Command stepd runs the steps of Kargo promotions: in a Kargo controller, as a
// plugin, or, with no cluster at all, on a laptop.
//
// There is one file per verb. What all verbs share is here: root.go has exit
// codes and errors, edges.go builds the registry of steps and is the only
// place that knows whether a run is live. What steps do belongs in steps/,
// what an engine does in runner/.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	_ "github.com/stepd/stepd/internal/startup"
)

func main() { os.Exit(Main()) }

// Main runs stepd on the process's arguments and returns its exit code.
func Main() int {
	// The second signal ends the process the hard way.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args[1:], stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr})
}

// stdio is the process's terminal: data goes to out, status to err.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}
