package ociart

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
)

// Reference names an artifact: a repository, and a tag, a digest or both.
type Reference struct {
	// Registry is the host, and port if not the default, as it was written;
	// "docker.io" where none was.
	Registry string
	// Repository is the path within the registry.
	Repository string
	// Tag is empty for a reference by digest alone.
	Tag string
	// Digest is "sha256:" and 64 hex digits, or empty.
	Digest string
	// Helm tells that the reference was written with an "oci://" prefix, for
	// which Kargo looks up credentials of type helm.
	Helm bool
}

// Grammar of the OCI distribution specification v1.1, "Pulling manifests".
var (
	hostPattern       = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?$`)
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
)

// isTag is the pattern [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}, which a regexp takes
// long to compile.
func isTag(s string) bool {
	for i, c := range []byte(s) {
		word := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// IsDigest tells whether s matches sha256:[0-9a-f]{64}: no other algorithm is
// accepted.
func IsDigest(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	for _, c := range []byte(h) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return ok && len(h) == 64
}

// dockerHub is the registry of references that name none.
const dockerHub = "docker.io"

// ParseReference parses repo:tag, repo@digest or repo:tag@digest, with an
// optional "oci://" prefix. A reference with neither tag nor digest is an
// error: there is no default tag.
func ParseReference(s string) (Reference, error) {
	ref, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("cannot parse the reference %s: %w", Quote(s), err)
	}
	if ref.Tag == "" && ref.Digest == "" {
		return Reference{}, fmt.Errorf("cannot parse the reference %s: it needs a tag (repository:tag) or a digest (repository@sha256:…)", Quote(s))
	}
	return ref, nil
}

// ParseRepository parses a repository name without tag or digest.
func ParseRepository(s string) (Reference, error) {
	ref, err := parseReference(s)
	if err == nil && (ref.Tag != "" || ref.Digest != "") {
		err = errors.New("a repository has neither tag nor digest")
	}
	if err != nil {
		return Reference{}, fmt.Errorf("cannot parse the repository %s: %w", Quote(s), err)
	}
	return ref, nil
}

func parseReference(s string) (Reference, error) {
	var ref Reference
	rest, helm := strings.CutPrefix(s, "oci://")
	ref.Helm = helm
	rest, digest, found := strings.Cut(rest, "@")
	if found {
		if !IsDigest(digest) {
			return Reference{}, errors.New(`the digest must be "sha256:" and 64 lower-case hex digits`)
		}
		ref.Digest = digest
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		ref.Tag = rest[i+1:]
		rest = rest[:i]
		if !isTag(ref.Tag) {
			return Reference{}, errors.New("the tag has characters that no tag may have, or is longer than 128")
		}
	}
	ref.Registry, ref.Repository = splitRegistry(rest)
	if !hostPattern.MatchString(ref.Registry) {
		return Reference{}, fmt.Errorf("%s is not a registry host", Quote(ref.Registry))
	}
	if !repositoryPattern.MatchString(ref.Repository) || len(ref.Repository) > 255 {
		return Reference{}, fmt.Errorf("%s is not a repository path", Quote(ref.Repository))
	}
	return ref, nil
}

// splitRegistry applies Docker's rule: the first component is a registry if it
// has a dot or a colon or is localhost.
func splitRegistry(name string) (registry, repository string) {
	first, rest, found := strings.Cut(name, "/")
	switch {
	case found && (strings.ContainsAny(first, ".:") || first == "localhost"):
		if first == "index.docker.io" {
			first = dockerHub
		}
		registry, repository = first, rest
	default:
		registry, repository = dockerHub, name
	}
	if registry == dockerHub && !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	return registry, repository
}

// Name is the repository with its registry, without tag or digest.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String writes the reference out in full.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// host is the host that serves the registry's API.
func (r Reference) host() string {
	if r.Registry == dockerHub {
		return "registry-1.docker.io"
	}
	return r.Registry
}

// loopback tells whether the registry is on this machine by name or address.
func (r Reference) loopback() bool {
	h := r.Registry
	if name, _, err := net.SplitHostPort(h); err == nil {
		h = name
	}
	h = strings.Trim(h, "[]")
	if h == "localhost" || strings.HasSuffix(h, ".localhost") {
		return true
	}
	ip := net.ParseIP(h)
	return ip != nil && ip.IsLoopback()
}

// ReferrersTag is the tag under which a registry without the referrers API
// keeps the referrers of a digest (OCI distribution specification v1.1,
// "Referrers Tag Schema").
func ReferrersTag(digest string) string { return strings.Replace(digest, ":", "-", 1) }
