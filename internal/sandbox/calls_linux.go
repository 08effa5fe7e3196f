package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, see seccomp(2). Of arguments it is the low
// half, on the little-endian machines below; no argument looked at needs more.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
	dataArg1 = 24
)

// restrictCalls denies the calling thread, and what it starts, two things by
// seccomp: to take back that it dies with its parent, and, without a network,
// to reach anybody. On a machine whose calls are not known here, only a policy
// without network is an error.
func restrictCalls(noNetwork bool) error {
	arch, known := map[string]uint32{
		"amd64": unix.AUDIT_ARCH_X86_64,
		"arm64": unix.AUDIT_ARCH_AARCH64,
	}[runtime.GOARCH]
	if !known {
		if noNetwork {
			return fmt.Errorf("no network: %w on %s", errors.ErrUnsupported, runtime.GOARCH)
		}
		return nil
	}
	filter := slices.Concat(
		[]unix.SockFilter{
			load(dataArch),
			equal(arch, 1, 0),
			answer(unix.SECCOMP_RET_KILL_PROCESS), // calls of another architecture have other numbers
			load(dataNr),
			// The x32 calls share amd64's architecture and have this bit in their numbers.
			{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 0, Jf: 1, K: 0x40000000},
			answer(unix.SECCOMP_RET_KILL_PROCESS),
		},
		call(unix.SYS_PRCTL,
			load(dataArg0),
			equal(unix.PR_SET_PDEATHSIG, 0, 3),
			load(dataArg1),
			equal(uint32(unix.SIGKILL), 1, 0),
			deny(unix.EPERM)),
	)
	// To become another user, which root can, takes the signal back, too: see
	// prctl(2) PR_SET_PDEATHSIG.
	for _, nr := range []uint32{
		unix.SYS_SETUID, unix.SYS_SETREUID, unix.SYS_SETRESUID, unix.SYS_SETFSUID,
		unix.SYS_SETGID, unix.SYS_SETREGID, unix.SYS_SETRESGID, unix.SYS_SETFSGID,
	} {
		filter = slices.Concat(filter, call(nr, deny(unix.EPERM)))
	}
	if noNetwork {
		filter = slices.Concat(filter,
			// Sockets of the unix kind stay, for a plugin listens on one; but none
			// that could send without connect(2), which is denied, too: behind a
			// socket of this machine may be a daemon that does reach others.
			call(unix.SYS_SOCKET,
				load(dataArg0),
				equal(unix.AF_UNIX, 1, 0),
				deny(unix.EPERM),
				load(dataArg1),
				unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xf}, // without SOCK_CLOEXEC and SOCK_NONBLOCK
				equal(unix.SOCK_STREAM, 1, 0),
				deny(unix.EPERM)),
			call(unix.SYS_CONNECT, deny(unix.EPERM)),
			// io_uring makes and connects sockets without those calls.
			call(unix.SYS_IO_URING_SETUP, deny(unix.ENOSYS)),
		)
	}
	filter = append(filter, answer(unix.SECCOMP_RET_ALLOW))
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	//nolint:gosec // the kernel's interface is a pointer
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// equal skips yes instructions if what was loaded is value, else no.
func equal(value uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: value}
}

func answer(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}

func deny(errno unix.Errno) unix.SockFilter {
	return answer(unix.SECCOMP_RET_ERRNO | uint32(errno))
}

// call runs body for the system call nr, whose number has been loaded; a body
// that runs to its end goes on to what follows.
func call(nr uint32, body ...unix.SockFilter) []unix.SockFilter {
	body = append(body, load(dataNr))
	return append([]unix.SockFilter{equal(nr, 0, uint8(len(body)))}, body...)
}

// closeOnExec keeps the files that this process was started with from the
// child. Those it opened itself are never inherited.
func closeOnExec() error {
	const firstBeyondStandard = 3
	err := unix.CloseRange(firstBeyondStandard, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return nil // before Linux 5.11
	}
	return err
}
