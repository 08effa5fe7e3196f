// Package effects records what a promotion does, or in a dry run would do, to
// the world outside its work dir: commits pushed, Argo CD Applications synced,
// requests sent, pull requests opened, artifacts pushed.
//
// The edges that steps are given (a git remote, an HTTP transport, an Argo CD
// client) write here, whether they act or only record; reports read from here.
// Nothing here acts, and steps do not know whether their edges do.
package effects

import "sync"

// Commit is one commit that was, or would have been, pushed.
type Commit struct {
	RepoURL string `json:"repoURL"`
	Branch  string `json:"branch"`
	// Commit is the commit's id, 40 hex digits.
	Commit string `json:"commit"`
	// Pushed is false when a recording remote kept the commit to itself.
	Pushed bool `json:"pushed"`
	// Paths are the changed paths, slash separated and sorted.
	Paths []string `json:"paths"`
	// Diff is a unified diff against the parent; empty when a remote that pushed
	// the commit was not asked for it.
	Diff string `json:"diff,omitempty"`
	// Message is the full commit message, trailers included.
	Message string `json:"message,omitempty"`
	// Step is the alias of the step that made it.
	Step string `json:"step,omitempty"`
}

// Sync is one Argo CD Application that was, or would have been, synced.
type Sync struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Revisions []string `json:"revisions,omitempty"`
	Done      bool     `json:"done"`
	Step      string   `json:"step,omitempty"`
}

// Request is any other effect: an HTTP request, a pull request, a tag, an
// artifact pushed, metadata set.
type Request struct {
	// Kind is a short noun: "http", "pull-request", "oci-push", "git-tag", …
	Kind   string         `json:"kind"`
	Target string         `json:"target"`
	Detail map[string]any `json:"detail,omitempty"`
	Done   bool           `json:"done"`
	Step   string         `json:"step,omitempty"`
}

// Log collects effects in order. The zero value is ready; all methods are safe
// for concurrent use.
type Log struct {
	mu       sync.Mutex
	commits  []Commit
	syncs    []Sync
	requests []Request
}

// Commit adds c.
func (l *Log) Commit(c Commit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commits = append(l.commits, c)
}

// Sync adds s.
func (l *Log) Sync(s Sync) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.syncs = append(l.syncs, s)
}

// Request adds r.
func (l *Log) Request(r Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, r)
}

// Commits returns a copy of the commits so far.
func (l *Log) Commits() []Commit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Commit(nil), l.commits...)
}

// Syncs returns a copy of the syncs so far.
func (l *Log) Syncs() []Sync {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Sync(nil), l.syncs...)
}

// Requests returns a copy of the requests so far.
func (l *Log) Requests() []Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Request(nil), l.requests...)
}
