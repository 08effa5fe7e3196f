package ociart

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/stepd/stepd/steps"
)

// server is a registry of which a test writes every answer itself.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string
	auth     []string
}

func newServer(t *testing.T, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
		s.auth = append(s.auth, r.Header.Get("Authorization"))
		s.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return strings.TrimPrefix(s.URL, "http://") }

func open(t *testing.T, s *server, tag string, change func(*Options)) *Repository {
	t.Helper()
	opts := Options{
		Transports: &Transports{},
		Wait:       func(context.Context, time.Duration) error { return nil },
		Limits:     Limits{Request: 2 * time.Second},
	}
	if change != nil {
		change(&opts)
	}
	c, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := ParseReference(s.host() + "/org/configs:" + tag)
	if err != nil {
		t.Fatal(err)
	}
	return c.Repository(ref)
}

const manifestJSON = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`

func TestParseReference(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	tests := map[string]struct {
		reason string
		in     string
		want   Reference
		bad    bool
	}{
		"tag":      {reason: "the usual form", in: "ghcr.io/o/r:v1", want: Reference{Registry: "ghcr.io", Repository: "o/r", Tag: "v1"}},
		"digest":   {reason: "pinned", in: "ghcr.io/o/r@" + d, want: Reference{Registry: "ghcr.io", Repository: "o/r", Digest: d}},
		"both":     {reason: "the tag is informational", in: "ghcr.io/o/r:v1@" + d, want: Reference{Registry: "ghcr.io", Repository: "o/r", Tag: "v1", Digest: d}},
		"port":     {reason: "a port is not a tag", in: "127.0.0.1:5000/r:v1", want: Reference{Registry: "127.0.0.1:5000", Repository: "r", Tag: "v1"}},
		"helm":     {reason: "the prefix selects helm credentials", in: "oci://ghcr.io/o/r:v1", want: Reference{Registry: "ghcr.io", Repository: "o/r", Tag: "v1", Helm: true}},
		"hub":      {reason: "Docker Hub's short names", in: "nginx:1", want: Reference{Registry: "docker.io", Repository: "library/nginx", Tag: "1"}},
		"no tag":   {reason: "there is no default tag", in: "ghcr.io/o/r", bad: true},
		"sha512":   {reason: "one digest algorithm, so none can be confused", in: "ghcr.io/o/r@sha512:" + strings.Repeat("a", 128), bad: true},
		"upper":    {reason: "repositories are lower case", in: "ghcr.io/O/r:v1", bad: true},
		"dotdot":   {reason: "no path traversal in the URL", in: "ghcr.io/o/../r:v1", bad: true},
		"query":    {reason: "no URL syntax", in: "ghcr.io/o/r:v1?x", bad: true},
		"userinfo": {reason: "no credentials in a reference", in: "user:pass@ghcr.io/o/r:v1", bad: true},
		"newline":  {reason: "no control characters", in: "ghcr.io/o/r:v1\n", bad: true},
		"empty":    {reason: "nothing to parse", in: "", bad: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseReference(tt.in)
			if (err != nil) != tt.bad {
				t.Fatalf("%s: err = %v", tt.reason, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s: %s", tt.reason, diff)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	tests := map[string]struct {
		reason  string
		handler func(n int, w http.ResponseWriter, r *http.Request)
		want    error
		ok      bool
		count   int
	}{
		"good": {
			reason:  "one request, no HEAD before it",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, manifestJSON) },
			ok:      true, count: 1,
		},
		"lying digest header": {
			reason: "a registry that contradicts itself is not believed",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
				_, _ = io.WriteString(w, manifestJSON)
			},
			want: ErrIntegrity, count: 1,
		},
		"claims 10 GiB": {
			reason: "the claimed size is checked before reading",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(int64(10)<<30))
				w.WriteHeader(http.StatusOK)
			},
			want: ErrIntegrity, count: 1,
		},
		"endless": {
			reason: "the size is checked while reading",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				for range 64 {
					if _, err := w.Write(bytes.Repeat([]byte(" "), 64<<10)); err != nil {
						return
					}
				}
			},
			want: ErrIntegrity, count: 1,
		},
		"gzip": {
			reason: "nothing is decompressed",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				_, _ = io.WriteString(w, manifestJSON)
			},
			want: ErrIntegrity, count: 1,
		},
		"manifest and index": {
			reason: "CVE-2021-41190",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, `{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[],"manifests":[]}`)
			},
			want: ErrIntegrity, count: 1,
		},
		"busy then good": {
			reason: "429 with Retry-After and 503 are tried again",
			handler: func(n int, w http.ResponseWriter, _ *http.Request) {
				switch n {
				case 1:
					w.Header().Set("Retry-After", "2")
					w.WriteHeader(http.StatusTooManyRequests)
				case 2:
					w.WriteHeader(http.StatusServiceUnavailable)
				default:
					_, _ = io.WriteString(w, manifestJSON)
				}
			},
			ok: true, count: 3,
		},
		"always busy": {
			reason:  "attempts are bounded",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
			count:   4,
		},
		"asks for an hour": {
			reason: "nobody waits that long",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusTooManyRequests)
			},
			count: 1,
		},
		"cut off then good": {
			reason: "a broken body is tried again",
			handler: func(n int, w http.ResponseWriter, _ *http.Request) {
				if n == 1 {
					w.Header().Set("Content-Length", "100")
					_, _ = io.WriteString(w, "{")
					return
				}
				_, _ = io.WriteString(w, manifestJSON)
			},
			ok: true, count: 2,
		},
		"redirect loop": {
			reason: "redirects are bounded",
			handler: func(_ int, w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			},
			want: ErrIntegrity, count: 6,
		},
		"redirect to a file": {
			reason: "only http and https",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "file:///etc/passwd")
				w.WriteHeader(http.StatusTemporaryRedirect)
			},
			want: ErrIntegrity, count: 1,
		},
		"forbidden": {
			reason:  "an answer is not tried again",
			handler: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
			count:   1,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := 0
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) { n++; tt.handler(n, w, r) })
			m, err := open(t, s, "v1", nil).Resolve(t.Context())
			if (err == nil) != tt.ok {
				t.Fatalf("%s: err = %v", tt.reason, err)
			}
			if tt.ok && m.Digest != digestOf([]byte(manifestJSON)) {
				t.Errorf("%s: digest = %s", tt.reason, m.Digest)
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%s: err = %v, want %v", tt.reason, err, tt.want)
			}
			if len(s.requests) != tt.count {
				t.Errorf("%s: requests %v, want %d", tt.reason, s.requests, tt.count)
			}
		})
	}
}

func TestCheckValues(t *testing.T) {
	for name, tt := range map[string]struct {
		raw string
		ok  bool
	}{
		"a manifest":            {manifestJSON, true},
		"as many as there may":  {"[" + strings.Repeat("0,", maxValues-2) + "0]", true},
		"one more":              {"[" + strings.Repeat("0,", maxValues-1) + "0]", false},
		"objects":               {"[" + strings.Repeat("{},", maxValues) + "0]", false},
		"nested":                {strings.Repeat("[", maxValues+1), false},
		"commas in a string":    {`{"a":"` + strings.Repeat(",", 2*maxValues) + `"}`, true},
		"behind an escaped end": {`{"a":"\\\"` + strings.Repeat(",", 2*maxValues) + `"}`, true},
		"after a backslash":     {`{"a":"\\","b":[` + strings.Repeat("0,", maxValues) + `0]}`, false},
		"nothing":               {"", true},
	} {
		if err := CheckValues([]byte(tt.raw)); (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestByDigestIsHashed(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, manifestJSON) })
	_, err := open(t, s, "v1", nil).Manifest(t.Context(), "sha256:"+strings.Repeat("0", 64), 0)
	if !errors.Is(err, ErrIntegrity) {
		t.Errorf("other bytes under a digest: err = %v", err)
	}
}

func TestSlowBodyEndsAtTheDeadline(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "{")
		w.(http.Flusher).Flush()
		<-release
	})
	t.Cleanup(func() { close(release) })
	r := open(t, s, "v1", func(o *Options) { o.Limits = Limits{Request: 50 * time.Millisecond, Attempts: 1} })
	if _, err := r.Resolve(t.Context()); !errors.Is(err, errDeadline) {
		t.Errorf("err = %v, want the request deadline", err)
	}
}

func TestBlob(t *testing.T) {
	content := []byte("replicas: 3\n")
	good := Descriptor{Digest: digest.Digest(digestOf(content)), Size: int64(len(content))}
	tests := map[string]struct {
		reason   string
		desc     Descriptor
		send     []byte
		chunked  bool
		ok       bool
		requests int
	}{
		"good":            {reason: "bytes as promised", desc: good, send: content, ok: true, requests: 1},
		"too large":       {reason: "refused before asking", desc: Descriptor{Digest: good.Digest, Size: 10 << 30}, send: content},
		"negative":        {reason: "a size below zero", desc: Descriptor{Digest: good.Digest, Size: -1}, send: content},
		"other bytes":     {reason: "same size, other digest", desc: good, send: []byte("replicas: 4\n"), requests: 1},
		"longer":          {reason: "more than promised", desc: good, send: append(content, 'x'), requests: 1},
		"longer, chunked": {reason: "more than promised, without a length", desc: good, send: bytes.Repeat(content, 100), chunked: true, requests: 1},
		"shorter":         {reason: "less than promised", desc: good, send: content[:3], chunked: true, requests: 1},
		"sha512":          {reason: "only sha256", desc: Descriptor{Digest: "sha512:00", Size: 1}, send: content},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
				if tt.chunked {
					w.(http.Flusher).Flush()
				}
				_, _ = w.Write(tt.send)
			})
			b, err := open(t, s, "v1", nil).Blob(t.Context(), tt.desc, 1<<20)
			if tt.ok {
				if err != nil || !bytes.Equal(b, content) {
					t.Fatalf("%s: %q, %v", tt.reason, b, err)
				}
			} else if !errors.Is(err, ErrIntegrity) {
				t.Errorf("%s: err = %v", tt.reason, err)
			}
			if len(s.requests) != tt.requests {
				t.Errorf("%s: %d requests, want %d", tt.reason, len(s.requests), tt.requests)
			}
		})
	}
}

func TestReferrers(t *testing.T) {
	subject := "sha256:" + strings.Repeat("1", 64)
	entry := func(c string) Descriptor {
		return Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest("sha256:" + strings.Repeat(c, 64)), Size: 10}
	}
	index := func(entries ...Descriptor) []byte {
		b, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	sendIndex := func(w http.ResponseWriter, b []byte) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_, _ = w.Write(b)
	}
	tests := map[string]struct {
		reason  string
		handler http.HandlerFunc
		want    []Descriptor
		err     bool
	}{
		"pages": {
			reason: "signatures on later pages are found",
			handler: func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Query().Get("p") {
				case "":
					w.Header().Set("Link", `<`+r.URL.Path+`?p=2>; rel="next"`)
					sendIndex(w, index(entry("a")))
				case "2":
					sendIndex(w, index(entry("b")))
				}
			},
			want: []Descriptor{entry("a"), entry("b")},
		},
		"endless pages": {
			reason: "a listing that never ends is an error",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", `<`+r.URL.Path+`?p=x>; rel=next`)
				sendIndex(w, index(entry("a")))
			},
			err: true,
		},
		"too many entries on a page": {
			reason: "three bytes of JSON cost a hundred of memory",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				sendIndex(w, []byte(`{"manifests":[{}`+strings.Repeat(",{}", maxValues)+`]}`))
			},
			err: true,
		},
		"too many entries on all pages": {
			reason: "each page by itself is in order",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", `<`+r.URL.Path+`?p=`+r.URL.Query().Get("p")+`x>; rel="next"`)
				sendIndex(w, index(make([]Descriptor, 1000)...))
			},
			err: true,
		},
		"too many entries under the fallback tag": {
			reason: "whoever can push can write it",
			handler: func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/sha256-") {
					sendIndex(w, index(make([]Descriptor, 5000)...))
					return
				}
				http.NotFound(w, r)
			},
			err: true,
		},
		"next page elsewhere": {
			reason: "pages stay on the registry",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Link", `<http://other.example/>; rel="next"`)
				sendIndex(w, index(entry("a")))
			},
			err: true,
		},
		"no API": {
			reason: "404 means the fallback tag",
			handler: func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/sha256-") {
					sendIndex(w, index(entry("c")))
					return
				}
				http.NotFound(w, r)
			},
			want: []Descriptor{entry("c")},
		},
		"none": {
			reason:  "404 twice is a definite none",
			handler: http.NotFound,
		},
		"failing": {
			reason: "an error is never taken for none",
			handler: func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/referrers/") {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				sendIndex(w, index(entry("c")))
			},
			err: true,
		},
		"forbidden": {
			reason:  "nor is 403",
			handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
			err:     true,
		},
		"second page gone": {
			reason: "a listing that breaks off is not complete",
			handler: func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("p") != "" || !strings.Contains(r.URL.Path, "/referrers/") {
					http.NotFound(w, r)
					return
				}
				w.Header().Set("Link", `<`+r.URL.Path+`?p=2>; rel="next"`)
				sendIndex(w, index(entry("a")))
			},
			err: true,
		},
		"a web page": {
			reason:  "200 with something else is not a listing",
			handler: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
			err:     true,
		},
		"fallback is no index": {
			reason: "a manifest under the referrers tag",
			handler: func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/referrers/") {
					http.NotFound(w, r)
					return
				}
				_, _ = io.WriteString(w, manifestJSON)
			},
			err: true,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, tt.handler)
			got, err := open(t, s, "v1", nil).Referrers(t.Context(), subject)
			if (err != nil) != tt.err {
				t.Fatalf("%s: err = %v", tt.reason, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s: %s", tt.reason, diff)
			}
		})
	}
}

type staticCredentials struct{ steps.Credentials }

func (s staticCredentials) Get(context.Context, string, steps.CredentialType, string) (*steps.Credentials, error) {
	return &s.Credentials, nil
}

func TestCredentialsStayWithTheirHost(t *testing.T) {
	other := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" && r.URL.Query().Get("challenge") != "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, manifestJSON)
	})
	for _, query := range []string{"", "?challenge=1"} {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			http.Redirect(w, r, other.URL+"/elsewhere"+query, http.StatusTemporaryRedirect)
		})
		r := open(t, s, "v1", func(o *Options) {
			o.Credentials = staticCredentials{steps.Credentials{Username: "u", Password: "p"}}
		})
		_, err := r.Resolve(t.Context())
		if query == "" && err != nil {
			t.Errorf("a redirect without credentials works: %v", err)
		}
		if query != "" && err == nil {
			t.Error("a challenge by the redirect's target was answered")
		}
	}
	for _, a := range other.auth {
		if a != "" {
			t.Errorf("credentials reached another host: %q", a)
		}
	}
}

func TestTokenIsFetchedOnce(t *testing.T) {
	var s *server
	s = newServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			_, _ = io.WriteString(w, `{"token":"t0k"}`)
		case r.Header.Get("Authorization") != "Bearer t0k":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = io.WriteString(w, manifestJSON)
		}
	})
	r := open(t, s, "v1", func(o *Options) {
		o.Credentials = staticCredentials{steps.Credentials{Username: "u", Password: "p"}}
	})
	for range 3 {
		if _, err := r.Resolve(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.requests); n != 5 {
		t.Errorf("%d requests, want 401, token and three manifests: %v", n, s.requests)
	}
}

func TestTokenServerRefuses(t *testing.T) {
	for code, count := range map[int]int{http.StatusForbidden: 2, http.StatusNotFound: 2, http.StatusServiceUnavailable: 8} {
		var s *server
		s = newServer(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				w.WriteHeader(code)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
		_, err := open(t, s, "v1", nil).Resolve(t.Context())
		if err == nil || IsNotFound(err) || !strings.Contains(err.Error(), fmt.Sprint(code)) {
			t.Errorf("%d: err = %v", code, err)
		}
		if n := len(s.requests); n != count {
			t.Errorf("%d: %d requests, want %d: only a busy server is asked again", code, n, count)
		}
	}
}

func TestTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, manifestJSON)
	}))
	t.Cleanup(s.Close)
	s.Config.ErrorLog = nil
	ca := pemOf(s.Certificate().Raw)
	tests := map[string]struct {
		reason string
		change func(*Options)
		ok     bool
	}{
		"unknown CA": {reason: "certificates are verified", change: func(*Options) {}},
		"CA bundle":  {reason: "a custom CA is trusted when given", change: func(o *Options) { o.CABundle = ca }, ok: true},
		"insecure":   {reason: "only when asked", change: func(o *Options) { o.InsecureSkipTLSVerify = true }, ok: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			srv := &server{Server: &httptest.Server{URL: strings.Replace(s.URL, "https", "http", 1)}}
			_, err := open(t, srv, "v1", tt.change).Resolve(t.Context())
			if (err == nil) != tt.ok {
				t.Errorf("%s: %v", tt.reason, err)
			}
			if !tt.ok && (!strings.Contains(err.Error(), "certificate") || !strings.Contains(err.Error(), "caBundle")) {
				t.Errorf("the message does not say what is wrong and what to do: %v", err)
			}
		})
	}
}

func TestPlainHTTPIsForLoopback(t *testing.T) {
	var seen []string
	pool := &Transports{Wrap: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			seen = append(seen, r.URL.Scheme)
			return nil, errors.New("no network in tests")
		})
	}}
	for _, plain := range []bool{false, true} {
		c, err := New(Options{Transports: pool, PlainHTTP: plain, Limits: Limits{Attempts: 1}})
		if err != nil {
			t.Fatal(err)
		}
		ref, err := ParseReference("registry.example.com/r:v1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Repository(ref).Resolve(t.Context()); err == nil {
			t.Fatal("the transport fails")
		}
	}
	if diff := cmp.Diff([]string{"https", "http", "https"}, seen); diff != "" {
		t.Errorf("schemes tried: %s", diff)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func FuzzManifest(f *testing.F) {
	f.Add([]byte(manifestJSON), "application/vnd.oci.image.manifest.v1+json")
	f.Add([]byte(`{"manifests":[{}]}`), "application/vnd.oci.image.index.v1+json")
	f.Fuzz(func(t *testing.T, raw []byte, header string) {
		mt, err := manifestMediaType(raw, header)
		if err != nil {
			return
		}
		m := &Manifest{Raw: raw, MediaType: mt, Digest: digestOf(raw)}
		_, imgErr := m.Image()
		_, idxErr := m.Index()
		if imgErr == nil && idxErr == nil {
			t.Errorf("both a manifest and an index: %q", raw)
		}
	})
}

func FuzzReference(f *testing.F) {
	f.Add("ghcr.io/o/r:v1@sha256:" + strings.Repeat("a", 64))
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		ref.Helm = false
		if err != nil || again != ref {
			t.Errorf("%q parses to %+v, which prints as %q and parses to %+v, %v", s, ref, ref.String(), again, err)
		}
	})
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
