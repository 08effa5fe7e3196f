// Package sandbox is everything around stepd on loopback, with nothing but git
// needed on the machine: a registry, a git server, a private Sigstore, and a
// service whose compiled configuration is released for regions. The demo and
// the end-to-end tests run the stepd binary in it. What they expect of stepd
// is theirs to say.
package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/sigstore/authority"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
	"github.com/stepd/stepd/e2e/tools"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

// What the example PromotionTasks are about.
const (
	Service  = "svc"
	Version  = "v1.2.0"
	RegionUS = "prd-us-east-2"
	RegionCA = "prd-ca-central-1"
	// Source is the repository whose release workflow may sign.
	Source = "yourorg/svc-config"
	// GitOps is the name of the gitops repository on the git server.
	GitOps = "devex-gitops.git"
)

// Sandbox is a running sandbox.
type Sandbox struct {
	Registry  *registry.Server
	Git       *gittest.Server
	Authority *authority.Authority
	// Dir holds all files of the sandbox.
	Dir string
	// Stepd is the path of the stepd binary.
	Stepd string
	// Env is added to the environment of every stepd command, "NAME=value".
	Env []string

	trustedRoot string
}

// Start starts the servers with their files in dir, and fills the gitops
// repository. Commands will run the stepd binary at the given path. Close it.
func Start(ctx context.Context, dir, stepd string) (_ *Sandbox, err error) {
	s := &Sandbox{Dir: dir, Stepd: stepd, trustedRoot: filepath.Join(dir, "trusted_root.json")}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	repositories := filepath.Join(dir, "git")
	for _, d := range []string{repositories, s.home()} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make a folder: %w", err)
		}
	}
	s.Registry = registry.Start(registry.WithReferrers())
	if s.Authority, err = authority.Start(); err != nil {
		return nil, err
	}
	trusted, err := s.Authority.TrustedRoot(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.trustedRoot, trusted, 0o600); err != nil {
		return nil, fmt.Errorf("cannot keep the trusted root: %w", err)
	}
	if s.Git, err = gittest.Start(repositories); err != nil {
		return nil, err
	}
	if _, err := s.Git.Create(GitOps); err != nil {
		return nil, err
	}
	_, err = s.Git.Commit(GitOps, gittest.Change{
		Message: "v1.1.0 everywhere",
		Files: gittest.Files(map[string]string{
			"README.md":          "# What runs\nArgo CD deploys whatever is on main.\n",
			ValuesPath(RegionUS): string(Deployed(RegionUS)),
			ValuesPath(RegionCA): string(Deployed(RegionCA)),
		}),
	})
	return s, err
}

// Close ends the servers. The files stay.
func (s *Sandbox) Close() {
	if s.Registry != nil {
		s.Registry.Close()
	}
	if s.Authority != nil {
		s.Authority.Close()
	}
	if s.Git != nil {
		s.Git.Close()
	}
}

func (s *Sandbox) home() string { return filepath.Join(s.Dir, "home") }

// Repository is the repository of the configuration artifacts.
func (s *Sandbox) Repository() string { return s.Registry.Host() + "/yourorg/devex-configs" }

// RepoURL is the URL of the gitops repository.
func (s *Sandbox) RepoURL() string { return s.Git.RepoURL(GitOps) }

// ValuesPath is where the configuration of a region is in the gitops repository.
func ValuesPath(region string) string { return "services/" + Service + "/" + region + "/values.yaml" }

// Release is the workflow run that may sign.
func Release() workflow.Run {
	return workflow.Run{Repository: Source, Ref: "refs/tags/" + Version, Commit: "4f9c1d2b7a6e5d4c3b2a1908f7e6d5c4b3a29180"}
}

// Config is the released configuration of a region.
func Config(region string) artifact.Config {
	return artifact.Config{
		Service: Service, Version: Version, Region: region,
		Commit: Release().Commit, Source: "https://github.com/" + Source, Values: Values(region),
	}
}

// Values is the compiled values.yaml of the release; the pipeline cannot know
// the image's tag.
func Values(region string) []byte { return values(region, 6, "set-by-promotion") }

// Deployed is the values.yaml that a region has before the promotion.
func Deployed(region string) []byte { return values(region, 4, "v1.1.0") }

// Promoted is the values.yaml that a region must have after the promotion.
func Promoted(region string) []byte { return values(region, 6, Version) }

func values(region string, replicas int, tag string) []byte {
	return fmt.Appendf(nil, `# Compiled from %s for %s. Do not edit.
region: %s
replicas: %d
image:
  repository: ghcr.io/yourorg/svc
  tag: %q # set when promoted
resources:
  requests: {cpu: 500m, memory: 512Mi}
readinessProbe:
  httpGet: {path: /ready, port: 8080}
env:
  - name: LOG_LEVEL
    value: 'info'
`, Source, region, region, replicas, tag)
}

// Publish pushes c under its tag and signs it as run.
func (s *Sandbox) Publish(ctx context.Context, c artifact.Config, run workflow.Run) (ocispec.Descriptor, error) {
	manifest, err := artifact.Push(ctx, s.Repository(), c)
	if err != nil {
		return manifest, err
	}
	bundle, err := s.Authority.Sign(ctx, run, manifest.Digest.String())
	if err != nil {
		return manifest, err
	}
	return manifest, artifact.AttachBundle(ctx, s.Repository(), manifest, bundle, authority.SignPredicate)
}

// Result is how a stepd command ended.
type Result struct {
	Args           []string
	Stdout, Stderr string
	Code           int
}

// Command runs stepd with args, in the checkout, with no configuration of the
// user's. The error is about running it at all, not about its exit code.
func (s *Sandbox) Command(ctx context.Context, args ...string) (Result, error) {
	root, err := tools.Checkout()
	if err != nil {
		return Result{}, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, s.Stepd, args...)
	cmd.Dir = root
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	home := s.home()
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home,
		"XDG_CACHE_HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_STATE_HOME=" + home,
		"DOCKER_CONFIG=" + home, "GIT_CONFIG_NOSYSTEM=1",
		// Everything there is to reach is on loopback, which no proxy is asked
		// for; what is not gets nowhere.
		"HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1",
	}, s.Env...)
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Result{}, fmt.Errorf("cannot run stepd: %w", err)
	}
	return Result{Args: args, Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}, nil
}

// Example runs the example of an environment ("prd-us") as it stands in the
// checkout, against the sandbox.
func (s *Sandbox) Example(ctx context.Context, env string, args ...string) (Result, error) {
	base := filepath.Join("examples", "promotiontasks", env)
	return s.Command(ctx, slices.Concat([]string{"run", "-f", base + ".yaml", "-f", base + ".freight.yaml"}, s.Vars(), args)...)
}

// Vars are the flags with which `stepd run` runs an example against the sandbox.
func (s *Sandbox) Vars() []string {
	trusted, _ := json.Marshal(map[string]string{"path": s.trustedRoot}) // strings always encode
	return []string{
		"--var", "configRepo=" + s.Repository(),
		"--var", "gitopsRepo=" + s.RepoURL(),
		"--var", "trustedRoot=" + string(trusted),
	}
}

// String is the command line as somebody would type it.
func (r Result) String() string {
	words := []string{"stepd"}
	for _, a := range r.Args {
		if strings.ContainsAny(a, " {}\"") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}
