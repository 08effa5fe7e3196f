package builtin

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/stepd/stepd/steps"
)

type untarConfig struct {
	InPath          string `json:"inPath"`
	OutPath         string `json:"outPath"`
	StripComponents int    `json:"stripComponents"`
	Ignore          string `json:"ignore"`
}

const (
	maxUntarFile    = 50 << 20
	maxUntarTotal   = 100 << 20
	maxUntarEntries = 100_000
)

// Untar is `untar`: it replaces outPath with what is in a tar archive, which
// may be compressed with gzip. Regular files, directories and symlinks come
// out; names and link targets that leave the directory are skipped.
//
// Two things that Kargo v1.11.2 means to do and does not are done: `ignore` is
// matched against names in the archive, and entries named "./x" come out as x.
func Untar() steps.Registration { return stateless("untar", runUntar) }

func runUntar(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[untarConfig](sc)
	if err != nil {
		return failed(err)
	}
	in, err := within(sc, cfg.InPath)
	if err != nil {
		return errored(err)
	}
	out, err := within(sc, cfg.OutPath)
	if err != nil {
		return errored(err)
	}
	if err := untar(ctx, sc.WorkDir, in, out, cfg); err != nil {
		return errored(fmt.Errorf("failed to extract %q to %q: %w", cfg.InPath, cfg.OutPath, relativeTo(sc.WorkDir, err)))
	}
	return succeeded(nil)
}

func untar(ctx context.Context, workDir, in, out string, cfg untarConfig) error {
	if rel, err := filepath.Rel(workDir, out); err != nil || rel == "." {
		return errors.New("outPath must be a directory in the work dir, not the work dir")
	}
	f, err := os.Open(in)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	stream, err := uncompressed(f)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(workDir, ".untar-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	fresh, stale := filepath.Join(scratch, "new"), filepath.Join(scratch, "old")
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(fresh)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if err := extract(ctx, tar.NewReader(stream), root, cfg); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o700); err != nil {
		return err
	}
	if err := os.Rename(out, stale); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(fresh, out)
}

// uncompressed detects gzip by its magic number.
func uncompressed(r io.Reader) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	magic, err := buffered.Peek(2)
	if err != nil || !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return buffered, nil //nolint:nilerr // the tar reader will say what is wrong
	}
	return gzip.NewReader(buffered)
}

func extract(ctx context.Context, archive *tar.Reader, root *os.Root, cfg untarConfig) error {
	ignored := ignoreMatcher(cfg.Ignore)
	var total int64
	for range maxUntarEntries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name, ok := entryName(header.Name, cfg.StripComponents)
		if !ok || ignoredWithParents(ignored, name, header.Typeflag == tar.TypeDir) {
			continue
		}
		switch header.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o750)
		case tar.TypeReg:
			if header.Size > maxUntarFile {
				return fmt.Errorf("file %q exceeds size limit of %d bytes", name, maxUntarFile)
			}
			if total += header.Size; total > maxUntarTotal {
				return fmt.Errorf("the archive's content exceeds size limit of %d bytes", maxUntarTotal)
			}
			err = extractFile(archive, root, name, header)
		case tar.TypeSymlink:
			err = extractSymlink(root, name, header.Linkname)
		}
		if err != nil {
			return fmt.Errorf("cannot extract %q: %w", name, err)
		}
	}
	return fmt.Errorf("the archive has more than %d entries", maxUntarEntries)
}

// entryName is the name of an entry after leading components were dropped. It
// is false for what nothing is left of and for names that would not stay in
// the directory.
func entryName(name string, strip int) (string, bool) {
	parts := strings.Split(name, "/")
	if len(parts) <= strip {
		return "", false
	}
	name = strings.Join(parts[strip:], "/")
	if strings.Contains(name, `\`) || strings.Contains(name, "../") || strings.HasPrefix(name, "/") {
		return "", false
	}
	name = path.Clean(name)
	return name, name != "." && filepath.IsLocal(name)
}

// ignoredWithParents also ignores what is in an ignored directory, for which
// an archive need not have an entry.
func ignoredWithParents(ignored func(string, bool) bool, name string, isDir bool) bool {
	for i, c := range name {
		if c == '/' && ignored(name[:i], true) {
			return true
		}
	}
	return ignored(name, isDir)
}

func extractFile(content io.Reader, root *os.Root, name string, header *tar.Header) error {
	if err := makeRoom(root, name); err != nil {
		return err
	}
	mode := os.FileMode(header.Mode) & 0o777
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, content, header.Size)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && !header.ModTime.IsZero() {
		err = root.Chtimes(name, header.ModTime, header.ModTime)
	}
	return err
}

// extractSymlink skips links that are absolute or lead out of the directory.
func extractSymlink(root *os.Root, name, target string) error {
	if strings.Contains(target, `\`) || !filepath.IsLocal(path.Join(path.Dir(name), target)) || path.IsAbs(target) {
		return nil
	}
	if err := makeRoom(root, name); err != nil {
		return err
	}
	return root.Symlink(target, name)
}

// makeRoom makes the parents of name and removes what an earlier entry of the
// same name left, so that nothing is written through a link.
func makeRoom(root *os.Root, name string) error {
	if err := root.MkdirAll(path.Dir(name), 0o750); err != nil {
		return err
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
