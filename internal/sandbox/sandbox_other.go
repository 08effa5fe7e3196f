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
// Linux and is not enforced, except that NoNetwork is refused.
func Start(cmd *exec.Cmd, p Policy) (*Process, error) {
	if p.NoNetwork {
		return nil, fmt.Errorf("cannot start %s without network: %w on this system", cmd.Args[0], errors.ErrUnsupported)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", cmd.Args[0], err)
	}
	proc := &Process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		proc.err = cmd.Wait()
		close(proc.exited)
	}()
	return proc, nil
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
