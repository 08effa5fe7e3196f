package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/hosting"
	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/internal/kubeconfig"
	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/ocipush"
	"github.com/stepd/stepd/internal/pullrequest"
	"github.com/stepd/stepd/internal/redact"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
	"github.com/stepd/stepd/steps/builtin"
	"github.com/stepd/stepd/steps/configapply"
	"github.com/stepd/stepd/steps/ociverified"
)

// edges are the ways out of a local run: the registry of steps built on them,
// and what they leave behind. Everything below newEdges works the same in a
// dry run; here alone live and recording edges are told apart.
type edges struct {
	registry     *runner.Registry
	capabilities steps.Capabilities
	effects      *effects.Log
	ledger       verification.Ledger
	closers      []func() error
}

// edgeFlags are the settings of edges.
type edgeFlags struct {
	allowHTTP               []string
	kubeconfig, kubeContext string
	diffs                   bool
	clusters                hosting.ClusterFlags
	plugins                 hosting.PluginFlags
}

func (f *edgeFlags) add(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.allowHTTP, "allow-http", nil, "in a dry run, really send GET and HEAD requests of http steps to URLs below this one (repeatable)")
	fl.BoolVar(&f.diffs, "diff", false, "with --live, show the diffs of atomic-commit too, each for one more request to the git server; a dry run shows all diffs")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "the cluster with Argo CD's resources: its Applications are synced with --live (default: syncs are recorded), and plugins that were granted access-argocd may use it")
	f.clusters.AddControlPlane(fl)
	f.plugins.Add(fl)
	f.plugins.AddServers(fl)
	fl.BoolVar(&f.plugins.Debug, "debug-plugin", false, "say how to reach each plugin with a debugger and from another stepd run, wait for Enter before its first step, and use the plugins that $STEPD_REATTACH_PLUGINS says run already")
	fl.StringVar(&f.kubeContext, "kube-context", "", "context of --kubeconfig (default: its current one)")
}

// suppressed lists, for people, what a dry run does not do.
func (f *edgeFlags) suppressed() string {
	s := "nothing is pushed, no Argo CD Application is synced, no pull request is opened and no HTTP request is sent"
	if len(f.allowHTTP) > 0 {
		s += " but reading ones below " + strings.Join(f.allowHTTP, ", ")
	}
	return s
}

// newEdges makes the edges of one run. Credentials are made known to the
// redactor, and to stateSecrets, before a step gets them.
func newEdges(ctx context.Context, a *cli.App, f edgeFlags, live bool, set *load.Set, resources builtin.Resources, stateSecrets *redact.Redactor) (*edges, error) {
	e := &edges{effects: &effects.Log{}, ledger: &verification.Memory{}}
	f.clusters.ArgoCD, f.clusters.ArgoCDContext = f.kubeconfig, f.kubeContext
	var err error
	if e.capabilities, err = hosting.DocumentCapabilities(a, set, f.clusters, live, e.effects); err != nil {
		return nil, err
	}
	e.capabilities.Credentials = stateSecrets.Credentials(e.capabilities.Credentials)
	registries := &ociart.Transports{}
	agent := os.Getenv("SSH_AUTH_SOCK") // as git itself has it
	recorded := gitrepo.NewRecording(gitrepo.NewLive(gitrepo.LiveOptions{SSHAgent: agent}), e.effects)

	b := builtin.Edges{Registries: registries, ArgoCDNamespace: os.Getenv("ARGOCD_NAMESPACE"), GitPolicy: builtin.IntegrationPolicy(os.Getenv("GIT_PUSH_INTEGRATION_POLICY"))}
	if live {
		b.Git = gitremote.Live(e.effects)
		b.HTTP = httpedge.Live(e.effects)
		b.PullRequests = pullrequest.Live(e.effects)
		b.OCIPush = ocipush.Live(e.effects)
	} else {
		scratch := gitremote.NewScratch(e.effects, recorded)
		e.closers = append(e.closers, scratch.Close)
		b.Git = scratch
		allow, err := httpedge.AllowPrefixes(f.allowHTTP...)
		if err != nil {
			return nil, fmt.Errorf("--allow-http: %w", err)
		}
		b.HTTP = httpedge.Recorder(e.effects, allow)
		b.PullRequests = pullrequest.NewRecorder(e.effects)
		b.OCIPush = ocipush.Recorder(e.effects)
	}
	if text := os.Getenv("MAX_OCI_PUSH_ARTIFACT_SIZE"); text != "" {
		size, err := strconv.ParseInt(text, 10, 64)
		if err != nil || size < -1 {
			return nil, fmt.Errorf("MAX_OCI_PUSH_ARTIFACT_SIZE must be a number of bytes, or -1, not %q", text)
		}
		b.MaxPushSize = &size
	}
	b.Downloads = httpedge.Live(e.effects)
	b.Resources = builtin.Logged(resources, e.effects, false)
	b.ArgoCD = argocd.NewRecorder(e.effects, live)
	if f.kubeconfig != "" {
		config, err := kubeconfig.Load(f.kubeconfig, f.kubeContext)
		if err != nil {
			return nil, err
		}
		cluster, err := argocd.Connect(config, e.effects)
		if err != nil {
			return nil, err
		}
		if live {
			b.ArgoCD = cluster
		}
	}

	var commits gitrepo.Dialer
	var intents string
	if live {
		var err error
		if intents, err = hosting.StateDir("intents"); err != nil {
			a.Statusf("warning: atomic-commit will not run: %v", err)
		}
		commits = gitrepo.NewLive(gitrepo.LiveOptions{Log: e.effects, Diffs: f.diffs, SSHAgent: agent})
	} else {
		// Nobody resumes a dry run.
		var err error
		if intents, err = os.MkdirTemp("", "stepd-intents-"); err != nil {
			return nil, fmt.Errorf("cannot make a place for intents: %w", err)
		}
		e.closers = append(e.closers, func() error { return os.RemoveAll(intents) })
		commits = recorded
	}

	regs := append(builtin.Registrations(b),
		ociverified.New(ociverified.Options{
			Transports: registries,
			Secrets:    a.Redactor.Secrets(hosting.DocumentSecrets{Set: set}),
			Trust:      ociverified.BesideConfig{},
			TUF:        tufCache(),
			Ledger:     e.ledger,
			UserAgent:  "stepd/" + cli.ReadVersion().Version,
		}),
		configapply.New(configapply.Options{Ledger: e.ledger}),
		atomiccommit.New(atomiccommit.Options{
			Dialer:    commits,
			IntentDir: intents,
			Ledger:    e.ledger,
			Secrets:   a.Redactor.Secrets(hosting.DocumentSecrets{Set: set}),
		}),
	)
	// A plugin has edges of its own, so in a dry run it has no network.
	f.plugins.NoNetwork = !live
	fromPlugins, donePlugins, err := f.plugins.Open(ctx, a.Log())
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, func() error { donePlugins(); return nil })
	registry, err := runner.NewRegistry(append(regs, fromPlugins...)...)
	if err != nil {
		return nil, err
	}
	e.registry = registry
	return e, nil
}

func (e *edges) close(a *cli.App) {
	for _, c := range e.closers {
		if err := c(); err != nil {
			a.Statusf("warning: cannot clean up: %v", err)
		}
	}
}

// stepKinds returns a registry that describes every kind of step but has no
// edges: enough to check configs with.
func stepKinds() (*runner.Registry, error) {
	var regs []steps.Registration
	for _, kind := range schemas.Kinds() {
		reg := steps.Registration{Name: kind, New: func(steps.Capabilities) steps.Runner { return nil }}
		reg.ConfigSchema, _ = schemas.Config(kind)
		reg.OutputSchema, _ = schemas.Output(kind)
		regs = append(regs, reg)
	}
	fromPlugins, err := hosting.InstalledSteps()
	if err != nil {
		return nil, err
	}
	return runner.NewRegistry(append(regs, fromPlugins...)...)
}
