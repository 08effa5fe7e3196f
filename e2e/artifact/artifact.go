// Package artifact pushes compiled configuration the way the release pipeline
// does (`oras push`): an OCI image manifest with one YAML layer, an empty
// config, and the identity of the content in the manifest's annotations. It
// attaches Sigstore bundles as cosign v3 does. It signs nothing.
package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
)

// Media types of a config artifact and of a bundle.
const (
	ArtifactType = "application/vnd.devex.config.v1+json"
	LayerType    = "application/vnd.devex.config.values.v1+yaml"
	BundleType   = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// Config is one compiled configuration.
type Config struct {
	Service string
	// Version is the release, "v1.2.0".
	Version string
	// Region is the target, "prd-us-east-2".
	Region string
	// Commit and Source are the source commit and the source repository's URL.
	Commit, Source string
	// Values is the compiled values.yaml.
	Values []byte
}

// Tag is the tag that the pipeline gives c.
func (c Config) Tag() string { return c.Service + "-" + c.Version + "-" + c.Region }

// Annotations are the manifest annotations that the pipeline gives c.
func (c Config) Annotations() map[string]string {
	return map[string]string{
		"com.devex.config.service": c.Service,
		"com.devex.config.version": c.Version,
		"com.devex.config.region":  c.Region,
		ocispec.AnnotationRevision: c.Commit,
		ocispec.AnnotationSource:   c.Source,
		ocispec.AnnotationCreated:  "2026-11-01T00:00:00Z",
	}
}

// Push pushes c to repository (host included) under its tag and returns the
// manifest's descriptor.
func Push(ctx context.Context, repository string, c Config) (ocispec.Descriptor, error) {
	repo, err := open(repository)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	layer := content.NewDescriptorFromBytes(LayerType, c.Values)
	layer.Annotations = map[string]string{ocispec.AnnotationTitle: "values.yaml"}
	if err := pushBlob(ctx, repo, layer, c.Values); err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest, err := oras.PackManifest(ctx, repo, oras.PackManifestVersion1_1, ArtifactType, oras.PackManifestOptions{
		Layers:              []ocispec.Descriptor{layer},
		ManifestAnnotations: c.Annotations(),
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("cannot push the manifest: %w", err)
	}
	return manifest, Tag(ctx, repository, manifest, c.Tag())
}

// Tag points tag at a manifest that repository holds.
func Tag(ctx context.Context, repository string, manifest ocispec.Descriptor, tag string) error {
	repo, err := open(repository)
	if err != nil {
		return err
	}
	if err := repo.Tag(ctx, manifest, tag); err != nil {
		return fmt.Errorf("cannot tag %s as %s: %w", manifest.Digest, tag, err)
	}
	return nil
}

// AttachBundle attaches a Sigstore bundle to subject, as a referrer where the
// registry has the API and by the fallback tag where not.
func AttachBundle(ctx context.Context, repository string, subject ocispec.Descriptor, bundle []byte, predicateType string) error {
	repo, err := open(repository)
	if err != nil {
		return err
	}
	layer := content.NewDescriptorFromBytes(BundleType, bundle)
	if err := pushBlob(ctx, repo, layer, bundle); err != nil {
		return err
	}
	_, err = oras.PackManifest(ctx, repo, oras.PackManifestVersion1_1, BundleType, oras.PackManifestOptions{
		Subject: &subject,
		Layers:  []ocispec.Descriptor{layer},
		ManifestAnnotations: map[string]string{
			ocispec.AnnotationCreated:           time.Now().UTC().Format(time.RFC3339),
			"dev.sigstore.bundle.content":       "dsse-envelope",
			"dev.sigstore.bundle.predicateType": predicateType,
		},
	})
	if err != nil {
		return fmt.Errorf("cannot attach a bundle to %s: %w", subject.Digest, err)
	}
	return nil
}

func open(repository string) (*remote.Repository, error) {
	repo, err := remote.NewRepository(repository)
	if err != nil {
		return nil, fmt.Errorf("cannot use repository %q: %w", repository, err)
	}
	repo.PlainHTTP = true
	return repo, nil
}

func pushBlob(ctx context.Context, repo *remote.Repository, d ocispec.Descriptor, b []byte) error {
	if err := repo.Push(ctx, d, bytes.NewReader(b)); err != nil {
		return fmt.Errorf("cannot push blob %s: %w", d.Digest, err)
	}
	return nil
}

// Layer returns the only layer of a manifest.
func Layer(manifest []byte) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("cannot read the manifest: %w", err)
	}
	if len(m.Layers) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("the manifest has %d layers, want one", len(m.Layers))
	}
	return m.Layers[0], nil
}
