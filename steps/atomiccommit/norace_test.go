//go:build !race

package atomiccommit_test

const raceEnabled = false
