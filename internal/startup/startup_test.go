package startup_test

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/startup"
)

// The goal is Go's again after the first collection, which is asked for here.
func TestGoalEndsWithTheFirstCollection(t *testing.T) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		runtime.GC()
		// Reading the goal means setting it.
		goal := debug.SetGCPercent(100)
		debug.SetGCPercent(goal)
		if goal == 100 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the collector's goal is %d%% after a collection, want 100%%", goal)
		}
		runtime.Gosched()
	}
}

// A limit that is there stands.
func TestLimitMemory(t *testing.T) {
	was := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(was)
	debug.SetMemoryLimit(math.MaxInt64)
	for _, limit := range []int64{1 << 30, 1 << 20} {
		startup.LimitMemory(limit)
		if got := debug.SetMemoryLimit(-1); got != 1<<30 {
			t.Errorf("the limit is %d, want the first that was set", got)
		}
	}
}
