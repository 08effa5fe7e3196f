package sigstore

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"sync"
	"time"
)

// process is a server that runs as a child of ours.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *tail
	// exited is closed when the process is gone, after err was set.
	exited chan struct{}
	err    error
}

// startProcess starts a server that runs until stop.
func startProcess(ctx context.Context, name, bin string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.CommandContext(context.WithoutCancel(ctx), bin, args...), log: &tail{}, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	dieWithParent(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// stop kills the process: its state is worth nothing.
func (p *process) stop() {
	_ = p.cmd.Process.Kill() // it may have died before
	<-p.exited
}

// ready waits until url answers 200, the process dies, or ctx ends.
func (p *process) ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("%s ended: %w\n%s", p.name, p.err, p.log)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, ctx.Err(), p.log)
		}
	}
}

// freePorts finds n ports that nobody listens on. Somebody else may take one
// before it is used; then the server that wanted it ends with an error.
func freePorts(n int) ([]string, error) {
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
