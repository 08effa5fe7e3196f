package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	gprunner "github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/stepd/stepd/internal/sandbox"
	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

const (
	// closeGrace is how long a plugin has to stop by itself.
	closeGrace = 2 * time.Second
	// deathDelay is how long a lost connection can precede the process's end.
	deathDelay = 500 * time.Millisecond
	// healthTimeout is how long a plugin has to say that it is well.
	healthTimeout = 3 * time.Second
)

// process is one running plugin for one work dir.
type process struct {
	entry   Entry
	workDir string
	opts    *HostOptions
	log     *slog.Logger

	startOnce func() error
	private   *privateDir // sockets, HOME, TMPDIR
	child     *child
	client    *goplugin.Client
	conn      *grpc.ClientConn
	broker    *goplugin.GRPCBroker
	runners   map[string]steps.Registration
	hosts     hosts
	hostID    func() uint32
	step      atomic.Pointer[string] // alias of the step it was last given
	closing   atomic.Bool
	crashed   atomic.Bool // it had ended when it was closed

	// For debugging, see debug.go. What is attached to was not started here.
	attached  bool
	callbacks *grpc.Server
	serving   sync.WaitGroup
	relay     *relay
	announced atomic.Bool

	// Owned by the Host, under its lock.
	users    int
	retired  bool
	lastUsed time.Time
	// done is closed when the process has been ended by the Host.
	done chan struct{}
}

func newProcess(e Entry, workDir string, opts *HostOptions) *process {
	p := &process{entry: e, workDir: workDir, opts: opts, log: opts.Log.With("plugin", e.Name), done: make(chan struct{})}
	p.startOnce = sync.OnceValue(p.start)
	p.hostID = sync.OnceValue(func() uint32 {
		id := p.broker.NextId()
		// Ends with the broker, which ends with the connection.
		go p.broker.AcceptAndServe(id, func(opts []grpc.ServerOption) *grpc.Server { return newHostServer(&p.hosts, opts...) })
		return id
	})
	return p
}

// start starts the program, or attaches to the one that a debugging user names.
// It takes no longer than the start timeout and leaves nothing behind when it
// fails.
func (p *process) start() error {
	at, attach := p.opts.Reattach[p.entry.Name]
	connect := p.connect
	if attach {
		connect = func() error { return p.attach(at) }
	}
	err := connect()
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), p.opts.StartTimeout)
		defer cancel()
		err = p.meet(ctx)
	}
	if err == nil && p.opts.Debug != nil && !p.attached {
		p.relay, err = newRelay(p)
	}
	if err == nil {
		return nil
	}
	p.close() // after which all that it said has been read
	if attach {
		return fmt.Errorf("cannot use the plugin %s that %s names: %w; it ends with the stepd that started it, and answers nothing while a debugger holds it", p.entry.Name, protocol.EnvReattach, err)
	}
	if p.child != nil {
		if words := p.child.lastWords(); words != "" {
			return fmt.Errorf("cannot start plugin %s: %w; it said: %s", p.entry.Name, err, words)
		}
	}
	return fmt.Errorf("cannot start plugin %s: %w", p.entry.Name, err)
}

func (p *process) connect() error {
	config := &goplugin.ClientConfig{
		HandshakeConfig:  protocol.Handshake(),
		VersionedPlugins: map[int]goplugin.PluginSet{protocol.Version: {protocol.Steps: dispenser{}}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		StartTimeout:     p.opts.StartTimeout,
		Logger:           newLogger(p.log, &p.step, &p.closing),
		// go-plugin's own calls have no limit but this one.
		GRPCDialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(rpc.MaxMessageBytes))},
	}
	image, err := sandbox.Load(filepath.Join(p.opts.Dir, p.entry.Name), p.entry.Digest)
	if err != nil {
		return remedy(err)
	}
	defer func() { _ = image.Close() }()
	if p.private, err = newPrivateDir(); err != nil {
		return err
	}
	p.child = &child{name: p.entry.Name, dir: p.private.path, ended: p.reportEnd}
	config.AutoMTLS = true
	config.SkipHostEnv = true
	if p.opts.Debug != nil {
		if err := p.answerOverFile(); err != nil {
			return err
		}
	} else {
		config.GRPCBrokerMultiplex = true
	}
	config.UnixSocketConfig = &goplugin.UnixSocketConfig{TempDir: p.private.path}
	config.RunnerFunc = func(_ hclog.Logger, spec *exec.Cmd, _ string) (gprunner.Runner, error) {
		return p.child, p.child.prepare(image, spec.Env, p.policy())
	}
	p.client = goplugin.NewClient(config)
	// Not every wait in go-plugin has a deadline; a dead plugin ends them all.
	deadline := time.AfterFunc(p.opts.StartTimeout+time.Second, p.kill)
	defer deadline.Stop()
	protocolClient, err := p.client.Client()
	if err != nil {
		return err
	}
	raw, err := protocolClient.Dispense(protocol.Steps)
	if err != nil {
		return err
	}
	d, ok := raw.(dispensed)
	if !ok {
		return fmt.Errorf("it dispensed a %T", raw)
	}
	p.conn, p.broker = d.conn, d.broker
	return nil
}

// meet checks that the plugin is well and has the steps it was pinned with.
func (p *process) meet(ctx context.Context) error {
	if err := p.healthy(ctx); err != nil {
		return err
	}
	regs, err := rpc.NewClient(p.conn, rpc.ClientOptions{Grant: p.grant}).Registrations(ctx)
	if err != nil {
		return err
	}
	p.runners = make(map[string]steps.Registration, len(regs))
	for _, r := range regs {
		p.runners[r.Name] = r
	}
	for _, s := range p.entry.Steps {
		if _, ok := p.runners[s.Name]; !ok {
			return fmt.Errorf("it no longer has the step %q that it was installed with", s.Name)
		}
	}
	return nil
}

func (p *process) healthy(ctx context.Context) error {
	limit := healthTimeout
	if p.opts.Debug != nil {
		limit = debugHealthTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp, err := grpc_health_v1.NewHealthClient(p.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: goplugin.GRPCServiceName})
	if err != nil {
		return fmt.Errorf("it does not answer: %w", err)
	}
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("it says it is %s", resp.GetStatus())
	}
	return nil
}

// exited tells whether the plugin has ended by itself.
func (p *process) exited() bool { return !p.attached && (p.client == nil || p.client.Exited()) }

// grant implements rpc.ClientOptions.Grant: it gives what the step declares
// and the operator granted, and logs both.
func (p *process) grant(sc *steps.Context, caps steps.Capabilities) rpc.Grant {
	g := p.hosts.own.Add(sc, caps.Only(p.entry.Grants))
	if len(g.Capabilities) > 0 {
		g.HostServiceID = p.hostID()
	}
	return g
}

// policy is what the plugin may touch: its own work dir and private
// directory, and what every program reads.
func (p *process) policy() sandbox.Policy {
	policy := sandbox.Policy{
		ReadOnly:  append(sandbox.SystemPaths(), p.opts.ReadOnly...),
		ReadWrite: []string{p.private.path},
		NoNetwork: p.opts.NoNetwork,
		Limits:    p.opts.Limits,
	}
	if p.workDir != "" {
		policy.ReadWrite = append(policy.ReadWrite, p.workDir)
	}
	return policy
}

// kill ends the plugin at once.
func (p *process) kill() {
	if p.child != nil {
		_ = p.child.end() // its death shows on the connection
	}
}

// close ends the plugin, kindly first, in bounded time. What did not start is
// closed twice, by start and by the Host, one after the other.
func (p *process) close() {
	p.crashed.Store(p.child != nil && p.child.hasExited())
	p.closing.Store(true)
	if p.relay != nil {
		p.relay.stop()
	}
	if p.callbacks != nil {
		p.callbacks.Stop()
		p.serving.Wait()
	}
	if p.child != nil && p.child.host != nil {
		_ = p.child.host.Close() // if it never started
	}
	if p.attached && p.conn != nil {
		_ = p.conn.Close() // that of a started plugin is the client's
	}
	if p.client != nil {
		deadline := time.AfterFunc(closeGrace, p.kill)
		p.client.Kill()
		deadline.Stop()
	}
	p.kill()
	if p.child != nil {
		p.child.wait()
	}
	if p.private != nil {
		if err := p.private.remove(); err != nil {
			p.log.Warn("cannot remove a plugin's private directory", "err", err)
		}
		p.private = nil
	}
}

// reportEnd logs that the plugin has ended, unless it was told to. It is ours
// and not go-plugin's to log: only this side knows a crash from a goodbye when
// the Host closes the plugin before go-plugin has noticed that it is dead.
func (p *process) reportEnd() {
	if p.closing.Load() && !p.crashed.Load() {
		return
	}
	how := "exit status 0"
	if err := p.child.err(); err != nil {
		how = err.Error()
	}
	args := []any{"error", how}
	if step := p.step.Load(); step != nil {
		args = append(args, "step", *step)
	}
	p.log.Error("plugin process exited", args...)
}

// died tells whether the plugin has ended by itself. A crash shows on the
// connection a moment before the process can be seen to have ended.
func (p *process) died(ctx context.Context) bool {
	if p.attached {
		ctx, cancel := context.WithTimeout(ctx, deathDelay)
		defer cancel()
		return status.Code(p.healthy(ctx)) == codes.Unavailable
	}
	proc := p.child.started()
	if proc == nil {
		return true
	}
	select {
	case <-proc.Exited():
		return true
	case <-time.After(deathDelay):
		return false
	}
}

// epitaph says how the plugin ended, for the error of the step it ran.
func (p *process) epitaph() string {
	if p.attached {
		return "the plugin, or the stepd that started it, has ended"
	}
	text := "the plugin ended"
	if err := p.child.err(); err != nil {
		text = "the plugin ended: " + err.Error()
	}
	select { // what it said last may not have been read yet
	case <-p.child.stderr.ended:
	case <-time.After(closeGrace):
	}
	if words := p.child.lastWords(); words != "" {
		text += "; it said: " + words
	}
	return text
}

// remedy adds to an error of loading a program what to do.
func remedy(err error) error {
	if missing, ok := errors.AsType[*fs.PathError](err); ok && errors.Is(err, fs.ErrNotExist) {
		return steps.Terminal(fmt.Errorf("%w; run `stepd plugin install %s` again, or `stepd plugin remove`", err, filepath.Base(missing.Path)))
	}
	if digest, ok := errors.AsType[*sandbox.DigestError](err); ok {
		return steps.Terminal(fmt.Errorf("%w; if the change is yours, run `stepd plugin install %s` again", err, digest.Path))
	}
	return err
}

// dispenser is the host's side of go-plugin: it hands out the connection.
type dispenser struct {
	goplugin.NetRPCUnsupportedPlugin
}

type dispensed struct {
	conn   *grpc.ClientConn
	broker *goplugin.GRPCBroker
}

// GRPCServer implements goplugin.GRPCPlugin; a host serves nothing this way.
func (dispenser) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return errors.ErrUnsupported }

// GRPCClient implements goplugin.GRPCPlugin.
func (dispenser) GRPCClient(_ context.Context, broker *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return dispensed{conn, broker}, nil
}

// child is the program as go-plugin's runner. Before prepare and Start it
// stands for nothing.
type child struct {
	name, dir string
	ended     func() // called when it has ended and all that it said was read

	cmd    *exec.Cmd
	policy sandbox.Policy
	stdin  *os.File // our end; the plugin exits when it closes
	stdout *os.File
	stderr *tail
	host   *os.File // their connection to the HostService, when they are debugged
	theirs []*os.File

	mu   sync.Mutex
	proc *sandbox.Process
}

func (c *child) prepare(image *sandbox.Image, env []string, policy sandbox.Policy) error {
	stdin, ourIn, err := os.Pipe()
	if err != nil {
		return err
	}
	ourOut, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	ourErr, stderr, err := os.Pipe()
	if err != nil {
		return err
	}
	c.policy = policy
	c.stdin, c.stdout, c.stderr = ourIn, ourOut, newTail(ourErr)
	c.theirs = []*os.File{stdin, stdout, stderr}
	c.cmd = &exec.Cmd{
		Path: image.Path(), Args: []string{c.name}, Dir: c.dir,
		Stdin: stdin, Stdout: stdout, Stderr: stderr,
		Env: append([]string{
			"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + c.dir, "TMPDIR=" + c.dir, "LANG=C.UTF-8",
			protocol.EnvWatchStdin + "=1",
		}, append(raceEnv(), env...)...),
	}
	if c.host != nil {
		c.theirs = append(c.theirs, c.host)
		c.cmd.ExtraFiles = []*os.File{c.host}
		c.cmd.Env = append(c.cmd.Env, protocol.EnvHostFile+"=3") // the first that is not standard
	}
	return nil
}

// Start implements runner.Runner.
func (c *child) Start(context.Context) error {
	proc, err := sandbox.Start(c.cmd, c.policy)
	for _, f := range c.theirs {
		_ = f.Close() // the child has its own
	}
	if err != nil {
		_, _, _ = c.stdin.Close(), c.stdout.Close(), c.stderr.Close()
		return err
	}
	c.mu.Lock()
	c.proc = proc
	c.mu.Unlock()
	go func() {
		<-proc.Exited()
		// Whoever left the process group may still hold the pipes open, and
		// go-plugin reads them to the end.
		time.AfterFunc(time.Second, func() {
			_, _, _ = c.stdin.Close(), c.stdout.Close(), c.stderr.Close()
		})
	}()
	return nil
}

func (c *child) started() *sandbox.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proc
}

// Wait implements runner.Runner. go-plugin does nothing with the error that it
// may return but log it, which is what ended is for.
func (c *child) Wait(context.Context) error {
	c.wait()
	c.ended()
	return nil
}

func (c *child) wait() {
	if proc := c.started(); proc != nil {
		<-proc.Exited()
	}
}

// hasExited tells whether the child was started and has ended.
func (c *child) hasExited() bool {
	proc := c.started()
	if proc == nil {
		return false
	}
	select {
	case <-proc.Exited():
		return true
	default:
		return false
	}
}

// err says how the child ended, nil while it runs.
func (c *child) err() error {
	if !c.hasExited() {
		return nil
	}
	return c.started().Err()
}

// Kill implements runner.Runner.
func (c *child) Kill(context.Context) error { return c.end() }

func (c *child) end() error {
	if proc := c.started(); proc != nil {
		return proc.Kill()
	}
	return nil
}

// Stdout implements runner.Runner.
func (c *child) Stdout() io.ReadCloser { return c.stdout }

// Stderr implements runner.Runner.
func (c *child) Stderr() io.ReadCloser { return c.stderr }

// Name implements runner.Runner.
func (c *child) Name() string { return c.name }

// ID implements runner.Runner.
func (c *child) ID() string {
	if pid := c.pid(); pid != 0 {
		return fmt.Sprint(pid)
	}
	return ""
}

// pid is 0 before the start.
func (c *child) pid() int {
	if proc := c.started(); proc != nil {
		return proc.Pid()
	}
	return 0
}

// Diagnose implements runner.Runner; see process.start for the last words.
func (c *child) Diagnose(context.Context) string {
	return "a plugin is a program that calls plugin.Serve and writes nothing to its standard output before"
}

// PluginToHost implements runner.Runner: of the addresses a plugin can name,
// only a socket in its own directory is connected to.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	clean := filepath.Clean(address)
	info, err := os.Lstat(clean)
	if network != "unix" || !strings.HasPrefix(clean, c.dir+string(filepath.Separator)) || err != nil || info.Mode().Type() != os.ModeSocket {
		return "", "", fmt.Errorf("it wants to be reached at %s %q, which is not a socket in its own directory", network, address)
	}
	return network, clean, nil
}

// HostToPlugin implements runner.Runner.
func (c *child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

func (c *child) lastWords() string {
	if c.stderr == nil {
		return ""
	}
	return c.stderr.text()
}

// tail is a pipe's read end that remembers the end of what passed through.
type tail struct {
	file  *os.File
	ended chan struct{} // closed when there is no more to read
	once  sync.Once
	mu    sync.Mutex
	last  []byte
}

const tailBytes = 2 << 10

func newTail(file *os.File) *tail { return &tail{file: file, ended: make(chan struct{})} }

// Read implements io.Reader.
func (t *tail) Read(p []byte) (int, error) {
	n, err := t.file.Read(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, p[:n]...)
	if extra := len(t.last) - tailBytes; extra > 0 {
		t.last = append(t.last[:0], t.last[extra:]...)
	}
	if err != nil {
		t.once.Do(func() { close(t.ended) })
	}
	return n, err
}

// Close implements io.Closer.
func (t *tail) Close() error { return t.file.Close() }

// text is quoted where it would disturb a terminal.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(strings.TrimSpace(string(t.last)), "?"))
}
