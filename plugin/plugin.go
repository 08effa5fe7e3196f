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
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

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
		return debug(config)
	case os.Getenv(config.MagicCookieKey) != config.MagicCookieValue:
		return fmt.Errorf("this program is a stepd plugin and is started by stepd: install it with `stepd plugin install %s`", os.Args[0])
	}
	if os.Getenv(protocol.EnvWatchStdin) != "" {
		go exitAtEndOf(os.Stdin)
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

// debug serves without a host until the program is interrupted.
func debug(config *goplugin.ServeConfig) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	attach := make(chan *goplugin.ReattachConfig, 1)
	closed := make(chan struct{})
	config.Test = &goplugin.ServeTestConfig{Context: ctx, ReattachConfigCh: attach, CloseCh: closed}
	go goplugin.Serve(config)
	var at *goplugin.ReattachConfig
	select {
	case at = <-attach:
	case <-closed:
		return errors.New("cannot serve")
	}
	line, err := json.Marshal(map[string]protocol.Reattach{filepath.Base(os.Args[0]): {
		Pid: at.Pid, Network: at.Addr.Network(), Address: at.Addr.String(),
	}})
	if err != nil {
		return err
	}
	fmt.Printf("%s='%s'\n", protocol.EnvReattach, line)
	<-closed
	return nil
}

// guest is the plugin's side of go-plugin.
type guest struct {
	goplugin.NetRPCUnsupportedPlugin
	server *rpc.Server
	broker *goplugin.GRPCBroker

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
func (g *guest) grant(_ context.Context, _ steps.Registration, req *stepdv1.RunStepRequest) steps.Capabilities {
	if len(req.GetGrantedCapabilities()) == 0 || req.GetHostServiceId() == 0 {
		return steps.Capabilities{}
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
