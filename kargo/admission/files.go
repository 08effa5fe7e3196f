package admission

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// maxFileBytes bounds a PEM file.
const maxFileBytes = 1 << 20

// CertificateFiles serves a certificate and key from PEM files that somebody
// else renews. They are read again when they change; while they do not fit
// together, the last ones that did are used.
type CertificateFiles struct{ files *watched[*tls.Certificate] }

// NewCertificateFiles reads the files, which have to be usable now.
func NewCertificateFiles(certFile, keyFile string, log *slog.Logger) (*CertificateFiles, error) {
	f := &CertificateFiles{&watched[*tls.Certificate]{
		what: "certificate", names: []string{certFile, keyFile}, log: log,
		parse: func(texts [][]byte) (*tls.Certificate, error) {
			cert, err := tls.X509KeyPair(texts[0], texts[1])
			return &cert, err
		},
	}}
	_, err := f.files.current()
	return f, err
}

// Certificate implements CertificateSource.
func (f *CertificateFiles) Certificate() (*tls.Certificate, error) { return f.files.current() }

// KeyFile is a signing key from a PEM file, PKCS #8 and Ed25519, that somebody
// else replaces. It is read again when it changes; while it is unusable, the
// last usable one signs.
//
// The public keys of this key and of those before it have to be where the
// sidecar reads them before the file changes.
type KeyFile struct {
	file *watched[ed25519.PrivateKey]
}

// NewKeyFile reads the file, which has to be usable now.
func NewKeyFile(name string, log *slog.Logger) (*KeyFile, error) {
	f := &KeyFile{&watched[ed25519.PrivateKey]{
		what: "signing key", names: []string{name}, log: log,
		parse: func(texts [][]byte) (ed25519.PrivateKey, error) { return parsePrivateKey(texts[0]) },
	}}
	_, err := f.file.current()
	return f, err
}

// SigningKey implements KeySource.
func (f *KeyFile) SigningKey() (ed25519.PrivateKey, error) { return f.file.current() }

func parsePrivateKey(text []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it holds no PEM block PRIVATE KEY: make one with `openssl genpkey -algorithm ed25519`")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it holds a %T, not an Ed25519 key: make one with `openssl genpkey -algorithm ed25519`", key)
	}
	return private, nil
}

// watched is a value made of files, made again when one of them changes.
type watched[T any] struct {
	what  string // for messages
	names []string
	parse func([][]byte) (T, error)
	log   *slog.Logger

	mu     sync.Mutex
	stamps []stamp
	// failed are the stamps of files that could not be used; they are not read
	// again, and complained about, for every request.
	failed []stamp
	good   T
	some   bool
}

// stamp tells whether a file is still the one that was read.
type stamp struct {
	info os.FileInfo
	size int64
	at   time.Time
}

func sameStamp(a, b stamp) bool {
	return a.size == b.size && a.at.Equal(b.at) && os.SameFile(a.info, b.info)
}

func (w *watched[T]) current() (T, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := make([]stamp, len(w.names))
	for i, name := range w.names {
		info, err := os.Stat(name)
		if err != nil {
			return w.lastGood(err, nil)
		}
		now[i] = stamp{info, info.Size(), info.ModTime()}
	}
	if w.some && (slices.EqualFunc(now, w.stamps, sameStamp) || slices.EqualFunc(now, w.failed, sameStamp)) {
		return w.good, nil
	}
	texts := make([][]byte, len(w.names))
	for i, name := range w.names {
		text, err := readFile(name)
		if err != nil {
			return w.lastGood(err, now)
		}
		texts[i] = text
	}
	value, err := w.parse(texts)
	if err != nil {
		return w.lastGood(err, now)
	}
	if w.some {
		w.log.Info("read again after a change", "what", w.what, "files", w.names)
	}
	w.good, w.some, w.stamps, w.failed = value, true, now, nil
	return value, nil
}

func (w *watched[T]) lastGood(err error, seen []stamp) (T, error) {
	err = fmt.Errorf("cannot use the %s of %q: %w", w.what, w.names, err)
	if !w.some {
		return w.good, err
	}
	w.failed = seen
	w.log.Warn("the last usable one stays in use", "what", w.what, "error", err)
	return w.good, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(text) > maxFileBytes {
		err = fmt.Errorf("%s is longer than %d MiB", name, maxFileBytes>>20)
	}
	return text, err
}
