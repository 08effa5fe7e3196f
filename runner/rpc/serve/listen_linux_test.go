package serve

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSocketIsNeverOpenToOthers(t *testing.T) {
	defer unix.Umask(unix.Umask(0)) // which forbids nothing
	path := filepath.Join(t.TempDir(), "s")
	lc := listenConfig()
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("the socket was made with mode %v, %v; want %o", info.Mode().Perm(), err, socketMode)
	}
}
