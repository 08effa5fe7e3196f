// Package ocipush copies artifacts from registry to registry, by way of a
// destination that writes (Live) or only records (Recorder).
//
// It is oras-go's copying with limits, and annotations set on the way. Reading
// artifacts for their own sake belongs in internal/ociart.
package ocipush

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/stepd/stepd/internal/effects"
)

// Errors of artifacts that are not copied whatever the registries say.
var (
	ErrMediaType = errors.New("it is neither an image manifest nor an image index")
	ErrTooLarge  = errors.New("the artifact is too large")
)

const (
	maxManifest  = 4 << 20
	maxManifests = 1000
	maxDepth     = 4
)

// Destinations is the edge to registries that are written to.
type Destinations interface {
	// Destination returns what stands for repo; step is the alias of the step
	// that writes.
	Destination(repo *remote.Repository, step string) oras.Target
}

// Live returns the registries themselves. Tags are logged.
func Live(log *effects.Log) Destinations { return live{log} }

type live struct{ log *effects.Log }

func (l live) Destination(repo *remote.Repository, step string) oras.Target {
	return &logged{repo, l.log, step, true}
}

// Recorder returns destinations that seem to have everything already, keep
// what is pushed to themselves, and log tags.
func Recorder(log *effects.Log) Destinations { return recorder{log} }

type recorder struct{ log *effects.Log }

func (r recorder) Destination(repo *remote.Repository, step string) oras.Target {
	return &unwritten{logged{repo, r.log, step, false}}
}

type logged struct {
	*remote.Repository
	log  *effects.Log
	step string
	done bool
}

func (l *logged) Tag(ctx context.Context, desc ocispec.Descriptor, tag string) error {
	if l.done {
		if err := l.Repository.Tag(ctx, desc, tag); err != nil {
			return err
		}
	}
	l.log.Request(effects.Request{
		Kind: "oci-push", Target: l.Reference.Registry + "/" + l.Reference.Repository + ":" + tag,
		Done: l.done, Step: l.step, Detail: map[string]any{"digest": string(desc.Digest)},
	})
	return nil
}

type unwritten struct{ logged }

func (*unwritten) Exists(context.Context, ocispec.Descriptor) (bool, error) { return true, nil }

func (*unwritten) Push(_ context.Context, desc ocispec.Descriptor, r io.Reader) error {
	_, err := content.ReadAll(r, desc) // checks size and digest
	return err
}

// Options say how to copy.
type Options struct {
	// SameRepository tells that source and destination are one: there is
	// nothing to copy but the tag, and no limit.
	SameRepository bool
	// MaxSize bounds what is copied between repositories: the sum of compressed
	// sizes in the manifests, over all platforms of an index. 0 forbids such
	// copies, -1 allows any.
	MaxSize int64
	// Annotations are set on the destination. A key may begin with "index:" or
	// "manifest:", the default.
	Annotations map[string]string
}

// Copy copies an artifact, given by tag or digest, to dst under a tag and
// returns the descriptor of what is there then.
func Copy(ctx context.Context, src oras.ReadOnlyTarget, reference string, dst oras.Target, tag string, o Options) (ocispec.Descriptor, error) {
	root, err := src.Resolve(ctx, reference)
	if err != nil {
		return root, fmt.Errorf("cannot resolve %s: %w", reference, err)
	}
	if !isImage(root) && !isIndex(root) {
		return root, fmt.Errorf("%s has media type %.100q: %w", reference, root.MediaType, ErrMediaType)
	}
	if !o.SameRepository {
		if err := o.checkSize(ctx, src, root); err != nil {
			return root, err
		}
		if err := oras.CopyGraph(ctx, src, dst, root, oras.CopyGraphOptions{FindSuccessors: children}); err != nil {
			return root, fmt.Errorf("cannot copy: %w", err)
		}
	}
	if root, err = o.annotate(ctx, src, dst, root, 0); err != nil {
		return root, fmt.Errorf("cannot set annotations: %w", err)
	}
	if err := dst.Tag(ctx, root, tag); err != nil {
		return root, fmt.Errorf("cannot tag %s: %w", tag, err)
	}
	return root, nil
}

// Docker's media types are older than, and the same as, OCI's.
func isImage(d ocispec.Descriptor) bool {
	return d.MediaType == ocispec.MediaTypeImageManifest || d.MediaType == "application/vnd.docker.distribution.manifest.v2+json"
}

func isIndex(d ocispec.Descriptor) bool {
	return d.MediaType == ocispec.MediaTypeImageIndex || d.MediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// children are what an artifact consists of. A subject is another artifact.
func children(ctx context.Context, fetcher content.Fetcher, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if !isImage(d) && !isIndex(d) {
		return nil, nil
	}
	raw, err := fetchManifest(ctx, fetcher, d)
	if err != nil {
		return nil, err
	}
	var m struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("manifest %s is not JSON: %w", d.Digest, err)
	}
	if isIndex(d) {
		return m.Manifests, nil
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	return m.Layers, nil
}

func fetchManifest(ctx context.Context, fetcher content.Fetcher, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxManifest {
		return nil, fmt.Errorf("manifest %s has %d bytes, more than %d: %w", d.Digest, d.Size, maxManifest, ErrTooLarge)
	}
	return content.FetchAll(ctx, fetcher, d)
}

func (o Options) checkSize(ctx context.Context, src content.Fetcher, root ocispec.Descriptor) error {
	if o.MaxSize == 0 {
		return fmt.Errorf("copies between repositories are forbidden here: %w", ErrTooLarge)
	}
	var size, manifests int64
	var walk func(d ocispec.Descriptor, depth int) error
	walk = func(d ocispec.Descriptor, depth int) error {
		if manifests++; manifests > maxManifests || depth > maxDepth {
			return fmt.Errorf("it has more than %d manifests, or %d levels of them: %w", maxManifests, maxDepth, ErrTooLarge)
		}
		parts, err := children(ctx, src, d)
		if err != nil {
			return err
		}
		for _, part := range parts {
			if part.Size < 0 {
				return fmt.Errorf("%s has a negative size: %w", part.Digest, ErrTooLarge)
			}
			if isImage(part) || isIndex(part) {
				if err := walk(part, depth+1); err != nil {
					return err
				}
				continue
			}
			if size += part.Size; size < 0 || o.MaxSize > 0 && size > o.MaxSize {
				return fmt.Errorf("it has more than %d compressed bytes: %w", o.MaxSize, ErrTooLarge)
			}
		}
		return nil
	}
	return walk(root, 1)
}

// annotate pushes a manifest, and below an index its manifests, with the
// annotations that are for it, and returns the new descriptor. What gets none
// keeps its digest.
func (o Options) annotate(ctx context.Context, src content.Fetcher, dst oras.Target, d ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	if depth > maxDepth || !isImage(d) && !isIndex(d) || len(o.Annotations) == 0 {
		return d, nil
	}
	raw, err := fetchManifest(ctx, src, d)
	if err != nil {
		return d, err
	}
	var m map[string]any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if err := decoder.Decode(&m); err != nil {
		return d, fmt.Errorf("manifest %s is not JSON: %w", d.Digest, err)
	}
	changed := false
	if isIndex(d) {
		if changed, err = o.annotateChildren(ctx, src, dst, m, depth); err != nil {
			return d, err
		}
	}
	if own := o.annotationsFor(isIndex(d)); len(own) > 0 {
		annotations, _ := m["annotations"].(map[string]any)
		if annotations == nil {
			annotations = map[string]any{}
		}
		for k, v := range own {
			annotations[k] = v
		}
		m["annotations"], changed = annotations, true
	}
	if !changed {
		return d, nil
	}
	if raw, err = json.Marshal(m); err != nil {
		return d, err
	}
	after := d
	after.Digest, after.Size = digest.FromBytes(raw), int64(len(raw))
	if err := dst.Push(ctx, after, bytes.NewReader(raw)); err != nil {
		return d, err
	}
	return after, nil
}

// annotateChildren annotates the manifests of an index and points it at them.
func (o Options) annotateChildren(ctx context.Context, src content.Fetcher, dst oras.Target, index map[string]any, depth int) (changed bool, err error) {
	entries, _ := index["manifests"].([]any)
	for _, e := range entries {
		entry, _ := e.(map[string]any)
		var d ocispec.Descriptor
		if raw, err := json.Marshal(entry); err != nil {
			return false, err
		} else if err := json.Unmarshal(raw, &d); err != nil {
			return false, err
		}
		after, err := o.annotate(ctx, src, dst, d, depth+1)
		if err != nil {
			return false, err
		}
		if after.Digest != d.Digest {
			entry["digest"], entry["size"] = string(after.Digest), after.Size
			changed = true
		}
	}
	return changed, nil
}

func (o Options) annotationsFor(index bool) map[string]string {
	own := map[string]string{}
	for k, v := range o.Annotations {
		key, forIndex := strings.CutPrefix(k, "index:")
		if !forIndex {
			key = strings.TrimPrefix(k, "manifest:")
		}
		if forIndex == index {
			own[key] = v
		}
	}
	return own
}
