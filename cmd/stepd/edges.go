package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/credentials"
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
	"github.com/stepd/stepd/runner/kargoapi"
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
	clusters                clusterFlags
	plugins                 pluginFlags
}

func (f *edgeFlags) add(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.allowHTTP, "allow-http", nil, "in a dry run, really send GET and HEAD requests of http steps to URLs below this one (repeatable)")
	fl.BoolVar(&f.diffs, "diff", false, "with --live, show the diffs of atomic-commit too, each for one more request to the git server; a dry run shows all diffs")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "the cluster with Argo CD's resources: its Applications are synced with --live (default: syncs are recorded), and plugins that were granted access-argocd may use it")
	f.clusters.addControlPlane(fl)
	f.plugins.add(fl)
	f.plugins.addServers(fl)
	fl.BoolVar(&f.plugins.debug, "debug-plugin", false, "say how to reach each plugin with a debugger and from another stepd run, wait for Enter before its first step, and use the plugins that $STEPD_REATTACH_PLUGINS says run already")
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
func newEdges(ctx context.Context, a *app, f edgeFlags, live bool, set *load.Set, resources builtin.Resources, stateSecrets *redact.Redactor) (*edges, error) {
	e := &edges{effects: &effects.Log{}, ledger: &verification.Memory{}}
	source := stateSecrets.Credentials(a.redactor.Credentials(credentials.Chain(
		credentials.FromSecrets(secretsOf(set), credentials.SecretOptions{
			SharedNamespace: sharedNamespace(), AllowHTTP: os.Getenv("ALLOW_CREDENTIALS_OVER_HTTP") == "true",
		}),
		credentials.Local(credentials.LocalOptions{}),
	)))
	e.capabilities = steps.Capabilities{
		Credentials: source,
		GitUser:     a.redactor.GitUser(gitUserOf(set)),
	}
	f.clusters.argocd, f.clusters.argocdContext = f.kubeconfig, f.kubeContext
	if err := f.clusters.sources(&e.capabilities, live, e.effects); err != nil {
		return nil, err
	}
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
		if intents, err = stateDir("intents"); err != nil {
			a.statusf("warning: atomic-commit will not run: %v", err)
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
			Secrets:    a.redactor.Secrets(documentSecrets{set}),
			Trust:      ociverified.BesideConfig{},
			TUF:        tufCache(),
			Ledger:     e.ledger,
			UserAgent:  "stepd/" + readVersion().Version,
		}),
		configapply.New(configapply.Options{Ledger: e.ledger}),
		atomiccommit.New(atomiccommit.Options{
			Dialer:    commits,
			IntentDir: intents,
			Ledger:    e.ledger,
			Secrets:   a.redactor.Secrets(documentSecrets{set}),
		}),
	)
	// A plugin has edges of its own, so in a dry run it has no network.
	f.plugins.noNetwork = !live
	fromPlugins, donePlugins, err := f.plugins.open(ctx, a.log())
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

// stateDir is a directory of stepd's own that outlives the run: below
// $XDG_STATE_HOME, or ~/.local/state (XDG Base Directory Specification).
func stateDir(name string) (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("cannot find a place for state: %w; set XDG_STATE_HOME", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "stepd", name), nil
}

func (e *edges) close(a *app) {
	for _, c := range e.closers {
		if err := c(); err != nil {
			a.statusf("warning: cannot clean up: %v", err)
		}
	}
}

// sharedNamespace is where Kargo has shared Secrets and ConfigMaps.
func sharedNamespace() string { return os.Getenv("SHARED_RESOURCES_NAMESPACE") }

// secretsOf lists the Secrets among the documents by namespace; one without a
// namespace is in all of them.
func secretsOf(set *load.Set) func(context.Context, string) ([]credentials.Secret, error) {
	return func(_ context.Context, namespace string) ([]credentials.Secret, error) {
		var out []credentials.Secret
		for _, d := range load.Of[*kargoapi.Secret](set) {
			if d.Namespace != "" && d.Namespace != namespace {
				continue
			}
			s, _ := load.As[*kargoapi.Secret](d)
			out = append(out, credentials.Secret{Name: s.Name, Labels: s.Labels, Annotations: s.Annotations, Data: s.Values()})
		}
		return out, nil
	}
}

// documentSecrets serves secretRef from the Secrets among the documents.
type documentSecrets struct{ set *load.Set }

// Secret implements steps.SecretSource.
func (d documentSecrets) Secret(_ context.Context, project, name string) (map[string][]byte, error) {
	for _, doc := range load.Of[*kargoapi.Secret](d.set) {
		if doc.Name == name && (doc.Namespace == "" || doc.Namespace == project) {
			s, _ := load.As[*kargoapi.Secret](doc)
			return s.Values(), nil
		}
	}
	return nil, fmt.Errorf("no Secret %q of project %q among the documents; load it with -f", name, project)
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
	fromPlugins, err := installedSteps()
	if err != nil {
		return nil, err
	}
	return runner.NewRegistry(append(regs, fromPlugins...)...)
}
