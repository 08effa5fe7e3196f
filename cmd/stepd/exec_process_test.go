package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/steps"
)

// What Kargo does to the command of a CustomPromotionStep, compat.md section
// 7.2: it shows the last 16 KiB of stderr, aborts with SIGKILL, may run the
// command several times, and runs it as user 65532.

// loud is a step that logs a lot and then fails with a long story.
func loud() steps.Registration {
	return steps.Registration{Name: "loud", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			for range 200 {
				sc.Log.Warn(strings.Repeat("blah ", 100))
			}
			return steps.Result{}, fmt.Errorf("the registry is gone: %s", strings.Repeat("é", 100<<10))
		})
	}}
}

// deaf is a step that says, through a named pipe, which processes it has, and
// goes on whatever it is told. With a config it does nothing.
func deaf() steps.Registration {
	return steps.Registration{Name: "deaf", New: func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			if len(sc.Config) > 0 {
				return steps.Result{Status: steps.Succeeded, Output: map[string]any{"done": true}}, nil
			}
			child := exec.Command("/bin/sleep", "1000")
			if err := child.Start(); err != nil {
				return steps.Result{}, err
			}
			if err := os.WriteFile(filepath.Join(sc.WorkDir, "pids"), fmt.Appendf(nil, "%d %d", os.Getpid(), child.Process.Pid), 0); err != nil {
				return steps.Result{}, err
			}
			select {}
		})
	}}
}

// execStep prepares stepd exec in a work dir with the plugin of unruly steps.
func execStep(t *testing.T, work string, kind, config string) *exec.Cmd {
	t.Helper()
	cmd := stepdProcess(t, installed(t), "exec", kind, "--plugin-memory", "0")
	cmd.Dir = work
	cmd.Stdin = strings.NewReader(config)
	return cmd
}

func installed(t *testing.T) (env []string) {
	t.Helper()
	dir := t.TempDir()
	env = []string{"XDG_DATA_HOME=" + dir, "XDG_STATE_HOME=" + dir, "XDG_CACHE_HOME=" + dir, "KARGO_OUTPUT=" + filepath.Join(dir, "output")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := stepdProcess(t, env, "plugin", "install", self, "--name", "stepd-step-unruly", "--plugin-memory", "0").CombinedOutput(); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	return env
}

func TestExecSaysWhyInTheTailThatKargoShows(t *testing.T) {
	var stderr bytes.Buffer
	cmd := execStep(t, t.TempDir(), "loud", "")
	cmd.Stderr = &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != cli.ExitFailed {
		t.Errorf("it ends with %v", err)
	}
	if stderr.Len() <= kargoTail+maxLastLine {
		t.Fatalf("stderr has %d bytes: nothing is cut", stderr.Len())
	}
	tail := stderr.String()[stderr.Len()-kargoTail:]
	at := strings.Index(tail, "\nstepd: step loud errored: the registry is gone: é")
	if at < 0 {
		t.Fatalf("what Kargo shows does not say why it failed:\n%s", tail)
	}
	last := tail[at+1:]
	if strings.Count(last, "\n") != 1 || !strings.HasSuffix(last, " bytes more)\n") {
		t.Errorf("it is not the last line: …%s", last[len(last)-200:])
	}
	if before := tail[:at]; !strings.Contains(before, "blah") {
		t.Error("there is no room for what the step logged before")
	}
}

func TestTheTailShowsNoPartOfASecret(t *testing.T) {
	a := &cli.App{Redactor: redact.New()}
	secret := strings.Repeat("hunter2", 20)
	a.Redactor.Add(secret)
	err := withinTail(a, &cli.ExitError{Code: cli.ExitConflict, Err: errors.New(strings.Repeat("x", maxLastLine-30) + secret + strings.Repeat("y", maxLastLine))})
	exit, ok := errors.AsType[*cli.ExitError](err)
	if !ok || exit.Code != cli.ExitConflict || strings.Contains(err.Error(), "hunter2") || len(err.Error()) > maxLastLine+100 {
		t.Errorf("got %v", err)
	}
}

// TestExecIsAborted: with SIGKILL, as Kargo does, nothing is left running and
// the command can be run again; with SIGTERM the step has two seconds, and then
// is killed with all that it started.
func TestExecIsAborted(t *testing.T) {
	for _, tc := range []struct {
		signal syscall.Signal
		// childToo tells that what the plugin started ends as well. A host that is
		// killed cannot see to that, see docs/decisions/0007-plugin-processes.md.
		childToo bool
	}{{syscall.SIGKILL, false}, {syscall.SIGTERM, true}} {
		t.Run(tc.signal.String(), func(t *testing.T) {
			work := t.TempDir()
			pipe := filepath.Join(work, "pids")
			if err := unix.Mkfifo(pipe, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := execStep(t, work, "deaf", "")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			running := make(chan []byte, 1)
			go func() {
				b, _ := os.ReadFile(pipe)
				running <- b
			}()
			var plugin, child int
			if _, err := fmt.Sscan(string(<-running), &plugin, &child); err != nil {
				t.Fatalf("the step does not run: %v", err)
			}
			pidfd, err := unix.PidfdOpen(plugin, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pidfd)
			childfd, err := unix.PidfdOpen(child, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(childfd)
			t.Cleanup(func() { _ = unix.PidfdSendSignal(childfd, unix.SIGKILL, nil, 0) })

			if err := cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			if err == nil {
				t.Error("it succeeded")
			}
			wait := 2000 // ms, for the kernel to pass the death on
			if tc.signal != syscall.SIGKILL {
				wait = 0 // stepd has seen to it
				if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != cli.ExitFailed || !strings.Contains(stderr.String(), "context canceled") {
					t.Errorf("it ends with %v\n%s", err, stderr.String())
				}
			}
			if !ended(pidfd, wait) {
				t.Error("the plugin goes on")
			}
			if tc.childToo && !ended(childfd, 2000) { // killed with the group, and waited for by nobody
				t.Error("what the plugin started goes on")
			}
			output := outputOf(cmd)
			if b, err := os.ReadFile(output); err == nil && len(b) > 0 {
				t.Errorf("it left outputs: %q", b)
			}

			again := execStep(t, work, "deaf", "{again: true}")
			if out, err := again.CombinedOutput(); err != nil {
				t.Errorf("run again: %v\n%s", err, out)
			}
			if b, err := os.ReadFile(outputOf(again)); err != nil || string(b) != "done=true\n" {
				t.Errorf("run again: outputs %q, %v", b, err)
			}
		})
	}
}

// TestExecAsKargosUser runs a step as user 65532, who has no home and owns
// nothing but the work dir, with nothing in its environment but what the
// manifests in examples/akuity set.
func TestExecAsKargosUser(t *testing.T) {
	const user = 65532
	work, err := os.MkdirTemp("", "exec-") // t.TempDir's parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "stepd")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, self, program)
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(work, "in.yaml"), "a: 1 # one\n")
	cmd := exec.CommandContext(t.Context(), program, "exec", "config-apply", "--config=env:STEPD_CONFIG", "--format=json", "--promotion=p")
	cmd.Dir = work
	cmd.Env = []string{
		`STEPD_CONFIG={"inPath": "in.yaml", "outPath": "out/values.yaml", "updates": [{"key": "a", "value": 2}]}`,
		"XDG_STATE_HOME=" + filepath.Join(work, "state"), "KARGO_OUTPUT=" + filepath.Join(work, "output"),
	}
	if os.Geteuid() == 0 { // who else runs this test can be no other user, but has no home either
		for _, path := range []string{work, filepath.Join(work, "in.yaml")} {
			if err := os.Chown(path, user, user); err != nil {
				t.Fatal(err)
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(work, "out/values.yaml")); err != nil || string(b) != "a: 2 # one\n" {
		t.Errorf("it wrote %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(work, "output")); err != nil || !bytes.Contains(b, []byte(`"changed":true`)) {
		t.Errorf("outputs: %q, %v", b, err)
	}
}

// ended tells whether a process has ended, or does within some milliseconds.
func ended(pidfd, within int) bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, within)
	return n == 1
}

func outputOf(cmd *exec.Cmd) string {
	for _, v := range cmd.Env {
		if path, ok := strings.CutPrefix(v, "KARGO_OUTPUT="); ok && path != "" {
			return path
		}
	}
	return ""
}
