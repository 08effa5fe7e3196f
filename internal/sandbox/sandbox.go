// Package sandbox starts a subprocess that cannot outlive this process and,
// where the kernel has Landlock, cannot touch files beyond those it is given.
//
// It confines by what the process is allowed at start. What the process is
// told, and how one talks to it, belongs to the caller.
package sandbox

import "fmt"

// Policy says what a subprocess may use.
type Policy struct {
	// ReadOnly are files and directories it may read and execute, ReadWrite
	// those it may also change. Paths that do not exist are left out.
	ReadOnly, ReadWrite []string
	// NoNetwork leaves it sockets of the unix kind to be reached at, and none to
	// reach anybody with. Start fails where that cannot be had.
	NoNetwork bool
	Limits
}

// Limits bound the resources of a subprocess; 0 leaves a limit as it is.
type Limits struct {
	// OpenFiles is the number of file descriptors.
	OpenFiles uint64
	// FileBytes is the size of a file it writes.
	FileBytes uint64
	// MemoryBytes is the size of its private writable memory.
	MemoryBytes uint64
}

// Confinement says what holds for a subprocess on this machine.
type Confinement struct {
	// LandlockABI is the kernel's Landlock version; 0 means that file access
	// is not confined.
	LandlockABI int
	// NoNewPrivileges: set-uid programs give it nothing.
	NoNewPrivileges bool
	// DiesWithParent: the kernel kills it when this process dies.
	DiesWithParent bool
	// Limited: Limits are enforced.
	Limited bool
}

// String is one line for logs and `stepd plugin list`.
func (c Confinement) String() string {
	files := "files: not confined (this kernel has no Landlock)"
	if c.LandlockABI > 0 {
		files = fmt.Sprintf("files: work dir only (Landlock ABI %d)", c.LandlockABI)
	}
	return fmt.Sprintf("%s, no new privileges: %t, resource limits: %t, dies with stepd: %t",
		files, c.NoNewPrivileges, c.Limited, c.DiesWithParent)
}

// SystemPaths are what a program that uses the C library, TLS and DNS has to
// read. Neither /proc nor all of /etc is among them.
func SystemPaths() []string {
	return []string{
		"/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin",
		"/etc/ld.so.cache", "/etc/ssl", "/etc/pki", "/etc/ca-certificates",
		"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols",
		"/etc/localtime", "/etc/passwd", "/etc/group", "/etc/gitconfig",
		"/dev/urandom", "/dev/random", "/dev/zero",
	}
}
