package startup

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// releaseProgram gives back the pages of the program's file. Initialisation
// touches code all over it, and the kernel maps sixteen pages at each touch:
// some 30 MiB, most of which a command never needs again. What it does need is
// mapped anew, from the page cache.
//
// It is an economy: where it cannot be had, nothing is lost.
func releaseProgram() { adviseProgram(syscall.MADV_DONTNEED) }

// adviseProgram gives advice (madvise(2)) about the pages of the program's file.
func adviseProgram(advice uintptr) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		// address perms offset dev inode pathname (proc_pid_maps(5)). What is
		// writable has been written to, and is not the file's any more.
		f := strings.Fields(line)
		if len(f) < 6 || strings.Contains(f[1], "w") || f[5] != exe {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		low, err1 := strconv.ParseUint(from, 16, 64)
		high, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || low >= high {
			continue
		}
		_, _, _ = syscall.RawSyscall(syscall.SYS_MADVISE, uintptr(low), uintptr(high-low), advice)
	}
}
