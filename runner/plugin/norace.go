//go:build !race

package plugin

func raceEnv() []string { return nil }
