package serving

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/hosting"
	"github.com/stepd/stepd/internal/credentials"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/kargo/sidecar"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/ociverified"
)

const serveKargoHelp = `

With --kargo it is the sidecar of Kargo's controller instead: it runs the steps that
"stepd webhook" has rewritten, in the work dirs of that controller, which are below --work-root
(default: $TMPDIR). It runs as the same user, in the same pod, and speaks plain HTTP on a
loopback address only. Every request has to carry a token of the webhook, checked with
--public-keys, and the key in the project's Secret stepd-project-key; the Promotion has to be
running and to hold the step. Credentials and secretRef come from Kargo's Secrets.

  stepd serve --kargo --public-keys /etc/stepd/keys --metrics 0.0.0.0:8652`

// defaultSidecar is where the webhook sends steps unless it is told otherwise.
const defaultSidecar = "127.0.0.1:8651"

// defaultSystemNamespace is where Kargo keeps Secrets of its own unless
// SYSTEM_RESOURCES_NAMESPACE says otherwise.
const defaultSystemNamespace = "kargo-system-resources"

// kargoFlags are the settings of the sidecar.
type kargoFlags struct {
	enabled                          bool
	publicKeys, kubeconfig           string
	sharedNamespace, systemNamespace string
	uiBaseURL                        string
}

func (f *kargoFlags) add(fl *pflag.FlagSet) {
	fl.BoolVar(&f.enabled, "kargo", false, "be the sidecar of Kargo's controller; then --http is a loopback address, "+defaultSidecar+" by default")
	fl.StringVar(&f.publicKeys, "public-keys", "", "with --kargo: directory of PEM files with the Ed25519 public keys of the webhook, the current and previous ones; read again when it changes")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "with --kargo: how to reach the cluster (default: as the pod that it runs in)")
	fl.StringVar(&f.sharedNamespace, "shared-namespace", envOr("SHARED_RESOURCES_NAMESPACE", runner.DefaultSharedNamespace), "with --kargo: namespace of Kargo's shared credentials")
	fl.StringVar(&f.systemNamespace, "system-namespace", envOr("SYSTEM_RESOURCES_NAMESPACE", defaultSystemNamespace), "with --kargo: namespace of the Secret with the git signing key that the ClusterConfig names")
	fl.StringVar(&f.uiBaseURL, "ui-base-url", "", "with --kargo: base URL of Kargo's UI")
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// Flags that make sense on one side only.
var (
	kargoOnly    = []string{"public-keys", "kubeconfig", "shared-namespace", "system-namespace", "ui-base-url"}
	neverSidecar = []string{
		"grpc", "tls-cert", "tls-key", "tls-client-ca", "allow-client", "insecure", "secrets",
		"max-waiting", "max-request-bytes", "step-timeout", "plugin-dir", "plugin-memory",
	}
)

// check refuses flags that would be ignored.
func (f *kargoFlags) check(fl *pflag.FlagSet) error {
	wrong, reason := kargoOnly, "--%s means nothing without --kargo"
	if f.enabled {
		wrong, reason = neverSidecar, "--%s means nothing with --kargo"
	}
	for _, name := range wrong {
		if fl.Changed(name) {
			return fmt.Errorf(reason, name)
		}
	}
	if f.enabled && f.publicKeys == "" {
		return errors.New("--public-keys is required: without the webhook's public key nobody can be believed")
	}
	return nil
}

// runKargo is `stepd serve --kargo`.
func (f *serveFlags) runKargo(ctx context.Context, a *cli.App) error {
	if f.maxRunning < 1 || f.drain <= 0 {
		return cli.UsageErrorf("limits have to be positive: a server without them can be exhausted")
	}
	if f.http == "" {
		f.http = defaultSidecar
	}
	var metrics *rpc.Address
	if f.metrics != "" {
		var err error
		if metrics, err = rpc.ParseAddress(f.metrics); err != nil || metrics.Network != "tcp" {
			return cli.UsageErrorf("--metrics has to be HOST:PORT, not %q", f.metrics)
		}
	}
	workRoot, stateDir, err := f.sidecarDirs()
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	config, err := cluster.Config(f.kargo.kubeconfig)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	client, err := cluster.New(config)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	log := a.Log()
	keys := &sidecar.KeyDir{Path: f.kargo.publicKeys, Log: log}
	if info, err := os.Stat(keys.Path); err != nil || !info.IsDir() {
		return cli.UsageErrorf("--public-keys has to be a directory, not %q", keys.Path)
	}
	if _, err := keys.Keys(); err != nil {
		// The webhook may be about to publish its first key.
		a.Statusf("stepd: no step will run until there is a key: %v", err)
	}
	hosted := f.hosted
	hosted.StateDir = stateDir
	server, err := sidecar.New(sidecar.Options{
		Cluster: client, Keys: keys.Keys, WorkRoot: workRoot, StateDir: stateDir,
		Ledger: verification.Dir{Path: filepath.Join(stateDir, "verifications")},
		Steps: func(e sidecar.Edges) ([]steps.Registration, error) {
			live := gitrepo.Guarded(gitrepo.NewLive(gitrepo.LiveOptions{}), e.CheckPush)
			return hosted.Steps(ociverified.Below{}, e.Secrets, live)
		},
		Capabilities: steps.Capabilities{
			Credentials: credentials.FromSecrets(client.CredentialSecrets, credentials.SecretOptions{
				SharedNamespace: f.kargo.sharedNamespace, AllowHTTP: os.Getenv("ALLOW_CREDENTIALS_OVER_HTTP") == "true",
			}),
			GitUser: clusterGitUser{client, f.kargo.systemNamespace},
		},
		UIBaseURL: f.kargo.uiBaseURL, MaxRunning: f.maxRunning, Log: log, Version: cli.ReadVersion().Version,
	})
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	l, err := sidecar.Listen(ctx, f.http)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	if metrics != nil {
		done, err := observe(ctx, a, metrics.Address, server)
		if err != nil {
			return cli.UsageErrorf("cannot serve metrics: %w", errors.Join(err, l.Close()))
		}
		defer done()
	}
	a.Statusf("serving kargo at tcp %s", l.Addr())
	if err := server.Serve(ctx, l, f.drain); err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	return nil
}

// observe serves metrics and health until done is called.
func observe(ctx context.Context, a *cli.App, address string, server *sidecar.Server) (done func(), err error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	web := server.HTTPServer(server.Observability())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := web.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.Statusf("stepd: cannot serve metrics: %v", err)
		}
	}()
	a.Statusf("serving metrics at tcp %s", l.Addr())
	return func() {
		_ = web.Close() // scrapes and probes are repeated
		<-ended
	}, nil
}

// sidecarDirs are where Kargo's work dirs are, and where the sidecar keeps what
// has to outlive it: beside them, on the volume that both containers mount.
func (f *serveFlags) sidecarDirs() (workRoot, stateDir string, err error) {
	workRoot = f.workRoot
	if workRoot == "" {
		workRoot = os.TempDir()
	}
	if workRoot, err = filepath.Abs(workRoot); err == nil {
		workRoot, err = filepath.EvalSymlinks(workRoot)
	}
	if err != nil {
		return "", "", fmt.Errorf("cannot use the work root: %w", err)
	}
	stateDir = f.hosted.StateDir
	if stateDir == "" {
		stateDir = filepath.Join(workRoot, "stepd")
	}
	if stateDir, err = filepath.Abs(stateDir); err != nil {
		return "", "", fmt.Errorf("cannot use the state directory: %w", err)
	}
	return workRoot, stateDir, ownDir(stateDir)
}

// ownDir makes a directory that only this user can write. One that is there
// already must be like that: whoever can write it can say what was verified.
func ownDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the state directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("cannot use the state directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(st.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("cannot use the state directory %s: it has to be a directory that user %d owns and nobody else can write (it is %s)",
			dir, os.Getuid(), fs.FormatFileInfo(info))
	}
	return nil
}

// clusterGitUser resolves the system's git identity as Kargo's controller does
// (compat.md 6.5): the ClusterConfig, else the environment, else Kargo's defaults.
type clusterGitUser struct {
	client          *cluster.Client
	systemNamespace string
}

// GitUser implements steps.GitUserSource.
func (g clusterGitUser) GitUser(ctx context.Context) (steps.GitUser, error) {
	u, err := hosting.EnvironmentGitUser()
	if err != nil {
		return steps.GitUser{}, err
	}
	config, err := g.client.ClusterConfig(ctx)
	if err != nil {
		return steps.GitUser{}, err
	}
	return hosting.WithClusterConfig(u, config, func(name string) (*kargoapi.Secret, error) {
		return g.client.Secret(ctx, g.systemNamespace, name)
	})
}
