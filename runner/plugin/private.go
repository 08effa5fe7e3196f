package plugin

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// privatePrefix begins the name of every private directory.
	privatePrefix = "stepd-host-"
	// sweepAge is from when on a directory that nobody holds is left over.
	sweepAge = time.Minute
)

// privateDir is a directory of one process that only this user can enter. It
// is held, by a lock that ends with its owner, until it is removed: a stepd
// that was killed removes nothing, and its successor can tell.
type privateDir struct {
	path string
	lock *os.File
}

func newPrivateDir() (*privateDir, error) {
	path, err := os.MkdirTemp(privateBase(), privatePrefix)
	if err != nil {
		return nil, err
	}
	lock, err := hold(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &privateDir{path, lock}, nil
}

func (d *privateDir) remove() error { return errors.Join(os.RemoveAll(d.path), d.lock.Close()) }

// hold locks a directory, or fails at once when somebody else holds it.
func hold(path string) (*os.File, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// removeLeftOver removes the private directories of this user that nobody
// holds: with what plugins left in them, of a stepd that was killed.
func removeLeftOver(log *slog.Logger) {
	base := privateBase()
	paths, err := filepath.Glob(filepath.Join(base, privatePrefix+"*"))
	if err != nil {
		return // the pattern is fixed but for base, which may have brackets
	}
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < sweepAge {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		lock, err := hold(path)
		if err != nil {
			continue
		}
		if err := errors.Join(os.RemoveAll(path), lock.Close()); err != nil {
			log.Warn("cannot remove what a stepd that was killed left behind", "err", err)
		}
	}
}

// privateBase is the temporary directory, unless a socket below it could have a
// longer path than the 107 bytes that one may have, see unix(7).
func privateBase() string {
	const below = len("/" + privatePrefix + "4294967295/plugin-dir4294967295/plugin4294967295")
	if base := os.TempDir(); len(base)+below <= 107 {
		return base
	}
	return "/tmp"
}
