package sidecar

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// KeyDir reads the public keys that tokens may be signed with from the files of
// a directory: PEM, PKIX, Ed25519, one or several a file. The directory can be a
// mounted ConfigMap. It is read again as it changes, so that a key can be added
// before the webhook signs with it, and removed once no Promotion needs it.
type KeyDir struct {
	// Path is the directory.
	Path string
	// Log is told of files that hold no key. Optional.
	Log *slog.Logger

	mu   sync.Mutex
	at   time.Time
	keys []ed25519.PublicKey
	err  error
	said string
}

const (
	// keysFor is how long keys that were read are used: it is the time in which
	// a change is noticed.
	keysFor = time.Second
	// maxKeyFile bounds a file, maxKeys what is in all of them.
	maxKeyFile = 64 << 10
	maxKeys    = 64
)

// Keys returns the keys. It is an error if there is none.
func (d *KeyDir) Keys() ([]ed25519.PublicKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at.IsZero() || time.Since(d.at) >= keysFor {
		d.keys, d.err = d.read()
		d.at = time.Now()
	}
	return d.keys, d.err
}

func (d *KeyDir) read() ([]ed25519.PublicKey, error) {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the public keys: %w", err)
	}
	var keys []ed25519.PublicKey
	var bad []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() { // a ConfigMap's ..data and its like
			continue
		}
		path := filepath.Join(d.Path, e.Name())
		found, err := readKeys(path)
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s: %v", e.Name(), err))
			continue
		}
		keys = append(keys, found...)
	}
	// One bad file must not keep the good ones from being used, nor be unseen.
	if all := strings.Join(bad, "; "); all != d.said {
		d.said = all
		if d.Log != nil && all != "" {
			d.Log.Error("files without a usable public key", "dir", d.Path, "files", all)
		}
	}
	switch {
	case len(keys) == 0 && len(bad) > 0:
		return nil, fmt.Errorf("no file in %s holds a usable public key: %s", d.Path, strings.Join(bad, "; "))
	case len(keys) == 0:
		return nil, fmt.Errorf("there is no public key in %s", d.Path)
	case len(keys) > maxKeys:
		return nil, fmt.Errorf("there are %d public keys in %s, more than %d", len(keys), d.Path, maxKeys)
	}
	return slices.Clip(keys), nil
}

func readKeys(path string) ([]ed25519.PublicKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("it is longer than %d bytes", maxKeyFile)
	}
	return ParsePublicKeys(text)
}

// ParsePublicKeys reads Ed25519 public keys in PEM. Anything else in the text,
// a private key above all, is an error.
func ParsePublicKeys(text []byte) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("it holds a %s, where only public keys belong", block.Type)
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("it holds a public key that cannot be read: %w", err)
		}
		key, ok := parsed.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("it holds a %T, where only Ed25519 keys belong", parsed)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no public key in PEM")
	}
	return keys, nil
}
