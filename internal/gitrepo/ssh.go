package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// sshIdle is how long a connection without a session stays open.
const sshIdle = 30 * time.Second

// sshWire runs the services as commands over SSH, one session each over a
// shared connection.
type sshWire struct {
	addr, user, path string
	config           ssh.ClientConfig
	// agent is the socket of an SSH agent, whose keys are used; empty when the
	// configuration has the key.
	agent string

	mu     sync.Mutex
	client *ssh.Client
	uses   int
	idle   *time.Timer
}

func newSSHWire(u *url.URL, user string, c Credentials, opts LiveOptions) (*sshWire, error) {
	if user == "" {
		user = c.Username
	}
	if user == "" {
		user = "git"
	}
	var auth []ssh.AuthMethod
	socket := opts.SSHAgent
	switch {
	case len(c.SSHPrivateKey) > 0:
		socket = ""
		signer, err := ssh.ParsePrivateKey(c.SSHPrivateKey)
		if err != nil {
			// The parser's error quotes no key material, but says what is wrong.
			return nil, &AccessError{Err: fmt.Errorf("cannot use the SSH private key: %w", err)}
		}
		auth = []ssh.AuthMethod{ssh.PublicKeys(signer)}
	case socket == "":
		return nil, &AccessError{Err: errors.New("an SSH repository needs an SSH private key")}
	}
	port := u.Port()
	if port == "" {
		port = "22"
	}
	w := &sshWire{addr: net.JoinHostPort(u.Hostname(), port), user: user, path: u.Path, agent: socket}
	if rest, ok := strings.CutPrefix(w.path, "/~"); ok {
		w.path = "~" + rest
	}
	hosts, err := loadKnownHosts(opts.KnownHosts)
	if err != nil {
		return nil, &AccessError{Err: err}
	}
	w.config = ssh.ClientConfig{
		User:              user,
		Auth:              auth,
		HostKeyCallback:   hosts.HostKeyCallback(),
		HostKeyAlgorithms: hosts.HostKeyAlgorithms(w.addr),
		Timeout:           15 * time.Second,
		ClientVersion:     "SSH-2.0-stepd",
	}
	return w, nil
}

// loadKnownHosts reads the files that exist. With none, every host is unknown
// and so refused.
func loadKnownHosts(files []string) (*knownhosts.HostKeyDB, error) {
	if len(files) == 0 {
		files = []string{"/etc/ssh/ssh_known_hosts"}
		if home, err := os.UserHomeDir(); err == nil {
			files = append(files, filepath.Join(home, ".ssh", "known_hosts"))
		}
	}
	var exist []string
	for _, f := range files {
		if _, err := os.Stat(f); err == nil {
			exist = append(exist, f)
		}
	}
	db, err := knownhosts.NewDB(exist...)
	if err != nil {
		return nil, fmt.Errorf("cannot read known_hosts: %w", err)
	}
	return db, nil
}

func (w *sshWire) assumeV2() bool { return false }

func (w *sshWire) advertise(ctx context.Context, service string, v2 bool) (io.ReadCloser, error) {
	return w.start(ctx, service, v2)
}

// call starts the service, reads past what it says first, and sends the
// request.
func (w *sshWire) call(ctx context.Context, service string, v2 bool, request []byte) (io.ReadCloser, error) {
	s, err := w.start(ctx, service, v2)
	if err != nil {
		return nil, err
	}
	// The reader's buffer cannot swallow any of the answer: that begins after
	// the request.
	a, err := readAdvertisement(s)
	if err == nil && v2 && !a.v2 {
		err = malformed("a server that spoke protocol v2 before, and does not now")
	}
	if err == nil {
		_, err = io.Copy(s.stdin, bytes.NewReader(request))
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	_ = s.stdin.Close() // the answer will tell if this failed
	return s, nil
}

// sshSession is one running service.
type sshSession struct {
	stdout  io.Reader
	stdin   io.WriteCloser
	session *ssh.Session
	stderr  *capped
	stop    func() bool
	release func()
	once    sync.Once
}

func (s *sshSession) Close() error {
	s.once.Do(func() {
		s.stop()
		_ = s.session.Close()
		s.release()
	})
	return nil
}

// Read implements io.Reader. When the service ends in failure, the error is
// what it printed, which is where hosts say "repository not found".
func (s *sshSession) Read(p []byte) (int, error) {
	n, err := s.stdout.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		var exit *ssh.ExitError
		if errors.As(s.session.Wait(), &exit) {
			text := clean(s.stderr.String())
			if text == "" {
				text = fmt.Sprintf("exit status %d", exit.ExitStatus())
			}
			return 0, &ServerError{Text: text}
		}
	}
	return n, err
}

func (w *sshWire) start(ctx context.Context, service string, v2 bool) (*sshSession, error) {
	client, session, release, err := w.open(ctx)
	if err != nil {
		return nil, err
	}
	s := &sshSession{session: session, stderr: &capped{}, release: release}
	// ssh.Session knows no context: closing the connection ends any wait.
	s.stop = context.AfterFunc(ctx, func() { w.drop(client) })
	session.Stderr = s.stderr
	if v2 {
		_ = session.Setenv("GIT_PROTOCOL", "version=2") // a server that will not take it speaks v0
	}
	if s.stdin, err = session.StdinPipe(); err == nil {
		if s.stdout, err = session.StdoutPipe(); err == nil {
			err = session.Start(service + " '" + strings.ReplaceAll(w.path, "'", `'\''`) + "'")
		}
	}
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("cannot run %s over SSH: %w", service, err)
	}
	return s, nil
}

// open opens a session on the shared connection. A server may have closed that
// after the session before, or allow no second session beside one that runs:
// then it gets a connection of its own. The caller calls release at the end.
func (w *sshWire) open(ctx context.Context) (client *ssh.Client, session *ssh.Session, release func(), err error) {
	for {
		client, fresh, err := w.connect(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		session, err := client.NewSession()
		if err == nil {
			return client, session, func() { w.release(client) }, nil
		}
		var full *ssh.OpenChannelError
		if errors.As(err, &full) && !fresh {
			w.release(client)
			break
		}
		w.drop(client)
		w.release(client)
		if fresh || ctx.Err() != nil {
			return nil, nil, nil, fmt.Errorf("cannot open an SSH session: %w", err)
		}
	}
	if client, err = w.dial(ctx); err != nil {
		return nil, nil, nil, err
	}
	if session, err = client.NewSession(); err != nil {
		_ = client.Close()
		return nil, nil, nil, fmt.Errorf("cannot open an SSH session: %w", err)
	}
	return client, session, func() { _ = client.Close() }, nil
}

// connect returns the shared connection, dialing when there is none: then it is
// fresh.
func (w *sshWire) connect(ctx context.Context) (client *ssh.Client, fresh bool, err error) {
	w.mu.Lock()
	if w.client != nil {
		defer w.mu.Unlock()
		w.uses++
		w.idle.Stop()
		return w.client, false, nil
	}
	w.mu.Unlock()
	if client, err = w.dial(ctx); err != nil {
		return nil, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client != nil { // somebody else was faster
		_ = client.Close()
		w.uses++
		w.idle.Stop()
		return w.client, false, nil
	}
	w.client, w.uses = client, 1
	w.idle = time.AfterFunc(sshIdle, func() { w.closeIdle(client) })
	w.idle.Stop()
	return client, true, nil
}

func (w *sshWire) dial(ctx context.Context) (*ssh.Client, error) {
	d := net.Dialer{Timeout: w.config.Timeout}
	conn, err := d.DialContext(ctx, "tcp", w.addr)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the git server: %w", err)
	}
	deadline, ok := ctx.Deadline()
	if limit := time.Now().Add(w.config.Timeout); !ok || limit.Before(deadline) {
		deadline = limit
	}
	_ = conn.SetDeadline(deadline)
	config := w.config
	if w.agent != "" {
		keys, err := d.DialContext(ctx, "unix", w.agent)
		if err != nil {
			_ = conn.Close()
			return nil, &AccessError{Err: fmt.Errorf("cannot reach the SSH agent: %w", err)}
		}
		defer func() { _ = keys.Close() }() // it is asked while the connection is made
		_ = keys.SetDeadline(deadline)
		config.Auth = []ssh.AuthMethod{ssh.PublicKeysCallback(agent.NewClient(keys).Signers)}
	}
	c, chans, reqs, err := ssh.NewClientConn(conn, w.addr, &config)
	if err != nil {
		_ = conn.Close()
		if knownhosts.IsHostUnknown(err) || knownhosts.IsHostKeyChanged(err) {
			return nil, &AccessError{Err: fmt.Errorf("the host key of %s is not the one in known_hosts, or not there: %w", w.addr, err)}
		}
		if strings.Contains(err.Error(), "unable to authenticate") { // x/crypto/ssh has no type for it on this side
			return nil, &AccessError{Err: fmt.Errorf("%s does not accept the SSH key for user %q", w.addr, w.user)}
		}
		return nil, fmt.Errorf("cannot open an SSH connection: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	return ssh.NewClient(c, chans, reqs), nil
}

func (w *sshWire) release(client *ssh.Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client != client {
		return
	}
	if w.uses--; w.uses == 0 {
		w.idle.Reset(sshIdle)
	}
}

func (w *sshWire) closeIdle(client *ssh.Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client == client && w.uses == 0 {
		_ = client.Close()
		w.client = nil
	}
}

// drop closes a connection that is of no use any more.
func (w *sshWire) drop(client *ssh.Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = client.Close()
	if w.client == client {
		w.client = nil
	}
}

// capped keeps the beginning of what is written to it.
type capped struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if room := maxErrorText - c.b.Len(); room > 0 {
		c.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (c *capped) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}
