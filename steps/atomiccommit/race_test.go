//go:build race

package atomiccommit_test

// raceEnabled shortens the crash tests, whose processes start slowly with the
// race detector. The end-to-end suite runs them in full, without it.
const raceEnabled = true
