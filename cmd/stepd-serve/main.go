// Command stepd-serve is what stepd becomes for `stepd serve` and `stepd
// webhook`. It takes the same command lines, and is not meant to be run by hand.
package main

import (
	"os"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/serving"
	_ "github.com/stepd/stepd/internal/startup"
)

func main() { os.Exit(cli.Main(serving.NewRoot)) }
