package sandbox

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Snapshot describes everything below dir, a line each: mode, path, and the
// hash of a file or the target of a link. Two snapshots are equal when nothing
// was written in between.
func Snapshot(dir string) ([]string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var content string
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%x", sha256.Sum256(b))
		case info.Mode()&fs.ModeSymlink != 0:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		rel, err := filepath.Rel(dir, path)
		lines = append(lines, fmt.Sprintf("%s %s %s", info.Mode(), rel, content))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot look at %s: %w", dir, err)
	}
	slices.Sort(lines)
	return lines, nil
}
