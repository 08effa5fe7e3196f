// Package plugin is for authors of steps that stepd runs as plugins: programs
// of their own, which stepd starts when a promotion uses their step, confines
// to the promotion's work dir and stops afterwards.
//
//	func main() {
//		plugin.Serve(steps.Registration{Name: "shout", New: …})
//	}
//
// A step is written against package steps and nothing else; this package is
// only for main. The program's file name has to begin with "stepd-step-", and
// `stepd plugin install` pins its digest. See docs/plugins.md.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// Serve offers steps to the stepd that started this program and returns when
// that has no more use for them. Every step's config is held against its
// schema before it runs, and a panic of one is an error of that step alone.
//
// Started by a person, it says what to do with the program and exits with
// code 1; with STEPD_PLUGIN_DEBUG=1 in the environment it serves on its own
// and prints the line that makes `stepd run --debug-plugin` use it.
func Serve(registrations ...steps.Registration) {
	if err := serve(registrations); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Progress tells whoever runs the step under ctx how far it has come, in a
// unit of the step's own; total is 0 when unknown.
func Progress(ctx context.Context, message string, completed, total uint64) {
	rpc.ReportProgress(ctx, message, completed, total)
}

func serve(registrations []steps.Registration) error {
	g := &guest{}
	server, err := rpc.NewServer(rpc.ServerOptions{
		Steps:      registrations,
		Grant:      g.grant,
		LocalFiles: true,
		Features:   []string{"host-service"},
	})
	if err != nil {
		return err
	}
	g.server = server
	config := &goplugin.ServeConfig{
		HandshakeConfig:  protocol.Handshake(),
		VersionedPlugins: map[int]goplugin.PluginSet{protocol.Version: {protocol.Steps: g}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(rpc.MaxMessageBytes))...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr, JSONFormat: true}),
	}
	switch {
	case os.Getenv(protocol.EnvDebug) != "":
		return g.debug()
	case os.Getenv(config.MagicCookieKey) != config.MagicCookieValue:
		return fmt.Errorf("this program is a stepd plugin and is started by stepd: install it with `stepd plugin install %s`", os.Args[0])
	}
	if os.Getenv(protocol.EnvWatchStdin) != "" {
		go exitAtEndOf(os.Stdin)
	}
	if number := os.Getenv(protocol.EnvHostFile); number != "" {
		if g.host, err = dialFile(number); err != nil {
			return fmt.Errorf("cannot use the connection in %s: %w", protocol.EnvHostFile, err)
		}
	}
	goplugin.Serve(config)
	// A step that was told to stop may have to clean up. One that does not end
	// is not waited for by the host.
	server.Wait()
	return nil
}

// exitAtEndOf ends the program when its host is gone, however that came.
func exitAtEndOf(stdin io.Reader) {
	_, _ = io.Copy(io.Discard, stdin)
	os.Exit(1)
}

// dialFile makes a client of an open file that is a connection.
func dialFile(number string) (*grpc.ClientConn, error) {
	fd, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "host")
	conn, err := net.FileConn(file) // has a file of its own, which no child inherits
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	client, err := grpc.NewClient("passthrough:host",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(0), // there is no second connection
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	if err != nil {
		return nil, err
	}
	client.Connect() // the host does not wait long for a greeting
	return client, nil
}

// debug serves without a host until the program is interrupted, to those who
// can enter the directory of the socket: this user.
func (g *guest) debug() error {
	dir, err := os.MkdirTemp("", "stepd-guest-")
	if err != nil {
		return fmt.Errorf("cannot serve: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	listener, err := net.Listen("unix", filepath.Join(dir, "plugin")) //nolint:noctx // listening on a socket does not wait
	if err != nil {
		return fmt.Errorf("cannot serve: %w", err)
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(rpc.MaxMessageBytes))
	g.server.Register(s)
	checks := health.NewServer()
	checks.SetServingStatus(goplugin.GRPCServiceName, grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(s, checks)
	line, err := protocol.ReattachLine(map[string]protocol.Reattach{filepath.Base(os.Args[0]): {
		Pid: os.Getpid(), Network: listener.Addr().Network(), Address: listener.Addr().String(),
	}})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() {
		stop() // the next one ends the program the hard way
		s.Stop()
	})
	fmt.Println(line)
	err = s.Serve(listener)
	g.server.Wait()
	return err
}

// guest is the plugin's side of go-plugin.
type guest struct {
	goplugin.NetRPCUnsupportedPlugin
	server *rpc.Server
	broker *goplugin.GRPCBroker
	host   *grpc.ClientConn // in place of the broker, when debugged by the host

	mu    sync.Mutex
	hosts map[uint32]*grpc.ClientConn
}

// GRPCServer implements goplugin.GRPCPlugin.
func (g *guest) GRPCServer(broker *goplugin.GRPCBroker, s *grpc.Server) error {
	g.broker = broker
	g.server.Register(s)
	return nil
}

// GRPCClient implements goplugin.GRPCPlugin; a guest is no client.
func (g *guest) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.ErrUnsupported
}

// grant makes what the host granted available. A host that cannot be reached
// has granted nothing.
func (g *guest) grant(ctx context.Context, _ steps.Registration, req *stepdv1.RunStepRequest) steps.Capabilities {
	if len(req.GetGrantedCapabilities()) == 0 || req.GetHostServiceId() == 0 {
		return steps.Capabilities{}
	}
	switch {
	case g.host != nil:
		return rpc.HostCapabilities(g.host, req)
	case g.broker == nil: // a person started the program
		conn, err := protocol.DialHost(ctx)
		if err != nil {
			return steps.Capabilities{}
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() }) // the attempt is over
		return rpc.HostCapabilities(conn, req)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	conn := g.hosts[req.GetHostServiceId()]
	if conn == nil {
		var err error
		if conn, err = g.broker.Dial(req.GetHostServiceId()); err != nil {
			return steps.Capabilities{}
		}
		if g.hosts == nil {
			g.hosts = map[uint32]*grpc.ClientConn{}
		}
		g.hosts[req.GetHostServiceId()] = conn
	}
	return rpc.HostCapabilities(conn, req)
}
