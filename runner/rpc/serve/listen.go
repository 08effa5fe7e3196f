package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/stepd/stepd/runner/rpc"
)

// listen opens the address. A socket has mode 0600 and replaces one that nobody
// listens on any more.
func listen(ctx context.Context, a *rpc.Address) (net.Listener, error) {
	if a.Network == "unix" {
		if err := removeStale(ctx, a.Address); err != nil {
			return nil, err
		}
	}
	lc := listenConfig()
	l, err := lc.Listen(ctx, a.Network, a.Address)
	if err != nil {
		return nil, err
	}
	if a.Network == "unix" {
		if err := os.Chmod(a.Address, socketMode); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// listenConfig gives a socket its mode before it has a name, so that nobody can
// connect in between. That is so on Linux; elsewhere listen sets it afterwards.
func listenConfig() net.ListenConfig {
	return net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		if network != "unix" {
			return nil
		}
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), socketMode) }) // see above
	}}
}

// socketMode lets this user connect, and root.
const socketMode = 0o600

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	d := net.Dialer{Timeout: time.Second}
	if c, err := d.DialContext(ctx, "unix", path); err == nil {
		return errors.Join(fmt.Errorf("another server listens on %s", path), c.Close())
	}
	return os.Remove(path)
}

// TLS says how the server proves who it is and whom it serves.
type TLS struct {
	// CertFile and KeyFile are PEM files; they are read again when they change.
	CertFile, KeyFile string
	// ClientCAFile holds the PEM certificates of the CAs that issue clients'
	// certificates; it is read again when it changes. There is no TLS without
	// client certificates.
	ClientCAFile string
	// AllowedClients are DNS names, URIs or common names of clients; empty
	// allows every client of the CAs.
	AllowedClients []string
}

// config makes the server side of mutual TLS 1.3.
func (t *TLS) config() (*tls.Config, error) {
	if t.CertFile == "" || t.KeyFile == "" || t.ClientCAFile == "" {
		return nil, errors.New("TLS needs a certificate, its key and the CA of the clients, all three")
	}
	files := &tlsFiles{tls: t}
	if _, err := files.current(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return files.current()
		},
	}, nil
}

// checkClient holds a verified client certificate against AllowedClients.
func (t *TLS) checkClient(state tls.ConnectionState) error {
	if len(t.AllowedClients) == 0 {
		return nil
	}
	leaf := state.PeerCertificates[0]
	names := append([]string{leaf.Subject.CommonName}, leaf.DNSNames...)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	for _, n := range names {
		if n != "" && slices.Contains(t.AllowedClients, n) {
			return nil
		}
	}
	return fmt.Errorf("no client is allowed under the names %q", names)
}

// tlsFiles reads TLS's files again when one of them changes. While what is
// there cannot be used, as in the middle of a rotation, the last good state
// serves.
type tlsFiles struct {
	tls    *TLS
	mu     sync.Mutex
	stamps [3]stamp
	good   *tls.Config
}

type stamp struct {
	size int64
	at   time.Time
}

func (f *tlsFiles) current() (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var now [3]stamp
	for i, name := range []string{f.tls.CertFile, f.tls.KeyFile, f.tls.ClientCAFile} {
		info, err := os.Stat(name)
		if err != nil {
			return f.lastGood(err)
		}
		now[i] = stamp{info.Size(), info.ModTime()}
	}
	if f.good != nil && now == f.stamps {
		return f.good, nil
	}
	cert, err := tls.LoadX509KeyPair(f.tls.CertFile, f.tls.KeyFile)
	if err != nil {
		return f.lastGood(err)
	}
	pem, err := os.ReadFile(f.tls.ClientCAFile)
	if err != nil {
		return f.lastGood(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return f.lastGood(fmt.Errorf("%s holds no PEM certificate", f.tls.ClientCAFile))
	}
	f.stamps = now
	f.good = &tls.Config{
		MinVersion:       tls.VersionTLS13,
		NextProtos:       []string{"h2", "http/1.1"},
		Certificates:     []tls.Certificate{cert},
		ClientCAs:        pool,
		ClientAuth:       tls.RequireAndVerifyClientCert,
		VerifyConnection: f.tls.checkClient,
	}
	return f.good, nil
}

func (f *tlsFiles) lastGood(err error) (*tls.Config, error) {
	if f.good != nil {
		return f.good, nil
	}
	return nil, fmt.Errorf("cannot use the TLS files: %w", err)
}
