//go:build !unix

package gitcli

import "os/exec"

// ownProcessGroup leaves cmd alone: the end of its context kills git, and
// WaitDelay closes the pipes its children hold.
func ownProcessGroup(*exec.Cmd) {}
