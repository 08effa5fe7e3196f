package builtin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stepd/stepd/internal/pullrequest"
	"github.com/stepd/stepd/steps"
)

type gitPRConfig struct {
	prConfig
	PRNumber     int64  `json:"prNumber"`
	PollInterval string `json:"pollInterval"`
	Wait         bool   `json:"wait"`
	MergeMethod  string `json:"mergeMethod"`
}

const (
	defaultPRPoll    = 30 * time.Second
	defaultMergePoll = 10 * time.Second
)

// GitWaitForPR is `git-wait-for-pr`: it is Running until a pull request is
// merged. One that is closed without that fails the step.
func GitWaitForPR(hosts pullrequest.Hosts) steps.Registration {
	return registration("git-wait-for-pr", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		return runGitWaitForPR(ctx, sc, caps, hosts)
	}), steps.AccessCredentials)
}

func runGitWaitForPR(ctx context.Context, sc *steps.Context, caps steps.Capabilities, hosts pullrequest.Hosts) (steps.Result, error) {
	cfg, err := decodeConfig[gitPRConfig](sc)
	if err != nil {
		return failed(err)
	}
	poll, err := duration(cfg.PollInterval, defaultPRPoll)
	if err != nil {
		return errored(steps.Terminal(fmt.Errorf("error parsing pollInterval: %w", err)))
	}
	host, err := cfg.open(ctx, sc, caps, hosts)
	if err != nil {
		return errored(err)
	}
	pr, err := host.Get(ctx, cfg.PRNumber)
	if err != nil {
		return errored(fmt.Errorf("error getting pull request %d: %w", cfg.PRNumber, err))
	}
	output := map[string]any{
		"pr": map[string]any{"id": pr.Number, "url": pr.URL, "open": pr.Open, "merged": pr.Merged},
	}
	if pr.MergeCommit != "" {
		output["commit"] = pr.MergeCommit
	}
	switch {
	case pr.Open:
		return steps.Result{Status: steps.Running, Output: output, RetryAfter: &poll}, nil
	case !pr.Merged:
		return steps.Result{Status: steps.Failed, Output: output},
			steps.Terminal(fmt.Errorf("pull request %d was closed without being merged", cfg.PRNumber))
	}
	return succeeded(output)
}

// GitMergePR is `git-merge-pr`: it merges a pull request. While that cannot be
// done yet it fails, or with `wait` is Running.
func GitMergePR(hosts pullrequest.Hosts) steps.Registration {
	return registration("git-merge-pr", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		return runGitMergePR(ctx, sc, caps, hosts)
	}), steps.AccessCredentials)
}

func runGitMergePR(ctx context.Context, sc *steps.Context, caps steps.Capabilities, hosts pullrequest.Hosts) (steps.Result, error) {
	cfg, err := decodeConfig[gitPRConfig](sc)
	if err != nil {
		return failed(err)
	}
	poll, err := duration(cfg.PollInterval, defaultMergePoll)
	if err != nil {
		return errored(steps.Terminal(fmt.Errorf("error parsing pollInterval: %w", err)))
	}
	host, err := cfg.open(ctx, sc, caps, hosts)
	if err != nil {
		return errored(err)
	}
	pr, err := host.Merge(ctx, cfg.PRNumber, cfg.MergeMethod)
	if err == nil {
		return mergedOutput(pr)
	}
	// An earlier attempt, or somebody else, may have merged it.
	now, gerr := host.Get(ctx, cfg.PRNumber)
	switch {
	case gerr == nil && now.Merged:
		return mergedOutput(now)
	case gerr == nil && now.Open && cfg.Wait && errors.Is(err, pullrequest.ErrNotMergeable):
		return steps.Result{Status: steps.Running, Message: err.Error(), RetryAfter: &poll}, nil
	}
	return failed(fmt.Errorf("error merging pull request %d: %w", cfg.PRNumber, err))
}

func mergedOutput(pr pullrequest.PullRequest) (steps.Result, error) {
	return succeeded(map[string]any{"commit": pr.MergeCommit})
}
