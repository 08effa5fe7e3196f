package startup_test

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	_ "github.com/stepd/stepd/internal/startup"
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
