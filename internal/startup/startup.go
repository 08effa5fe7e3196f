// Package startup keeps the garbage collector out of the way while a process
// starts. Imported libraries build tables of some five megabytes before main
// begins; with Go's default goal, whose first collection is due at 4 MiB, that
// costs a short command such as verify a third of its CPU time.
//
// The first collection is put off to 32 MiB instead, and once it has happened
// the goal is what it would have been: nothing that runs for long pays.
//
// Only main imports this package. It works by being initialised early: Go
// initialises the packages that are ready in the order of their import paths,
// and this one is ready as soon as runtime/debug is. It must therefore import
// nothing else.
package startup

import (
	"runtime"
	"runtime/debug"
)

// initialGoal is the collector's goal in percent of the 4 MiB that Go takes
// for the live heap before the first collection.
const initialGoal = 800

// The first collection finds the sentinel unreachable.
var _ = runtime.AddCleanup(new([64]byte), func(goal int) { debug.SetGCPercent(goal) }, debug.SetGCPercent(initialGoal))
