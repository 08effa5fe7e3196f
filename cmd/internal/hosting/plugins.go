package hosting

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

	"github.com/stepd/stepd/runner/plugin"
	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// PluginFlags say where steps come from that are not stepd's own: from plugins,
// and from servers that speak stepd.v1.
type PluginFlags struct {
	// Dir is the plugin directory; empty is the default.
	Dir string
	// Memory is what one plugin process may have, in MiB; 0 for no limit.
	Memory uint64

	servers                         []string
	serverCert, serverKey, serverCA string

	// Debug uses the plugins that run already, and Debugging waits for people. No
	// flag of these sets them.
	Debug     bool
	Debugging *plugin.Debugging
	// NoNetwork is for a dry run: plugins have no network, and there are no step
	// servers.
	NoNetwork bool
}

// Add adds the flags of plugins.
func (f *PluginFlags) Add(fl *pflag.FlagSet) {
	fl.StringVar(&f.Dir, "plugin-dir", "", "directory of installed plugins (default: $STEPD_PLUGIN_DIR, else $XDG_DATA_HOME/stepd/plugins)")
	fl.Uint64Var(&f.Memory, "plugin-memory", plugin.DefaultLimits().MemoryBytes>>20, "memory that one plugin process may have, in MiB; 0 for no limit")
}

// AddServers adds the flags of step servers.
func (f *PluginFlags) AddServers(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.servers, "step-server", nil, "unix:PATH or HOST:PORT of a program that serves steps as stepd.v1.StepService (repeatable)")
	fl.StringVar(&f.serverCert, "step-server-cert", "", "PEM certificate to show to step servers on TCP")
	fl.StringVar(&f.serverKey, "step-server-key", "", "PEM key of --step-server-cert")
	fl.StringVar(&f.serverCA, "step-server-ca", "", "PEM certificates of the CAs that issue step servers' certificates")
}

// Path is the plugin directory; empty, which has no plugins, where there is no
// home.
func (f *PluginFlags) Path() string {
	if f.Dir != "" {
		return f.Dir
	}
	if dir := os.Getenv("STEPD_PLUGIN_DIR"); dir != "" {
		return dir
	}
	base, err := baseDirectory("XDG_DATA_HOME", "share")
	if err != nil {
		return "" // a container's user need not have a home
	}
	return filepath.Join(base, "stepd", "plugins")
}

// Options are how plugins are run by every verb.
func (f *PluginFlags) Options(log *slog.Logger) (plugin.HostOptions, error) {
	opts := plugin.HostOptions{Dir: f.Path(), Log: log, Debug: f.Debugging, NoNetwork: f.NoNetwork, Limits: plugin.DefaultLimits()}
	opts.Limits.MemoryBytes = f.Memory << 20
	if f.Debug {
		var err error
		if opts.Reattach, err = protocol.ParseReattach(os.Getenv(protocol.EnvReattach)); err != nil {
			return plugin.HostOptions{}, err
		}
	}
	return opts, nil
}

// Open returns the steps of the installed plugins and of the step servers, and
// what has to be called when they are not needed any more.
func (f *PluginFlags) Open(ctx context.Context, log *slog.Logger) (regs []steps.Registration, done func(), err error) {
	opts, err := f.Options(log)
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
	if len(f.servers) > 0 && f.NoNetwork {
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
func (f *PluginFlags) dial(address string) (*grpc.ClientConn, error) {
	a, err := rpc.ParseAddress(address)
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

// InstalledSteps describes the steps of the plugins where they are by default.
func InstalledSteps() ([]steps.Registration, error) {
	var f PluginFlags
	opts, err := f.Options(slog.New(slog.DiscardHandler))
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
