package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/stepd/stepd/e2e/sandbox"
)

// teller writes the story: chapters, commands with what they printed, and
// expectations with how they turned out.
type teller struct{ out io.Writer }

// expectation is something that must hold.
type expectation struct {
	what  string
	holds bool
}

func (t *teller) chapter(format string, args ...any) { t.printf("\n== "+format+"\n", args...) }

func (t *teller) say(format string, args ...any) { t.printf(format+"\n", args...) }

// quote writes text indented.
func (t *teller) quote(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		t.printf("  | %s", strings.TrimRight(line, "\n")+"\n")
	}
}

// command shows a command and all it printed.
func (t *teller) command(r sandbox.Result) {
	t.printf("$ %s\n", r)
	t.quote(r.Stderr + r.Stdout)
	t.printf("  (exit code %d)\n", r.Code)
}

// outline shows a command that differs from an earlier one in its last
// arguments, and what became of each step.
func (t *teller) outline(r sandbox.Result, extra ...string) {
	t.printf("$ stepd run -f %s … %s\n", r.Args[2], strings.Join(extra, " "))
	steps, _, _ := strings.Cut(r.Stderr+r.Stdout, "\n\n")
	t.quote(steps)
	t.printf("  (exit code %d)\n", r.Code)
}

// expect reports every expectation and fails if one does not hold.
func (t *teller) expect(all ...expectation) error {
	var failed []error
	for _, e := range all {
		mark := "✓"
		if !e.holds {
			mark = "✗"
			failed = append(failed, errors.New("this should hold, and does not: "+e.what))
		}
		t.printf("%s %s\n", mark, e.what)
	}
	return errors.Join(failed...)
}

func (t *teller) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(t.out, format, args...) // a closed terminal ends the demo by signal
}
