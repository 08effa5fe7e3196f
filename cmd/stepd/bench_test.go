package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stepd/stepd/cmd/internal/cli"
)

// BenchmarkRunOneStep is a whole `stepd run` in this process, from the command
// line to the report: what lies between the start of the program and the end of
// its first step, but for the start of the process itself. The target is 50 ms.
func BenchmarkRunOneStep(b *testing.B) {
	const task = `{apiVersion: kargo.akuity.io/v1alpha1, kind: PromotionTask, metadata: {name: one},
		spec: {steps: [{uses: compose-output, config: {a: "${{ 1 + 1 }}"}}]}}`
	for b.Loop() {
		var stdout, stderr bytes.Buffer
		if code := cli.Run(b.Context(), newRootCommand, []string{"run", "-f", "-"}, cli.Stdio{In: strings.NewReader(task), Out: &stdout, Err: &stderr}); code != cli.ExitOK {
			b.Fatalf("exit code %d\n%s", code, &stderr)
		}
	}
}
