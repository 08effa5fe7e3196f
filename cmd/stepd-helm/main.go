// Command stepd-helm renders charts and fetches their dependencies with Helm's
// library, for stepd, which starts it: one request on standard input, one
// answer on standard output. It is not meant to be run by hand.
package main

import (
	"fmt"
	"os"

	"github.com/stepd/stepd/internal/helmlib"
)

func main() {
	if err := helmlib.Serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
