package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Detect tells what Start can enforce on this machine.
func Detect() Confinement {
	return Confinement{LandlockABI: landlockABI(), NoNewPrivileges: true, DiesWithParent: true, Limited: true}
}

// Process is a started subprocess.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error

	mu     sync.Mutex
	reaped bool
}

// Start starts cmd confined by p, as the leader of a process group of its own
// that is killed as a whole when the leader ends. Standard streams have to be
// files or nil.
//
// The restrictions are those of one thread, which the child inherits; the
// thread is given up with the child. It also has to live as long as the child,
// because the kernel's parent-death signal is about the parent's thread, see
// prctl(2) PR_SET_PDEATHSIG.
func Start(cmd *exec.Cmd, p Policy) (*Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	if cmd.Stdin == nil {
		cmd.Stdin = null
	}
	if cmd.Stdout == nil {
		cmd.Stdout = null
	}
	if cmd.Stderr == nil {
		cmd.Stderr = null
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL

	proc := &Process{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error, 1)
	onThread(func() {
		if err := proc.start(p); err != nil {
			started <- err
			return
		}
		started <- nil
		proc.wait()
	})
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", cmd.Args[0], err)
	}
	return proc, nil
}

// onThread runs f on a thread that nothing else runs on and that ends with f.
// It is never the main thread: what the kernel asks about this process, such
// as whether the child may signal or trace it, it asks about that one.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return // still locked, which ends the thread
		}
		// While this goroutine holds the main thread, another cannot get it.
		elsewhere := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(elsewhere)
			f()
		}()
		<-elsewhere
		runtime.UnlockOSThread()
	}()
}

// Pid is the process id, also after the process has ended.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended and its group is gone.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Err says how the process ended: nil for exit code 0. It may be called once
// Exited is closed.
func (p *Process) Err() error { return p.err }

// Kill kills the process and its group. It does nothing after the end.
func (p *Process) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return nil
	}
	return killGroup(p.Pid())
}

func (p *Process) start(policy Policy) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if err := restrictThread(policy); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := restrictCalls(policy.NoNetwork); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	if err := closeOnExec(); err != nil {
		return fmt.Errorf("inherited files: %w", err)
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	if err := limit(p.Pid(), policy.Limits); err != nil {
		err = errors.Join(fmt.Errorf("resource limits: %w", err), killGroup(p.Pid()))
		_ = p.cmd.Wait() // it was killed, which is no news
		return err
	}
	return nil
}

// wait reaps the process after its group was killed: until then the group's
// id cannot be somebody else's.
func (p *Process) wait() {
	for {
		err := unix.Waitid(unix.P_PID, p.Pid(), nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	_ = killGroup(p.Pid()) // the rest of the group; most often there is none
	p.err = p.cmd.Wait()
	p.reaped = true
	p.mu.Unlock()
	close(p.exited)
}

func killGroup(pid int) error {
	if err := unix.Kill(-pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func limit(pid int, l Limits) error {
	for resource, value := range map[int]uint64{
		unix.RLIMIT_NOFILE: l.OpenFiles,
		unix.RLIMIT_FSIZE:  l.FileBytes,
		unix.RLIMIT_DATA:   l.MemoryBytes,
	} {
		if value == 0 {
			continue
		}
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: value, Max: value}, nil); err != nil {
			return err
		}
	}
	// A core dump could hold credentials.
	return unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
}

// Access rights by what may be done with them; see landlock(7).
const (
	readAccess = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR

	writeAccess = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR |
		unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SYM |
		unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_TRUNCATE

	// deniedAccess is handled and never granted.
	deniedAccess = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

	// fileAccess is the part of an access that means something for a file.
	fileAccess = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// landlockABI returns the kernel's Landlock version, 0 when it has none.
func landlockABI() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// restrictThread confines the calling thread, and what it starts, to p's
// paths. Without Landlock in the kernel it does nothing. TCP ports cannot be
// listened on, and processes outside cannot be signalled, where the kernel
// knows how to say so; connections out stay possible.
func restrictThread(p Policy) error {
	abi := landlockABI()
	if abi == 0 {
		return nil
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: readAccess | writeAccess | deniedAccess}
	if abi < 5 {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi < 3 {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi < 2 {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 4 {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	//nolint:gosec // the kernel's interface is a pointer
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("create ruleset: %w", errno)
	}
	ruleset := int(fd)
	defer func() { _ = unix.Close(ruleset) }()
	for _, path := range p.ReadOnly {
		if err := allow(ruleset, path, readAccess&attr.Handled_access_fs); err != nil {
			return err
		}
	}
	for _, path := range append([]string{os.DevNull}, p.ReadWrite...) {
		if err := allow(ruleset, path, (readAccess|writeAccess)&attr.Handled_access_fs); err != nil {
			return err
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0); errno != 0 {
		return fmt.Errorf("restrict self: %w", errno)
	}
	return nil
}

func allow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= fileAccess
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	//nolint:gosec // the kernel's interface is a pointer
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&attr)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("%s: %w", path, errno)
	}
	return nil
}
