package ociart

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's own media types, which OCI registries serve as well.
const (
	mediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Manifest is a manifest or index, hashed.
type Manifest struct {
	// Digest is computed from Raw, "sha256:…".
	Digest string
	// MediaType is what the bytes say they are, else what the registry said.
	MediaType string
	// Raw is exactly what the registry sent.
	Raw []byte
}

// IsIndex tells whether it is an index (manifest list).
func (m *Manifest) IsIndex() bool {
	return m.MediaType == ocispec.MediaTypeImageIndex || m.MediaType == mediaTypeDockerIndex
}

// Image decodes an image manifest. An index is an error.
func (m *Manifest) Image() (*ocispec.Manifest, error) {
	if m.MediaType != ocispec.MediaTypeImageManifest && m.MediaType != mediaTypeDockerManifest {
		return nil, fmt.Errorf("%s is not an image manifest but %s", m.Digest, Quote(m.MediaType))
	}
	out := &ocispec.Manifest{}
	if err := json.Unmarshal(m.Raw, out); err != nil {
		return nil, fmt.Errorf("cannot parse the manifest %s: %w", m.Digest, err)
	}
	return out, nil
}

// Index decodes an index.
func (m *Manifest) Index() (*ocispec.Index, error) {
	if !m.IsIndex() {
		return nil, fmt.Errorf("%s is not an index but %s", m.Digest, Quote(m.MediaType))
	}
	out := &ocispec.Index{}
	if err := json.Unmarshal(m.Raw, out); err != nil {
		return nil, fmt.Errorf("cannot parse the index %s: %w", m.Digest, err)
	}
	return out, nil
}

// Resolve fetches what the repository's reference points to: by digest if it
// has one, else by tag. It is the only time a tag is looked at.
func (r *Repository) Resolve(ctx context.Context) (*Manifest, error) {
	if r.ref.Digest != "" {
		return r.Manifest(ctx, r.ref.Digest, r.client.limits.Manifest)
	}
	return r.manifest(ctx, r.ref.Tag, "", r.client.limits.Manifest)
}

// Manifest fetches a manifest or index by digest. A limit of 0 is the one for
// artifact manifests.
func (r *Repository) Manifest(ctx context.Context, digest string, limit int64) (*Manifest, error) {
	if !IsDigest(digest) {
		return nil, fmt.Errorf("%w: %s is not a sha256 digest", ErrIntegrity, Quote(digest))
	}
	return r.manifest(ctx, digest, digest, limit)
}

// SignatureManifest fetches a manifest of signatures by tag.
func (r *Repository) SignatureManifest(ctx context.Context, tag string) (*Manifest, error) {
	return r.manifest(ctx, tag, "", r.client.limits.SignatureManifest)
}

func (r *Repository) manifest(ctx context.Context, reference, digest string, limit int64) (*Manifest, error) {
	if limit == 0 {
		limit = r.client.limits.Manifest
	}
	what := "the manifest " + r.ref.Name() + separator(reference) + reference
	accept := http.Header{"Accept": {strings.Join([]string{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, mediaTypeDockerManifest, mediaTypeDockerIndex,
	}, ", ")}}
	var m *Manifest
	err := r.get(ctx, what, "manifests/"+reference, accept, []int{http.StatusOK}, func(resp *http.Response) error {
		raw, err := readAll(resp, limit)
		if err != nil {
			return err
		}
		m = &Manifest{Digest: digestOf(raw), Raw: raw}
		if digest != "" && m.Digest != digest {
			return fmt.Errorf("%w: the bytes hash to %s", ErrIntegrity, m.Digest)
		}
		if h := resp.Header.Get("Docker-Content-Digest"); h != "" && IsDigest(h) && h != m.Digest {
			return fmt.Errorf("%w: it says %s but the bytes hash to %s", ErrIntegrity, h, m.Digest)
		}
		m.MediaType, err = manifestMediaType(raw, resp.Header.Get("Content-Type"))
		return err
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// maxValues is how many values one JSON document may hold.
const maxValues = 1 << 16

// CheckValues refuses JSON of more values than any honest document has: parsed,
// each takes up to a hundred times its two or three bytes. It is ErrIntegrity.
func CheckValues(raw []byte) error {
	n, inString := 1, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			inString = !inString
		case inString && c == '\\':
			i++
		case !inString && (c == '{' || c == '[' || c == ','):
			n++
		}
	}
	if n > maxValues {
		return fmt.Errorf("%w: it has more than %d values", ErrIntegrity, maxValues)
	}
	return nil
}

// manifestMediaType settles what the bytes are. The header is not hashed, so
// it only counts where the bytes say nothing, and content that could be read
// as both a manifest and an index is refused (CVE-2021-41190).
func manifestMediaType(raw []byte, header string) (string, error) {
	var probe struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Config    json.RawMessage `json:"config"`
	}
	if err := CheckValues(raw); err != nil {
		return "", err
	}
	if err := json.Unmarshal(raw, &probe); err != nil {
		return "", fmt.Errorf("%w: it is not JSON: %w", ErrIntegrity, err)
	}
	image := probe.Layers != nil || probe.Config != nil
	if image && probe.Manifests != nil {
		return "", fmt.Errorf("%w: it is both a manifest and an index", ErrIntegrity)
	}
	mt := probe.MediaType
	if mt == "" {
		mt, _, _ = mime.ParseMediaType(header)
	}
	isIndex := mt == ocispec.MediaTypeImageIndex || mt == mediaTypeDockerIndex
	if isIndex && image || !isIndex && probe.Manifests != nil {
		return "", fmt.Errorf("%w: it says it is %s but its content is not", ErrIntegrity, Quote(mt))
	}
	return mt, nil
}

// Descriptor points to content by digest and size.
type Descriptor = ocispec.Descriptor

// Blob fetches a small blob into memory. The descriptor's size is checked
// against limit before anything is fetched.
func (r *Repository) Blob(ctx context.Context, desc Descriptor, limit int64) ([]byte, error) {
	var buf bytes.Buffer
	err := r.FetchBlob(ctx, desc, limit, func() (io.Writer, error) {
		buf.Reset()
		buf.Grow(int(desc.Size)) // within limit by now; growing by doubling would cost up to twice that
		return &buf, nil
	})
	if err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// FetchBlob streams a blob into the writer that open returns, checking size
// and digest on the way. open is called once per attempt and must start from
// nothing each time. Nothing written may be used unless FetchBlob returns nil.
func (r *Repository) FetchBlob(ctx context.Context, desc Descriptor, limit int64, open func() (io.Writer, error)) error {
	digest := string(desc.Digest)
	what := "the blob " + r.ref.Name() + "@" + digest
	if !IsDigest(digest) {
		return fmt.Errorf("cannot get a blob of %s: %w: %s is not a sha256 digest", r.ref.Name(), ErrIntegrity, Quote(digest))
	}
	if desc.Size < 0 || desc.Size > limit {
		return fmt.Errorf("cannot get %s: %w: its size is given as %d bytes and the limit is %d", what, ErrIntegrity, desc.Size, limit)
	}
	return r.get(ctx, what, "blobs/"+digest, nil, []int{http.StatusOK}, func(resp *http.Response) error {
		if resp.ContentLength >= 0 && resp.ContentLength != desc.Size {
			return fmt.Errorf("%w: %d bytes were promised and %d are sent", ErrIntegrity, desc.Size, resp.ContentLength)
		}
		w, err := open()
		if err != nil {
			return fmt.Errorf("%w: %w", errFinal, err)
		}
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(h, finalWriter{w}), io.LimitReader(resp.Body, desc.Size+1))
		switch {
		case err != nil:
			return err
		case n != desc.Size:
			return fmt.Errorf("%w: %d bytes were promised and %s sent", ErrIntegrity, desc.Size, sent(n, desc.Size))
		}
		if sum := "sha256:" + hex.EncodeToString(h.Sum(nil)); sum != digest {
			return fmt.Errorf("%w: the bytes hash to %s", ErrIntegrity, sum)
		}
		return nil
	})
}

func sent(n, size int64) string {
	if n > size {
		return "more were"
	}
	return fmt.Sprintf("%d were", n)
}

// finalWriter marks write errors: another attempt at the registry would not
// help.
type finalWriter struct{ io.Writer }

func (f finalWriter) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err != nil {
		err = fmt.Errorf("%w: %w", errFinal, err)
	}
	return n, err
}

// ErrNoReferrersAPI says that the registry does not implement the referrers
// API, as opposed to failing at it.
var ErrNoReferrersAPI = errors.New("the registry has no referrers API")

// Referrers lists the referrers of a digest by the referrers API, all pages,
// and where there is no such API by the referrers tag. None is an empty list;
// any other failure is an error, never an empty list.
//
// An answer that says there is no such endpoint (404, 405, 406, 501) means
// there is no API. A listing over the limits (pages, entries, bytes in all) is
// an error, never cut short.
func (r *Repository) Referrers(ctx context.Context, digest string) ([]Descriptor, error) {
	if !IsDigest(digest) {
		return nil, fmt.Errorf("%w: %s is not a sha256 digest", ErrIntegrity, Quote(digest))
	}
	list, err := r.referrersAPI(ctx, digest)
	if !errors.Is(err, ErrNoReferrersAPI) {
		return list, err
	}
	m, err := r.SignatureManifest(ctx, ReferrersTag(digest))
	if IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	index, err := m.Index()
	if err != nil {
		return nil, fmt.Errorf("%w: under the referrers tag: %w", ErrIntegrity, err)
	}
	if len(index.Manifests) > r.client.limits.Referrers {
		return nil, fmt.Errorf("%w: under the referrers tag are more than %d entries", ErrIntegrity, r.client.limits.Referrers)
	}
	return index.Manifests, nil
}

func (r *Repository) referrersAPI(ctx context.Context, digest string) ([]Descriptor, error) {
	what := "the referrers of " + r.ref.Name() + "@" + digest
	header := http.Header{"Accept": {ocispec.MediaTypeImageIndex}}
	noAPI := []int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented}
	var all []Descriptor
	var size int64
	next := "referrers/" + digest
	for page := 1; next != ""; page++ {
		if page > r.client.limits.Pages {
			return nil, fmt.Errorf("cannot get %s: %w: the listing has more than %d pages", what, ErrIntegrity, r.client.limits.Pages)
		}
		accept := []int{http.StatusOK}
		if page == 1 {
			accept = append(accept, noAPI...)
		}
		var entries []Descriptor
		var link string
		var read int64
		err := r.get(ctx, what, next, header, accept, func(resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%w: %w", errFinal, ErrNoReferrersAPI)
			}
			raw, err := readAll(resp, r.client.limits.SignatureManifest)
			if err != nil {
				return err
			}
			read = int64(len(raw))
			entries, err = parseReferrers(raw, resp.Header.Get("Content-Type"))
			if err != nil {
				return err
			}
			link, err = nextPage(resp)
			return err
		})
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
		size += read
		if len(all) > r.client.limits.Referrers || size > 2*r.client.limits.SignatureManifest {
			return nil, fmt.Errorf("cannot get %s: %w: the listing has more than %d entries or %d bytes", what, ErrIntegrity, r.client.limits.Referrers, 2*r.client.limits.SignatureManifest)
		}
		next = link
	}
	return all, nil
}

func parseReferrers(raw []byte, contentType string) ([]Descriptor, error) {
	mt, _, _ := mime.ParseMediaType(contentType)
	if err := CheckValues(raw); err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("%w: it is not an index: %w", ErrIntegrity, err)
	}
	if mt != ocispec.MediaTypeImageIndex && index.MediaType != ocispec.MediaTypeImageIndex {
		return nil, fmt.Errorf("%w: it is %s and not an index", ErrIntegrity, Quote(contentType))
	}
	return index.Manifests, nil
}

// nextPage reads the Link header (RFC 8288) of a paged listing. The next page
// must be on the same origin: a listing is not a way to send us elsewhere.
func nextPage(resp *http.Response) (string, error) {
	for _, h := range resp.Header.Values("Link") {
		for part := range strings.SplitSeq(h, ",") {
			target, params, ok := strings.Cut(strings.TrimSpace(part), ">")
			if !ok || !strings.HasPrefix(target, "<") || !isNext(params) {
				continue
			}
			u, err := url.Parse(target[1:])
			if err != nil {
				return "", fmt.Errorf("%w: the link to the next page is not a URL", ErrIntegrity)
			}
			u = resp.Request.URL.ResolveReference(u)
			if u.Scheme != resp.Request.URL.Scheme || u.Host != resp.Request.URL.Host {
				return "", fmt.Errorf("%w: the next page is on another host, %s", ErrIntegrity, Quote(u.Host))
			}
			return u.String(), nil
		}
	}
	return "", nil
}

func isNext(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(k, "rel") && strings.EqualFold(strings.Trim(v, `"`), "next") {
			return true
		}
	}
	return false
}

func readAll(resp *http.Response, limit int64) ([]byte, error) {
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("%w: it is %d bytes and the limit is %d", ErrIntegrity, resp.ContentLength, limit)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: it is larger than the limit of %d bytes", ErrIntegrity, limit)
	}
	return b, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func separator(reference string) string {
	if IsDigest(reference) {
		return "@"
	}
	return ":"
}
