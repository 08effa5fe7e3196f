// Package startup keeps what a process needs in order to start from costing it
// more than that.
//
// Imported libraries build tables of some five megabytes before main begins.
// With Go's default goal, whose first collection is due at 4 MiB, that costs a
// short command such as verify a third of its CPU time. The first collection is
// put off to 32 MiB instead, and once it has happened the goal is what it would
// have been: nothing that runs for long pays.
//
// Sampling allocations for a heap profile, which nothing here asks for, is off.
//
// Whoever lives to see a collection also gives back the pages of the program's
// file that only initialisation needed.
//
// Only main imports this package. It works by being initialised early: Go
// initialises the packages that are ready in the order of their import paths,
// and this one is ready as soon as runtime/debug is. It must therefore import
// nothing that is ready later.
package startup

import (
	"math"
	"runtime"
	"runtime/debug"
)

// LimitMemory makes the collector work harder instead of letting what Go
// manages grow beyond limit bytes. Parsers make much garbage of a small input,
// and the collector's own goal, twice what is alive, leaves it lying about.
// What is alive may exceed the limit; the collector then takes at most half of
// the CPU (runtime/debug.SetMemoryLimit). A limit from the environment
// (GOMEMLIMIT) stands.
func LimitMemory(limit int64) {
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(limit)
	}
}

// initialGoal is the collector's goal in percent of the 4 MiB that Go takes
// for the live heap before the first collection.
const initialGoal = 800

// The first collection finds the sentinel unreachable.
var _ = runtime.AddCleanup(new([64]byte), firstCollection, debug.SetGCPercent(initialGoal))

var _ = noHeapProfile()

func noHeapProfile() struct{} {
	runtime.MemProfileRate = 0
	return struct{}{}
}

func firstCollection(goal int) {
	debug.SetGCPercent(goal)
	releaseProgram()
}
