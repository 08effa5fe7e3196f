package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/runner/rpc"
)

// How a plugin is debugged. The host that started it keeps it as it is: pinned,
// confined and reached by mutual TLS alone, whose keys nobody else has. What it
// tells the user is the address of a relay, a unix socket in a directory that
// only this user can enter. Another stepd reaches the plugin through the relay
// by plain gRPC, and says on each call where its own HostService is. A plugin
// that a person started speaks the same way, without a relay.

// Debugging says how the plugins of a Host are debugged. No step is cut off when
// its time is up, and no plugin is ended for being idle.
type Debugging struct {
	// Announce is called for each plugin that has started, which waits with its
	// first step until Announce returns, and says where other stepd reach it
	// meanwhile.
	Announce func(ctx context.Context, plugin string, at protocol.Reattach) error
	// Run is the context of the whole run, which alone ends a step whose time is
	// up.
	Run context.Context
}

// relay lets other stepd use a plugin of this one.
type relay struct {
	stepdv1.UnimplementedStepServiceServer
	grpc_health_v1.UnimplementedHealthServer
	process *process
	service stepdv1.StepServiceClient
	health  grpc_health_v1.HealthClient
	server  *grpc.Server
	serving sync.WaitGroup
	dir     *privateDir
	address net.Addr
}

// newRelay serves the plugin of p at a socket in a directory of its own.
func newRelay(p *process) (*relay, error) {
	dir, err := newPrivateDir()
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", filepath.Join(dir.path, "relay")) //nolint:noctx // listening on a socket does not wait
	if err != nil {
		return nil, errors.Join(err, dir.remove())
	}
	r := &relay{
		process: p,
		service: stepdv1.NewStepServiceClient(p.conn),
		health:  grpc_health_v1.NewHealthClient(p.conn),
		server:  grpc.NewServer(grpc.MaxRecvMsgSize(rpc.MaxMessageBytes), grpc.MaxSendMsgSize(rpc.MaxMessageBytes)),
		dir:     dir,
		address: listener.Addr(),
	}
	stepdv1.RegisterStepServiceServer(r.server, r)
	grpc_health_v1.RegisterHealthServer(r.server, r)
	r.serving.Go(func() { _ = r.server.Serve(listener) }) // ends with stop
	return r, nil
}

func (r *relay) stop() {
	r.server.Stop()
	r.serving.Wait()
	if err := r.dir.remove(); err != nil {
		r.process.log.Warn("cannot remove a relay's directory", "err", err)
	}
}

// Check implements the health service.
func (r *relay) Check(ctx context.Context, req *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return r.health.Check(ctx, req)
}

// ListSteps implements the StepService.
func (r *relay) ListSteps(ctx context.Context, req *stepdv1.ListStepsRequest) (*stepdv1.ListStepsResponse, error) {
	return r.service.ListSteps(ctx, req, grpc.MaxCallRecvMsgSize(rpc.MaxMessageBytes))
}

// ValidateConfig implements the StepService.
func (r *relay) ValidateConfig(ctx context.Context, req *stepdv1.ValidateConfigRequest) (*stepdv1.ValidateConfigResponse, error) {
	return r.service.ValidateConfig(ctx, req)
}

// RunStep implements the StepService. Where the caller's HostService is, its
// metadata says; to the plugin it is the same as its own host's.
func (r *relay) RunStep(req *stepdv1.RunStepRequest, stream grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
	ctx := stream.Context()
	if dir := req.GetContext().GetWorkDir(); !sameFile(dir, r.process.workDir) {
		return status.Errorf(codes.InvalidArgument,
			"this plugin process was started for the work dir %s and can reach no other: run with --workdir %s", r.process.workDir, r.process.workDir)
	}
	req.HostServiceId = 0
	if token := req.GetRunToken(); token != "" {
		host, err := protocol.DialHost(ctx)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		defer func() { _ = host.Close() }()
		defer r.process.hosts.add(token, stepdv1.NewHostServiceClient(host))()
		req.HostServiceId = r.process.hostID()
	}
	r.process.log.Info("another stepd runs a step in this plugin", "step", req.GetContext().GetAlias())
	answer, err := r.service.RunStep(ctx, req,
		grpc.MaxCallRecvMsgSize(rpc.MaxMessageBytes), grpc.MaxCallSendMsgSize(rpc.MaxMessageBytes))
	for err == nil {
		var event *stepdv1.RunStepResponse
		if event, err = answer.Recv(); err == nil {
			err = stream.Send(event)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func sameFile(a, b string) bool {
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

// hosts serves the HostService to a plugin on behalf of whichever host an
// attempt belongs to: mostly its own, and those that come through a relay.
type hosts struct {
	stepdv1.UnimplementedHostServiceServer
	own rpc.Grants

	mu     sync.Mutex
	others map[string]stepdv1.HostServiceClient // by the attempt's token
}

// add makes another host's service available until the result is called.
func (h *hosts) add(token string, service stepdv1.HostServiceClient) (remove func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.others == nil {
		h.others = map[string]stepdv1.HostServiceClient{}
	}
	h.others[token] = service
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.others, token)
	}
}

func (h *hosts) other(token string) stepdv1.HostServiceClient {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.others[token]
}

// GetCredentials implements the HostService.
func (h *hosts) GetCredentials(ctx context.Context, req *stepdv1.GetCredentialsRequest) (*stepdv1.GetCredentialsResponse, error) {
	if other := h.other(req.GetRunToken()); other != nil {
		return other.GetCredentials(ctx, req)
	}
	return h.own.GetCredentials(ctx, req)
}

// GetGitUser implements the HostService.
func (h *hosts) GetGitUser(ctx context.Context, req *stepdv1.GetGitUserRequest) (*stepdv1.GetGitUserResponse, error) {
	if other := h.other(req.GetRunToken()); other != nil {
		return other.GetGitUser(ctx, req)
	}
	return h.own.GetGitUser(ctx, req)
}

// CallCluster implements the HostService.
func (h *hosts) CallCluster(ctx context.Context, req *stepdv1.CallClusterRequest) (*stepdv1.CallClusterResponse, error) {
	if other := h.other(req.GetRunToken()); other != nil {
		return other.CallCluster(ctx, req, grpc.MaxCallRecvMsgSize(rpc.MaxMessageBytes))
	}
	return h.own.CallCluster(ctx, req)
}

// newHostServer is a gRPC server with the HostService.
func newHostServer(service stepdv1.HostServiceServer, opts ...grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(4<<20), grpc.MaxSendMsgSize(rpc.MaxMessageBytes))...)
	stepdv1.RegisterHostServiceServer(s, service)
	return s
}

// attach connects to a plugin that runs already, and offers it this host's
// HostService at a socket of its own.
func (p *process) attach(at protocol.Reattach) error {
	if at.Network != "unix" {
		return fmt.Errorf("%s names it at %s %q, and only unix sockets are connected to", protocol.EnvReattach, at.Network, at.Address)
	}
	p.log.Warn("using a plugin that runs already, whatever it is: its digest is not checked", "pid", at.Pid)
	if p.opts.NoNetwork && !at.NoNetwork {
		p.log.Warn("this is a dry run, but the plugin can reach the network and could act for real", "pid", at.Pid)
	}
	var err error
	if p.private, err = newPrivateDir(); err != nil {
		return err
	}
	socket := filepath.Join(p.private.path, "host")
	listener, err := net.Listen("unix", socket) //nolint:noctx // listening on a socket does not wait
	if err != nil {
		return err
	}
	p.answer(listener)
	p.conn, err = grpc.NewClient("unix:"+at.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(metadata.AppendToOutgoingContext(ctx, protocol.HostSocket, socket), desc, conn, method, opts...)
		}))
	p.attached = true
	return err
}

// answerOverFile serves the HostService to the child over a pair of sockets.
func (p *process) answerOverFile() error {
	syscall.ForkLock.RLock() // no child of another thread inherits them
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(pair[0])
		unix.CloseOnExec(pair[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return fmt.Errorf("cannot make a connection for the plugin: %w", err)
	}
	ours := os.NewFile(uintptr(pair[0]), "host")
	defer func() { _ = ours.Close() }()
	p.child.host = os.NewFile(uintptr(pair[1]), "plugin")
	conn, err := net.FileConn(ours)
	if err != nil {
		return fmt.Errorf("cannot make a connection for the plugin: %w", err)
	}
	p.answer(newOneConn(conn))
	return nil
}

// answer serves the HostService until the process is closed.
func (p *process) answer(listener net.Listener) {
	p.callbacks = newHostServer(&p.hosts)
	p.serving.Go(func() { _ = p.callbacks.Serve(listener) })
	p.hostID = func() uint32 { return 1 } // any: the plugin knows where
}

// oneConn is a listener that accepts one connection, which is there already.
type oneConn struct {
	net.Conn
	first chan net.Conn
	done  chan struct{}
	close func()
}

func newOneConn(conn net.Conn) *oneConn {
	l := &oneConn{Conn: conn, first: make(chan net.Conn, 1), done: make(chan struct{})}
	l.first <- conn
	l.close = sync.OnceFunc(func() { close(l.done) })
	return l
}

// Accept implements net.Listener.
func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case conn := <-l.first:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The connection stays its user's.
func (l *oneConn) Close() error {
	l.close()
	return nil
}

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return l.LocalAddr() }

// announce tells the user of the relay, once for each process, and waits with
// its first step until the user lets it go on.
func (p *process) announce(ctx context.Context) error {
	if p.relay == nil || !p.announced.CompareAndSwap(false, true) {
		return nil
	}
	at := p.relay.address
	return p.opts.Debug.Announce(ctx, p.entry.Name, protocol.Reattach{
		Pid: p.child.pid(), Network: at.Network(), Address: at.String(), NoNetwork: p.opts.NoNetwork,
	})
}

// patient is ctx without the limit of a step's time, until the whole run ends:
// whoever stands in a debugger is not timed out. Kargo, too, looks at the clock
// only afterwards.
func patient(ctx, run context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	end := func(of context.Context) func() {
		return func() {
			if cause := context.Cause(of); !errors.Is(cause, guard.ErrTimeout) {
				cancel(cause)
			}
		}
	}
	stop, stopRun := context.AfterFunc(ctx, end(ctx)), context.AfterFunc(run, end(run))
	return untimed{out}, func() {
		stop()
		stopRun()
		cancel(context.Canceled)
	}
}

// untimed is a context without deadline that says of an outer deadline that it
// was one.
type untimed struct{ context.Context }

// Err implements context.Context.
func (u untimed) Err() error {
	if err := u.Context.Err(); err == nil || !errors.Is(context.Cause(u.Context), context.DeadlineExceeded) {
		return err
	}
	return context.DeadlineExceeded
}

// debugHealthTimeout is how long a plugin that is debugged may stand still
// between two steps; one hour.
const debugHealthTimeout = time.Hour
