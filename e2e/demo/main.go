// Command demo shows stepd at work, all on loopback: it releases a service's
// configuration for two regions, promotes both at the same time, and then
// plays the attacker. It says what it expects before it checks it, and exits 1
// if anything was different.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/e2e/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := inTemporaryDir(func(dir string) error { return demo(ctx, os.Stdout, dir) })
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo: "+err.Error())
		os.Exit(1)
	}
}

func inTemporaryDir(f func(dir string) error) error {
	dir, err := os.MkdirTemp("", "stepd-demo-")
	if err != nil {
		return fmt.Errorf("cannot make a folder: %w", err)
	}
	return errors.Join(f(dir), os.RemoveAll(dir))
}

// demo is the whole story, told to out.
func demo(ctx context.Context, out io.Writer, dir string) error {
	t := &teller{out: out}
	t.chapter("Build stepd; start a registry, a git server and a private Sigstore on loopback")
	stepd, err := tools.Stepd(ctx, dir)
	if err != nil {
		return err
	}
	s, err := sandbox.Start(ctx, dir, stepd)
	if err != nil {
		return err
	}
	defer s.Close()
	t.say("registry %s · git %s", s.Registry.Host(), s.RepoURL())

	t.chapter("The release pipeline pushes the compiled configuration of %s %s, and signs it by digest", sandbox.Service, sandbox.Version)
	for _, region := range []string{sandbox.RegionUS, sandbox.RegionCA} {
		c := sandbox.Config(region)
		manifest, err := s.Publish(ctx, c, sandbox.Release())
		if err != nil {
			return err
		}
		t.say("%s:%s\n  = %s", s.Repository(), c.Tag(), manifest.Digest)
	}
	t.say("signed by %s", sandbox.Release().Subject())

	if err := dryRun(ctx, t, s); err != nil {
		return err
	}
	if err := bothRegions(ctx, t, s); err != nil {
		return err
	}
	if err := attacks(ctx, t, s); err != nil {
		return err
	}
	t.chapter("Everything was as expected")
	return nil
}

// dryRun previews the promotion of the US and expects that nothing happens.
func dryRun(ctx context.Context, t *teller, s *sandbox.Sandbox) error {
	t.chapter("What would promoting prd-us do? (a dry run, on anybody's laptop)")
	tip, err := s.Git.Git(sandbox.GitOps, "rev-parse", "main")
	if err != nil {
		return err
	}
	r, err := s.Example(ctx, "prd-us")
	if err != nil {
		return err
	}
	t.command(r)
	after, err := s.Git.Git(sandbox.GitOps, "rev-parse", "main")
	if err != nil {
		return err
	}
	return t.expect(
		expectation{"the dry run succeeds", r.Code == 0},
		expectation{"it shows the image's tag in the diff", strings.Contains(r.Stdout, `+  tag: "v1.2.0"`)},
		expectation{"nothing was pushed", tip == after},
	)
}

// bothRegions promotes US and CA at the same time and expects one commit each.
func bothRegions(ctx context.Context, t *teller, s *sandbox.Sandbox) error {
	t.chapter("Promote prd-us and prd-ca for real, at the same time")
	base, err := s.Git.Git(sandbox.GitOps, "rev-parse", "main")
	if err != nil {
		return err
	}
	results := make([]sandbox.Result, 2)
	group, gctx := errgroup.WithContext(ctx)
	for i, env := range []string{"prd-us", "prd-ca"} {
		group.Go(func() (err error) {
			results[i], err = s.Example(gctx, env, "--live", "--actor", "alice@example.com")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, r := range results {
		t.outline(r, "--live", "--actor", "alice@example.com")
	}
	t.chapter("What is on main now, as git tells it")
	log, err := s.Git.Git(sandbox.GitOps, "log", "--reverse", "--patch", "--format=commit %H%nparent %P%nauthor %an <%ae>%n%n%B", base+"..main")
	if err != nil {
		return err
	}
	t.quote(log)
	h, err := s.History(base)
	if err != nil {
		return err
	}
	return t.expect(
		expectation{"both promotions succeed", results[0].Code == 0 && results[1].Code == 0},
		expectation{"there are two commits", len(h.Commits) == 2},
		expectation{"the history is linear", h.Linear},
		expectation{"each commit changes the file of one region", h.Changed(sandbox.ValuesPath(sandbox.RegionUS), sandbox.ValuesPath(sandbox.RegionCA))},
		expectation{"the US file is the released one with the image's tag, byte by byte", h.Files[sandbox.ValuesPath(sandbox.RegionUS)] == string(sandbox.Promoted(sandbox.RegionUS))},
		expectation{"so is the CA file", h.Files[sandbox.ValuesPath(sandbox.RegionCA)] == string(sandbox.Promoted(sandbox.RegionCA))},
		expectation{"each commit names its artifact, signer, source commit and promoter", h.Trailers("Config-Artifact", "Signed-By", "Source-Commit", "Kargo-Promotion", "Kargo-Stage", "Kargo-Freight", "Promoted-By")},
	)
}

// attacks tries what must not work and expects that not one byte is written.
func attacks(ctx context.Context, t *teller, s *sandbox.Sandbox) error {
	for _, a := range s.Attacks() {
		t.chapter("Attack: %s", a.Name)
		attempt, err := s.Attempt(ctx, a)
		if err != nil {
			return err
		}
		t.outline(attempt.Result, "--live")
		if err := t.expect(
			expectation{"stepd refuses (exit code 3)", attempt.Code == 3},
			expectation{"the work dir is untouched", attempt.WorkDirUntouched},
			expectation{"the gitops repository is untouched", attempt.RepositoryUntouched},
		); err != nil {
			return err
		}
	}
	return nil
}
