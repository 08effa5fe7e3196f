// Package process runs servers as children of the test: on ports that were
// free a moment ago, watched until they are ready, and gone when the test is,
// however it ends. What the servers are belongs to the packages that start
// them.
package process

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// readyWithin is how long a server has to become ready.
const readyWithin = 60 * time.Second

// Process is a running, or ended, child. Its methods are safe for concurrent
// use.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  *tail
	// exited is closed when the process is gone, after err was set.
	exited chan struct{}
	err    error
}

// Start starts a server that runs until it is stopped. Its output is kept for
// error messages, the last part of it.
func Start(name string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{name: name, cmd: cmd, log: &tail{}, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Output is the last part of what the process wrote.
func (p *Process) Output() string { return p.log.String() }

// Kill ends the process at once and returns when it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended before
	<-p.exited
}

// Stop asks the process to end, as Kubernetes would, kills it if it has not
// ended within grace, and returns when it is gone.
func (p *Process) Stop(grace time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended before
	select {
	case <-p.exited:
	case <-time.After(grace):
		p.Kill()
	}
}

// Ready waits until check succeeds, the process dies, or ctx ends.
func (p *Process) Ready(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var why error
	for {
		err := check(ctx)
		switch {
		case err == nil:
			return nil
		case why == nil || ctx.Err() == nil: // not that time was up while asking
			why = err
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("%s ended: %w\n%s", p.name, p.err, p.log)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, why, p.log)
		}
	}
}

// OK is a check for Ready: url answers 2xx. A nil client is the default one.
func OK(client *http.Client, url string) func(context.Context) error {
	if client == nil {
		client = http.DefaultClient
	}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // read only
		if resp.StatusCode/100 != 2 {
			why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			return fmt.Errorf("%s answers %s: %s", url, resp.Status, why)
		}
		return nil
	}
}

// FreePorts finds n ports that nobody listens on. Somebody else may take one
// before it is used; then the server that wanted it ends with an error.
func FreePorts(n int) ([]string, error) {
	var open []net.Listener
	defer func() {
		for _, l := range open {
			_ = l.Close()
		}
	}()
	ports := make([]string, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // listening on loopback does not wait
		if err != nil {
			return nil, fmt.Errorf("cannot find a free port: %w", err)
		}
		open = append(open, l)
		if _, ports[i], err = net.SplitHostPort(l.Addr().String()); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

// tail keeps the last part of a server's output for error messages.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	const max = 64 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.buf.Len() > max {
		t.buf.Next(t.buf.Len() - max/2)
	}
	return t.buf.Write(p)
}

// String returns what was kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
