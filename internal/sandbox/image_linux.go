package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Image is a program whose bytes cannot change any more.
type Image struct{ memory *os.File }

// Load reads the program at path into sealed memory and refuses it with a
// *DigestError unless its digest is the pinned one. What runs is what was
// hashed, whatever happens to the file afterwards.
func Load(path, digest string) (*Image, error) {
	f, err := openProgram(path)
	if err != nil {
		return nil, fmt.Errorf("cannot load program: %w", err)
	}
	defer func() { _ = f.Close() }()
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil || string(magic[:]) != "\x7fELF" {
		return nil, fmt.Errorf("cannot load %s: it is not an ELF program; scripts cannot be plugins", path)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("cannot load program: %w", err)
	}
	fd, err := unix.MemfdCreate(filepath.Base(path), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC came with Linux 6.3
		fd, err = unix.MemfdCreate(filepath.Base(path), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot load %s into memory: %w", path, err)
	}
	memory := os.NewFile(uintptr(fd), path)
	got, err := copyDigest(memory, f)
	if err == nil {
		_, err = unix.FcntlInt(memory.Fd(), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err == nil && got != digest {
		err = &DigestError{Path: path, Want: digest, Got: got}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot load program: %w", err), memory.Close())
	}
	return &Image{memory}, nil
}

// Path is what a child of this process executes. It is good until Close.
func (i *Image) Path() string { return fmt.Sprintf("/proc/self/fd/%d", i.memory.Fd()) }

// Close gives up the image; a process that was started from it goes on.
func (i *Image) Close() error { return i.memory.Close() }
