package repourl

import (
	"net/url"
	"strings"
	"testing"
)

// Conformance H1.
func TestGit(t *testing.T) {
	for _, tc := range []struct{ reason, in, want string }{
		{"user info, case, slash and .git go", "https://U:P@H.io/A/b.git/", "https://h.io/a/b"},
		{"the short SSH form is an SSH URL", "git@h.io:a/b.git", "ssh://git@h.io/a/b"},
		{"a query cannot be normalised", "https://h.io/a?x=1", "https://h.io/a?x=1"},
		{"an SSH URL keeps its user", "ssh://Git@h.io:2222/a/b.git", "ssh://git@h.io:2222/a/b"},
		{"ports are kept", "http://h.io:8080/a", "http://h.io:8080/a"},
		{"only one .git goes", "https://h.io/a.git.git", "https://h.io/a.git"},
		{"unprintable runes and space go", " https://h.io/\u200ba\n", "https://h.io/a"},
		{"a path is nothing we know", "/srv/Git/a.git", "/srv/Git/a.git"},
		{"unparsable", "https://h.io/%zz", "https://h.io/%zz"},
		{"empty", "", ""},
	} {
		if got := Git(tc.in); got != tc.want {
			t.Errorf("%s: Git(%q) = %q, want %q", tc.reason, tc.in, got, tc.want)
		}
	}
}

// Conformance H2.
func TestImageAndHelm(t *testing.T) {
	for _, tc := range []struct {
		reason    string
		normalise func(string) string
		in, want  string
	}{
		{"Docker Hub by name", Image, "docker.io/library/redis", "redis"},
		{"Docker Hub's index", Image, "index.docker.io/redis", "redis"},
		{"no host is Docker Hub", Image, "Acme/App:v1", "acme/app"},
		{"tags and digests go", Image, "ghcr.io/a/b:v1@sha256:0123", "ghcr.io/a/b"},
		{"a port is not a tag", Image, "localhost:5000/a/b", "localhost:5000/a/b"},
		{"not a reference", Image, "https://ghcr.io/a", "https://ghcr.io/a"},
		{"oci scheme", Helm, "OCI://Docker.io/x/y", "x/y"},
		{"classic chart repository", Helm, "https://Charts.example.com", "https://Charts.example.com"},
	} {
		if got := tc.normalise(tc.in); got != tc.want {
			t.Errorf("%s: %q became %q, want %q", tc.reason, tc.in, got, tc.want)
		}
	}
}

func TestCommit(t *testing.T) {
	for _, tc := range []struct{ provider, repo, want string }{
		{"", "https://github.com/Org/Repo.git", "https://github.com/Org/Repo/commit/abc"},
		{"", "git@github.com:org/repo.git", "https://github.com/org/repo/commit/abc"},
		{"", "ssh://git@gitlab.example.com:2222/g/sub/r.git", "https://gitlab.example.com/g/sub/r/-/commit/abc"},
		{"", "https://u:p@bitbucket.org/ws/r", "https://bitbucket.org/ws/r/commits/abc"},
		{"", "git@ssh.dev.azure.com:v3/o/p/r", "https://dev.azure.com/o/p/_git/r/commit/abc"},
		{"", "https://dev.azure.com/o/p/_git/r", "https://dev.azure.com/o/p/_git/r/commit/abc"},
		{"gitea", "https://git.example.com/o/r", "https://git.example.com/o/r/commit/abc"},
		{"", "https://git.example.com/o/r", ""},
		{"github", "/srv/repo.git", ""},
	} {
		if got := Commit(tc.provider, tc.repo, "abc"); got != tc.want {
			t.Errorf("Commit(%q, %q) = %q, want %q", tc.provider, tc.repo, got, tc.want)
		}
	}
}

// Whatever the input, a URL without a host has no page, and what image
// normalisation accepts it accepts again, unchanged.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"https://U:P@H.io/A/b.git/", "git@h.io:a/b.git", "docker.io/library/redis", "OCI://Docker.io/x/y", "ssh://a@b:1/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if page, ok := Page(s); ok != strings.HasPrefix(page, "https://") {
			t.Errorf("Page(%q) = %q, %v", s, page, ok)
		}
		if u, err := url.Parse(Git(s)); err == nil && Git(s) != s && u.User != nil && u.Scheme != "ssh" {
			t.Errorf("Git(%q) = %q keeps user info", s, Git(s))
		}
		if name, ok := image(s); ok && strings.ContainsAny(name, "@ ") {
			t.Errorf("image(%q) = %q", s, name)
		}
	})
}
