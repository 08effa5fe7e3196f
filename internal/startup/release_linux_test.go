package startup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// What is not used again is no longer resident.
func TestReleaseProgram(t *testing.T) {
	const populateRead = 22 // MADV_POPULATE_READ; Linux 5.14
	for _, m := range programMappings() {
		m.advise(populateRead)
	}
	before := resident(t, "RssFile:")
	releaseProgram()
	if after := resident(t, "RssFile:"); after >= before {
		t.Errorf("%d KiB of files are resident, %d were before", after, before)
	}
}

// A mapping with a page that is not the file's any more is left alone, though
// it is read-only: the dynamic linker leaves such, and a debugger.
func TestReleaseLeavesChangedPages(t *testing.T) {
	all := programMappings()
	if len(all) == 0 {
		t.Fatal("the program has no mappings")
	}
	m := all[0]
	page := unsafe.Slice((*byte)(addressOf(m)), os.Getpagesize())
	if err := syscall.Mprotect(page, syscall.PROT_READ|syscall.PROT_WRITE|syscall.PROT_EXEC); err != nil {
		t.Skipf("this system does not let a program write to its own code: %v", err)
	}
	const padding = 9 // a byte of the ELF header that nobody reads
	old := page[padding]
	page[padding] = 'x'
	if err := syscall.Mprotect(page, syscall.PROT_READ|syscall.PROT_EXEC); err != nil {
		t.Fatal(err)
	}
	releaseProgram()
	if page[padding] != 'x' {
		t.Errorf("the change to a page is lost: %#x, it was %#x", page[padding], old)
	}
	for _, again := range programMappings() {
		if again.low == m.low {
			t.Errorf("the changed mapping at %#x is still one to release", m.low)
		}
	}
}

// addressOf keeps the address from looking computed: it is a mapping's, not an
// object's.
func addressOf(m mapping) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&m.low)) }

// A program with relocations, which has read-only pages that the dynamic
// linker has written, goes on running.
func TestReleaseInARelocatedProgram(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "relocated.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-buildmode=pie", "-o", bin, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build: %v\n%s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), bin, "-test.run", "^(TestReleaseProgram|TestGoalEndsWithTheFirstCollection)$", "-test.count=5").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// resident reads a line of /proc/self/status, in KiB.
func resident(t *testing.T, name string) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		v, ok := strings.CutPrefix(line, name)
		if !ok {
			continue
		}
		kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
		if err != nil {
			t.Fatal(err)
		}
		return kib
	}
	t.Fatalf("the kernel does not tell %s", name)
	return 0
}
