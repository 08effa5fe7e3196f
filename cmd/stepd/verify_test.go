package main

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/sharedata"
)

// TestVerifyScripts runs the scripts of `stepd verify` against a registry that
// holds every signed fixture as $REGISTRY/<fixture>:v1, with the trust material
// in $FIXTURES.
func TestVerifyScripts(t *testing.T) {
	fixtures := sharedata.Path(t, "fixtures", "signatures")
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/verify",
		UpdateScripts: *update,
		Cmds:          map[string]func(*testscript.TestScript, bool, []string){"exit": exitCodeIs, "envsubst": envSubst},
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
			env.Setenv("REGISTRY", reg.Host())
			env.Setenv("FIXTURES", fixtures)
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("DOCKER_CONFIG", filepath.Join(env.WorkDir, "home"))
			return nil
		},
	})
}
