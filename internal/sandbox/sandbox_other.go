//go:build !linux

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// Detect tells what Start can enforce on this machine: nothing, off Linux.
func Detect() Confinement { return Confinement{} }

// Process is a started subprocess.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error
}

// Start starts cmd. Standard streams have to be files or nil. The policy needs
// Linux and is not enforced.
func Start(cmd *exec.Cmd, _ Policy) (*Process, error) {
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", cmd.Args[0], err)
	}
	p := &Process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// Pid is the process id, also after the process has ended.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Err says how the process ended: nil for exit code 0. It may be called once
// Exited is closed.
func (p *Process) Err() error { return p.err }

// Kill kills the process. It does nothing after the end.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}
