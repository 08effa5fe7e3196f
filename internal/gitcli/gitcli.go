// Package gitcli runs the git binary the way Kargo does (compat.md §5.1): with
// a private HOME, an environment of its own and a deadline, and with
// credentials that never appear in an argument, a URL, a config file or an
// error.
//
// Every run of git goes through Env.Run. What a step wants from git belongs in
// steps/builtin; git without the binary in internal/gitrepo.
package gitcli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// defaultTimeout bounds a run whose context has no deadline.
	defaultTimeout = 10 * time.Minute
	// maxOutput bounds what is kept of a run's output, per stream, in bytes.
	maxOutput = 8 << 20
	// waitDelay is how long a killed git may hold its pipes.
	waitDelay = 5 * time.Second
)

// ErrOutputLimit says that git printed more than 8 MiB.
var ErrOutputLimit = errors.New("git printed more than 8 MiB")

// Setting is one git configuration value, such as {"http.sslVerify", "false"}.
type Setting struct{ Key, Value string }

// Auth authenticates against the one server that URL names. Nothing of it is
// given to another server, be it a submodule's or the target of a redirect.
type Auth struct {
	// URL is the repository's URL.
	URL                string
	Username, Password string
	// SSHPrivateKey is a PEM key. Without one, ssh uses its agent.
	SSHPrivateKey string
}

// Env is what a run of git gets to see.
type Env struct {
	// Home is git's HOME and so holds its global configuration. Empty means
	// that there is none.
	Home string
	// Ceiling is a directory above which git looks for no repository.
	Ceiling string
	// Auth is nil for anonymous access.
	Auth *Auth
	// Settings override every configuration file.
	Settings []Setting
}

// Error is a run of git that failed. Its text is free of credentials.
type Error struct {
	// Command is git's sub-command, such as "push".
	Command string
	// ExitCode is -1 when git did not exit by itself.
	ExitCode int
	// Output is what git printed, both streams.
	Output string
	// Err is the cause, such as *exec.ExitError or the context's error.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	if out := strings.TrimSpace(e.Output); out != "" {
		return fmt.Sprintf("git %s: %v: %s", e.Command, e.Err, out)
	}
	return fmt.Sprintf("git %s: %v", e.Command, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Run runs git in dir and returns its standard output. The error is an *Error
// if git could not be started, failed or was killed; ctx's end kills git and
// everything it started.
func (e Env) Run(ctx context.Context, dir string, args ...string) (string, error) {
	return e.RunInput(ctx, dir, nil, args...)
}

// RunInput is Run with standard input.
func (e Env) RunInput(ctx context.Context, dir string, stdin []byte, args ...string) (string, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	failed := func(err error, output string) error {
		code := -1
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code = exit.ExitCode()
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return &Error{Command: args[0], ExitCode: code, Output: e.redact(output), Err: err}
	}
	environment, cleanup, err := e.environment()
	if err != nil {
		return "", failed(err, "")
	}
	defer cleanup()

	git, err := exec.LookPath("git")
	if err != nil {
		return "", failed(err, "")
	}
	cmd := exec.CommandContext(ctx, git, args...)
	stdout, stderr := limited{}, limited{}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, environment, &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	cmd.WaitDelay = waitDelay
	ownProcessGroup(cmd)
	err = cmd.Run()
	if err == nil && stdout.cut {
		err = ErrOutputLimit
		stdout = limited{}
	}
	if err != nil {
		return "", failed(err, stdout.String()+stderr.String())
	}
	return stdout.String(), nil
}

// environment is the whole environment of git. cleanup removes the files it
// refers to.
func (e Env) environment() (environment []string, cleanup func(), err error) {
	home := e.Home
	if home == "" {
		home = os.DevNull
	}
	environment = []string{
		"HOME=" + home,
		"LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_HTTP_LOW_SPEED_LIMIT=1024",
		"GIT_HTTP_LOW_SPEED_TIME=30",
	}
	// Kargo passes nothing but the proxies. gpg and ssh need PATH where they
	// are not in /usr/bin, and a laptop's SSH keys are in its agent.
	for _, name := range []string{
		"PATH", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSH_AUTH_SOCK",
	} {
		if value := os.Getenv(name); value != "" {
			environment = append(environment, name+"="+value)
		}
	}
	// What Go's own TLS trusts, git is to trust too.
	for _, name := range []string{"GIT_SSL_CAINFO", "SSL_CERT_FILE"} {
		if value := os.Getenv(name); value != "" {
			environment = append(environment, "GIT_SSL_CAINFO="+value)
			break
		}
	}
	if e.Ceiling != "" {
		environment = append(environment, "GIT_CEILING_DIRECTORIES="+e.Ceiling)
	}
	settings := append([]Setting{
		// A work dir may hold hooks and commands that came with an artifact.
		{"core.hooksPath", os.DevNull},
		{"core.fsmonitor", "false"},
		{"credential.helper", ""},
	}, e.Settings...)
	environment = append(environment, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings)))
	for i, s := range settings {
		environment = append(environment,
			fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, s.Key), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, s.Value))
	}
	access, cleanup, err := e.Auth.environment()
	return append(environment, access...), cleanup, err
}

// environment hands credentials to git: HTTP ones through an askpass program,
// outside the work dir, that answers for one server only; an SSH key through a
// file. Unknown SSH hosts are refused.
func (a *Auth) environment() (environment []string, cleanup func(), err error) {
	cleanup = func() {}
	ssh := "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes"
	if a == nil || a.Password == "" && a.SSHPrivateKey == "" {
		return []string{"GIT_SSH_COMMAND=" + ssh, noAskpass}, cleanup, nil
	}
	dir, err := os.MkdirTemp("", "stepd-git-")
	if err != nil {
		return nil, cleanup, fmt.Errorf("cannot make a directory for credentials: %w", err)
	}
	cleanup = func() { _ = os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			cleanup()
			cleanup = func() {}
		}
	}()
	if a.SSHPrivateKey != "" {
		key := filepath.Join(dir, "key")
		if err := os.WriteFile(key, []byte(strings.TrimSpace(a.SSHPrivateKey)+"\n"), 0o600); err != nil {
			return nil, cleanup, fmt.Errorf("cannot store an SSH key: %w", err)
		}
		return []string{"GIT_SSH_COMMAND=" + ssh + " -o IdentitiesOnly=yes -i '" + key + "'", noAskpass}, cleanup, nil
	}
	u, err := url.Parse(a.URL)
	if err != nil || u.Host == "" {
		return []string{"GIT_SSH_COMMAND=" + ssh, noAskpass}, cleanup, nil
	}
	program := filepath.Join(dir, "askpass")
	if err := os.WriteFile(program, []byte(askpass), 0o700); err != nil {
		return nil, cleanup, fmt.Errorf("cannot write the askpass program: %w", err)
	}
	username := a.Username
	if username == "" {
		username = "git" // hosts that take a bare token ignore the name
	}
	return []string{
		"GIT_SSH_COMMAND=" + ssh,
		"GIT_ASKPASS=" + program,
		"STEPD_GIT_ORIGIN=" + u.Scheme + "://" + u.Host,
		// Which of the two git prints depends on its version.
		"STEPD_GIT_LOGIN=" + u.Scheme + "://" + username + "@" + u.Host,
		"STEPD_GIT_LOGIN_ENCODED=" + u.Scheme + "://" + url.User(username).String() + "@" + u.Host,
		"STEPD_GIT_USERNAME=" + username,
		"STEPD_GIT_PASSWORD=" + a.Password,
	}, cleanup, nil
}

// noAskpass is the one value that makes git ask nobody, whatever core.askPass
// says.
const noAskpass = "GIT_ASKPASS="

// askpass answers git's two questions about the server it is for and stays
// silent otherwise. The words are git's (credential.c, untranslated under
// LC_ALL=C).
const askpass = `#!/bin/sh
case "$1" in
"Username for '$STEPD_GIT_ORIGIN': "|"Username for '$STEPD_GIT_ORIGIN/': ") printf '%s\n' "$STEPD_GIT_USERNAME" ;;
"Password for '$STEPD_GIT_LOGIN': "|"Password for '$STEPD_GIT_LOGIN/': "|"Password for '$STEPD_GIT_LOGIN_ENCODED': ") printf '%s\n' "$STEPD_GIT_PASSWORD" ;;
*) exit 1 ;;
esac
`

// userinfo matches what stands before the @ in a URL.
var userinfo = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s'"]+@`)

func (e Env) redact(text string) string {
	if e.Auth != nil && e.Auth.Password != "" {
		text = strings.ReplaceAll(text, e.Auth.Password, "***")
		text = strings.ReplaceAll(text, url.QueryEscape(e.Auth.Password), "***")
	}
	return userinfo.ReplaceAllString(text, "$1")
}

// limited keeps the first maxOutput bytes written to it. The buffer is not
// embedded: its ReadFrom would go around the limit.
type limited struct {
	kept bytes.Buffer
	cut  bool
}

// Write implements io.Writer and always takes everything.
func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.kept.Len(); len(p) > room {
		l.cut = true
		l.kept.Write(p[:room])
		return len(p), nil
	}
	return l.kept.Write(p)
}

func (l *limited) String() string { return l.kept.String() }
