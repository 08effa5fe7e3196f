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
func releaseProgram() {
	for _, m := range programMappings() {
		m.advise(syscall.MADV_DONTNEED)
	}
}

// mapping is a range of addresses.
type mapping struct{ low, high uintptr }

// advise gives advice (madvise(2)) about the pages of a mapping.
func (m mapping) advise(advice uintptr) {
	_, _, _ = syscall.RawSyscall(syscall.SYS_MADVISE, m.low, m.high-m.low, advice)
}

// programMappings are the mappings of the program's file that hold what the
// file holds and nothing else. The others look alike, but have pages of their
// own, which must not be dropped: variables; addresses that the dynamic linker
// has filled in before it made them read-only; a debugger's breakpoints. The
// kernel counts those pages as anonymous (proc_pid_smaps(5)).
func programMappings() []mapping {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return nil
	}
	var out []mapping
	var current *mapping // of the program's file, read-only
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" && current != nil:
			out = append(out, *current)
			current = nil
		case len(f) >= 5 && strings.Contains(f[0], "-"): // address perms offset dev inode pathname
			current = nil
			if len(f) == 6 && !strings.Contains(f[1], "w") && f[5] == exe {
				current = parseRange(f[0])
			}
		}
	}
	return out
}

func parseRange(s string) *mapping {
	from, to, _ := strings.Cut(s, "-")
	low, err1 := strconv.ParseUint(from, 16, 64)
	high, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil || low >= high {
		return nil
	}
	return &mapping{uintptr(low), uintptr(high)}
}
