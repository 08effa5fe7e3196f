package sidecar

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// workDir is a Promotion's work dir and which directory it is: the same path
// can be another one, after Kargo has lost it and made it again.
type workDir struct {
	path string
	id   dirID
}

// dirID tells directories apart. The time of birth does so where an inode is
// used again; it is 0 on file systems that do not keep it.
type dirID struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Birth  int64  `json:"birth"`
}

var uidPattern = regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`)

// openWorkDir finds the work dir of the Promotion with a UID: a directory, not
// a symlink to one, that belongs to the user this process runs as.
func openWorkDir(root, uid string) (workDir, error) {
	if !uidPattern.MatchString(uid) {
		return workDir{}, refuse(http.StatusBadRequest, "the Promotion has no usable UID")
	}
	path := filepath.Join(root, "promotion-"+uid)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return workDir{}, refuse(http.StatusOK, "the Promotion has no work dir %s: the sidecar has to mount the volume that Kargo's controller has as its TMPDIR", path)
	case err != nil:
		return workDir{}, refuse(http.StatusOK, "cannot use the Promotion's work dir: %v", err)
	case !info.IsDir():
		return workDir{}, refuse(http.StatusOK, "cannot use the Promotion's work dir %s: it is no directory", path)
	}
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	if err != nil {
		return workDir{}, refuse(http.StatusOK, "cannot use the Promotion's work dir %s: %v", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return workDir{}, refuse(http.StatusOK, "cannot use the Promotion's work dir %s: it is no directory", path)
	}
	if int(st.Uid) != os.Getuid() {
		return workDir{}, refuse(http.StatusOK, "cannot use the Promotion's work dir %s: it belongs to user %d, and the sidecar runs as %d; "+
			"both containers have to run as the same user", path, st.Uid, os.Getuid())
	}
	id := dirID{Device: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return workDir{path, id}, nil
}

// isSame tells whether the work dir is still the one it was.
func (d workDir) isSame(root, uid string) bool {
	now, err := openWorkDir(root, uid)
	return err == nil && now == d
}
