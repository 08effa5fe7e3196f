package ociverified

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/stepd/stepd/internal/sigverify"
	"github.com/stepd/stepd/steps"
)

// TrustFiles reads the files that a config names as a source of trust.
type TrustFiles interface {
	// Read returns the content of the named file, at most
	// sigverify.MaxTrustFile bytes. It never reads from sc.WorkDir, which
	// earlier steps write.
	Read(sc *steps.Context, path string) ([]byte, error)
}

// BesideConfig reads trust files relative to the file the step is written in,
// for local runs. Absolute paths are taken as they are.
type BesideConfig struct{}

// Read implements TrustFiles.
func (BesideConfig) Read(sc *steps.Context, path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		if sc.ConfigFile == "" {
			return nil, fmt.Errorf("cannot read %q: the step was not read from a file that it could be relative to; use an absolute path", path)
		}
		path = filepath.Join(filepath.Dir(sc.ConfigFile), path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read a source of trust: %w", err)
	}
	if sc.WorkDir != "" {
		workDir, err := filepath.EvalSymlinks(sc.WorkDir)
		if err != nil {
			return nil, fmt.Errorf("cannot resolve the work dir: %w", err)
		}
		if rel, err := filepath.Rel(workDir, real); err == nil && filepath.IsLocal(rel) {
			return nil, fmt.Errorf("cannot read %q: it is in the work dir, which is never a source of trust", path)
		}
	}
	f, err := os.Open(real)
	if err != nil {
		return nil, fmt.Errorf("cannot read a source of trust: %w", err)
	}
	return readTrustFile(f)
}

// Below reads trust files below one directory, the operator's, for servers.
// Symlinks that lead out of it are not followed.
type Below struct{ Dir string }

// Read implements TrustFiles.
func (b Below) Read(_ *steps.Context, path string) ([]byte, error) {
	if b.Dir == "" {
		return nil, fmt.Errorf("cannot read %q: the operator has set no trust directory", path)
	}
	if filepath.IsAbs(path) {
		rel, err := filepath.Rel(b.Dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			return nil, fmt.Errorf("cannot read %q: it is not below the operator's trust directory", path)
		}
		path = rel
	}
	dir, err := os.OpenRoot(b.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the operator's trust directory: %w", err)
	}
	defer func() { _ = dir.Close() }()
	f, err := dir.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read a source of trust below the operator's trust directory: %w", err)
	}
	return readTrustFile(f)
}

func readTrustFile(f *os.File) ([]byte, error) {
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read a source of trust: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot read %q: it is not a regular file", info.Name())
	}
	b, err := io.ReadAll(io.LimitReader(f, sigverify.MaxTrustFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read a source of trust: %w", err)
	}
	if len(b) > sigverify.MaxTrustFile {
		return nil, errors.New("cannot read a source of trust: the file is too large")
	}
	return b, nil
}

// roots remembers parsed trusted roots by their content.
type roots struct {
	mu sync.Mutex
	m  map[[sha256.Size]byte]root.TrustedMaterial
}

const maxRoots = 16

func (r *roots) parse(data []byte) (root.TrustedMaterial, error) {
	key := sha256.Sum256(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	if tr, ok := r.m[key]; ok {
		return tr, nil
	}
	tr, err := sigverify.ParseTrustedRoot(data)
	if err != nil {
		return nil, err
	}
	if r.m == nil || len(r.m) >= maxRoots {
		r.m = map[[sha256.Size]byte]root.TrustedMaterial{}
	}
	r.m[key] = tr
	return tr, nil
}
