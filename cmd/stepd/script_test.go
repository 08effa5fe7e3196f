package main

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the golden files inside the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"stepd": func() { os.Exit(Main()) },
	})
}

// TestScripts runs every script below testdata against the real command. `cmp`
// in a script compares with a golden file inside it; -update rewrites those.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": exitCodeIs, "notimes": withoutTimes,
		},
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "DOCKER_CONFIG"} {
				env.Setenv(name, filepath.Join(env.WorkDir, ".home", name))
			}
			env.Setenv("HOME", filepath.Join(env.WorkDir, ".home"))
			env.Setenv("GIT_USERNAME", "")
			env.Setenv("GIT_PASSWORD", "")
			return os.MkdirAll(filepath.Join(env.WorkDir, ".home"), 0o700)
		},
	})
}

// exitCodeIs runs a command that has to end with a given code: exit 2 stepd ….
func exitCodeIs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit code command arg…")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = strconv.Itoa(exit.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if code != args[0] {
		ts.Fatalf("exit code is %s, want %s", code, args[0])
	}
}

var timestamp = regexp.MustCompile(`"\d{4}-\d\d-\d\dT[0-9:.]+Z"`)

// withoutTimes writes the last stdout to a file with times replaced.
func withoutTimes(ts *testscript.TestScript, _ bool, args []string) {
	text := timestamp.ReplaceAllString(ts.ReadFile("stdout"), `"<time>"`)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}
