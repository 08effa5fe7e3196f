package verification

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Dir is a Ledger in a directory, one file a record, which outlives the
// process. The directory must be stepd's own and outside every work dir:
// whoever can write it can claim a verification.
type Dir struct{ Path string }

// maxRecordFile bounds a record's file; annotations of a manifest fit many
// times over.
const maxRecordFile = 1 << 20

const (
	recordSuffix     = ".verification.json"
	unfinishedPrefix = ".new-"
)

// file is what a record's file holds.
type file struct {
	Key    Key    `json:"key"`
	Record Record `json:"record"`
}

// Put implements Ledger. A reader sees the old record or the new one.
func (d Dir) Put(_ context.Context, k Key, r Record) (err error) {
	b, err := json.Marshal(file{k, r})
	if err != nil {
		return fmt.Errorf("cannot record a verification: %w", err)
	}
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return fmt.Errorf("cannot record a verification: %w", err)
	}
	f, err := os.CreateTemp(d.Path, unfinishedPrefix+"*")
	if err != nil {
		return fmt.Errorf("cannot record a verification: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), d.name(k))
	}
	if err != nil {
		return fmt.Errorf("cannot record a verification: %w", err)
	}
	return nil
}

// Get implements Ledger.
func (d Dir) Get(_ context.Context, k Key) (Record, error) {
	f, err := os.Open(d.name(k))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, &NotFoundError{Key: k}
	}
	if err != nil {
		return Record{}, fmt.Errorf("cannot read a verification: %w", err)
	}
	defer func() { _ = f.Close() }()
	var content file
	if err := json.NewDecoder(io.LimitReader(f, maxRecordFile)).Decode(&content); err != nil {
		return Record{}, fmt.Errorf("cannot read a verification: %s: %w", f.Name(), err)
	}
	if content.Key != k {
		return Record{}, fmt.Errorf("cannot use a verification: %s is of step %q of promotion %q", f.Name(), content.Key.Alias, content.Key.Promotion)
	}
	return content.Record, nil
}

// Prune removes records that were written before a time, and what a killed
// process had written of one.
func (d Dir) Prune(before time.Time) error {
	entries, err := os.ReadDir(d.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot prune verifications: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) && !strings.HasPrefix(e.Name(), unfinishedPrefix) {
			continue
		}
		info, err := e.Info()
		if err == nil && info.ModTime().Before(before) {
			err = os.Remove(filepath.Join(d.Path, e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot prune verifications: %w", err)
	}
	return nil
}

// Remove implements Ledger.
func (d Dir) Remove(k Key) error {
	if err := os.Remove(d.name(k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove a verification: %w", err)
	}
	return nil
}

// name is the path of k's file. Parts are separated by what none can contain.
func (d Dir) name(k Key) string {
	h := sha256.Sum256([]byte(k.Project + "\x00" + k.Promotion + "\x00" + k.Alias))
	return filepath.Join(d.Path, hex.EncodeToString(h[:])+recordSuffix)
}
