package gitcli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/steps"
)

// shell makes git run a shell command line with everything git was given.
func shell(ctx context.Context, t *testing.T, env Env, line string) (string, error) {
	t.Helper()
	env.Settings = append(env.Settings, Setting{"alias.sh", "!" + line})
	return env.Run(ctx, t.TempDir(), "sh")
}

func TestEnvironmentIsItsOwn(t *testing.T) {
	t.Setenv("SECRET_OF_THE_USER", "s3cr3t")
	t.Setenv("GIT_DIR", "/nowhere")
	t.Setenv("GIT_AUTHOR_NAME", "somebody")
	t.Setenv("HTTPS_PROXY", "http://proxy.example.com")
	t.Setenv("SSL_CERT_FILE", "/ca.pem")
	t.Setenv("GIT_SSL_CAINFO", "")
	home := t.TempDir()
	out, err := shell(t.Context(), t, Env{Home: home}, "env")
	if err != nil {
		t.Fatal(err)
	}
	for _, leaked := range []string{"s3cr3t", "/nowhere", "somebody"} {
		if strings.Contains(out, leaked) {
			t.Errorf("git sees %q of the caller's environment", leaked)
		}
	}
	for _, wanted := range []string{"HOME=" + home + "\n", "GIT_TERMINAL_PROMPT=0\n", "GIT_HTTP_LOW_SPEED_LIMIT=1024\n", "GIT_HTTP_LOW_SPEED_TIME=30\n", "GIT_ASKPASS=\n", "HTTPS_PROXY=http://proxy.example.com\n", "GIT_SSL_CAINFO=/ca.pem\n"} {
		if !strings.Contains(out, wanted) {
			t.Errorf("git does not see %q in:\n%s", wanted, out)
		}
	}
}

// Each question of git's about the server is answered, and no other.
func TestAskpass(t *testing.T) {
	auth := &Auth{URL: "https://h.io:8443/a/b.git", Username: "bot@acme", Password: "p'w $x"}
	for question, want := range map[string]string{
		"Username for 'https://h.io:8443': ":               "bot@acme",
		"Password for 'https://bot@acme@h.io:8443': ":      "p'w $x",
		"Password for 'https://bot%40acme@h.io:8443': ":    "p'w $x",
		"Username for 'https://evil.io': ":                 "",
		"Password for 'https://bot@acme@evil.io': ":        "",
		"Password for 'http://bot@acme@h.io:8443': ":       "",
		"Password for 'https://bot@acme@h.io:8443.evil': ": "",
		"Password for 'https://other@h.io:8443': ":         "",
	} {
		environment, cleanup, err := auth.environment()
		if err != nil {
			t.Fatal(err)
		}
		var program string
		for _, v := range environment {
			if p, ok := strings.CutPrefix(v, "GIT_ASKPASS="); ok {
				program = p
			}
		}
		cmd := exec.CommandContext(t.Context(), program, question)
		cmd.Env = environment
		out, err := cmd.Output()
		if got := strings.TrimSuffix(string(out), "\n"); got != want || (err == nil) != (want != "") {
			t.Errorf("%s answered %q, %v", question, got, err)
		}
		cleanup()
		if _, err := os.Stat(program); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the askpass program is left behind: %v", err)
		}
	}
}

func TestErrorsAreRedacted(t *testing.T) {
	env := Env{Auth: &Auth{URL: "https://h.io/a", Username: "u", Password: "p/w+1"}}
	_, err := shell(t.Context(), t, env, "echo on https://u:p/w+1@h.io/a and http://token@h.io/b with p%2Fw%2B1 >&2; exit 3; :")
	var e *Error
	if !errors.As(err, &e) || e.ExitCode != 3 || e.Command != "sh" {
		t.Fatalf("error %v", err)
	}
	for _, secret := range []string{"p/w+1", "p%2Fw%2B1", "token@"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q is in %v", secret, err)
		}
	}
	if !strings.Contains(err.Error(), "http://h.io/b") {
		t.Errorf("the URL's rest is not in %v", err)
	}
}

func TestOutputIsLimited(t *testing.T) {
	if _, err := shell(t.Context(), t, Env{}, "head -c 9000000 /dev/zero; :"); !errors.Is(err, ErrOutputLimit) {
		t.Errorf("error %v, want ErrOutputLimit", err)
	}
}

// The end of the context ends git's children too: this one would hold the
// output open for an hour.
func TestContextEndsChildren(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "started")
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() {
		_, err := shell(ctx, t, Env{}, "touch "+mark+"; sleep 3600; :")
		done <- err
	}()
	deadline := time.After(30 * time.Second)
	for {
		if _, err := os.Stat(mark); err == nil {
			break
		}
		select {
		case <-deadline:
			t.Fatal("git did not start")
		case err := <-done:
			t.Fatalf("git ended early: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	cancel(stop)
	select {
	case err := <-done:
		if !errors.Is(err, stop) {
			t.Errorf("error %v, want the context's cause", err)
		}
	case <-deadline:
		t.Fatal("the child outlived the context")
	}
}

func TestHooksDoNotRun(t *testing.T) {
	dir := t.TempDir()
	env := Env{Home: t.TempDir(), Settings: []Setting{{"user.name", "n"}, {"user.email", "e@example.com"}}}
	if _, err := env.Run(t.Context(), dir, "init", "--quiet"); err != nil {
		t.Fatal(err)
	}
	hook := filepath.Join(dir, ".git", "hooks", "pre-commit")
	if err := os.MkdirAll(filepath.Dir(hook), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hook, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := env.Run(t.Context(), dir, "commit", "--quiet", "--allow-empty", "-m", "m"); err != nil {
		t.Errorf("a hook ran: %v", err)
	}
}

func TestSigning(t *testing.T) {
	for _, typ := range []string{"gpg", "ssh"} {
		t.Run(typ, func(t *testing.T) {
			// Short: gpg's agent has a socket there.
			home, err := os.MkdirTemp("", "g")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(home) })
			user := steps.GitUser{Name: "Ada", Email: "ada@example.com", SigningKeyType: typ, SigningKey: generateKey(t, typ)}
			settings, err := InstallSigningKey(t.Context(), home, user)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			env := Env{Home: home, Settings: append(settings, Setting{"user.name", user.Name}, Setting{"user.email", user.Email})}
			for _, args := range [][]string{{"init", "--quiet"}, {"commit", "--quiet", "--allow-empty", "-m", "m"}} {
				if _, err := env.Run(t.Context(), dir, args...); err != nil {
					t.Fatal(err)
				}
			}
			raw, err := env.Run(t.Context(), dir, "cat-file", "commit", "HEAD")
			if err != nil || !strings.Contains(raw, "gpgsig -----BEGIN ") {
				t.Errorf("the commit is not signed: %v\n%s", err, raw)
			}
			verdict, err := env.Run(t.Context(), dir, "log", "-1", "--format=%G?")
			if err != nil || strings.TrimSpace(verdict) != "G" {
				t.Errorf("git's verdict is %q, %v", verdict, err)
			}
			if err := StopAgent(t.Context(), home); err != nil {
				t.Error(err)
			}
		})
	}
}

func generateKey(t *testing.T, typ string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "k")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	run := func(name string, args ...string) string {
		t.Helper()
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "GNUPGHOME="+dir)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return string(out)
	}
	if typ == "ssh" {
		file := filepath.Join(dir, "key")
		run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file)
		key, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(key)
	}
	run("gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", "Ada <ada@example.com>", "ed25519", "sign", "never")
	key := run("gpg", "--batch", "--quiet", "--armor", "--export-secret-keys")
	run("gpgconf", "--kill", "all")
	return key
}

func TestSigningKeyThatIsNone(t *testing.T) {
	if _, err := exec.LookPath("gpg"); err != nil {
		t.Skip("gpg is not installed")
	}
	home, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	_, err = InstallSigningKey(t.Context(), home, steps.GitUser{SigningKey: "s3cr3t rubbish", SigningKeyType: "gpg"})
	if err == nil || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("error %v", err)
	}
}

// The key is in a private file while git runs, and the host has to be known.
func TestSSHKey(t *testing.T) {
	bin, seen := t.TempDir(), filepath.Join(t.TempDir(), "seen")
	fake := "#!/bin/sh\nfor a; do echo \"$a\"; case $p in -i) stat -c %a \"$a\"; cat \"$a\";; esac; p=$a; done >" + seen + "\nexit 255\n"
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	env := Env{Auth: &Auth{URL: "ssh://git@h.io/a", SSHPrivateKey: "\nKEY\n\n"}}
	if _, err := env.Run(t.Context(), t.TempDir(), "ls-remote", "ssh://git@h.io/a"); err == nil {
		t.Error("no error without a server")
	}
	text, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	for _, wanted := range []string{"BatchMode=yes\n", "StrictHostKeyChecking=yes\n", "IdentitiesOnly=yes\n", "\n600\nKEY\n"} {
		if !strings.Contains(got, wanted) {
			t.Errorf("ssh was not given %q, but\n%s", wanted, got)
		}
	}
	_, rest, _ := strings.Cut(got, "-i\n")
	file, _, _ := strings.Cut(rest, "\n")
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key is left behind: %v", err)
	}
}
