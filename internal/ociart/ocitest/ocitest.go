// Package ocitest is a registry in memory, on loopback, for tests only. It
// speaks the read side of the OCI distribution specification faithfully by
// default, and a test can answer any request in its stead to be hostile.
package ocitest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a running registry.
type Registry struct {
	// Referrers turns the referrers API on; without it the API is 404 and
	// clients use the tag schema, as with distribution v3.
	Referrers bool
	// Hijack, if not nil, sees every request first, numbered from 1, and
	// reports whether it answered it.
	Hijack func(n int, w http.ResponseWriter, r *http.Request) bool

	server    *httptest.Server
	mu        sync.Mutex
	manifests map[string]map[string][]byte // repository → tag or digest → bytes
	blobs     map[string][]byte
	requests  []string
	listed    *ocispec.Index // what the referrers API answers; nil: what it finds
}

// New starts a registry that ends with the test.
func New(tb testing.TB) *Registry {
	tb.Helper()
	r := &Registry{manifests: map[string]map[string][]byte{}, blobs: map[string][]byte{}}
	r.server = httptest.NewServer(r)
	tb.Cleanup(r.server.Close)
	return r
}

// Host is the registry's host and port.
func (r *Registry) Host() string { return strings.TrimPrefix(r.server.URL, "http://") }

// Requests lists what was asked so far, "GET /v2/…".
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.requests...)
}

// Forget clears the list of requests.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Digest is the sha256 digest of b.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Blob stores a blob and returns its descriptor.
func (r *Registry) Blob(mediaType string, b []byte) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := Digest(b)
	r.blobs[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d), Size: int64(len(b))}
}

// Manifest stores bytes as a manifest under its digest and, unless tag is
// empty, a tag. It returns the digest.
func (r *Registry) Manifest(repository, tag string, raw []byte) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manifests[repository] == nil {
		r.manifests[repository] = map[string][]byte{}
	}
	d := Digest(raw)
	r.manifests[repository][d] = raw
	if tag != "" {
		r.manifests[repository][tag] = raw
	}
	return d
}

// Delete removes a tag or digest.
func (r *Registry) Delete(repository, reference string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.manifests[repository], reference)
}

// Get returns the manifest under a tag or digest, nil if there is none.
func (r *Registry) Get(repository, reference string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.manifests[repository][reference]
}

// JSON encodes v; what tests push always can be.
func JSON(tb testing.TB, v any) []byte {
	tb.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// Layout pushes every manifest and blob of an OCI layout to a repository and
// returns the digest of its tag v1.
func (r *Registry) Layout(tb testing.TB, repository, dir string) string {
	tb.Helper()
	var index ocispec.Index
	read := func(path ...string) []byte {
		b, err := os.ReadFile(filepath.Join(append([]string{dir}, path...)...))
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}
	if err := json.Unmarshal(read("index.json"), &index); err != nil {
		tb.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range entries {
		b := read("blobs", "sha256", e.Name())
		r.Blob("", b)
		var probe struct {
			SchemaVersion int `json:"schemaVersion"`
		}
		if json.Unmarshal(b, &probe) == nil && probe.SchemaVersion == 2 {
			r.Manifest(repository, "", b)
		}
	}
	var artifact string
	for _, m := range index.Manifests {
		tag := m.Annotations[ocispec.AnnotationRefName]
		d := r.Manifest(repository, tag, read("blobs", "sha256", m.Digest.Encoded()))
		if tag == "v1" {
			artifact = d
		}
	}
	return artifact
}

var endpoint = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|referrers)/([^/]+)$`)

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.RequestURI())
	n := len(r.requests)
	hijack := r.Hijack
	r.mu.Unlock()
	if hijack != nil && hijack(n, w, req) {
		return
	}
	m := endpoint.FindStringSubmatch(req.URL.Path)
	if m == nil {
		http.NotFound(w, req)
		return
	}
	repository, kind, reference := m[1], m[2], m[3]
	r.mu.Lock()
	defer r.mu.Unlock()
	switch kind {
	case "manifests":
		r.serve(w, req, r.manifests[repository][reference], "")
	case "blobs":
		r.serve(w, req, r.blobs[reference], "application/octet-stream")
	case "referrers":
		if !r.Referrers {
			http.NotFound(w, req)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		index := r.found(repository, reference)
		if r.listed != nil {
			index = *r.listed
		}
		_ = json.NewEncoder(w).Encode(index)
	}
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request, b []byte, contentType string) {
	if b == nil {
		http.NotFound(w, req)
		return
	}
	if contentType == "" {
		var probe struct {
			MediaType string `json:"mediaType"`
		}
		_ = json.Unmarshal(b, &probe)
		contentType = probe.MediaType
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Docker-Content-Digest", Digest(b))
	_, _ = w.Write(b)
}

func (r *Registry) referrers(repository, subject string) ocispec.Index {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found(repository, subject)
}

func (r *Registry) found(repository, subject string) ocispec.Index {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	index.SchemaVersion = 2
	for reference, raw := range r.manifests[repository] {
		var m ocispec.Manifest
		if reference != Digest(raw) || json.Unmarshal(raw, &m) != nil || m.Subject == nil || string(m.Subject.Digest) != subject {
			continue
		}
		artifactType := m.ArtifactType
		if artifactType == "" {
			artifactType = m.Config.MediaType
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: m.MediaType, Digest: digest.Digest(reference), Size: int64(len(raw)),
			ArtifactType: artifactType, Annotations: m.Annotations,
		})
	}
	return index
}
