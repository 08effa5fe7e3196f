package serving

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/cmd/internal/hosting"
	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/runner/rpc/serve"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/ociverified"
)

const serveHelp = `serve offers stepd's steps, and those of installed plugins, to other programs: over gRPC
(stepd.v1.StepService) and over HTTP with JSON. Both do the same:

  POST /v1/steps/{kind}            {"config": …, "context": …} → {"status", "message", "output", …}
  POST /v1/steps/{kind}/run        the same, with log and progress, as newline delimited JSON
  POST /v1/steps/{kind}/validate   {"config": …} → {"violations": […]}
  GET  /v1/steps                   the steps with their schemas
  GET  /openapi.json               the API as OpenAPI; /healthz and /readyz beside it

Addresses are unix:PATH or HOST:PORT. A TCP address needs mutual TLS (--tls-cert, --tls-key,
--tls-client-ca), or --insecure, with which whoever can connect can run steps. Whoever may
call serve acts with the credentials it has, for any project.

Work dirs have to be below --work-root. On SIGTERM it stops accepting, lets running steps end
for --drain, and cancels the rest.

Traces go where the OTEL_* variables say and nowhere by default; metrics are at --metrics.

  stepd serve --work-root /var/lib/stepd/work --grpc unix:/run/stepd/stepd.sock
  stepd serve --work-root /work --http 0.0.0.0:8443 \
    --tls-cert tls.crt --tls-key tls.key --tls-client-ca ca.crt --allow-client kargo-controller`

type serveFlags struct {
	grpc, http, metrics    string
	tls                    serve.TLS
	insecure               bool
	workRoot               string
	secrets                []string
	maxRunning, maxWaiting int
	maxRequestBytes        int
	stepTimeout, drain     time.Duration
	hosted                 hosting.StepFlags
	clusters               hosting.ClusterFlags
	plugins                hosting.PluginFlags
	kargo                  kargoFlags
}

func newServeCommand(a *cli.App) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve (--work-root DIR (--grpc ADDRESS | --http ADDRESS) | --kargo --public-keys DIR)",
		Short: "Serve steps over gRPC and HTTP/JSON",
		Long:  serveHelp + serveKargoHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.kargo.check(cmd.Flags()); err != nil {
				return cli.UsageErrorf("%w", err)
			}
			if f.kargo.enabled {
				return f.runKargo(cmd.Context(), a)
			}
			return f.run(cmd.Context(), a)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.grpc, "grpc", "", "address to serve gRPC at: unix:PATH or HOST:PORT")
	fl.StringVar(&f.http, "http", "", "address to serve HTTP/JSON at: unix:PATH or HOST:PORT")
	fl.StringVar(&f.metrics, "metrics", "", "address to serve /metrics, /healthz and /readyz at, without TLS")
	fl.StringVar(&f.workRoot, "work-root", "", "directory that holds every work dir (required; with --kargo the default is $TMPDIR)")
	fl.StringVar(&f.tls.CertFile, "tls-cert", "", "PEM certificate of the server; read again when it changes")
	fl.StringVar(&f.tls.KeyFile, "tls-key", "", "PEM key of --tls-cert")
	fl.StringVar(&f.tls.ClientCAFile, "tls-client-ca", "", "PEM certificates of the CAs that issue client certificates")
	fl.StringArrayVar(&f.tls.AllowedClients, "allow-client", nil, "DNS name, URI or common name of a client that may call (repeatable; default: every client of the CAs)")
	fl.BoolVar(&f.insecure, "insecure", false, "allow TCP without TLS: whoever can connect can run steps")
	fl.StringArrayVar(&f.secrets, "secrets", nil, "file or directory with Kargo credential Secrets (repeatable)")
	fl.IntVar(&f.maxRunning, "max-running", 16, "attempts that run at a time")
	fl.IntVar(&f.maxWaiting, "max-waiting", 256, "attempts that wait for their turn; more are refused")
	fl.IntVar(&f.maxRequestBytes, "max-request-bytes", rpc.MaxMessageBytes, "greatest size of a request")
	fl.DurationVar(&f.stepTimeout, "step-timeout", 30*time.Minute, "bound of one attempt, besides the caller's deadline")
	fl.DurationVar(&f.drain, "drain", 30*time.Second, "how long running steps may go on after SIGTERM")
	f.hosted.Add(fl)
	f.clusters.Add(fl)
	f.plugins.Add(fl)
	f.kargo.add(fl)
	return cmd
}

func (f *serveFlags) run(ctx context.Context, a *cli.App) error {
	opts, err := f.options()
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	set, err := hosting.ReadSecrets(ctx, a, f.secrets)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	own, err := f.hosted.Steps(ociverified.Below{}, a.Redactor.Secrets(hosting.DocumentSecrets{Set: set}), nil)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	log := a.Log()
	fromPlugins, donePlugins, err := f.plugins.Open(ctx, log)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	defer donePlugins()
	dirs, err := rpc.OpenWorkDirs(f.workRoot)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	defer func() { _ = dirs.Close() }()
	version := cli.ReadVersion().Version
	if opts.Tracing, err = serve.TracingFromEnvironment(ctx, version); err != nil {
		return cli.UsageErrorf("%w", err)
	}
	caps, err := hosting.DocumentCapabilities(a, set, f.clusters, true, nil)
	if err != nil {
		return cli.UsageErrorf("%w", err)
	}
	opts.Log = log
	opts.Steps = rpc.ServerOptions{
		Steps:    append(own, fromPlugins...),
		Grant:    func(context.Context, steps.Registration, *stepdv1.RunStepRequest) steps.Capabilities { return caps },
		WorkDirs: dirs,
		Timeout:  f.stepTimeout,
		Redactor: a.Redactor,
		Log:      log,
		Version:  version,
	}
	opts.Ready = func(bound map[string]net.Addr) {
		for _, what := range []string{"grpc", "http", "metrics"} {
			if addr := bound[what]; addr != nil {
				a.Statusf("serving %s at %s %s", what, addr.Network(), addr)
			}
		}
	}
	err = serve.Run(ctx, opts)
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err = errors.Join(err, opts.Tracing.Shutdown(flush)); err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	return nil
}

// options reads what flags alone decide.
func (f *serveFlags) options() (serve.Options, error) {
	opts := serve.Options{
		Insecure: f.insecure, MaxRunning: f.maxRunning, MaxWaiting: f.maxWaiting,
		MaxRequestBytes: f.maxRequestBytes, Drain: f.drain,
	}
	if f.workRoot == "" {
		return opts, errors.New("--work-root is required: it is what confines the files that steps can reach")
	}
	if f.maxRunning < 1 || f.maxWaiting < 1 || f.maxRequestBytes < 1 || f.stepTimeout <= 0 || f.drain <= 0 {
		return opts, errors.New("limits have to be positive: a server without them can be exhausted")
	}
	for _, flag := range []struct {
		value string
		to    **rpc.Address
	}{{f.grpc, &opts.GRPC}, {f.http, &opts.HTTP}, {f.metrics, &opts.Metrics}} {
		if flag.value == "" {
			continue
		}
		var err error
		if *flag.to, err = rpc.ParseAddress(flag.value); err != nil {
			return opts, err
		}
	}
	if opts.GRPC == nil && opts.HTTP == nil {
		return opts, errors.New("give an address to serve at with --grpc or --http")
	}
	if f.tls.CertFile != "" || f.tls.KeyFile != "" || f.tls.ClientCAFile != "" {
		opts.TLS = &f.tls
	} else if len(f.tls.AllowedClients) > 0 {
		return opts, errors.New("--allow-client means nothing without TLS")
	}
	return opts, nil
}
