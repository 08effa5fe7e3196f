package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

const (
	gitPassword  = "g1t/p@ss&word <x>"
	genericToken = "gen-tok-1234567890"
)

// leakyDocuments is a Stage that does everything to give its secrets away, and
// the Secrets it has.
func leakyDocuments(repoURL, password string) string {
	return `
apiVersion: v1
kind: Secret
metadata: {name: repo, namespace: demo, labels: {kargo.akuity.io/cred-type: git}}
stringData: {repoURL: "` + repoURL + `", username: bot, password: "` + password + `"}
---
apiVersion: v1
kind: Secret
metadata: {name: app, namespace: demo}
stringData: {token: ` + genericToken + `}
---
apiVersion: kargo.akuity.io/v1alpha1
kind: PromotionTask
metadata: {name: leaky, namespace: demo}
spec:
  steps:
  - uses: git-clone
    config: {repoURL: "` + repoURL + `", checkout: [{branch: main, path: ./r}]}
  - uses: compose-output
    as: out
    if: ${{ always() }}
    config:
      password: p ${{ secret('repo').password }}
      token: t ${{ secret('app').token }}
      encoded: ${{ toBase64('bot:' + secret('repo').password) }}
  - uses: yaml-update
    config: {path: ./r/values.yaml, updates: [{key: token, value: "x-${{ secret('app').token }}"}]}
  - uses: git-commit
    config: {path: ./r, message: "use ${{ secret('app').token }} of ${{ secret('repo').password }}"}
  - uses: git-push
    config: {path: ./r}
  - uses: fail
    if: ${{ always() }}
    config: {message: "no: ${{ secret('app').token }} ${{ secret('repo').password }}"}
`
}

// TestSecretsStayInside runs a promotion that tries to give secrets away and
// looks for them in everything that comes out: both streams in both formats,
// the argument lists of git, and the error paths of a refused password.
func TestSecretsStayInside(t *testing.T) {
	realGit, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		reason   string
		live     bool
		format   string
		password string
	}{
		"dry, text":      {reason: "a dry run shows diffs", format: "text", password: gitPassword},
		"live, text":     {reason: "a live run pushes", live: true, format: "text", password: gitPassword},
		"live, json":     {reason: "the report has everything", live: true, format: "json", password: gitPassword},
		"refused, json":  {reason: "the server refuses the password", live: true, format: "json", password: "other/p@ss&word"},
		"refused, text":  {reason: "the server refuses the password", format: "text", password: "other/p@ss&word"},
		"dry, json, log": {reason: "a dry run's report", format: "json", password: gitPassword},
	} {
		t.Run(name, func(t *testing.T) {
			server := gittest.New(t)
			server.MustCreate(t, "r.git")
			server.MustCommit(t, "r.git", "first", map[string]string{"values.yaml": "token: none\n"})
			server.RequireAuth(map[string]string{"bot": gitPassword})

			dir := t.TempDir()
			argv := filepath.Join(dir, "argv")
			shim := "#!/bin/sh\nprintf '%s\\n' \"$@\" >> '" + argv + "'\nexec '" + realGit + "' \"$@\"\n"
			if err := os.WriteFile(filepath.Join(dir, "git"), []byte(shim), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
			t.Setenv("HOME", dir)
			t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
			t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state"))
			t.Setenv("ALLOW_CREDENTIALS_OVER_HTTP", "true")

			args := []string{"run", "-f", "-", "-o", tc.format, "--log-level", "DEBUG"}
			if tc.live {
				args = append(args, "--live")
			}
			var stdout, stderr bytes.Buffer
			code := cli.Run(t.Context(), newRootCommand, args, cli.Stdio{
				In: strings.NewReader(leakyDocuments(server.RepoURL("r.git"), tc.password)), Out: &stdout, Err: &stderr,
			})
			if code != cli.ExitFailed {
				t.Fatalf("exit code %d, want %d\n%s%s", code, cli.ExitFailed, &stderr, &stdout)
			}
			pushed := server.MustGit(t, "r.git", "log", "-1", "--format=%B", "main")
			if want := tc.live && tc.password == gitPassword; strings.Contains(pushed, genericToken) != want {
				t.Errorf("%s: pushed is %t, want %t: %s", tc.reason, !want, want, pushed)
			}
			started, err := os.ReadFile(argv)
			if err != nil {
				t.Fatalf("git was not run through the shim: %v", err)
			}
			report := stdout.String()
			if tc.format == "json" {
				report = withoutState(t, stdout.Bytes(), tc.password)
			}
			for where, text := range map[string]string{"stdout": report, "stderr": stderr.String(), "git's arguments": string(started)} {
				for _, secret := range []string{tc.password, genericToken} {
					if where == "git's arguments" && secret == genericToken {
						continue // it is part of the commit message that the user wrote
					}
					for _, form := range encodings(secret) {
						if strings.Contains(text, form) {
							t.Errorf("%s: %s gives %q away as %q", tc.reason, where, secret, form)
						}
					}
				}
			}
			if !strings.Contains(report, "***") {
				t.Errorf("%s: nothing was masked, so nothing was tested:\n%s", tc.reason, report)
			}
		})
	}
}

// withoutState checks the state, which is what Kargo would store but for the
// credentials of repositories, and returns the rest of the report.
func withoutState(t *testing.T, text []byte, password string) string {
	t.Helper()
	var r map[string]any
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	state, err := json.Marshal(r["state"])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(state), "t "+genericToken) {
		t.Errorf("the state is not Kargo's: %s", state)
	}
	for _, form := range encodings(password) {
		if strings.Contains(string(state), form) {
			t.Errorf("the state holds a credential as %q", form)
		}
	}
	delete(r, "state")
	rest, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(rest)
}

func encodings(s string) []string {
	quoted, _ := json.Marshal(s)
	return []string{
		s, url.QueryEscape(s), url.PathEscape(s), strings.Trim(string(quoted), `"`),
		base64.StdEncoding.EncodeToString([]byte(s)),
		strings.TrimRight(base64.StdEncoding.EncodeToString([]byte("bot:" + s))[6:], "=")[:8],
	}
}
