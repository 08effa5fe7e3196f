// Package gitrepo reads from and writes to a remote Git repository without a
// clone: the commit and trees on the paths that change are fetched, new trees
// are spliced in memory, and a thin pack is pushed with the old tip as the
// expected value. The cost does not grow with the repository.
//
// It speaks the upload-pack and receive-pack protocols (v2, and v0 for servers
// that have no v2) over HTTP(S) and SSH, on the object and pack codecs of
// go-git. It knows nothing of promotions: what to commit, when to retry and
// what counts as a conflict is decided by its users.
package gitrepo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// Hash is an object id.
type Hash = plumbing.Hash

// ZeroHash is the id of nothing: an absent branch, an absent file.
var ZeroHash = plumbing.ZeroHash

// Remote is one repository as one set of credentials sees it. It remembers the
// immutable objects it has read, so a second use costs less than the first. All
// methods are safe for concurrent use and end with their context.
type Remote interface {
	// URL is the repository's URL without credentials.
	URL() string
	// Refs reads the tips of the branches, and which branch is the default.
	Refs(ctx context.Context, branches ...string) (Refs, error)
	// Commit returns a commit, fetching it when it is not known yet. The
	// parents may remain unknown.
	Commit(ctx context.Context, id Hash) (*Commit, error)
	// History returns the commits reachable from tip, newest first, as far as
	// the query asks.
	History(ctx context.Context, q HistoryQuery) (History, error)
	// Trees returns the trees of a commit along the paths. Hint, if not zero,
	// is an older tip whose trees are likely to be known.
	Trees(ctx context.Context, commit Hash, paths []string, hint Hash) (*Trees, error)
	// Blobs returns the contents of blobs. Those the server would not give are
	// absent from the answer.
	Blobs(ctx context.Context, ids []Hash) (map[Hash][]byte, error)
	// Push moves a branch by compare-and-swap. A nil error means that the
	// server has confirmed the new value.
	Push(ctx context.Context, p Push) error
}

// Refs are the tips of the branches that were asked for.
type Refs struct {
	// Heads has the branches that exist.
	Heads map[string]Hash
	// Default is the branch that HEAD names; empty when unknown.
	Default string
	// Empty tells that the repository has no branch at all.
	Empty bool
}

// Push is one update of one branch.
type Push struct {
	Branch string
	// Old is the expected tip; zero when the branch must not exist.
	Old Hash
	// New is the last of Commits.
	New Hash
	// Commits are the new commits, oldest first.
	Commits []NewCommit
	// Step is recorded with the effect.
	Step string
	// For are the steps that it is pushed for.
	For []Pusher
}

// NewCommit is one commit of a push with the objects it adds.
type NewCommit struct {
	Commit *Commit
	// Parent are the trees it was built on, Changes what it changes.
	Parent  *Trees
	Changes []Change
	// Objects are the commit, its new trees and blobs.
	Objects []Object
	// Step is the alias of the step that made it.
	Step string
}

// Pusher names the step of a promotion that something is pushed for.
type Pusher struct{ Project, Promotion, Alias string }

// HistoryQuery says how far back to look.
type HistoryQuery struct {
	Tip Hash
	// Until, if not zero, is a commit that ends the walk: it and its ancestors
	// are not returned.
	Until Hash
	// Since, if not zero, ends the walk after several commits in a row that are
	// older. Commit times are the committers' word, so leave a margin.
	Since time.Time
	// Max bounds the number of commits.
	Max int
}

// History is the answer to a HistoryQuery.
type History struct {
	// Commits are newest first.
	Commits []*Commit
	// Complete is false when Max ended the walk, or the server would not give
	// more.
	Complete bool
}

// Target names a repository and how to reach it.
type Target struct {
	// URL is http(s)://, ssh:// or user@host:path.
	URL         string
	Credentials Credentials
	// CABundle is PEM; added to the system's roots.
	CABundle              []byte
	InsecureSkipTLSVerify bool
}

// Credentials authenticate against one repository.
type Credentials struct {
	Username, Password string
	// SSHPrivateKey is PEM or OpenSSH format.
	SSHPrivateKey []byte
}

// Identity is a digest of the credentials: equal for equal credentials, and
// telling nothing else about them.
func (c Credentials) Identity() string {
	return digest(c.Username, c.Password, string(c.SSHPrivateKey))
}

// Key identifies what may share a connection and a memory: the repository, how
// it is reached, and as whom.
func (t Target) Key() string {
	return digest(t.URL, t.Credentials.Identity(), string(t.CABundle), strconv.FormatBool(t.InsecureSkipTLSVerify))
}

// digest hashes fields so that no two lists of them collide.
func digest(fields ...string) string {
	var b strings.Builder
	for _, f := range fields {
		fmt.Fprintf(&b, "%d:%s", len(f), f)
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:])
}

// Dialer opens remotes. Two calls with an equal Target.Key may return the same
// Remote; nothing is ever shared between different keys.
type Dialer interface {
	Dial(ctx context.Context, t Target) (Remote, error)
}

// scpLike matches git's short form of an SSH URL.
var scpLike = regexp.MustCompile(`^(?:([^@/\s]+)@)?([A-Za-z0-9.\-]+|\[[0-9a-fA-F:]+\]):(.+)$`)

// parseURL splits a repository URL into an absolute URL without userinfo and
// the user and password that were in it.
func parseURL(raw string) (u *url.URL, user, password string, err error) {
	if !strings.Contains(raw, "://") {
		m := scpLike.FindStringSubmatch(raw)
		if m == nil {
			return nil, "", "", &URLError{Reason: "neither a URL nor user@host:path"}
		}
		return &url.URL{Scheme: "ssh", Host: m[2], Path: "/" + strings.TrimPrefix(m[3], "/")}, m[1], "", nil
	}
	u, err = url.Parse(raw)
	if err != nil {
		return nil, "", "", &URLError{Reason: "malformed"} // the parser's text would repeat the URL, password included
	}
	if u.User != nil {
		user = u.User.Username()
		password, _ = u.User.Password()
		u.User = nil
	}
	switch {
	case u.Host == "":
		return nil, "", "", &URLError{Reason: "no host"}
	case u.RawQuery != "" || u.Fragment != "":
		return nil, "", "", &URLError{Reason: "a query or fragment has no place in it"}
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "ssh":
		return nil, "", "", &URLError{Reason: fmt.Sprintf("scheme %q is none of https, http, ssh", u.Scheme)}
	}
	return u, user, password, nil
}
