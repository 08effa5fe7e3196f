package pullrequest

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// gitHub is GitHub's REST API, version 2022-11-28 ("Pulls"), on github.com or
// an enterprise server.
type gitHub struct {
	*api
	owner, repo string // repo is the path of the repository in the API
}

func newGitHub(a *api) *gitHub {
	owner, name := a.ownerAndName()
	base := a.host + "/api/v3"
	if a.host == "github.com" {
		base = "api.github.com"
	}
	return &gitHub{a, owner, base + "/repos/" + url.PathEscape(owner) + "/" + url.PathEscape(name)}
}

// pull is a pull request of GitHub and of Gitea, which has the same fields.
type pull struct {
	Number         int64     `json:"number"`
	HTMLURL        string    `json:"html_url"`
	State          string    `json:"state"`
	Merged         bool      `json:"merged"`
	MergedAt       *string   `json:"merged_at"`
	MergeCommitSHA string    `json:"merge_commit_sha"`
	CreatedAt      time.Time `json:"created_at"`
	Head           struct {
		SHA string `json:"sha"`
		Ref string `json:"ref"`
	} `json:"head"`
	Base struct {
		Ref string `json:"ref"`
	} `json:"base"`
}

func (p pull) pullRequest() PullRequest {
	pr := PullRequest{
		Number: p.Number, URL: p.HTMLURL, Open: p.State == "open", Merged: p.Merged || p.MergedAt != nil,
		HeadCommit: p.Head.SHA, Created: p.CreatedAt,
	}
	if pr.Merged { // before, GitHub has a test merge there
		pr.MergeCommit = p.MergeCommitSHA
	}
	return pr
}

func (g *gitHub) List(ctx context.Context, base, head string) ([]PullRequest, error) {
	query := url.Values{"state": {"all"}, "base": {base}, "head": {g.owner + ":" + head}, "per_page": {"100"}, "sort": {"created"}, "direction": {"desc"}}
	var pulls []pull
	err := g.do(ctx, http.MethodGet, g.repo+"/pulls?"+query.Encode(), nil, &pulls)
	return between(pulls, base, head), err
}

func between(pulls []pull, base, head string) []PullRequest {
	var found []PullRequest
	for _, p := range pulls {
		if p.Base.Ref == base && p.Head.Ref == head {
			found = append(found, p.pullRequest())
		}
	}
	return found
}

func (g *gitHub) Create(ctx context.Context, n New) (PullRequest, error) {
	var p pull
	body := map[string]any{"title": n.Title, "body": n.Description, "head": n.Head, "base": n.Base}
	if err := g.do(ctx, http.MethodPost, g.repo+"/pulls", body, &p); err != nil {
		return PullRequest{}, err
	}
	if len(n.Labels) > 0 {
		if err := g.do(ctx, http.MethodPost, fmt.Sprintf("%s/issues/%d/labels", g.repo, p.Number), map[string]any{"labels": n.Labels}, nil); err != nil {
			return p.pullRequest(), fmt.Errorf("cannot label pull request %d: %w", p.Number, err)
		}
	}
	return p.pullRequest(), nil
}

func (g *gitHub) Get(ctx context.Context, number int64) (PullRequest, error) {
	var p pull
	err := g.do(ctx, http.MethodGet, fmt.Sprintf("%s/pulls/%d", g.repo, number), nil, &p)
	return p.pullRequest(), err
}

func (g *gitHub) Merge(ctx context.Context, number int64, method string) (PullRequest, error) {
	body := map[string]any{}
	if method != "" {
		body["merge_method"] = method
	}
	err := g.do(ctx, http.MethodPut, fmt.Sprintf("%s/pulls/%d/merge", g.repo, number), body, nil)
	if err != nil {
		return PullRequest{}, notMergeable(err, http.StatusMethodNotAllowed, http.StatusConflict)
	}
	return g.Get(ctx, number)
}

// gitea is Gitea's (and Forgejo's) REST API, version 1.
type gitea struct {
	*api
	repo string
}

func newGitea(a *api) *gitea {
	owner, name := a.ownerAndName()
	return &gitea{a, a.host + "/api/v1/repos/" + url.PathEscape(owner) + "/" + url.PathEscape(name)}
}

// maxPages bounds a listing, of 50 a page.
const maxPages = 20

func (g *gitea) List(ctx context.Context, base, head string) ([]PullRequest, error) {
	var found []PullRequest
	for page := 1; page <= maxPages; page++ {
		var pulls []pull
		if err := g.do(ctx, http.MethodGet, fmt.Sprintf("%s/pulls?state=all&limit=50&page=%d", g.repo, page), nil, &pulls); err != nil {
			return nil, err
		}
		found = append(found, between(pulls, base, head)...)
		if len(pulls) == 0 {
			break
		}
	}
	return found, nil
}

func (g *gitea) Create(ctx context.Context, n New) (PullRequest, error) {
	body := map[string]any{"title": n.Title, "body": n.Description, "head": n.Head, "base": n.Base}
	if len(n.Labels) > 0 {
		ids, err := g.labels(ctx, n.Labels)
		if err != nil {
			return PullRequest{}, err
		}
		body["labels"] = ids
	}
	var p pull
	err := g.do(ctx, http.MethodPost, g.repo+"/pulls", body, &p)
	return p.pullRequest(), err
}

// labels returns the ids of the repository's labels of these names.
func (g *gitea) labels(ctx context.Context, names []string) ([]int64, error) {
	var all []struct {
		ID   int64  `json:"id"`
		Name string `json:"name"`
	}
	if err := g.do(ctx, http.MethodGet, g.repo+"/labels?limit=50", nil, &all); err != nil {
		return nil, fmt.Errorf("cannot list labels: %w", err)
	}
	byName := map[string]int64{}
	for _, label := range all {
		byName[label.Name] = label.ID
	}
	var ids []int64
	for _, name := range names {
		id, ok := byName[name]
		if !ok {
			return nil, fmt.Errorf("the repository has no label %q", name)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func (g *gitea) Get(ctx context.Context, number int64) (PullRequest, error) {
	var p pull
	err := g.do(ctx, http.MethodGet, fmt.Sprintf("%s/pulls/%d", g.repo, number), nil, &p)
	return p.pullRequest(), err
}

func (g *gitea) Merge(ctx context.Context, number int64, method string) (PullRequest, error) {
	if method == "" {
		method = "merge"
	}
	err := g.do(ctx, http.MethodPost, fmt.Sprintf("%s/pulls/%d/merge", g.repo, number), map[string]any{"Do": method}, nil)
	if err != nil {
		return PullRequest{}, notMergeable(err, http.StatusMethodNotAllowed, http.StatusConflict)
	}
	return g.Get(ctx, number)
}

// gitLab is GitLab's REST API, version 4 ("Merge requests").
type gitLab struct {
	*api
	requests string
}

func newGitLab(a *api) *gitLab {
	return &gitLab{a, a.host + "/api/v4/projects/" + url.PathEscape(a.path) + "/merge_requests"}
}

type mergeRequest struct {
	IID             int64     `json:"iid"`
	WebURL          string    `json:"web_url"`
	State           string    `json:"state"`
	SHA             string    `json:"sha"`
	MergeCommitSHA  string    `json:"merge_commit_sha"`
	SquashCommitSHA string    `json:"squash_commit_sha"`
	CreatedAt       time.Time `json:"created_at"`
}

func (m mergeRequest) pullRequest() PullRequest {
	pr := PullRequest{
		Number: m.IID, URL: m.WebURL, Open: m.State == "opened" || m.State == "locked", Merged: m.State == "merged",
		HeadCommit: m.SHA, Created: m.CreatedAt,
	}
	if pr.Merged {
		// A fast-forward has neither: the branch is then at the head commit.
		for _, sha := range []string{m.MergeCommitSHA, m.SquashCommitSHA, m.SHA} {
			if sha != "" {
				pr.MergeCommit = sha
				break
			}
		}
	}
	return pr
}

func (g *gitLab) List(ctx context.Context, base, head string) ([]PullRequest, error) {
	query := url.Values{"state": {"all"}, "target_branch": {base}, "source_branch": {head}, "per_page": {"100"}}
	var all []mergeRequest
	err := g.do(ctx, http.MethodGet, g.requests+"?"+query.Encode(), nil, &all)
	found := make([]PullRequest, len(all))
	for i, m := range all {
		found[i] = m.pullRequest()
	}
	return found, err
}

func (g *gitLab) Create(ctx context.Context, n New) (PullRequest, error) {
	body := map[string]any{"title": n.Title, "description": n.Description, "source_branch": n.Head, "target_branch": n.Base}
	if len(n.Labels) > 0 {
		body["labels"] = strings.Join(n.Labels, ",")
	}
	var m mergeRequest
	err := g.do(ctx, http.MethodPost, g.requests, body, &m)
	return m.pullRequest(), err
}

func (g *gitLab) Get(ctx context.Context, number int64) (PullRequest, error) {
	var m mergeRequest
	err := g.do(ctx, http.MethodGet, g.requests+"/"+strconv.FormatInt(number, 10), nil, &m)
	return m.pullRequest(), err
}

func (g *gitLab) Merge(ctx context.Context, number int64, method string) (PullRequest, error) {
	body := map[string]any{}
	switch method {
	case "", "merge":
	case "squash":
		body["squash"] = true
	default:
		return PullRequest{}, fmt.Errorf("mergeMethod %q is unknown to GitLab; it has merge and squash", method)
	}
	var m mergeRequest
	err := g.do(ctx, http.MethodPut, fmt.Sprintf("%s/%d/merge", g.requests, number), body, &m)
	return m.pullRequest(), notMergeable(err, http.StatusMethodNotAllowed, http.StatusConflict, http.StatusUnprocessableEntity)
}
