package main

import (
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/serving"
	"github.com/stepd/stepd/plugin"
	"github.com/stepd/stepd/steps"
)

var update = flag.Bool("update", false, "rewrite the golden files inside the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"stepd":             func() { os.Exit(cli.Main(newRootCommand)) },
		"stepd-serve":       func() { os.Exit(cli.Main(serving.NewRoot)) },
		"stepd-step-hello":  func() { plugin.Serve(hello()) },
		"stepd-step-other":  func() { plugin.Serve(hello()) },
		"stepd-step-unruly": func() { plugin.Serve(loud(), deaf()) },
	})
}

// TestScripts runs every script below testdata against the real command. `cmp`
// in a script compares with a golden file inside it; -update rewrites those.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": exitCodeIs, "notimes": withoutTimes, "append": appendByte,
		},
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DOCKER_CONFIG"} {
				env.Setenv(name, filepath.Join(env.WorkDir, ".home", name))
			}
			env.Setenv("HOME", filepath.Join(env.WorkDir, ".home"))
			// This test binary is also a plugin, under that name.
			program, err := os.Executable()
			if err != nil {
				return err
			}
			env.Setenv("PROGRAM", program)
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

// hello is the step of a plugin. It greets, and tells whether it can reach a
// network.
func hello() steps.Registration {
	return steps.Registration{
		Name: "hello",
		New: func(steps.Capabilities) steps.Runner {
			return steps.RunnerFunc(func(_ context.Context, sc *steps.Context) (steps.Result, error) {
				name, _ := sc.Config["name"].(string)
				sc.Log.Info("greeting", "name", name)
				err := os.WriteFile(filepath.Join(sc.WorkDir, "hello.txt"), []byte("Hello, "+name+"\n"), 0o600)
				_, network := net.Dial("udp", "127.0.0.1:9")
				return steps.Result{
					Status: steps.Succeeded,
					Output: map[string]any{"greeting": "Hello, " + name, "network": network == nil, "lines": "one\ntwo", "n": 3, "pid": os.Getpid()},
				}, err
			})
		},
		ConfigSchema: []byte(`{
			"type": "object", "additionalProperties": false, "required": ["name"],
			"properties": {"name": {"type": "string", "description": "Whom to greet.", "examples": ["world"]}}
		}`),
		Metadata: steps.Metadata{RequiredCapabilities: []steps.Capability{steps.AccessGitUser}},
	}
}

// appendByte changes a file by one byte.
func appendByte(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_APPEND|os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteString("x")
	ts.Check(errors.Join(err, f.Close()))
}

// envSubst replaces variables in a file by their values.
func envSubst(ts *testscript.TestScript, _ bool, args []string) {
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}
