package main

import (
	"errors"
	"time"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/steps"
)

// report is what `stepd run` says about a promotion; both output formats are
// made from it. Times are RFC 3339, null where a step did not run.
type report struct {
	Phase   string `json:"phase"`
	Message string `json:"message"`
	// Live is false for a dry run.
	Live  bool         `json:"live"`
	Steps []stepReport `json:"steps"`
	// State maps an alias to the step's output, exactly as Kargo would store it.
	State   map[string]any   `json:"state"`
	Commits []effects.Commit `json:"commits"`
	// Syncs and Requests are the other effects; "done" is false in a dry run.
	Syncs    []effects.Sync    `json:"syncs,omitempty"`
	Requests []effects.Request `json:"requests,omitempty"`
}

type stepReport struct {
	Alias      string         `json:"alias"`
	Uses       string         `json:"uses"`
	Status     string         `json:"status"`
	Message    string         `json:"message"`
	StartedAt  *time.Time     `json:"startedAt"`
	FinishedAt *time.Time     `json:"finishedAt"`
	Output     map[string]any `json:"output"`
	// Detail is what a failure says for machines, such as the rejected[] list
	// of a refused verification; absent when there is none.
	Detail map[string]any `json:"detail,omitempty"`
}

// newReport makes a report of an outcome, with secrets masked. Everything is
// masked by all; only the state, which has to be Kargo's, is left to
// credentials, which knows no more than the credentials of repositories.
func newReport(o runner.Outcome, log *effects.Log, live bool, all, credentials *redact.Redactor) report {
	r := report{Phase: string(o.Phase), Message: o.Message, Live: live, Steps: []stepReport{}, Commits: []effects.Commit{}}
	for _, s := range o.Steps {
		r.Steps = append(r.Steps, stepReport{
			Alias: s.Alias, Uses: s.Uses, Status: string(s.Status), Message: s.Message,
			StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, Output: s.Output, Detail: structured(s.Err),
		})
	}
	for _, c := range log.Commits() {
		if c.Paths == nil {
			c.Paths = []string{}
		}
		r.Commits = append(r.Commits, c)
	}
	r.Syncs, r.Requests = log.Syncs(), log.Requests()
	r = all.Value(r).(report)
	r.State = map[string]any{}
	if o.State != nil {
		r.State = credentials.Value(o.State).(map[string]any)
	}
	return r
}

func structured(err error) map[string]any {
	var d steps.Detailer
	if !errors.As(err, &d) {
		return nil
	}
	return d.Detail()
}

// code returns the exit code for an outcome: that of the first step that made
// the promotion fail.
func code(o runner.Outcome) int {
	if o.Phase == "Succeeded" {
		return cli.ExitOK
	}
	for i, s := range o.Steps {
		if i < len(o.StepMetadata) && o.StepMetadata[i].ContinueOnError {
			continue
		}
		if s.Err != nil {
			return exitCode(s.Err)
		}
	}
	return cli.ExitFailed
}
