package builtin

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/ocipush"
	"github.com/stepd/stepd/steps"
)

// writable adds the write side of the distribution specification to a test
// registry: monolithic uploads, and manifests.
func writable(t *testing.T) *ocitest.Registry {
	t.Helper()
	r := ocitest.New(t)
	r.Hijack = func(_ int, w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodPut && req.Method != http.MethodPost {
			return false
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		repository, rest, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/manifests/")
		switch {
		case rest != "":
			tag := rest
			if strings.HasPrefix(rest, "sha256:") {
				tag = ""
			}
			w.Header().Set("Docker-Content-Digest", r.Manifest(repository, tag, body))
			w.WriteHeader(http.StatusCreated)
		case req.Method == http.MethodPost:
			w.Header().Set("Location", req.URL.Path+"1")
			w.WriteHeader(http.StatusAccepted)
		default:
			r.Blob("", body)
			w.WriteHeader(http.StatusCreated)
		}
		return true
	}
	return r
}

func image(t *testing.T, r *ocitest.Registry, repository, tag, layer string) (string, int64) {
	t.Helper()
	raw := ocitest.JSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest,
		"config": r.Blob(ocispec.MediaTypeEmptyJSON, []byte("{}")),
		"layers": []any{r.Blob("application/x-layer", []byte(layer))}, "annotations": map[string]any{"kept": "yes"},
	})
	return r.Manifest(repository, tag, raw), int64(len(raw))
}

func index(t *testing.T, r *ocitest.Registry, repository, tag string) string {
	t.Helper()
	var manifests []any
	for _, arch := range []string{"amd64", "arm64"} {
		digest, size := image(t, r, repository, "", "layer of "+arch)
		manifests = append(manifests, map[string]any{
			"mediaType": ocispec.MediaTypeImageManifest, "digest": digest, "size": size, "platform": map[string]any{"os": "linux", "architecture": arch},
		})
	}
	return r.Manifest(repository, tag, ocitest.JSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": manifests,
	}))
}

func TestOCIPush(t *testing.T) {
	for _, tc := range []struct {
		reason  string
		src     string
		dest    string
		maxSize int64
		want    outcome
		same    bool
	}{
		{reason: "another tag in the same repository, whatever the limit", src: "a/b:v1", dest: "a/b:prod", same: true},
		{reason: "by digest", src: "a/b@DIGEST", dest: "a/b:prod", same: true},
		{reason: "another repository", src: "a/b:v1", dest: "c/d:prod", maxSize: -1, same: true},
		{reason: "an index with its manifests", src: "a/multi:v1", dest: "c/d:prod", maxSize: 1000, same: true},
		{reason: "copies forbidden", src: "a/b:v1", dest: "c/d:prod", want: outcome{steps.Errored, true, "forbidden"}},
		{reason: "the sum over all platforms is too large", src: "a/multi:v1", dest: "c/d:prod", maxSize: 20, want: outcome{steps.Errored, true, "more than 20 compressed bytes"}},
		{reason: "not an image", src: "a/odd:v1", dest: "c/d:prod", maxSize: -1, want: outcome{steps.Errored, true, "neither an image manifest"}},
		{reason: "absent", src: "a/b:nope", dest: "c/d:prod", maxSize: -1, want: outcome{steps.Errored, false, "cannot resolve nope"}},
		{reason: "a destination by digest", src: "a/b:v1", dest: "c/d@sha256:" + strings.Repeat("1", 64), want: outcome{steps.Failed, true, "destRef"}},
		{reason: "a reference that only the schema takes", src: "A/B:v1", dest: "c/d:prod", want: outcome{steps.Failed, true, "srcRef"}},
	} {
		from, to := writable(t), writable(t)
		digest, _ := image(t, from, "a/b", "v1", "layer")
		multi := index(t, from, "a/multi", "v1")
		from.Manifest("a/odd", "v1", []byte(`{"mediaType":"application/x-odd"}`))
		src := from.Host() + "/" + strings.Replace(tc.src, "DIGEST", digest, 1)
		dest := to.Host() + "/" + tc.dest
		if strings.HasPrefix(tc.dest, "a/") {
			to, dest = from, from.Host()+"/"+tc.dest
		}
		p := newPromotion(t)
		r, err := p.run(OCIPush(ocipush.Live(p.log), tc.maxSize), config{"srcRef": src, "destRef": dest})
		if tc.want.status == "" {
			tc.want.status = steps.Succeeded
		}
		tc.want.check(t, tc.reason, r, err)
		repository, tag, _ := strings.Cut(tc.dest, ":")
		if !tc.same {
			if to.Get(repository, tag) != nil || len(p.log.Requests()) != 0 {
				t.Errorf("%s: something was written", tc.reason)
			}
			continue
		}
		if strings.Contains(tc.src, "multi") {
			digest = multi
		}
		if diff := cmp.Diff(map[string]any{"image": dest, "digest": digest, "tag": "prod"}, r.Output); diff != "" {
			t.Errorf("%s: output (-want +got):\n%s", tc.reason, diff)
		}
		if got := ocitest.Digest(to.Get(repository, tag)); got != digest {
			t.Errorf("%s: %s is at the destination, want %s", tc.reason, got, digest)
		}
		want := []effects.Request{{Kind: "oci-push", Target: dest, Done: true, Step: "oci-push", Detail: map[string]any{"digest": digest}}}
		if diff := cmp.Diff(want, p.log.Requests()); diff != "" {
			t.Errorf("%s: logged (-want +got):\n%s", tc.reason, diff)
		}
	}
}

func annotationsOf(t *testing.T, raw []byte) map[string]string {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatalf("%v in %q", err, raw)
	}
	return m.Annotations
}

// Conformance G19.
func TestG19ScopedAnnotations(t *testing.T) {
	from, to := writable(t), writable(t)
	index(t, from, "a/multi", "v1")
	image(t, from, "a/b", "v1", "layer")
	p := newPromotion(t)
	step := OCIPush(ocipush.Live(p.log), -1)
	annotations := config{"index:a": "1", "b": "2", "manifest:c": "3"}
	out := p.must(step, config{"srcRef": from.Host() + "/a/multi:v1", "destRef": to.Host() + "/x/multi:prod", "annotations": annotations})
	raw := to.Get("x/multi", "prod")
	if out["digest"] != ocitest.Digest(raw) {
		t.Errorf("output digest %v, want %s", out["digest"], ocitest.Digest(raw))
	}
	if diff := cmp.Diff(map[string]string{"a": "1"}, annotationsOf(t, raw)); diff != "" {
		t.Errorf("index annotations (-want +got):\n%s", diff)
	}
	var idx ocispec.Index
	if err := json.Unmarshal(raw, &idx); err != nil {
		t.Fatal(err)
	}
	for _, m := range idx.Manifests {
		child := to.Get("x/multi", string(m.Digest))
		if m.Platform == nil || m.Size != int64(len(child)) {
			t.Errorf("entry %+v of a manifest of %d bytes", m, len(child))
		}
		if diff := cmp.Diff(map[string]string{"b": "2", "c": "3", "kept": "yes"}, annotationsOf(t, child)); diff != "" {
			t.Errorf("manifest annotations (-want +got):\n%s", diff)
		}
	}
	p.must(step, config{"srcRef": from.Host() + "/a/b:v1", "destRef": to.Host() + "/x/b:prod", "annotations": annotations})
	if diff := cmp.Diff(map[string]string{"b": "2", "c": "3", "kept": "yes"}, annotationsOf(t, to.Get("x/b", "prod"))); diff != "" {
		t.Errorf("a single image's annotations (-want +got):\n%s", diff)
	}
}

func TestOCIPushRecorded(t *testing.T) {
	from, to := writable(t), writable(t)
	digest := index(t, from, "a/multi", "v1")
	p := newPromotion(t)
	step := OCIPush(ocipush.Recorder(p.log), -1)
	out := p.must(step, config{"srcRef": from.Host() + "/a/multi:v1", "destRef": to.Host() + "/x/y:prod"})
	if out["digest"] != digest {
		t.Errorf("digest %v, want %s", out["digest"], digest)
	}
	out = p.must(step, config{"srcRef": from.Host() + "/a/multi:v1", "destRef": to.Host() + "/x/y:prod", "annotations": config{"b": "2"}})
	if out["digest"] == digest {
		t.Error("annotations left the digest as it was")
	}
	if got := to.Requests(); len(got) != 0 {
		t.Errorf("the destination saw %v", got)
	}
	for _, r := range from.Requests() {
		if !strings.HasPrefix(r, "GET ") && !strings.HasPrefix(r, "HEAD ") || strings.Contains(r, "/blobs/") {
			t.Errorf("a dry run needs no %s", r)
		}
	}
	if got := p.log.Requests(); len(got) != 2 || got[0].Done {
		t.Errorf("logged %+v", got)
	}
}
