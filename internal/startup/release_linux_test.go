package startup

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// What is not used again is no longer resident.
func TestReleaseProgram(t *testing.T) {
	const populateRead = 22 // MADV_POPULATE_READ; Linux 5.14
	adviseProgram(populateRead)
	before := resident(t, "RssFile:")
	releaseProgram()
	if after := resident(t, "RssFile:"); after >= before {
		t.Errorf("%d KiB of files are resident, %d were before", after, before)
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
