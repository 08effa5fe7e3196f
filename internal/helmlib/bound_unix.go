//go:build unix

package helmlib

import "golang.org/x/sys/unix"

// bound makes the process die of more memory, and writes of larger files fail.
func bound(memory, file uint64) error {
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: memory, Max: memory}); err != nil {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: file, Max: file})
}
