package e2e_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/e2e/sandbox"
)

const (
	user     = "robot"
	password = "c0rrect-horse-battery-staple"
)

// TestCredentials promotes where both the registry and the git server want a
// password, from every place that a local run takes one from. It must appear
// nowhere but in the requests.
func TestCredentials(t *testing.T) {
	secret := func(name, typ, repoURL, password string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata:
  name: %s
  namespace: devex-kargo
  labels:
    kargo.akuity.io/cred-type: %s
stringData:
  repoURL: %s
  username: %s
  password: %s
---
`, name, typ, repoURL, user, password)
	}
	dockerConfig := func(t *testing.T, s *sandbox.Sandbox, password string) string {
		dir := t.TempDir()
		auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		write(t, filepath.Join(dir, "config.json"), fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, s.Registry.Host(), auth))
		return "DOCKER_CONFIG=" + dir
	}

	for name, tc := range map[string]struct {
		reason string
		// prepare returns arguments and environment.
		prepare func(*testing.T, *sandbox.Sandbox) (args, env []string)
		code    int
	}{
		"environment and Docker config": {
			reason: "what a laptop has",
			prepare: func(t *testing.T, s *sandbox.Sandbox) (args, env []string) {
				return nil, []string{dockerConfig(t, s, password), "GIT_USERNAME=" + user, "GIT_PASSWORD=" + password}
			},
		},
		"Kargo's Secrets": {
			reason: "what a project has",
			prepare: func(t *testing.T, s *sandbox.Sandbox) (args, env []string) {
				file := filepath.Join(t.TempDir(), "secrets.yaml")
				write(t, file, secret("registry", "image", s.Repository(), password)+secret("git", "git", s.RepoURL(), password))
				// Like Kargo, Secrets are not used over HTTP unless asked.
				return []string{"-f", file}, []string{"ALLOW_CREDENTIALS_OVER_HTTP=true"}
			},
		},
		"no credentials": {
			reason:  "the registry refuses",
			prepare: func(*testing.T, *sandbox.Sandbox) (args, env []string) { return nil, nil },
			code:    1,
		},
		"wrong password for git": {
			reason: "the artifact is read, the push is refused",
			prepare: func(t *testing.T, s *sandbox.Sandbox) (args, env []string) {
				return nil, []string{dockerConfig(t, s, password), "GIT_USERNAME=" + user, "GIT_PASSWORD=wrong-" + password}
			},
			code: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := startSandbox(t)
			publish(t, s, sandbox.RegionUS)
			s.Registry.Inject(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if name, pass, _ := r.BasicAuth(); name != user || pass != password {
					w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				next.ServeHTTP(w, r)
			})
			s.Git.RequireAuth(map[string]string{user: password})
			base := s.Git.MustGit(t, sandbox.GitOps, "rev-parse", "main")

			args, env := tc.prepare(t, s)
			s.Env = env
			r, err := s.Example(t.Context(), "prd-us", append(args, "--live")...)
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != tc.code {
				t.Errorf("%s: exit code %d, want %d\n%s%s", tc.reason, r.Code, tc.code, r.Stderr, r.Stdout)
			}
			h, err := s.History(base)
			if err != nil {
				t.Fatal(err)
			}
			want := 1
			if tc.code != 0 {
				want = 0
			}
			if len(h.Commits) != want {
				t.Errorf("%s: %d commits, want %d", tc.reason, len(h.Commits), want)
			}
			everything := r.Stdout + r.Stderr
			for _, c := range h.Commits {
				everything += c.Message
			}
			if strings.Contains(everything, password) {
				t.Errorf("%s: the password is told:\n%s", tc.reason, everything)
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
