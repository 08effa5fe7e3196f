package sigverify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/steps"
)

// MaxTrustFile bounds trusted roots, keys and TUF roots; 4 MiB.
const MaxTrustFile = 4 << 20

// ParseTrustedRoot reads a trusted_root.json.
func ParseTrustedRoot(data []byte) (root.TrustedMaterial, error) {
	if err := ociart.CheckValues(data); err != nil {
		return nil, errors.New("it is not a trusted root: it has more values than any has")
	}
	tr, err := root.NewTrustedRootFromJSON(data)
	if err != nil {
		return nil, fmt.Errorf("it is not a trusted root: %w", err)
	}
	return tr, nil
}

// TUF gets trusted roots from TUF repositories and remembers them: in memory
// for an hour, on disk for a day, and for as long as the metadata is valid
// while the repository cannot be reached. It is safe for concurrent use.
type TUF struct {
	// CacheDir is where metadata is kept. Required, private to the user, and
	// never the work dir.
	CacheDir string
	// Client makes the requests; nil is one with a deadline.
	Client *http.Client
	// Now is the clock of the in-memory cache; nil is time.Now.
	Now func() time.Time

	once   sync.Once
	turn   chan struct{} // holds one token: whose turn it is to use cached
	cached map[string]cachedRoot
}

type cachedRoot struct {
	root  root.TrustedMaterial
	until time.Time
}

const (
	memoryValidity = time.Hour
	diskValidity   = 1 // days
	maxCachedRoots = 16
	tufTimeout     = 30 * time.Second
)

// PublicGood is Sigstore's public-good instance, whose TUF root is built in.
func (t *TUF) PublicGood(ctx context.Context) (root.TrustedMaterial, error) {
	return t.Mirror(ctx, tuf.DefaultMirror, tuf.DefaultRoot())
}

// Mirror is the TUF repository at base, trusted by its initial root.json. The
// URL must be https except on loopback. A URL or root that cannot be one is a
// steps.ErrConfig; any other error may pass.
func (t *TUF) Mirror(ctx context.Context, base string, rootJSON []byte) (root.TrustedMaterial, error) {
	if err := checkMirror(base); err != nil {
		return nil, fmt.Errorf("%w: %w", steps.ErrConfig, err)
	}
	if _, err := (&metadata.Metadata[metadata.RootType]{}).FromBytes(rootJSON); err != nil {
		return nil, fmt.Errorf("%w: the initial root of %s is not a TUF root.json: %s", steps.ErrConfig, ociart.Quote(base), ociart.Quote(err.Error()))
	}
	now := time.Now
	if t.Now != nil {
		now = t.Now
	}
	sum := sha256.Sum256(append([]byte(base+"\n"), rootJSON...))
	key := hex.EncodeToString(sum[:])
	t.once.Do(func() { t.turn = make(chan struct{}, 1) })
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("cannot get the trusted root from %s: %w", ociart.Quote(base), context.Cause(ctx))
	}
	if c, ok := t.cached[key]; ok && now().Before(c.until) {
		return c.root, nil
	}
	tr, err := t.fetch(ctx, base, rootJSON, filepath.Join(t.CacheDir, key[:32]))
	if err != nil {
		return nil, fmt.Errorf("cannot get the trusted root from %s: %w; where it cannot be reached, a trusted_root.json takes its place (trustedRoot.path or inline, --trusted-root)", ociart.Quote(base), err)
	}
	if t.cached == nil || len(t.cached) >= maxCachedRoots {
		t.cached = map[string]cachedRoot{}
	}
	t.cached[key] = cachedRoot{tr, now().Add(memoryValidity)}
	return tr, nil
}

func checkMirror(base string) error {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("%s is not the URL of a TUF repository", ociart.Quote(base))
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("the TUF repository %s must be https", ociart.Quote(base))
	}
	return nil
}

// fetch brings the disk cache up to date and reads from it. Processes take
// turns.
func (t *TUF) fetch(ctx context.Context, base string, rootJSON []byte, dir string) (root.TrustedMaterial, error) {
	if t.CacheDir == "" {
		return nil, errors.New("no cache directory is configured")
	}
	lock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Unlock() }()

	client := t.Client
	if client == nil {
		client = &http.Client{Timeout: tufTimeout}
	}
	opts := func() *tuf.Options {
		return (&tuf.Options{}).WithRoot(rootJSON).WithRepositoryBaseURL(base).WithCachePath(dir).
			WithFetcher(&fetcher{ctx, client}).WithCacheValidity(diskValidity)
	}
	tr, err := trustedRoot(opts())
	if err == nil {
		return tr, nil
	}
	// ForceCache still verifies signatures and expiry of what is on disk.
	if tr, cacheErr := trustedRoot(opts().WithForceCache()); cacheErr == nil {
		return tr, nil
	}
	return nil, err
}

func trustedRoot(opts *tuf.Options) (root.TrustedMaterial, error) {
	client, err := tuf.New(opts)
	if err != nil {
		return nil, err
	}
	return root.GetTrustedRoot(client)
}

func lockDir(ctx context.Context, dir string) (*flock.Flock, error) {
	if err := mkdirPrivate(dir); err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	ctx, cancel := context.WithTimeout(ctx, tufTimeout)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return nil, fmt.Errorf("cannot lock the cache directory: %w", err)
	}
	return lock, nil
}

// fetcher downloads TUF files within ctx. The caller says how much it wants at
// most.
type fetcher struct {
	ctx    context.Context //nolint:containedctx // TUF's interface has no context
	client *http.Client
}

// DownloadFile implements go-tuf's fetcher.Fetcher.
func (f *fetcher) DownloadFile(target string, maxLength int64, _ time.Duration) ([]byte, error) {
	maxLength = min(maxLength, MaxTrustFile)
	req, err := http.NewRequestWithContext(f.ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: resp.StatusCode, URL: target}
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxLength+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > maxLength {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: fmt.Sprintf("more than %d bytes", maxLength)}
	}
	return data, nil
}

func mkdirPrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the cache directory: %w", err)
	}
	return nil
}

// envelopeStamps is trust for a legacy attestation: Cosign v2 has the whole
// stored envelope timestamped (cmd/cosign/cli/attest), which holds the
// signature, and Cosign v3 the signature alone, as everybody else does.
type envelopeStamps struct {
	root.TrustedMaterial
	envelope []byte
}

// TimestampingAuthorities implements root.TrustedMaterial.
func (e envelopeStamps) TimestampingAuthorities() []root.TimestampingAuthority {
	authorities := e.TrustedMaterial.TimestampingAuthorities()
	out := make([]root.TimestampingAuthority, len(authorities))
	for i, a := range authorities {
		out[i] = envelopeAuthority{a, e.envelope}
	}
	return out
}

type envelopeAuthority struct {
	root.TimestampingAuthority
	envelope []byte
}

// Verify implements root.TimestampingAuthority.
func (a envelopeAuthority) Verify(stamp, signature []byte) (*root.Timestamp, error) {
	if ts, err := a.TimestampingAuthority.Verify(stamp, signature); err == nil {
		return ts, nil
	}
	return a.TimestampingAuthority.Verify(stamp, a.envelope)
}
