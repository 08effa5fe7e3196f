package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const helloTask = `apiVersion: kargo.akuity.io/v1alpha1
kind: PromotionTask
metadata:
  name: greet
spec:
  steps:
    - uses: hello
      as: greet
      config:
        name: world
`

// stepdProcess is stepd as a process of its own: this test binary under that
// name.
func stepdProcess(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = append([]string{"stepd"}, args...)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// installHello installs the plugin with the step hello in a place of the test's
// own, which the result makes stepd use.
func installHello(t *testing.T) (env []string) {
	t.Helper()
	dir := t.TempDir()
	env = []string{"XDG_DATA_HOME=" + dir, "XDG_STATE_HOME=" + dir, "XDG_CACHE_HOME=" + dir, "KARGO_OUTPUT="}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := stepdProcess(t, env, "plugin", "install", self, "--name", "stepd-step-hello", "--plugin-memory", "0").CombinedOutput(); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	return env
}

// TestDebugPlugin is what docs/plugins.md says of debugging: while one run waits
// for the user, another uses its plugin; then the first goes on in the same
// process, and that ends with it.
func TestDebugPlugin(t *testing.T) {
	env := installHello(t)
	task := filepath.Join(t.TempDir(), "task.yaml")
	writeFile(t, task, helloTask)
	first := stepdProcess(t, env, "run", "-f", task, "--debug-plugin", "--plugin-memory", "0", "-o", "json")
	var stdout bytes.Buffer
	first.Stdout = &stdout
	enter, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := first.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(stderr)
	var text, workDir, reattach string
	for !strings.Contains(text, "waits for Enter") {
		line, err := said.ReadString('\n')
		if err != nil {
			t.Fatalf("the first run ends: %v\n%s", err, text)
		}
		text += line
		if m := regexp.MustCompile(`--debug-plugin --workdir (\S+),`).FindStringSubmatch(line); m != nil {
			workDir = m[1]
		}
		if strings.HasPrefix(line, "STEPD_REATTACH_PLUGINS='") {
			reattach = strings.TrimSpace(line)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	attach := regexp.MustCompile(`dlv attach (\d+)\n`).FindStringSubmatch(text)
	if attach == nil || reattach == "" || workDir == "" {
		t.Fatalf("it does not say how to debug:\n%s", text)
	}

	// As a user would: the line before the command, in a shell.
	shell := exec.CommandContext(t.Context(), "/bin/sh", "-c",
		reattach+` exec "$STEPD" run -f "$TASK" --debug-plugin --plugin-memory 0 -o json --workdir "$WORK" </dev/null`)
	shell.Env = slices.Concat(os.Environ(), env, []string{"STEPD=" + linked(t, "stepd"), "TASK=" + task, "WORK=" + workDir})
	shell.Stderr = os.Stderr
	out, err := shell.Output()
	if err != nil {
		t.Fatalf("the second run: %v\n%s", err, out)
	}
	pid := pidIn(t, out)
	if pid != attach[1] {
		t.Errorf("the second run used process %s, and the first said %s", pid, attach[1])
	}
	pidfd, err := unix.PidfdOpen(number(t, pid), 0)
	if err != nil {
		t.Fatalf("the plugin does not outlive the second run: %v", err)
	}
	defer unix.Close(pidfd)

	if _, err := io.WriteString(enter, "\n"); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err != nil {
		t.Errorf("the first run: %v\n%s", err, stdout.Bytes())
	}
	if got := pidIn(t, stdout.Bytes()); got != pid {
		t.Errorf("the first run's step ran in %s, not in %s", got, pid)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0); n != 1 {
		t.Errorf("the plugin is left behind: %v", err)
	}

	// Without --debug-plugin the variable means nothing.
	third := stepdProcess(t, env, "run", "-f", task, "--plugin-memory", "0", "-o", "json")
	third.Env = append(third.Env, strings.ReplaceAll(reattach, "'", ""))
	if out, err := third.Output(); err != nil || pidIn(t, out) == pid {
		t.Errorf("a run that does not debug: %v\n%s", err, out)
	}
}

// linked is this test binary under another name.
func linked(t *testing.T, name string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// pidIn is the output pid of a report's step greet.
func pidIn(t *testing.T, report []byte) string {
	t.Helper()
	var r struct {
		Steps []struct {
			Output struct{ Pid json.Number }
		}
	}
	if err := json.Unmarshal(report, &r); err != nil || len(r.Steps) != 1 || r.Steps[0].Output.Pid == "" {
		t.Fatalf("no pid in the report: %v\n%s", err, report)
	}
	return r.Steps[0].Output.Pid.String()
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
