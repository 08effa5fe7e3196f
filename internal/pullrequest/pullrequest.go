// Package pullrequest is the edge to the pull requests (GitLab: merge requests)
// of hosting providers: Live speaks the REST APIs of GitHub, GitLab and Gitea,
// a Recorder writes down what would be opened and merged.
//
// When a pull request is opened or waited for is decided by the steps and does
// not belong here, nor does git itself.
package pullrequest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/repourl"
)

// ErrNotMergeable says that a pull request cannot be merged as things stand.
// That may pass: checks run, reviews come.
var ErrNotMergeable = errors.New("the pull request cannot be merged now")

// Hosts is given to pull request steps.
type Hosts interface {
	// Open returns the pull requests of a repository. Nothing is contacted.
	Open(r Repository) (Host, error)
}

// Repository is a repository at a hosting provider.
type Repository struct {
	URL string
	// Provider is one of package repourl's; empty infers it from the host.
	Provider string
	// Token authenticates; empty is anonymous.
	Token                 string
	InsecureSkipTLSVerify bool
	// Step is the alias of the step that asks.
	Step string
}

// Host has the pull requests of one repository.
type Host interface {
	// List returns the pull requests, whatever their state, from branch head
	// into branch base.
	List(ctx context.Context, base, head string) ([]PullRequest, error)
	Create(ctx context.Context, n New) (PullRequest, error)
	Get(ctx context.Context, number int64) (PullRequest, error)
	// Merge merges by a method in the provider's terms, empty for its default,
	// and returns the pull request as it is then. It is ErrNotMergeable if it
	// cannot be merged now.
	Merge(ctx context.Context, number int64, method string) (PullRequest, error)
}

// New is a pull request to be opened.
type New struct {
	Title, Description string
	Base, Head         string
	// HeadCommit is the commit that Head is at.
	HeadCommit string
	Labels     []string
}

// PullRequest is a pull request.
type PullRequest struct {
	Number int64
	// URL is its web page.
	URL          string
	Open, Merged bool
	// HeadCommit is the commit it would merge.
	HeadCommit string
	// MergeCommit is the commit that has it merged; empty if not known.
	MergeCommit string
	Created     time.Time
}

// Live returns the edge to the providers' APIs. What it changes is logged.
func Live(log *effects.Log) Hosts { return live{log} }

type live struct{ log *effects.Log }

func (l live) Open(r Repository) (Host, error) {
	provider := r.Provider
	if provider == "" {
		provider = repourl.Provider(r.URL)
	}
	if provider == "" {
		return nil, fmt.Errorf("cannot tell the hosting provider of %s; set provider", r.URL)
	}
	api, err := newAPI(r)
	if err != nil {
		return nil, err
	}
	switch provider {
	case repourl.GitHub:
		return logged{newGitHub(api), l.log, r}, nil
	case repourl.GitLab:
		return logged{newGitLab(api), l.log, r}, nil
	case repourl.Gitea:
		return logged{newGitea(api), l.log, r}, nil
	}
	return nil, fmt.Errorf("pull requests at %s are not supported; supported are github, gitlab and gitea", provider)
}

// logged writes what changed to the effects log.
type logged struct {
	Host
	log  *effects.Log
	repo Repository
}

func (l logged) Create(ctx context.Context, n New) (PullRequest, error) {
	pr, err := l.Host.Create(ctx, n)
	if err == nil {
		l.log.Request(opened(l.repo, n, pr, true))
	}
	return pr, err
}

func (l logged) Merge(ctx context.Context, number int64, method string) (PullRequest, error) {
	pr, err := l.Host.Merge(ctx, number, method)
	if err == nil {
		l.log.Request(merged(l.repo, pr, method, true))
	}
	return pr, err
}

func opened(r Repository, n New, pr PullRequest, done bool) effects.Request {
	labels := make([]any, len(n.Labels))
	for i, label := range n.Labels {
		labels[i] = label
	}
	return effects.Request{Kind: "pull-request", Target: r.URL, Done: done, Step: r.Step, Detail: map[string]any{
		"title": n.Title, "description": n.Description, "base": n.Base, "head": n.Head, "labels": labels,
		"number": pr.Number, "url": pr.URL,
	}}
}

func merged(r Repository, pr PullRequest, method string, done bool) effects.Request {
	return effects.Request{Kind: "pull-request-merge", Target: r.URL, Done: done, Step: r.Step, Detail: map[string]any{
		"number": pr.Number, "url": pr.URL, "method": method,
	}}
}
