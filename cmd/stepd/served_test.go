package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/serving"
)

// TestServedVerbs: stepd lists exactly the verbs of stepd-serve, in its words.
func TestServedVerbs(t *testing.T) {
	var got, want []string
	for _, cmd := range served(&cli.App{}) {
		got = append(got, cmd.Use+"\n"+cmd.Short)
		if cmd.PersistentPreRun == nil {
			t.Errorf("%s watches for signals: one that comes when it becomes stepd-serve would be lost", cmd.Name())
		}
	}
	for _, cmd := range serving.NewRoot(&cli.App{}).Commands() {
		want = append(want, cmd.Use+"\n"+cmd.Short)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("verbs (-stepd-serve +stepd):\n%s", diff)
	}
}

// installedPrograms is where this test binary is installed as stepd and as
// stepd-serve.
func installedPrograms(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("stepd")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(path)
}

// TestServeIsTheSameProcess: started through a symlink, stepd becomes the
// stepd-serve beside it with the same process id, arguments and environment, and
// a signal reaches that.
func TestServeIsTheSameProcess(t *testing.T) {
	programs := installedPrograms(t)
	link := filepath.Join(t.TempDir(), "stepd")
	if err := os.Symlink(filepath.Join(programs, "stepd"), link); err != nil {
		t.Fatal(err)
	}
	args := []string{"--log-level", "INFO", "serve", "--work-root", t.TempDir(), "--http", "127.0.0.1:0", "--insecure"}
	cmd := exec.CommandContext(t.Context(), link, args...)
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+t.TempDir(), "XDG_DATA_HOME="+t.TempDir(), "STEPD_TEST=a b\nc")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "serving http at tcp 127.0.0.1:") {
		t.Errorf("it says %q, not where it serves", lines.Text())
	}
	of := func(file string) []string {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), file))
		if err != nil {
			t.Error(err)
		}
		return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	}
	if diff := cmp.Diff(append([]string{filepath.Join(programs, "stepd-serve")}, args...), of("cmdline")); diff != "" {
		t.Errorf("command line (-want +got):\n%s", diff)
	}
	if env := of("environ"); !slices.Contains(env, "STEPD_TEST=a b\nc") {
		t.Errorf("the environment is another: %q", env)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
		t.Log(lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM it ends with %v, not having drained", err)
	}
}

// TestServeIsNotInstalled: stepd by itself says what is missing, where it
// belongs and how it gets there.
func TestServeIsNotInstalled(t *testing.T) {
	alone := filepath.Join(t.TempDir(), "stepd")
	if err := os.Link(filepath.Join(installedPrograms(t), "stepd"), alone); err != nil {
		copyFile(t, filepath.Join(installedPrograms(t), "stepd"), alone) // another file system
		if err := os.Chmod(alone, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	missing := filepath.Join(filepath.Dir(alone), "stepd-serve")
	check := func(reason, want string, args ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), alone, args...).CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != cli.ExitUsage || !strings.Contains(string(out), want) || !strings.Contains(string(out), missing) {
			t.Errorf("%s: %v\n%s", reason, err, out)
		}
	}
	check("a verb", "stepd: stepd serve needs stepd-serve: not installed", "serve", "--kargo")
	check("the other", "go install github.com/stepd/stepd/cmd/...@latest", "--log-level", "INFO", "webhook")
	check("its help", "stepd: stepd webhook needs stepd-serve: not installed", "help", "webhook")
	writeFile(t, missing, "#!/bin/sh\n")
	if err := os.Chmod(missing, 0o600); err != nil {
		t.Fatal(err)
	}
	check("no program", "not installed", "serve")
	if err := os.Chmod(missing, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, missing, "neither script nor program")
	check("no program for this machine", "cannot start "+missing, "serve")
	t.Run("a copy of stepd", func(t *testing.T) {
		was := os.Args[0]
		t.Cleanup(func() { os.Args[0] = was })
		os.Args[0] = missing
		if out, code := stepd(t, "serve"); code != cli.ExitUsage || !strings.Contains(out, missing+" is a copy of stepd") {
			t.Errorf("exit code %d\n%s", code, out)
		}
	})
	// The rest works without it.
	if out, err := exec.CommandContext(t.Context(), alone, "version").CombinedOutput(); err != nil {
		t.Errorf("version: %v\n%s", err, out)
	}
}
