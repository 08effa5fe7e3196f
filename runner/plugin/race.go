//go:build race

package plugin

// raceEnv turns reports of the race detector off in plugins that are built with
// it: go-plugin's server replaces os.Stderr while yamux reads it, and the time
// that a report of it takes is longer than either waits for the other.
func raceEnv() []string { return []string{"GORACE=report_bugs=0"} }
