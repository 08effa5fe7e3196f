package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/steps"
)

// printer is the runner.Observer of `stepd run`: a line per step as it ends,
// and what was verified. The rest of the text report follows with finish.
type printer struct {
	app *cli.App
	// out gets the step lines.
	out       io.Writer
	ledger    verification.Ledger
	promotion runner.Promotion
	now       func() time.Time
	started   map[int]time.Time
	waiting   int
}

func newPrinter(a *cli.App, out io.Writer, ledger verification.Ledger, p runner.Promotion) *printer {
	return &printer{app: a, out: out, ledger: ledger, promotion: p, now: time.Now, started: map[int]time.Time{}, waiting: -1}
}

// StepStarted implements runner.Observer.
func (p *printer) StepStarted(i int, _ *runner.Step) {
	if _, again := p.started[i]; !again {
		p.started[i] = p.now()
	}
}

// StepFinished implements runner.Observer.
func (p *printer) StepFinished(i int, step *runner.Step, o runner.StepOutcome) {
	took := ""
	if at, ok := p.started[i]; ok {
		took = "  " + rounded(p.now().Sub(at))
	}
	p.printf("%-9s  %s  (%s)%s\n", o.Status, o.Alias, o.Uses, took)
	// What a step that succeeded has to say is shown below from what stepd knows
	// itself; its own words cannot know whether this is a dry run.
	if o.Message != "" && o.Status != steps.Succeeded {
		p.printf("%s\n", indent(o.Message))
	}
	for _, hint := range o.Hints {
		p.printf("%s\n", indent(hint))
	}
	if len(o.Hints) == 0 && (o.Status == steps.Failed || o.Status == steps.Errored) {
		if at := step.Position("").String(); at != "" {
			p.printf("           at %s\n", at)
		}
	}
	p.signer(o.Alias)
}

// StepWaiting implements runner.Observer.
func (p *printer) StepWaiting(i int, _ *runner.Step, o runner.StepOutcome, wait time.Duration) {
	if p.waiting == i && o.Err == nil {
		return // one line is enough for a poll
	}
	p.waiting = i
	why := o.Message
	if why != "" {
		why = ": " + why
	}
	p.app.Statusf("%s (%s) is %s, next attempt in %s%s", o.Alias, o.Uses, o.Status, wait, why)
}

// signer prints what was verified by the step, from stepd's own ledger: an
// output can be written by any step.
func (p *printer) signer(alias string) {
	rec, err := p.ledger.Get(context.Background(), verification.Key{
		Project: p.promotion.Project, Promotion: p.promotion.Name, Alias: alias,
	})
	var absent *verification.NotFoundError
	if err != nil {
		if !errors.As(err, &absent) {
			p.app.Statusf("cannot read what was verified: %v", err)
		}
		return
	}
	p.printf("           verified %s@%s\n", rec.Repository, rec.Digest)
	for _, line := range signedBy(rec.Signer) {
		p.printf("           %-10s %s\n", line[0], line[1])
	}
}

// signedBy says who signed, as lines of a name and a value.
func signedBy(s verification.Signer) [][2]string {
	signedAt := ""
	if !s.SignedAt.IsZero() {
		signedAt = s.SignedAt.UTC().Format(time.RFC3339) + " (" + s.TimeSource + ")"
	}
	var lines [][2]string
	for _, line := range [][2]string{
		{"signer", s.Subject}, {"issuer", s.Issuer}, {"public key", s.KeyID},
		{"source", strings.TrimSpace(s.SourceRepository + " " + s.SourceRef)}, {"commit", s.SourceCommit},
		{"run", s.RunURL}, {"signed at", signedAt},
	} {
		if line[1] != "" {
			lines = append(lines, [2]string{line[0], oneLine(line[1])})
		}
	}
	return lines
}

// oneLine keeps what somebody else wrote from looking like lines of ours.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }

// finish prints the effects and the outcome.
func (p *printer) finish(r report, took time.Duration) {
	for _, c := range r.Commits {
		p.printf("\ncommit %s on %s of %s  %s\n", short(c.Commit), c.Branch, c.RepoURL, done(c.Pushed, "pushed", "not pushed: dry run"))
		for line := range strings.Lines(strings.TrimSpace(c.Message)) {
			p.printf("    %s", strings.TrimSuffix(line, "\n")+"\n")
		}
		p.printf("\n%s", c.Diff)
		switch {
		case c.Diff == "":
			for _, path := range c.Paths {
				p.printf("    changes %s\n", path)
			}
		case !strings.HasSuffix(c.Diff, "\n"):
			p.printf("\n")
		}
	}
	if len(r.Syncs)+len(r.Requests) > 0 {
		p.printf("\n")
	}
	why := "dry run"
	if r.Live {
		why = "recorded only"
	}
	for _, s := range r.Syncs {
		revisions := ""
		if len(s.Revisions) > 0 {
			revisions = " to " + strings.Join(s.Revisions, ", ")
		}
		p.printf("Application %s/%s%s  %s\n", s.Namespace, s.Name, revisions, done(s.Done, "synced", "not synced: "+why))
	}
	for _, q := range r.Requests {
		p.printf("%s %s%s  %s\n", q.Kind, q.Target, detail(q.Detail), done(q.Done, "done", "not done: "+why))
	}
	mode := "dry run"
	if r.Live {
		mode = "live"
	}
	p.printf("\n%s in %s (%s)", r.Phase, rounded(took), mode)
	if r.Message != "" && !p.said(r) {
		p.printf(": %s", r.Message)
	}
	p.printf("\n")
}

// said tells whether the promotion's message stands under one of the step lines
// already, as it does for a failed step.
func (p *printer) said(r report) bool {
	return slices.ContainsFunc(r.Steps, func(s stepReport) bool { return s.Message == r.Message })
}

func (p *printer) printf(format string, args ...any) {
	text := p.app.Redactor.String(fmt.Sprintf(format, args...))
	_, _ = io.WriteString(p.out, cli.Printable(text)) // nowhere to report a broken stdout
}

func rounded(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func done(is bool, yes, no string) string {
	if is {
		return "[" + yes + "]"
	}
	return "[" + no + "]"
}

// detail shows what belongs to a request, in one line.
func detail(d map[string]any) string {
	if len(d) == 0 {
		return ""
	}
	text, err := json.Marshal(d)
	if err != nil {
		return ""
	}
	if len(text) > maxDetail {
		text = append(text[:maxDetail:maxDetail], "…"...)
	}
	return " " + string(text)
}

// maxDetail bounds what is shown of one request, in bytes.
const maxDetail = 300

func short(commit string) string { return commit[:min(len(commit), 12)] }

func indent(s string) string {
	return "           " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n           ")
}

var _ runner.Observer = (*printer)(nil)
