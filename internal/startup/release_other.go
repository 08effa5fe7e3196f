//go:build !linux

package startup

func releaseProgram() {}
