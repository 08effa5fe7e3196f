package pullrequest

import (
	"context"
	"fmt"
	"sync"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/repourl"
)

// Recorder stands in for a hosting provider. Nothing is open to begin with.
// What is opened, or merged, is logged; numbers start at 1. It takes it that
// whoever has to will merge: a pull request that is looked at is merged, at the
// commit it was opened with.
type Recorder struct {
	log *effects.Log

	mu   sync.Mutex
	prs  map[string][]PullRequest
	news map[string][]New
}

// NewRecorder returns a Recorder that logs to log.
func NewRecorder(log *effects.Log) *Recorder {
	return &Recorder{log: log, prs: map[string][]PullRequest{}, news: map[string][]New{}}
}

// Open implements Hosts.
func (r *Recorder) Open(repo Repository) (Host, error) {
	return recorded{r, repo, repourl.Git(repo.URL)}, nil
}

type recorded struct {
	r    *Recorder
	repo Repository
	key  string
}

func (h recorded) List(_ context.Context, base, head string) ([]PullRequest, error) {
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	var found []PullRequest
	for i, n := range h.r.news[h.key] {
		if n.Base == base && n.Head == head {
			found = append(found, h.r.prs[h.key][i])
		}
	}
	return found, nil
}

func (h recorded) Create(_ context.Context, n New) (PullRequest, error) {
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	pr := h.at(int64(len(h.r.prs[h.key]) + 1))
	pr.Open, pr.HeadCommit = true, n.HeadCommit
	h.r.prs[h.key] = append(h.r.prs[h.key], pr)
	h.r.news[h.key] = append(h.r.news[h.key], n)
	h.r.log.Request(opened(h.repo, n, pr, false))
	return pr, nil
}

func (h recorded) at(number int64) PullRequest {
	pr := PullRequest{Number: number}
	if page, ok := repourl.Page(h.repo.URL); ok {
		pr.URL = fmt.Sprintf("%s/pull/%d", page, number)
	}
	return pr
}

func (h recorded) Get(_ context.Context, number int64) (PullRequest, error) {
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	pr := h.at(number)
	if all := h.r.prs[h.key]; number >= 1 && number <= int64(len(all)) {
		pr = all[number-1]
	}
	pr.Open, pr.Merged, pr.MergeCommit = false, true, pr.HeadCommit
	return pr, nil
}

func (h recorded) Merge(ctx context.Context, number int64, method string) (PullRequest, error) {
	pr, err := h.Get(ctx, number)
	if err == nil {
		h.r.log.Request(merged(h.repo, pr, method, false))
	}
	return pr, err
}
