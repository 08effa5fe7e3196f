package main

import (
	"bufio"
	"context"
	"fmt"
	"sync"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/runner/plugin"
	"github.com/stepd/stepd/runner/plugin/protocol"
)

// newDebugging tells the user of each plugin that starts how to reach it, and
// lets its first step wait for a line on stdin, or for the end of that.
func newDebugging(run context.Context, a *cli.App, workDir string, live bool) *plugin.Debugging {
	d := &debugging{App: a, workDir: workDir, live: live, started: map[string]protocol.Reattach{}, lines: make(chan struct{})}
	return &plugin.Debugging{Announce: d.announce, Run: run}
}

type debugging struct {
	*cli.App
	workDir string
	live    bool

	mu      sync.Mutex
	started map[string]protocol.Reattach
	reading sync.Once
	lines   chan struct{} // one for each line of stdin; closed at its end
}

func (d *debugging) announce(ctx context.Context, name string, at protocol.Reattach) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.started[name] = at
	line, err := protocol.ReattachLine(d.started)
	if err != nil {
		return err
	}
	flags := "--debug-plugin --workdir " + d.workDir
	if d.live {
		flags += " --live"
	}
	d.Statusf("plugin %s is process %d; attach a debugger with: dlv attach %d", name, at.Pid, at.Pid)
	d.Statusf("use it from another stepd run, with %s, by", flags)
	d.Statusf("%s", line)
	d.Statusf("its first step waits for Enter")
	d.reading.Do(func() { go d.read() })
	select {
	case <-d.lines:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the plugin's step was not started: %w", ctx.Err())
	}
}

// read ends with stdin, or with the process: nothing else can end a read from a
// terminal.
func (d *debugging) read() {
	defer close(d.lines)
	for in := bufio.NewReader(d.In); ; {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		d.lines <- struct{}{}
	}
}
