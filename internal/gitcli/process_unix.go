//go:build unix

package gitcli

import (
	"os/exec"
	"syscall"
)

// ownProcessGroup makes the end of cmd's context kill git and its children,
// which are in a process group of their own.
func ownProcessGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
