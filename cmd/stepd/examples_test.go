package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stepd/stepd/internal/gitrepo/gittest"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/sharedata"
)

// TestExampleScripts runs the promotions that people copy first against real
// servers on loopback: $REGISTRY holds every signed fixture as <fixture>:v1, with
// the trust material in $FIXTURES; `gitserver REPO DIR` seeds a repository at
// $GIT/REPO; `plain FILE` writes the last stdout without what differs from run
// to run.
func TestExampleScripts(t *testing.T) {
	fixtures := sharedata.Path(t, "fixtures", "signatures")
	var servers sync.Map // by URL; the scripts run side by side
	serverOf := func(ts *testscript.TestScript) *gittest.Server {
		found, _ := servers.Load(ts.Getenv("GIT"))
		s, ok := found.(*gittest.Server)
		if !ok {
			ts.Fatalf("no git server at %s", ts.Getenv("GIT"))
		}
		return s
	}
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/examples",
		UpdateScripts: *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": exitCodeIs,
			"plain": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(plain(ts.ReadFile("stdout"), ts.Getenv("GIT"), ts.Getenv("REGISTRY"))), 0o600))
			},
			"gitserver": func(ts *testscript.TestScript, _ bool, args []string) {
				s := serverOf(ts)
				_, err := s.Create(args[0])
				ts.Check(err)
				_, err = s.Commit(args[0], gittest.Change{Message: "first", Files: gittest.Files(filesBelow(ts, args[1]))})
				ts.Check(err)
			},
			"gitlog": func(ts *testscript.TestScript, _ bool, args []string) {
				out, err := serverOf(ts).Git(args[0], args[1:]...)
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs("log"), []byte(strings.TrimSpace(out)+"\n"), 0o600))
			},
		},
		Setup: func(env *testscript.Env) error {
			reg := ocitest.New(t)
			reg.Referrers = true
			layouts, err := filepath.Glob(filepath.Join(fixtures, "*", "oci-layout"))
			if err != nil {
				return err
			}
			for _, l := range layouts {
				dir := filepath.Dir(l)
				reg.Layout(t, filepath.Base(dir), dir)
			}
			server := gittest.New(t)
			servers.Store(server.URL, server)
			home := filepath.Join(env.WorkDir, ".home")
			for k, v := range map[string]string{
				"REGISTRY": reg.Host(), "FIXTURES": fixtures, "GIT": server.URL, "HOME": home, "DOCKER_CONFIG": home,
				"XDG_CACHE_HOME": filepath.Join(home, "cache"), "XDG_STATE_HOME": filepath.Join(home, "state"),
			} {
				env.Setenv(k, v)
			}
			return nil
		},
	})
}

func filesBelow(ts *testscript.TestScript, dir string) map[string]string {
	files := map[string]string{}
	root := ts.MkAbs(dir)
	ts.Check(filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		files[filepath.ToSlash(rel)] = string(text)
		return err
	}))
	return files
}

var (
	commitID = regexp.MustCompile(`\b[0-9a-f]{40}\b|commit [0-9a-f]{12}\b`)
	duration = regexp.MustCompile(`(?m) {2}[0-9.]+(µs|ms|s)$| in [0-9.]+(µs|ms|s) `)
)

// plain replaces what differs from run to run in a text report.
func plain(text, git, registry string) string {
	text = regexp.MustCompile(regexp.QuoteMeta(git)).ReplaceAllString(text, "<git>")
	text = regexp.MustCompile(regexp.QuoteMeta(registry)).ReplaceAllString(text, "<registry>")
	text = changeID.ReplaceAllString(text, "Stepd-Change: <id>")
	text = ulid.ReplaceAllString(text, "<ulid>")
	text = duration.ReplaceAllStringFunc(text, func(s string) string {
		if s[len(s)-1] == ' ' {
			return " in <time> "
		}
		return "  <time>"
	})
	return commitID.ReplaceAllString(text, "<commit>")
}
