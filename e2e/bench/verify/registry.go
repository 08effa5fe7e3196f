package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/stepd/stepd/e2e/registry"
)

// countPath answers with the number of requests since it was last asked.
const countPath = "/requests"

// serveRegistry is the registry process: it prints its host and serves until
// ctx ends or its standard input closes.
func serveRegistry(ctx context.Context) error {
	s := registry.Start(registry.WithReferrers())
	defer s.Close()
	s.Inject(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path != countPath {
			next.ServeHTTP(w, r)
			return
		}
		_, _ = io.WriteString(w, strconv.Itoa(len(s.Requests())-1)) // a client that hung up is its own problem
		s.Reset()
	})
	fmt.Println(s.Host())
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	select {
	case <-ctx.Done():
	case <-closed:
	}
	return nil
}

// registryProcess is serveRegistry in a child process.
type registryProcess struct {
	host  string
	cmd   *exec.Cmd
	stdin io.Closer
}

func startRegistry(ctx context.Context, self string) (*registryProcess, error) {
	p := &registryProcess{cmd: exec.CommandContext(ctx, self, "registry")}
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start the registry: %w", err)
	}
	p.stdin = stdin
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start the registry: %w", err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the registry: %w", err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("the registry did not say where it is: %w", err)
	}
	p.host = strings.TrimSpace(line)
	return p, nil
}

// stop ends the process.
func (p *registryProcess) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Wait() // it was told to end; how it did does not matter
}

// requests is how many requests came in since the last call.
func (p *registryProcess) requests(ctx context.Context) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.host+countPath, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("cannot ask the registry: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64))
	if err != nil {
		return 0, fmt.Errorf("cannot ask the registry: %w", err)
	}
	return strconv.Atoi(string(b))
}
