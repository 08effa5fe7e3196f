package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, see seccomp(2).
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16 // the low half on the little-endian machines below
)

// denyNetwork leaves the calling thread, and what it starts, unix sockets
// only: socket(2) fails with EPERM for every other family, TCP and UDP alike.
// io_uring, which can make sockets without that call, is not there.
func denyNetwork() error {
	arch, known := map[string]uint32{
		"amd64": unix.AUDIT_ARCH_X86_64,
		"arm64": unix.AUDIT_ARCH_AARCH64,
	}[runtime.GOARCH]
	if !known {
		return fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOARCH)
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	equal := func(value uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: value}
	}
	answer := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
	}
	filter := []unix.SockFilter{
		load(dataArch),
		equal(arch, 1, 0),
		answer(unix.SECCOMP_RET_KILL_PROCESS), // calls of another architecture have other numbers
		load(dataNr),
		// The x32 calls share amd64's architecture and have this bit in their numbers.
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 0, Jf: 1, K: 0x40000000},
		answer(unix.SECCOMP_RET_KILL_PROCESS),
		equal(unix.SYS_IO_URING_SETUP, 0, 1),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
		equal(unix.SYS_SOCKET, 1, 0),
		answer(unix.SECCOMP_RET_ALLOW),
		load(dataArg0),
		equal(unix.AF_UNIX, 0, 1),
		answer(unix.SECCOMP_RET_ALLOW),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	//nolint:gosec // the kernel's interface is a pointer
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}
