package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/steps/ociverified"
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

func TestVerifyReportLines(t *testing.T) {
	var out strings.Builder
	r := &verifyReport{accepted: &ociverified.Accepted{Record: verification.Record{
		Repository: "r/x", Digest: "sha256:1", Signer: verification.Signer{Subject: "a@b\n  signer     somebody\x1b[2K"},
	}}}
	if err := r.print(&cli.App{Stdio: cli.Stdio{Out: &out}}, "text", false); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "verified r/x@sha256:1\n  signer     a@b\\n  signer     somebody\\x1b[2K\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// stepd run says who signed in the same way.
func TestRunReportLines(t *testing.T) {
	var out strings.Builder
	ledger := &verification.Memory{}
	key := verification.Key{Project: "p", Promotion: "prd.01.abc", Alias: "config"}
	if err := ledger.Put(t.Context(), key, verification.Record{
		Repository: "r/x", Digest: "sha256:1", Signer: verification.Signer{Subject: "a@b\n           signer     somebody"},
	}); err != nil {
		t.Fatal(err)
	}
	p := newPrinter(&cli.App{Redactor: &redact.Redactor{}}, &out, ledger, runner.Promotion{Project: "p", Name: "prd.01.abc"})
	p.signer("config")
	want := "           verified r/x@sha256:1\n           signer     a@b\\n           signer     somebody\n"
	if got := out.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
