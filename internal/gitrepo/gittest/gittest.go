// Package gittest serves real git repositories on loopback, for tests,
// benchmarks and demonstrations: bare repositories behind git's own
// http-backend, through net/http/cgi.
//
// It is a server and a way to look at what arrived in it. Clients, and
// assertions about them, belong to the tests that use it.
package gittest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server serves every repository below Root at URL + "/" + name.
type Server struct {
	// Root is the directory that holds the bare repositories.
	Root string
	// URL is the base URL, "http://127.0.0.1:port".
	URL string

	backend string
	ln      net.Listener
	http    *http.Server
	done    chan struct{}

	mu    sync.Mutex
	wrap  func(http.Handler) http.Handler
	users map[string]string
	stats Stats
	log   []Request
}

// Stats counts what crossed the wire, bodies only.
type Stats struct {
	Requests int
	// Pushes is the number of POSTs to git-receive-pack.
	Pushes int
	// Up and Down are body bytes from and to clients.
	Up, Down int64
	// Time is how long the server took over the requests, summed.
	Time time.Duration
}

// Request is one request the server answered.
type Request struct {
	Method, Path, Query, Protocol, User string
	Status                              int
	Up, Down                            int64
	Time                                time.Duration
}

// New starts a server in a temporary directory that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s, err := Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Start starts a server on a free loopback port, over the repositories in root.
// The caller closes it.
func Start(root string) (*Server, error) {
	out, err := exec.CommandContext(context.Background(), "git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot find git: %w", err)
	}
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		return nil, fmt.Errorf("cannot find git's http-backend: %w", err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen on loopback: %w", err)
	}
	s := &Server{Root: root, URL: "http://" + ln.Addr().String(), backend: backend, ln: ln, done: make(chan struct{})}
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(ln) // ends with Close
	}()
	return s, nil
}

// Close ends the server at once.
func (s *Server) Close() {
	_ = s.http.Close()
	<-s.done
}

// Wrap puts middleware around the backend, for fault injection; nil takes it
// away. It applies from the next request.
func (s *Server) Wrap(w func(http.Handler) http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrap = w
}

// RequireAuth makes the server answer 401 to everybody but these users, by
// name and password. Nil opens it again.
func (s *Server) RequireAuth(users map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = users
}

// Stats returns the counts since the start or the last ResetStats.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Requests returns the requests since the start or the last ResetStats.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.log...)
}

// ResetStats sets all counts to zero.
func (s *Server) ResetStats() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats, s.log = Stats{}, nil
}

// RepoURL returns the URL of the repository of that name.
func (s *Server) RepoURL(name string) string { return s.URL + "/" + name }

// Dir returns the directory of the bare repository of that name.
func (s *Server) Dir(name string) string { return filepath.Join(s.Root, filepath.FromSlash(name)) }

// Create makes an empty bare repository with default branch main that accepts
// pushes and partial fetches, and returns its URL. A name ends in ".git" by
// convention.
func (s *Server) Create(name string) (string, error) {
	dir := s.Dir(name)
	if _, err := run(context.Background(), s.Root, nil, "init", "--quiet", "--bare", "--initial-branch=main", dir); err != nil {
		return "", err
	}
	for _, kv := range [][2]string{
		{"http.receivepack", "true"},
		{"uploadpack.allowFilter", "true"},
		{"receive.fsckObjects", "true"},
		{"gc.auto", "0"},
		{"receive.autogc", "false"},
	} {
		if _, err := s.Git(name, "config", kv[0], kv[1]); err != nil {
			return "", err
		}
	}
	return s.RepoURL(name), nil
}

// MustCreate is Create for tests.
func (s *Server) MustCreate(t testing.TB, name string) string {
	t.Helper()
	url, err := s.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// Git runs git in the bare repository and returns its output without the final
// newline.
func (s *Server) Git(name string, args ...string) (string, error) {
	out, err := run(context.Background(), s.Dir(name), nil, args...)
	return strings.TrimSuffix(out, "\n"), err
}

// MustGit is Git for tests.
func (s *Server) MustGit(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := s.Git(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Entry is a file in a commit. Mode is "100644" when empty; "120000" makes a
// symlink whose target is Data, "160000" a submodule at the commit Data, and
// "0" removes the path.
type Entry struct {
	Mode string
	Data string
}

// Files makes entries of plain files.
func Files(files map[string]string) map[string]Entry {
	m := make(map[string]Entry, len(files))
	for p, data := range files {
		m[p] = Entry{Data: data}
	}
	return m
}

// Change is a commit to be made on the server, as somebody else would.
type Change struct {
	Branch  string // main when empty
	Message string
	Files   map[string]Entry
	// When is the commit's time; zero is now.
	When time.Time
}

// Commit makes a commit on the branch (created when absent) without any
// client, through git fast-import, and returns its id.
func (s *Server) Commit(name string, c Change) (string, error) {
	if c.Branch == "" {
		c.Branch = "main"
	}
	if c.When.IsZero() {
		c.When = time.Now()
	}
	ref := "refs/heads/" + c.Branch
	var in bytes.Buffer
	fmt.Fprintf(&in, "commit %s\ncommitter Somebody Else <else@example.com> %d +0000\ndata %d\n%s\n", ref, c.When.Unix(), len(c.Message), c.Message)
	if tip, err := s.Git(name, "rev-parse", "--verify", "--quiet", ref); err == nil {
		fmt.Fprintf(&in, "from %s\n", tip)
	}
	paths := make([]string, 0, len(c.Files))
	for p := range c.Files {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		e := c.Files[p]
		switch e.Mode {
		case "":
			fmt.Fprintf(&in, "M 100644 inline %s\ndata %d\n%s\n", p, len(e.Data), e.Data)
		case "0":
			fmt.Fprintf(&in, "D %s\n", p)
		case "160000":
			fmt.Fprintf(&in, "M 160000 %s %s\n", e.Data, p)
		default:
			fmt.Fprintf(&in, "M %s inline %s\ndata %d\n%s\n", e.Mode, p, len(e.Data), e.Data)
		}
	}
	if _, err := run(context.Background(), s.Dir(name), &in, "fast-import", "--quiet", "--date-format=raw"); err != nil {
		return "", err
	}
	return s.Git(name, "rev-parse", ref)
}

// MustCommit is Commit of plain files for tests.
func (s *Server) MustCommit(t testing.TB, name, message string, files map[string]string) string {
	t.Helper()
	id, err := s.Commit(name, Change{Message: message, Files: Files(files)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Fsck fails the test unless `git fsck --strict` finds nothing to report.
func (s *Server) Fsck(t testing.TB, name string) {
	t.Helper()
	if out := s.MustGit(t, name, "fsck", "--strict", "--no-dangling"); out != "" {
		t.Errorf("git fsck --strict: %s", out)
	}
}

// Seed fills a repository with dirs × perDir small YAML files named
// dNNNN/fNNNN.yaml, made in `commits` commits an hour apart, the last of them
// an hour ago. It is packed like a repository that a host has maintained.
func (s *Server) Seed(name string, dirs, perDir, commits int) error {
	var in bytes.Buffer
	start := time.Now().Add(-time.Duration(commits) * time.Hour)
	message := "seed"
	file := func(d, f, n int) {
		data := fmt.Sprintf("# generated\nservice: svc-%d-%d\nreplicas: %d\nimage:\n  tag: \"v1.%d.0\"\n", d, f, d%7+1, n)
		fmt.Fprintf(&in, "M 100644 inline d%04d/f%04d.yaml\ndata %d\n%s\n", d, f, len(data), data)
	}
	for n := range commits {
		fmt.Fprintf(&in, "commit refs/heads/main\ncommitter Seed <seed@example.com> %d +0000\ndata %d\n%s\n",
			start.Add(time.Duration(n)*time.Hour).Unix(), len(message), message)
		if n == 0 {
			for d := range dirs {
				for f := range perDir {
					file(d, f, 0)
				}
			}
			continue
		}
		file(n%dirs, n/dirs%perDir, n)
	}
	if _, err := run(context.Background(), s.Dir(name), &in, "fast-import", "--quiet", "--date-format=raw"); err != nil {
		return err
	}
	_, err := s.Git(name, "repack", "-adq", "--write-bitmap-index")
	return err
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	wrap, users := s.wrap, s.users
	s.mu.Unlock()

	start := time.Now()
	body := &countingBody{ReadCloser: r.Body}
	r.Body = body
	cw := &countingWriter{ResponseWriter: w}
	user, password, _ := r.BasicAuth()
	var h http.Handler = http.HandlerFunc(s.git)
	if users != nil {
		if want, ok := users[user]; !ok || want != password {
			h = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
				http.Error(w, "who are you?", http.StatusUnauthorized)
			})
		}
	}
	if wrap != nil {
		h = wrap(h)
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stats.Requests++
		if r.Method == http.MethodPost && path.Base(r.URL.Path) == "git-receive-pack" {
			s.stats.Pushes++
		}
		s.stats.Up += body.n
		s.stats.Down += cw.n
		s.stats.Time += time.Since(start)
		s.log = append(s.log, Request{
			Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Protocol: r.Header.Get("Git-Protocol"),
			User: user, Status: cw.status, Up: body.n, Down: cw.n, Time: time.Since(start),
		})
	}()
	h.ServeHTTP(cw, r)
}

// maxBody bounds a request body; pushes in tests are far smaller.
const maxBody = 256 << 20

// git hands a request to git http-backend once its body is here as a whole:
// given less than Content-Length says, git 2.39 reads the end of its input for
// ever, so a client cut off in the middle would leave a spinning process.
func (s *Server) git(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil || r.ContentLength > int64(len(body)) {
		http.Error(w, "the request body is cut short", http.StatusBadRequest)
		return
	}
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil // CGI knows no chunks
	h := &cgi.Handler{
		Path: s.backend,
		Root: "/",
		Dir:  s.Root,
		Env: append([]string{
			"GIT_PROJECT_ROOT=" + s.Root, "GIT_HTTP_EXPORT_ALL=1",
		}, isolatedEnv()...),
		InheritEnv: []string{"PATH"},
		Stderr:     new(bytes.Buffer),
		Logger:     log.New(io.Discard, "", 0), // clients that go away are part of the tests
	}
	h.ServeHTTP(w, r)
}

// run runs git with nothing of the user's configuration.
func run(ctx context.Context, dir string, stdin *bytes.Buffer, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, isolatedEnv()...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return string(out), fmt.Errorf("git %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

func isolatedEnv() []string {
	return []string{
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "HOME=" + os.TempDir(),
		"GIT_AUTHOR_NAME=Somebody Else", "GIT_AUTHOR_EMAIL=else@example.com",
		"GIT_COMMITTER_NAME=Somebody Else", "GIT_COMMITTER_EMAIL=else@example.com",
	}
}

type countingBody struct {
	io.ReadCloser
	n int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

type countingWriter struct {
	http.ResponseWriter
	n      int64
	status int
}

func (w *countingWriter) WriteHeader(code int) {
	if w.status == 0 {
		w.status = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController flush and hijack.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteFile writes a file into the bare repository's directory.
func (s *Server) WriteFile(t testing.TB, name, file, data string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir(name), filepath.FromSlash(file)), []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}
