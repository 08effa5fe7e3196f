// Package repourl knows repository URLs: when two of them mean the same
// repository, and how a hosting provider's web pages are addressed.
//
// Normalised URLs are for comparison only: they are lower-cased and may not
// reach the repository. The rules are Kargo v1.11.2's (pkg/urls); looking up
// credentials with them belongs in internal/credentials.
package repourl

import (
	"net/url"
	"regexp"
	"strings"
	"unicode"
)

// scp matches [user@]host:path, git's short form of an SSH URL.
var scp = regexp.MustCompile(`^((?:[^@/:\s]+@)?[^@/:\s]+):([^/\s][^\s]*|/[^/\s][^\s]*)$`)

// Git normalises the URL of a git repository: lower case, no user info (SSH
// URLs keep the user), no trailing slash, no ".git"; user@host:path becomes
// ssh://user@host/path. A URL with a query, and one that cannot be parsed, is
// returned as it is.
func Git(raw string) string {
	repo := clean(raw)
	isHTTP := strings.HasPrefix(repo, "http://") || strings.HasPrefix(repo, "https://")
	switch {
	case isHTTP || strings.HasPrefix(repo, "ssh://"):
		u, err := url.Parse(repo)
		if err != nil || u.RawQuery != "" || u.Host == "" {
			return raw
		}
		if isHTTP {
			u.User = nil
		} else if u.User != nil {
			u.User = url.User(u.User.Username())
		}
		u.Path = trimGit(u.Path)
		u.RawPath = trimGit(u.RawPath)
		return u.String()
	default:
		m := scp.FindStringSubmatch(repo)
		if m == nil {
			return raw
		}
		return "ssh://" + m[1] + "/" + strings.TrimPrefix(trimGit(m[2]), "/")
	}
}

func trimGit(path string) string {
	return strings.TrimSuffix(strings.TrimSuffix(path, "/"), ".git")
}

// Image normalises the URL of an image repository: lower case, tag and digest
// dropped, and for Docker Hub neither host nor "library/". What is not an
// image reference is returned as it is.
func Image(raw string) string {
	name, ok := image(clean(raw))
	if !ok {
		return raw
	}
	return name
}

// Helm normalises the URL of a Helm chart repository: like Image after the
// scheme oci:// was dropped.
func Helm(raw string) string {
	name, ok := image(strings.TrimPrefix(clean(raw), "oci://"))
	if !ok {
		return raw
	}
	return name
}

var (
	repository = regexp.MustCompile(`^[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*$`)
	registry   = regexp.MustCompile(`^(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::[0-9]+)?$`)
)

func image(ref string) (string, bool) {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndex(ref, ":"); i > strings.LastIndex(ref, "/") {
		ref = ref[:i]
	}
	host, repo, found := strings.Cut(ref, "/")
	if !found || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host, repo = "", ref
	}
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		host = ""
	}
	if !repository.MatchString(repo) || host != "" && !registry.MatchString(host) {
		return "", false
	}
	if host == "" {
		return strings.TrimPrefix(repo, "library/"), true
	}
	return host + "/" + repo, true
}

// clean lower-cases raw and drops surrounding space and unprintable runes.
func clean(raw string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToLower(strings.TrimSpace(raw)))
}
