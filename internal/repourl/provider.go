package repourl

import (
	"net/url"
	"strings"
)

// Hosting providers that Kargo knows by these names.
const (
	Azure     = "azure"
	Bitbucket = "bitbucket"
	Gitea     = "gitea"
	GitHub    = "github"
	GitLab    = "gitlab"
)

// Provider infers the hosting provider of a git repository from its host; ""
// when the host tells nothing.
func Provider(repoURL string) string {
	u, err := url.Parse(Git(repoURL))
	if err != nil {
		return ""
	}
	host := u.Hostname()
	switch {
	case host == "dev.azure.com", host == "ssh.dev.azure.com", strings.HasSuffix(host, ".visualstudio.com"):
		return Azure
	case host == "bitbucket.org":
		return Bitbucket
	case strings.Contains(host, GitHub):
		return GitHub
	case strings.Contains(host, GitLab):
		return GitLab
	case strings.Contains(host, Gitea):
		return Gitea
	}
	return ""
}

// Commit returns the address of a commit's web page at provider, which is
// inferred from repoURL when empty; "" when it is unknown or repoURL names no
// host.
func Commit(provider, repoURL, sha string) string {
	page, ok := Page(repoURL)
	if !ok {
		return ""
	}
	if provider == "" {
		provider = Provider(repoURL)
	}
	switch provider {
	case GitHub, Gitea, Azure:
		return page + "/commit/" + sha
	case GitLab:
		return page + "/-/commit/" + sha
	case Bitbucket:
		return page + "/commits/" + sha
	}
	return ""
}

// Page returns https://host/path of a repository: its web page without
// trailing slash, user info and ".git". The path keeps its case. It is false
// for a URL that names no host.
func Page(repoURL string) (string, bool) {
	repo := strings.TrimSpace(repoURL)
	if !strings.Contains(repo, "://") {
		m := scp.FindStringSubmatch(repo)
		if m == nil {
			return "", false
		}
		repo = "ssh://" + m[1] + "/" + strings.TrimPrefix(m[2], "/")
	}
	u, err := url.Parse(repo)
	if err != nil || u.Host == "" {
		return "", false
	}
	host := strings.ToLower(u.Host)
	if u.Scheme == "ssh" {
		host = strings.ToLower(u.Hostname()) // the SSH port says nothing about the web's
	}
	path := trimGit(u.Path)
	if host == "ssh.dev.azure.com" { // v3/org/project/repo
		parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
		if len(parts) != 4 || parts[0] != "v3" {
			return "", false
		}
		host, path = "dev.azure.com", "/"+parts[1]+"/"+parts[2]+"/_git/"+parts[3]
	}
	return "https://" + host + path, true
}
