package main

import (
	"flag"
	"os"
	"path/filepath"
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
