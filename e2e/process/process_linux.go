package process

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel end cmd's process when ours ends, however
// that happens: a test that panics or times out runs no cleanup.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
