package credentials

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/steps"
)

func secret(name, typ string, data map[string]string) Secret {
	s := Secret{Name: name, Labels: map[string]string{TypeLabel: typ}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func login(url, name string) map[string]string {
	return map[string]string{"repoURL": url, "username": name, "password": "pw"}
}

func regex(url, name string) map[string]string {
	m := login(url, name)
	m["repoURLIsRegex"] = "true"
	return m
}

func TestFromSecrets(t *testing.T) {
	for _, tc := range []struct {
		reason string
		byNS   map[string][]Secret
		opts   SecretOptions
		typ    steps.CredentialType
		url    string
		want   string // username; empty for anonymous
		err    string
	}{
		{reason: "normalised URLs are compared", byNS: map[string][]Secret{"demo": {secret("a", "git", login("https://h.io/A/b.git", "a"))}},
			typ: steps.CredentialsGit, url: "https://x@H.io/a/b/", want: "a"},
		{reason: "another type's Secret", byNS: map[string][]Secret{"demo": {secret("a", "image", login("https://h.io/a", "a"))}},
			typ: steps.CredentialsGit, url: "https://h.io/a"},
		{reason: "the project before the shared namespace", typ: steps.CredentialsGit, url: "https://h.io/a", want: "project",
			opts: SecretOptions{SharedNamespace: "shared"}, byNS: map[string][]Secret{
				"shared": {secret("a", "git", login("https://h.io/a", "shared"))}, "demo": {secret("z", "git", login("https://h.io/a", "project"))}}},
		{reason: "the shared namespace, if the project has none", typ: steps.CredentialsGit, url: "https://h.io/a", want: "shared",
			opts: SecretOptions{SharedNamespace: "shared"}, byNS: map[string][]Secret{"shared": {secret("a", "git", login("https://h.io/a", "shared"))}}},
		{reason: "H4 plain HTTP gets nothing", byNS: map[string][]Secret{"demo": {secret("a", "git", login("http://h.io/a", "a"))}},
			typ: steps.CredentialsGit, url: "http://h.io/a"},
		{reason: "unless that is allowed", byNS: map[string][]Secret{"demo": {secret("a", "git", login("http://h.io/a", "a"))}},
			opts: SecretOptions{AllowHTTP: true}, typ: steps.CredentialsGit, url: "http://h.io/a", want: "a"},
		{reason: "a regular expression may match the raw URL", byNS: map[string][]Secret{"demo": {secret("a", "git", regex(`^https://H\.io/A\.git$`, "a"))}},
			typ: steps.CredentialsGit, url: "https://H.io/A.git", want: "a"},
		{reason: "or the normalised one", byNS: map[string][]Secret{"demo": {secret("a", "git", regex(`^https://h\.io/a$`, "a"))}},
			typ: steps.CredentialsGit, url: "https://H.io/A.git", want: "a"},
		{reason: "an invalid one is skipped", typ: steps.CredentialsGit, url: "https://h.io/a", want: "b", byNS: map[string][]Secret{
			"demo": {secret("a", "git", regex(`(`, "a")), secret("b", "git", login("https://h.io/a", "b"))}}},
		{reason: "a Secret without repoURL is skipped", byNS: map[string][]Secret{"demo": {secret("a", "git", map[string]string{"username": "a", "password": "pw"})}},
			typ: steps.CredentialsGit, url: "https://h.io/a"},
		{reason: "Docker Hub has many names", byNS: map[string][]Secret{"demo": {secret("a", "image", login("docker.io/library/redis", "hub"))}},
			typ: steps.CredentialsImage, url: "redis", want: "hub"},
		{reason: "Helm repositories in registries", byNS: map[string][]Secret{"demo": {secret("a", "helm", login("ghcr.io/a/charts", "helm"))}},
			typ: steps.CredentialsHelm, url: "oci://ghcr.io/a/charts", want: "helm"},
		{reason: "a token exchange is not anonymous access", byNS: map[string][]Secret{"demo": {secret("ecr", "image", map[string]string{
			"repoURL": "1.dkr.ecr.x.amazonaws.com/a", "awsAccessKeyID": "1", "awsSecretAccessKey": "2"})}},
			typ: steps.CredentialsImage, url: "1.dkr.ecr.x.amazonaws.com/a", err: `cannot use Secret "ecr" in namespace "demo"`},
	} {
		list := func(_ context.Context, namespace string) ([]Secret, error) { return tc.byNS[namespace], nil }
		got, err := FromSecrets(list, tc.opts).Get(t.Context(), "demo", tc.typ, tc.url)
		if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: error %v, want %q", tc.reason, err, tc.err)
		}
		var want *steps.Credentials
		if tc.want != "" {
			want = &steps.Credentials{Username: tc.want, Password: "pw"}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
}

func TestSSHKeySecret(t *testing.T) {
	list := func(context.Context, string) ([]Secret, error) {
		return []Secret{secret("a", "git", map[string]string{"repoURL": "git@h.io:a/b.git", "sshPrivateKey": "KEY"})}, nil
	}
	got, err := FromSecrets(list, SecretOptions{}).Get(t.Context(), "demo", steps.CredentialsGit, "ssh://git@h.io/a/b")
	if err != nil || got == nil || got.SSHPrivateKey != "KEY" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestListErrorIsNotAnonymous(t *testing.T) {
	broken := errors.New("broken")
	_, err := FromSecrets(func(context.Context, string) ([]Secret, error) { return nil, broken }, SecretOptions{}).
		Get(t.Context(), "demo", steps.CredentialsGit, "https://h.io/a")
	if !errors.Is(err, broken) {
		t.Errorf("error %v, want the listing's", err)
	}
}

func TestLocal(t *testing.T) {
	home := t.TempDir()
	files := map[string]string{
		".netrc":                          "machine h.io login nat password netpw\n",
		".docker/config.json":             `{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOmh1YnB3"},"ghcr.io":{"auth":"Z2g6Z2hwdw=="},"id.example.com":{"identitytoken":"refresh"}},"credHelpers":{"help.example.com":"stepdtest"}}`,
		"bin/docker-credential-stepdtest": "#!/bin/sh\nread host\n[ \"$1\" = get ] && printf '{\"ServerURL\":\"%s\",\"Username\":\"helper\",\"Secret\":\"helperpw\"}' \"$host\"\n",
	}
	for name, data := range files {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", filepath.Join(home, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"))
	git := map[string]string{"GIT_USERNAME": "env", "GIT_PASSWORD": "envpw"}
	for _, tc := range []struct {
		reason string
		env    map[string]string
		typ    steps.CredentialType
		url    string
		want   *steps.Credentials
	}{
		{"the environment wins", git, steps.CredentialsGit, "https://h.io/a", &steps.Credentials{Username: "env", Password: "envpw"}},
		{"netrc by host", nil, steps.CredentialsGit, "https://h.io:8443/a", &steps.Credentials{Username: "nat", Password: "netpw"}},
		{"netrc has no such host", nil, steps.CredentialsGit, "https://other.io/a", nil},
		{"plain HTTP elsewhere", git, steps.CredentialsGit, "http://h.io/a", nil},
		{"plain HTTP on loopback", git, steps.CredentialsGit, "http://127.0.0.1:8080/a", &steps.Credentials{Username: "env", Password: "envpw"}},
		{"SSH has its agent", git, steps.CredentialsGit, "git@h.io:a/b", nil},
		{"the environment is git's", git, steps.CredentialsHelm, "https://h.io/charts", &steps.Credentials{Username: "nat", Password: "netpw"}},
		{"Docker Hub without a host", nil, steps.CredentialsImage, "acme/app", &steps.Credentials{Username: "hub", Password: "hubpw"}},
		{"a registry", nil, steps.CredentialsImage, "ghcr.io/acme/app", &steps.Credentials{Username: "gh", Password: "ghpw"}},
		{"an OCI chart", nil, steps.CredentialsHelm, "oci://ghcr.io/acme/chart", &steps.Credentials{Username: "gh", Password: "ghpw"}},
		{"an identity token", nil, steps.CredentialsImage, "id.example.com/a", &steps.Credentials{Username: "<token>", Password: "refresh"}},
		{"a credential helper", nil, steps.CredentialsImage, "help.example.com/a", &steps.Credentials{Username: "helper", Password: "helperpw"}},
		{"an unknown registry", nil, steps.CredentialsImage, "quay.io/a/b", nil},
	} {
		source := Local(LocalOptions{Home: home, Getenv: func(k string) string { return tc.env[k] }})
		got, err := source.Get(t.Context(), "demo", tc.typ, tc.url)
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
}

func TestChain(t *testing.T) {
	empty := FromSecrets(func(context.Context, string) ([]Secret, error) { return nil, nil }, SecretOptions{})
	full := FromSecrets(func(context.Context, string) ([]Secret, error) {
		return []Secret{secret("a", "git", login("https://h.io/a", "a"))}, nil
	}, SecretOptions{})
	got, err := Chain(nil, empty, full).Get(t.Context(), "demo", steps.CredentialsGit, "https://h.io/a")
	if err != nil || got == nil || got.Username != "a" {
		t.Errorf("got %v, %v", got, err)
	}
}
