package sandbox_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stepd/stepd/internal/sandbox"
)

// TestMain lets the test binary play the confined program.
func TestMain(m *testing.M) {
	switch os.Getenv("SANDBOX_ROLE") {
	case "probe":
		probe()
	case "parent":
		parent()
	default:
		os.Exit(m.Run())
	}
}

// inherited is the number of a file that this process was started with.
const inherited = 77

// probe tries what a confined program must and must not be able to do.
func probe() {
	report := func(what string, err error) { fmt.Printf("%s=%t\n", what, err == nil) }
	_, err := os.ReadFile(os.Getenv("SECRET"))
	report("read outside", err)
	report("write outside", os.WriteFile(os.Getenv("SECRET")+"2", nil, 0o600))
	report("write inside", os.WriteFile(filepath.Join(os.Getenv("WORK"), "f"), []byte("x"), 0o600))
	_, err = os.ReadFile("/etc/hosts")
	report("read system", err)
	_, err = os.ReadFile(fmt.Sprintf("/proc/%d/environ", os.Getppid()))
	report("read environment of the host", err)
	report("signal the host", unix.Kill(os.Getppid(), 0))
	report("keep an inherited file", func() error { _, err := unix.FcntlInt(inherited, unix.F_GETFD, 0); return err }())
	report("stay when the host dies", unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0))
	report("stay by another signal", unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGCHLD), 0, 0, 0))
	report("prctl otherwise", unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[]byte("probe\x00")[0])), 0, 0, 0))
	l, err := net.Listen("unix", filepath.Join(os.Getenv("WORK"), "l"))
	report("listen", err)
	if err == nil {
		_ = l.Close()
	}
	_, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	report("unix datagrams", err)
	for what, address := range map[string]string{"tcp": "127.0.0.1:9", "udp": "127.0.0.1:9", "unix": filepath.Join(os.Getenv("WORK"), "none")} {
		_, err := net.Dial(what, address)
		fmt.Printf("%s denied=%t\n", what, errors.Is(err, unix.EPERM))
	}
	fmt.Printf("become another user denied=%t\n", errors.Is(unix.Setresuid(-1, 65534, -1), unix.EPERM))
	fmt.Printf("become another group denied=%t\n", errors.Is(unix.Setresgid(-1, 65534, -1), unix.EPERM))
	var death int32
	_ = unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&death)), 0, 0, 0)
	fmt.Printf("dies by signal %d\n", death)
	report("shell", exec.Command("/bin/sh", "-c", ":").Run())
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	fmt.Printf("files=%d\n", limit.Cur)
	nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	fmt.Printf("nnp=%d\n", nnp)
}

// parent starts a child that would run for ever and says its pid.
func parent() {
	cmd := exec.Command("/bin/sleep", "1000")
	p, err := sandbox.Start(cmd, sandbox.Policy{ReadOnly: sandbox.SystemPaths()})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.Pid())
	select {}
}

func TestConfinement(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := sandbox.Digest(self)
	if err != nil {
		t.Fatal(err)
	}
	image, err := sandbox.Load(self, digest)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	work := t.TempDir()
	if err := unix.Dup3(0, inherited, 0); err != nil { // as if a shell had left it open
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	cmd := exec.Command(image.Path())
	cmd.Env = []string{"SANDBOX_ROLE=probe", "SECRET=" + secret, "WORK=" + work}
	out := run(t, cmd, sandbox.Policy{
		ReadOnly:  sandbox.SystemPaths(),
		ReadWrite: []string{work, "/does/not/exist"},
		Limits:    sandbox.Limits{OpenFiles: 77},
		NoNetwork: true,
	})
	confined := sandbox.Detect().LandlockABI > 0
	for what, want := range map[string]bool{
		"read outside=false":                 confined,
		"write outside=false":                confined,
		"read environment of the host=false": confined,
		"signal the host=false":              sandbox.Detect().LandlockABI >= 6,
		"tcp denied=true":                    true,
		"udp denied=true":                    true,
		"unix denied=true":                   true,
		"unix datagrams=false":               true,
		"listen=true":                        true,
		"keep an inherited file=false":       true,
		"stay when the host dies=false":      true,
		"stay by another signal=false":       true,
		"become another user denied=true":    true,
		"become another group denied=true":   true,
		"dies by signal 9":                   true,
		"prctl otherwise=true":               true,
		"write inside=true":                  true,
		"read system=true":                   true,
		"shell=true":                         true,
		"files=77":                           true,
		"nnp=1":                              true,
	} {
		if want && !strings.Contains(out, what+"\n") {
			t.Errorf("want %s in:\n%s", what, out)
		}
	}
	if err := os.WriteFile(secret+"3", nil, 0o600); err != nil {
		t.Errorf("the test itself was confined: %v", err)
	}
}

func TestLoadRefusesAChangedProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p")
	if err := os.WriteFile(path, []byte("\x7fELFone"), 0o700); err != nil {
		t.Fatal(err)
	}
	digest, err := sandbox.Digest(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("\x7fELFtwo"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = sandbox.Load(path, digest)
	if e, ok := errors.AsType[*sandbox.DigestError](err); !ok || e.Want != digest || e.Got == digest {
		t.Errorf("got %v, want a DigestError", err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := sandbox.Load(path, digest); err == nil || !strings.Contains(err.Error(), "script") {
		t.Errorf("a script: %v", err)
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/dev/zero", t.TempDir()} {
		if _, err := sandbox.Load(path, ""); err == nil || !strings.Contains(err.Error(), "not a file") {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := sandbox.Digest(path); err == nil {
			t.Errorf("%s has a digest", path)
		}
	}
}

func TestTheWholeGroupEnds(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 & echo started; exit 3")
	cmd.Stdout = in
	p, err := sandbox.Start(cmd, sandbox.Policy{ReadOnly: sandbox.SystemPaths()})
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	// The pipe ends only when the grandchild, which holds it open, is gone.
	ended := make(chan error, 1)
	go func() { _, err := io.ReadAll(out); ended <- err }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a grandchild survived")
	}
	<-p.Exited()
	if e, ok := errors.AsType[*exec.ExitError](p.Err()); !ok || e.ExitCode() != 3 {
		t.Errorf("exit: %v, want code 3", p.Err())
	}
	if err := p.Kill(); err != nil {
		t.Errorf("killing what has ended: %v", err)
	}
}

func TestChildDiesWithItsParent(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{"SANDBOX_ROLE=parent"}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Fscan(stdout, &child); err != nil {
		t.Fatalf("no pid: %v", err)
	}
	pidfd, err := unix.PidfdOpen(child, 0)
	if err != nil {
		t.Fatalf("the child does not run: %v", err)
	}
	defer unix.Close(pidfd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 2000)
	if err != nil || n != 1 {
		t.Errorf("2 s after its parent was killed, the child is still there (%d, %v)", n, err)
	}
}

func run(t *testing.T, cmd *exec.Cmd, p sandbox.Policy) string {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = in, in
	proc, err := sandbox.Start(cmd, p)
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	<-proc.Exited()
	if proc.Err() != nil {
		t.Errorf("%v\n%s", proc.Err(), text)
	}
	return string(text)
}
