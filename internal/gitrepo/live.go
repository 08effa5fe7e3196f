package gitrepo

import (
	"container/list"
	"context"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"time"

	"github.com/stepd/stepd/internal/effects"
)

// LiveOptions configure a Live dialer. The zero value works.
type LiveOptions struct {
	// Log, if not nil, receives every commit that was pushed.
	Log *effects.Log
	// Diffs logs commits with their diffs. What was there before has to be asked
	// for, which is one more request per push, made at the same time.
	Diffs bool
	// KnownHosts are files in OpenSSH's known_hosts format; default is
	// ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts. A host that is in none
	// of them is refused.
	KnownHosts []string
	// SSHAgent is the socket of an SSH agent, for targets over SSH without a
	// private key; default none. It is for somebody's own machine: everybody who
	// uses the dialer uses the agent's keys.
	SSHAgent string
	// Proxy chooses a proxy for HTTP(S); default is the environment's.
	Proxy func(*http.Request) (*url.URL, error)
	// Transport, if not nil, wraps the HTTP transport, for tracing.
	Transport func(http.RoundTripper) http.RoundTripper
	// RequestTimeout bounds one request; default 1 minute.
	RequestTimeout time.Duration
	// MaxRemotes bounds how many remotes are remembered; default 128. MemoryPerRemote
	// bounds the objects remembered of each, in bytes; default 8 MiB.
	MaxRemotes      int
	MemoryPerRemote int
}

// Live is a Dialer of real remotes.
type Live struct {
	opts     LiveOptions
	clients  httpClients
	profiles profiles

	mu      sync.Mutex
	remotes map[string]*list.Element
	recent  *list.List // of *liveRemote, most recent first
}

type liveRemote struct {
	*remote
	key   string
	log   *effects.Log
	diffs bool
}

// NewLive returns a Live dialer.
func NewLive(opts LiveOptions) *Live {
	if opts.RequestTimeout <= 0 {
		opts.RequestTimeout = time.Minute
	}
	if opts.MaxRemotes <= 0 {
		opts.MaxRemotes = 128
	}
	if opts.MemoryPerRemote <= 0 {
		opts.MemoryPerRemote = 8 << 20
	}
	return &Live{
		opts:    opts,
		clients: httpClients{proxy: opts.Proxy, wrap: opts.Transport},
		remotes: map[string]*list.Element{},
		recent:  list.New(),
	}
}

// Dial implements Dialer. It does not touch the network.
func (l *Live) Dial(_ context.Context, t Target) (Remote, error) {
	u, user, password, err := parseURL(t.URL)
	if err != nil {
		return nil, err
	}
	if t.Credentials.Username == "" && t.Credentials.Password == "" {
		t.Credentials.Username, t.Credentials.Password = user, password
	}
	key := t.Key()
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.remotes[key]; ok {
		l.recent.MoveToFront(e)
		r, _ := e.Value.(*liveRemote)
		return r, nil
	}
	w, err := l.wire(t, u, user)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", u, err)
	}
	r := &liveRemote{
		key: key, log: l.opts.Log, diffs: l.opts.Diffs,
		remote: &remote{
			url: u.String(), wire: w, store: newObjects(l.opts.MemoryPerRemote), timeout: l.opts.RequestTimeout,
			learned: &l.profiles, key: u.String(), complete: map[Hash]bool{},
		},
	}
	l.remotes[key] = l.recent.PushFront(r)
	if l.recent.Len() > l.opts.MaxRemotes {
		oldest := l.recent.Back()
		l.recent.Remove(oldest)
		if old, ok := oldest.Value.(*liveRemote); ok {
			delete(l.remotes, old.key)
		}
	}
	return r, nil
}

func (l *Live) wire(t Target, u *url.URL, user string) (wire, error) {
	if u.Scheme == "ssh" {
		return newSSHWire(u, user, t.Credentials, l.opts)
	}
	client, err := l.clients.get(t)
	if err != nil {
		return nil, err
	}
	return &httpWire{client: client, credentials: t.Credentials, base: u}, nil
}

// Push implements Remote; it records what was pushed.
func (r *liveRemote) Push(ctx context.Context, p Push) error {
	if r.log == nil || !r.diffs {
		err := r.remote.Push(ctx, p)
		if err == nil && r.log != nil {
			record(r.log, r.url, p, make([]string, len(p.Commits)), true)
		}
		return err
	}
	// Old blobs are only needed to show the diff. They are read while the server
	// works on the push; that goes first, over the connection that is open. Over
	// SSH, where a session's end may be the connection's, they are read after it.
	reading, stop := context.WithCancel(ctx)
	defer stop()
	sent := make(chan struct{})
	markSent := sync.OnceFunc(func() { close(sent) })
	diffs := make(chan []string, 1)
	go func() {
		texts := make([]string, len(p.Commits))
		defer func() {
			_ = recover() // a diff that cannot be made must not end the process
			diffs <- texts
		}()
		<-sent
		texts = diffAll(reading, r.remote, p)
	}()
	err := r.remote.Push(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { markSent() },
	}), p)
	if err != nil {
		stop()
	}
	markSent()
	texts := <-diffs
	if err != nil {
		return err
	}
	record(r.log, r.url, p, texts, true)
	return nil
}
