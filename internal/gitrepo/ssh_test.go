package gitrepo

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

// sshServer runs git's services for one key, like sshd with a git user.
type sshServer struct {
	addr       string
	hostKey    ssh.PublicKey
	userKey    []byte // the private key that is let in
	takesEnv   bool   // as with AcceptEnv GIT_PROTOCOL
	alone      bool   // no session beside one that runs
	open       []io.Closer
	mu         sync.Mutex
	commands   []string
	connection int
}

func newKey(t *testing.T) (ssh.Signer, []byte) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer, pem.EncodeToMemory(block)
}

func startSSH(t *testing.T, takesEnv bool) *sshServer {
	t.Helper()
	host, _ := newKey(t)
	user, private := newKey(t)
	s := &sshServer{hostKey: host.PublicKey(), userKey: private, takesEnv: takesEnv}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	cfg.AddHostKey(host)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			wg.Go(func() { s.serve(conn, cfg) })
		}
	})
	t.Cleanup(func() { ln.Close() })
	return s
}

func (s *sshServer) serve(conn net.Conn, cfg *ssh.ServerConfig) {
	c, chans, reqs, err := ssh.NewServerConn(conn, cfg)
	if err != nil {
		return
	}
	defer c.Close()
	s.mu.Lock()
	s.connection++
	s.open = append(s.open, c)
	s.mu.Unlock()
	go ssh.DiscardRequests(reqs)
	var running atomic.Int32
	for nc := range chans {
		if s.alone && running.Load() > 0 {
			_ = nc.Reject(ssh.ResourceShortage, "one session at a time")
			continue
		}
		ch, requests, err := nc.Accept()
		if err != nil {
			return
		}
		running.Add(1)
		go func() {
			s.session(ch, requests)
			running.Add(-1)
		}()
	}
}

func (s *sshServer) session(ch ssh.Channel, requests <-chan *ssh.Request) {
	defer ch.Close()
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "GIT_CONFIG_NOSYSTEM=1"}
	for req := range requests {
		switch req.Type {
		case "env":
			var kv struct{ Name, Value string }
			if s.takesEnv && ssh.Unmarshal(req.Payload, &kv) == nil && kv.Name == "GIT_PROTOCOL" {
				env = append(env, kv.Name+"="+kv.Value)
			}
			_ = req.Reply(s.takesEnv, nil)
		case "exec":
			var cmd struct{ Line string }
			_ = ssh.Unmarshal(req.Payload, &cmd)
			_ = req.Reply(true, nil)
			s.mu.Lock()
			s.commands = append(s.commands, cmd.Line)
			s.mu.Unlock()
			sh := exec.Command("sh", "-c", cmd.Line)
			sh.Env, sh.Stdout, sh.Stderr = env, ch, ch.Stderr()
			in, err := sh.StdinPipe()
			if err != nil {
				return
			}
			go func() { // not waited for: the client may keep its side open
				_, _ = io.Copy(in, ch)
				_ = in.Close()
			}()
			status := struct{ Code uint32 }{}
			if sh.Run() != nil {
				status.Code = 128
			}
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(status))
			return
		default:
			_ = req.Reply(false, nil)
		}
	}
}

// knownHosts writes a known_hosts file with one key for the server's address.
func (s *sshServer) knownHosts(t *testing.T, key ssh.PublicKey) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(f, []byte(knownhosts.Line([]string{s.addr}, key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// startAgent runs an SSH agent with a key, after one that opens nothing here.
func startAgent(t *testing.T, private []byte) (socket string) {
	t.Helper()
	keys := agent.NewKeyring()
	_, other := newKey(t)
	for _, p := range [][]byte{other, private} {
		key, err := ssh.ParseRawPrivateKey(p)
		if err == nil {
			err = keys.Add(agent.AddedKey{PrivateKey: key})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	socket = filepath.Join(t.TempDir(), "agent")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_ = agent.ServeAgent(keys, conn) // ends with the client
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return socket
}

func TestCommitOverSSH(t *testing.T) {
	for name, tc := range map[string]struct {
		reason   string
		takesEnv bool
		config   map[string]string
		agent    bool
	}{
		"agent":                {reason: "the key of an SSH agent", takesEnv: true, agent: true},
		"v2":                   {reason: "hosts accept GIT_PROTOCOL", takesEnv: true},
		"v0":                   {reason: "plain sshd does not: one fetch without blobs"},
		"v0, any id":           {reason: "trees by id", config: map[string]string{"uploadpack.allowAnySHA1InWant": "true"}},
		"v0, no filter at all": {reason: "the last rung", config: map[string]string{"uploadpack.allowFilter": "false"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := gittest.New(t)
			g.MustCreate(t, "r.git")
			for k, v := range tc.config {
				g.MustGit(t, "r.git", "config", k, v)
			}
			g.MustCommit(t, "r.git", "one", map[string]string{"a/b/c.yaml": "0\n", "z": "1\n"})
			g.MustCommit(t, "r.git", "two", map[string]string{"a/b/c.yaml": "1\n"})
			s := startSSH(t, tc.takesEnv)
			opts := LiveOptions{KnownHosts: []string{s.knownHosts(t, s.hostKey)}}
			credentials := Credentials{SSHPrivateKey: s.userKey}
			if tc.agent {
				opts.SSHAgent, credentials = startAgent(t, s.userKey), Credentials{}
			}
			live := NewLive(opts)
			r, err := live.Dial(t.Context(), Target{URL: "ssh://git@" + s.addr + g.Dir("r.git"), Credentials: credentials})
			if err != nil {
				t.Fatal(err)
			}
			commitOnce(t, r, file("a/b/c.yaml", "2\n"), file("a/n.yaml", "n\n"))
			g.MustCommit(t, "r.git", "foreign", map[string]string{"z": "2\n"})
			commitOnce(t, r, file("a/b/c.yaml", "3\n"))
			g.Fsck(t, "r.git")
			if got := g.MustGit(t, "r.git", "show", "main:a/b/c.yaml"); got != "3" {
				t.Errorf("content = %q", got)
			}
			hint := mustTip(t, r)
			m := merge(t, g, "main~2", "a/b/c.yaml", "4\n")
			trees, err := r.Trees(t.Context(), m, []string{"a/b/c.yaml"}, hint)
			if err != nil || trees.Entry("a/b/c.yaml").ID != BlobID([]byte("4\n")) {
				t.Errorf("after a merge the file is %v, err %v", trees.Entry("a/b/c.yaml"), err)
			}
			for until, want := range map[Hash]int{hint: 2, ZeroHash: 7} {
				h, err := r.History(t.Context(), HistoryQuery{Tip: m, Until: until, Max: 100})
				if err != nil || len(h.Commits) != want || !h.Complete {
					t.Errorf("history until %s: %d commits, complete %t, err %v; want %d", until, len(h.Commits), h.Complete, err, want)
				}
			}
			if s.connection != 1 {
				t.Errorf("%d connections, want one for all requests", s.connection)
			}
		})
	}
}

// A server that allows one session at a time gets more connections, and one that
// has closed an idle connection a new one.
func TestSSHSessionLimits(t *testing.T) {
	g := gittest.New(t)
	g.MustCreate(t, "r.git")
	g.MustCommit(t, "r.git", "one", map[string]string{"a/b/c.yaml": "1\n", "z": "1\n"})
	s := startSSH(t, true)
	s.alone = true
	live := NewLive(LiveOptions{KnownHosts: []string{s.knownHosts(t, s.hostKey)}, Log: &effects.Log{}})
	r, err := live.Dial(t.Context(), Target{URL: "ssh://git@" + s.addr + g.Dir("r.git"), Credentials: Credentials{SSHPrivateKey: s.userKey}})
	if err != nil {
		t.Fatal(err)
	}
	commitOnce(t, r, file("a/b/c.yaml", "2\n"))
	var wg sync.WaitGroup
	for range 8 { // at the same time
		wg.Go(func() {
			if _, err := r.Refs(t.Context(), "main"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.mu.Lock()
	for _, c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	if _, err := r.Refs(t.Context(), "main"); err != nil {
		t.Error(err)
	}
	g.Fsck(t, "r.git")
}

func TestSSHRefusals(t *testing.T) {
	g := gittest.New(t)
	g.MustCreate(t, "r.git")
	g.MustCommit(t, "r.git", "one", map[string]string{"a": "1\n"})
	s := startSSH(t, true)
	other, otherPrivate := newKey(t)
	for name, tc := range map[string]struct {
		known string
		key   []byte
		path  string
		want  string
		agent string
	}{
		"unknown host":      {filepath.Join(t.TempDir(), "none"), s.userKey, "r.git", "known_hosts", ""},
		"changed host key":  {s.knownHosts(t, other.PublicKey()), s.userKey, "r.git", "known_hosts", ""},
		"key not accepted":  {s.knownHosts(t, s.hostKey), otherPrivate, "r.git", "does not accept", ""},
		"no such repo":      {s.knownHosts(t, s.hostKey), s.userKey, "missing.git", "not", ""},
		"quotes in a path":  {s.knownHosts(t, s.hostKey), s.userKey, "x'; touch /tmp/stepd-pwned; '", "not", ""},
		"no key whatsoever": {s.knownHosts(t, s.hostKey), nil, "r.git", "private key", ""},
		"no agent":          {s.knownHosts(t, s.hostKey), nil, "r.git", "cannot reach the SSH agent", filepath.Join(t.TempDir(), "none")},
		"agent without it":  {s.knownHosts(t, s.hostKey), nil, "r.git", "does not accept", startAgent(t, otherPrivate)},
	} {
		t.Run(name, func(t *testing.T) {
			live := NewLive(LiveOptions{KnownHosts: []string{tc.known}, SSHAgent: tc.agent})
			r, err := live.Dial(t.Context(), Target{URL: "ssh://git@" + s.addr + g.Dir(tc.path), Credentials: Credentials{SSHPrivateKey: tc.key}})
			if err == nil {
				_, err = r.Refs(t.Context(), "main")
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("err = %v, want %q", err, tc.want)
			}
			if name != "no such repo" && name != "quotes in a path" && !Permanent(err) {
				t.Errorf("%v could be tried again", err)
			}
		})
	}
	if _, err := os.Stat("/tmp/stepd-pwned"); err == nil {
		t.Error("a path was run by the shell")
	}
}
