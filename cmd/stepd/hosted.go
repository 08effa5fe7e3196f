package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	credtls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"

	"github.com/stepd/stepd/internal/clusteraccess"
	"github.com/stepd/stepd/internal/credentials"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/kubeconfig"
	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/sigverify"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/runner/plugin"
	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/runner/rpc/serve"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
	"github.com/stepd/stepd/steps/configapply"
	"github.com/stepd/stepd/steps/ociverified"
)

// hostedFlags are the settings of steps that some other engine runs: over a
// socket, as a plugin, or as a command. These always act for real.
type hostedFlags struct {
	stateDir, trustDir, policy string
	pushSpacing                time.Duration
}

func (f *hostedFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.stateDir, "state-dir", "", "where intents and verification records are kept; must survive restarts and lie outside the work dirs (default: $XDG_STATE_HOME/stepd)")
	fl.StringVar(&f.trustDir, "trust-dir", "", "the only directory that configs may name keys and trusted roots in")
	fl.StringVar(&f.policy, "policy", "", "the operator's verification policy: what no config may weaken")
	fl.DurationVar(&f.pushSpacing, "push-spacing", 0, "least time between two pushes of atomic-commit to one branch, for Git hosts that limit pushes; commits that wait go together in the next")
}

// ledgerRetention is how long verification records are kept. No promotion
// runs that long.
const ledgerRetention = 30 * 24 * time.Hour

// hosted are stepd's own steps for another engine.
type hosted struct {
	registrations []steps.Registration
	ledger        verification.Dir
}

// newHosted makes the steps. Configs may name trust files below the trust
// directory, or where trust says when there is none. Whoever gives secrets has
// them masked. A nil git is the live one.
func newHosted(f hostedFlags, trust ociverified.TrustFiles, secrets steps.SecretSource, git gitrepo.Dialer) (*hosted, error) {
	if git == nil {
		git = gitrepo.NewLive(gitrepo.LiveOptions{})
	}
	if f.pushSpacing < 0 {
		return nil, fmt.Errorf("--push-spacing has to be 0 or more, not %s", f.pushSpacing)
	}
	state := f.stateDir
	if state == "" {
		var err error
		if state, err = stateDir(""); err != nil {
			return nil, err
		}
	}
	state, err := filepath.Abs(state)
	if err != nil {
		return nil, fmt.Errorf("cannot find the state directory: %w", err)
	}
	h := &hosted{ledger: verification.Dir{Path: filepath.Join(state, "verifications")}}
	if err := h.ledger.Prune(time.Now().Add(-ledgerRetention)); err != nil {
		return nil, err
	}
	if f.trustDir != "" {
		trust = ociverified.Below{Dir: f.trustDir}
	}
	var policy *ociverified.OperatorPolicy
	if f.policy != "" {
		text, err := os.ReadFile(f.policy)
		if err != nil {
			return nil, fmt.Errorf("cannot read the policy: %w", err)
		}
		if policy, err = ociverified.ParseOperatorPolicy(text, ociverified.Below{Dir: filepath.Dir(f.policy)}); err != nil {
			return nil, fmt.Errorf("cannot use the policy %s: %w", f.policy, err)
		}
	}
	h.registrations = []steps.Registration{
		ociverified.New(ociverified.Options{
			Transports: &ociart.Transports{},
			Secrets:    secrets,
			Trust:      trust,
			TUF:        &sigverify.TUF{CacheDir: filepath.Join(state, "tuf")},
			Ledger:     h.ledger,
			Operator:   policy,
			UserAgent:  "stepd/" + readVersion().Version,
		}),
		configapply.New(configapply.Options{Ledger: h.ledger}),
		atomiccommit.New(atomiccommit.Options{
			Dialer:      git,
			IntentDir:   filepath.Join(state, "intents"),
			Ledger:      h.ledger,
			Secrets:     secrets,
			PushSpacing: f.pushSpacing,
		}),
	}
	return h, nil
}

// clusterFlags name the clusters that steps may be given access to.
type clusterFlags struct {
	argocd, controlPlane string
	argocdContext        string // set by run
}

func (f *clusterFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.argocd, "argocd-kubeconfig", "", "kubeconfig of the cluster with Argo CD's resources, for steps that were granted access-argocd (default: no access)")
	f.addControlPlane(fl)
}

func (f *clusterFlags) addControlPlane(fl *pflag.FlagSet) {
	fl.StringVar(&f.controlPlane, "control-plane-kubeconfig", "", "kubeconfig of the cluster with Kargo's resources, for steps that were granted access-control-plane (default: no access)")
}

// sources fills in the clusters of caps. A dry run can read them.
func (f *clusterFlags) sources(caps *steps.Capabilities, live bool, log *effects.Log) error {
	for _, c := range []struct {
		kubeconfig, context string

		make func(clusteraccess.Options) (steps.ClusterSource, error)
		to   *steps.ClusterSource
	}{
		{f.argocd, f.argocdContext, clusteraccess.ArgoCD, &caps.ArgoCD},
		{f.controlPlane, "", clusteraccess.ControlPlane, &caps.ControlPlane},
	} {
		if c.kubeconfig == "" {
			continue
		}
		config, err := kubeconfig.Load(c.kubeconfig, c.context)
		if err != nil {
			return err
		}
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			return fmt.Errorf("cannot use kubeconfig %s: %w", c.kubeconfig, err)
		}
		if *c.to, err = c.make(clusteraccess.Options{Client: client, Server: config.Host, ReadOnly: !live, Effects: log}); err != nil {
			return err
		}
	}
	return nil
}

// documentCapabilities are what an operator's Kargo documents and this
// machine's own settings allow steps to use.
func documentCapabilities(a *app, set *load.Set, clusters clusterFlags) (steps.Capabilities, error) {
	caps := steps.Capabilities{
		Credentials: a.redactor.Credentials(credentials.Chain(
			credentials.FromSecrets(secretsOf(set), credentials.SecretOptions{
				SharedNamespace: sharedNamespace(), AllowHTTP: os.Getenv("ALLOW_CREDENTIALS_OVER_HTTP") == "true",
			}),
			credentials.Local(credentials.LocalOptions{}),
		)),
		GitUser: a.redactor.GitUser(gitUserOf(set)),
	}
	return caps, clusters.sources(&caps, true, nil)
}

// readSecrets reads the documents that credentials come from and makes their
// values known to the redactor. No path is no documents.
func readSecrets(ctx context.Context, a *app, paths []string) (*load.Set, error) {
	if len(paths) == 0 {
		return &load.Set{}, nil
	}
	set, err := load.Documents(ctx, paths, a.in)
	if err != nil {
		return nil, fmt.Errorf("cannot read secrets: %w", err)
	}
	addSecrets(set, a.redactor, a.redactor)
	return set, nil
}

// pluginFlags say where steps come from that are not stepd's own: from plugins,
// and from servers that speak stepd.v1.
type pluginFlags struct {
	dir    string
	memory uint64

	servers                         []string
	serverCert, serverKey, serverCA string

	// debug, debugging and noNetwork are set by run.
	debug     bool
	debugging *plugin.Debugging
	noNetwork bool
}

func (f *pluginFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.dir, "plugin-dir", "", "directory of installed plugins (default: $STEPD_PLUGIN_DIR, else $XDG_DATA_HOME/stepd/plugins)")
	fl.Uint64Var(&f.memory, "plugin-memory", plugin.DefaultLimits().MemoryBytes>>20, "memory that one plugin process may have, in MiB; 0 for no limit")
}

// addServers adds the flags of step servers.
func (f *pluginFlags) addServers(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.servers, "step-server", nil, "unix:PATH or HOST:PORT of a program that serves steps as stepd.v1.StepService (repeatable)")
	fl.StringVar(&f.serverCert, "step-server-cert", "", "PEM certificate to show to step servers on TCP")
	fl.StringVar(&f.serverKey, "step-server-key", "", "PEM key of --step-server-cert")
	fl.StringVar(&f.serverCA, "step-server-ca", "", "PEM certificates of the CAs that issue step servers' certificates")
}

// path is the plugin directory; empty, which has no plugins, where there is no
// home.
func (f *pluginFlags) path() string {
	if f.dir != "" {
		return f.dir
	}
	if dir := os.Getenv("STEPD_PLUGIN_DIR"); dir != "" {
		return dir
	}
	base := os.Getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(base) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "" // a container's user need not have one
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "stepd", "plugins")
}

// options are how plugins are run by every verb.
func (f *pluginFlags) options(log *slog.Logger) (plugin.HostOptions, error) {
	opts := plugin.HostOptions{Dir: f.path(), Log: log, Debug: f.debugging, NoNetwork: f.noNetwork, Limits: plugin.DefaultLimits()}
	opts.Limits.MemoryBytes = f.memory << 20
	if f.debug {
		var err error
		if opts.Reattach, err = protocol.ParseReattach(os.Getenv(protocol.EnvReattach)); err != nil {
			return plugin.HostOptions{}, err
		}
	}
	return opts, nil
}

// open returns the steps of the installed plugins and of the step servers, and
// what has to be called when they are not needed any more.
func (f *pluginFlags) open(ctx context.Context, log *slog.Logger) (regs []steps.Registration, done func(), err error) {
	opts, err := f.options(log)
	if err != nil {
		return nil, nil, err
	}
	host, err := plugin.Open(opts)
	if err != nil {
		return nil, nil, err
	}
	closers := []func(){host.Close}
	closeAll := func() {
		for _, c := range closers {
			c()
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	if regs, err = host.Registrations(); err != nil {
		return nil, nil, err
	}
	if len(f.servers) > 0 && f.noNetwork {
		return nil, nil, errors.New("a --step-server acts for real, whatever this run is: use it with --live")
	}
	for _, address := range f.servers {
		conn, err := f.dial(address)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot use the step server %s: %w", address, err)
		}
		closers = append(closers, func() { _ = conn.Close() })
		listing, cancel := context.WithTimeout(ctx, stepServerTimeout)
		theirs, err := rpc.NewClient(conn, rpc.ClientOptions{}).Registrations(listing)
		cancel()
		if err != nil {
			return nil, nil, fmt.Errorf("cannot use the step server %s: %w", address, err)
		}
		regs = append(regs, theirs...)
	}
	return regs, closeAll, nil
}

// stepServerTimeout is how long a step server has to say which steps it has.
const stepServerTimeout = 10 * time.Second

// dial connects to a step server: over a unix socket, or over TCP with mutual
// TLS.
func (f *pluginFlags) dial(address string) (*grpc.ClientConn, error) {
	a, err := serve.ParseAddress(address)
	if err != nil {
		return nil, err
	}
	if a.Network == "unix" {
		path, err := filepath.Abs(a.Address)
		if err != nil {
			return nil, err
		}
		return grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	if f.serverCert == "" || f.serverKey == "" || f.serverCA == "" {
		return nil, errors.New("TCP needs --step-server-cert, --step-server-key and --step-server-ca")
	}
	cert, err := tls.LoadX509KeyPair(f.serverCert, f.serverKey)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(f.serverCA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", f.serverCA)
	}
	return grpc.NewClient(a.Address, grpc.WithTransportCredentials(credtls.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: pool,
	})))
}

// installedSteps describes the steps of the plugins where they are by default.
func installedSteps() ([]steps.Registration, error) {
	var f pluginFlags
	opts, err := f.options(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	host, err := plugin.Open(opts)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	return host.Registrations()
}
