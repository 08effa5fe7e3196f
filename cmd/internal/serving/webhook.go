package serving

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/dynamic"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/kargo/admission"
	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
	"github.com/stepd/stepd/steps/configapply"
	"github.com/stepd/stepd/steps/ociverified"
)

const webhookHelp = `webhook makes unmodified Kargo run stepd's steps. The API server of Kubernetes calls it:

  POST /mutate     when a Promotion is created: steps of stepd's become http steps that call the
                   sidecar, "stepd serve --kargo", beside Kargo's controller
  POST /validate   when a Stage, PromotionTask or ClusterPromotionTask is applied: those whose
                   stepd steps could not run are refused, in the words of "stepd lint"

It fails closed: what it cannot decide is refused. Promotions, Stages and tasks without a step
of stepd's never get here.

The certificate is either taken from --tls-cert and --tls-key, which are read again when they
change, or made and renewed by the webhook, which then also keeps the caBundle of its webhook
configurations. The key that signs rewritten steps is taken from --signing-key, or made, replaced
and published by the webhook. What it makes is kept in one Secret and shared by all replicas.

It creates no object. It needs get and update on the Secret, the ConfigMap and the two webhook
configurations named below, and nothing else.

  stepd webhook
  stepd webhook --tls-cert tls.crt --tls-key tls.key --signing-key signing.pem`

type webhookFlags struct {
	listen, metrics               string
	sidecar                       string
	certFile, keyFile, signingKey string
	kubeconfig, namespace         string
	secret, configMap             string
	configuration, service        string
	hosts                         []string
	signing                       admission.SigningPolicy
	leave, drain                  time.Duration
}

func newWebhookCommand(a *cli.App) *cobra.Command {
	var f webhookFlags
	cmd := &cobra.Command{
		Use:   "webhook",
		Short: "Let unmodified Kargo run stepd's steps",
		Long:  webhookHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("log-level") {
				a.LogLevel.Set(slog.LevelInfo)
			}
			return f.run(cmd.Context(), a)
		},
	}
	const day = 24 * time.Hour
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.listen, "listen", "0.0.0.0:9443", "HOST:PORT for the API server")
	fl.StringVar(&f.metrics, "metrics", "", "HOST:PORT for /metrics, /healthz and /readyz, without TLS")
	fl.StringVar(&f.sidecar, "sidecar-url", "http://"+defaultSidecar, "where Kargo's controller reaches its sidecar")
	fl.StringVar(&f.certFile, "tls-cert", "", "PEM certificate of the webhook; read again when it changes (default: managed)")
	fl.StringVar(&f.keyFile, "tls-key", "", "PEM key of --tls-cert")
	fl.StringVar(&f.signingKey, "signing-key", "", "PEM file (PKCS #8, Ed25519) of the key that signs steps; read again when it changes (default: managed)")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as a pod)")
	fl.StringVar(&f.namespace, "namespace", "", "namespace of the Secret, the ConfigMap and the Service (default: the pod's)")
	fl.StringVar(&f.secret, "secret", "stepd-webhook", "Secret that what is managed is kept in")
	fl.StringVar(&f.configMap, "public-keys", "stepd-public-keys", "ConfigMap, or NAMESPACE/NAME, that managed public keys are published in")
	fl.StringVar(&f.configuration, "configuration", "stepd", "name of the MutatingWebhookConfiguration and ValidatingWebhookConfiguration that get the managed caBundle")
	fl.StringVar(&f.service, "service", "stepd-webhook", "Service that the managed certificate is for")
	fl.StringArrayVar(&f.hosts, "host", nil, "further DNS name or IP address that the managed certificate is for (repeatable)")
	fl.DurationVar(&f.signing.Rotation, "key-rotation", 90*day, "age at which a managed signing key gets a successor")
	fl.DurationVar(&f.signing.Propagation, "key-propagation", 10*time.Minute, "how long a successor is published before it signs")
	fl.DurationVar(&f.signing.Retention, "key-retention", 90*day, "how long a key that no longer signs stays published: longer than any Promotion is waiting or running")
	fl.DurationVar(&f.leave, "leave", 5*time.Second, "how long connections are still accepted after SIGTERM, while the cluster notices")
	fl.DurationVar(&f.drain, "drain", 15*time.Second, "how long requests may take after that")
	return cmd
}

func (f *webhookFlags) run(ctx context.Context, a *cli.App) error {
	registrations, registry, err := webhookSteps()
	if err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	kinds, err := admission.KindsOf(registrations)
	if err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	if err := f.check(); err != nil {
		return cli.UsageErrorf("%w", err)
	}
	o := admission.Options{
		Listen: f.listen, Observe: f.metrics, Leave: f.leave, Drain: f.drain,
		Rewriter: admission.Rewriter{SidecarURL: f.sidecar, Kinds: kinds},
		Registry: registry,
		Version:  cli.ReadVersion().Version,
		Log:      a.Log(),
		Listening: func(listen, metrics net.Addr) {
			a.Statusf("serving webhooks at %s %s", listen.Network(), listen)
			if metrics != nil {
				a.Statusf("serving metrics at %s %s", metrics.Network(), metrics)
			}
		},
	}
	if err := f.sources(&o); err != nil {
		return cli.UsageErrorf("%w", err)
	}
	if err := admission.Serve(ctx, o); err != nil {
		return &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	return nil
}

// check holds the flags against each other.
func (f *webhookFlags) check() error {
	addresses := []string{f.listen}
	if f.metrics != "" {
		addresses = append(addresses, f.metrics)
	}
	for _, address := range addresses {
		if at, err := rpc.ParseAddress(address); err != nil {
			return err
		} else if at.Network != "tcp" {
			return fmt.Errorf("cannot listen on %q: the API server reaches HOST:PORT only", address)
		}
	}
	if u, err := url.Parse(f.sidecar); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("--sidecar-url %q is not a URL such as http://%s", f.sidecar, defaultSidecar)
	} else if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("--sidecar-url %q would send tokens and the keys of projects over the network in the clear: the sidecar is in the pod of Kargo's controller, at a loopback address such as http://%s", f.sidecar, defaultSidecar)
	}
	if (f.certFile == "") != (f.keyFile == "") {
		return errors.New("--tls-cert and --tls-key need each other")
	}
	if f.leave < 0 || f.drain <= 0 {
		return errors.New("--leave and --drain have to be positive")
	}
	return f.signing.Check()
}

// sources decides where certificate and key come from.
func (f *webhookFlags) sources(o *admission.Options) error {
	managed := admission.ManagedOptions{Secret: f.secret, Log: o.Log}
	if f.certFile != "" {
		files, err := admission.NewCertificateFiles(f.certFile, f.keyFile, o.Log)
		if err != nil {
			return err
		}
		o.Certificates = files
	}
	if f.signingKey != "" {
		file, err := admission.NewKeyFile(f.signingKey, o.Log)
		if err != nil {
			return err
		}
		o.Keys = file
	}
	if o.Certificates != nil && o.Keys != nil {
		return nil
	}
	config, err := cluster.Config(f.kubeconfig)
	if err != nil {
		return err
	}
	if managed.Client, err = dynamic.NewForConfig(config); err != nil {
		return fmt.Errorf("cannot use the API server: %w", err)
	}
	if managed.Namespace, err = f.ownNamespace(); err != nil {
		return err
	}
	if o.Certificates == nil {
		host := f.service + "." + managed.Namespace + ".svc"
		managed.Serving = &admission.ManagedServing{Configuration: f.configuration, Names: append([]string{host}, f.hosts...)}
	}
	if o.Keys == nil {
		managed.Signing = &admission.ManagedSigning{SigningPolicy: f.signing, Namespace: managed.Namespace, ConfigMap: f.configMap}
		if namespace, name, ok := strings.Cut(f.configMap, "/"); ok {
			managed.Signing.Namespace, managed.Signing.ConfigMap = namespace, name
		}
	}
	o.Managed = admission.NewManaged(managed)
	if o.Certificates == nil {
		o.Certificates = o.Managed
	}
	if o.Keys == nil {
		o.Keys = o.Managed
	}
	return nil
}

// ownNamespace is --namespace, or that of the pod, which its service account
// token is mounted with.
func (f *webhookFlags) ownNamespace() (string, error) {
	if f.namespace != "" {
		return f.namespace, nil
	}
	text, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if err != nil {
		return "", fmt.Errorf("cannot tell the namespace; give it with --namespace: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// webhookSteps describes the steps that the sidecar runs. None of them runs here.
func webhookSteps() ([]steps.Registration, *runner.Registry, error) {
	var out []steps.Registration
	for _, kind := range []string{ociverified.Kind, configapply.Kind, atomiccommit.Kind} {
		reg := steps.Registration{Name: kind, New: func(steps.Capabilities) steps.Runner { return nil }}
		reg.ConfigSchema, _ = schemas.Config(kind)
		reg.OutputSchema, _ = schemas.Output(kind)
		out = append(out, reg)
	}
	registry, err := runner.NewRegistry(out...)
	return out, registry, err
}
