package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
)

const mediaTypeBOM = "application/vnd.cyclonedx+json"

// annotationEngineName is what containerd, and with it Docker and kind, call an
// image by that they load from a layout (containerd, images.AnnotationImageName).
const annotationEngineName = "io.containerd.image.name"

// layout is an OCI image layout that is being written (image-spec,
// image-layout.md). Its index.json names the image index, with the version as
// its tag, and the referrers, where clients look for them.
type layout struct {
	dir, scratch string
	name         string // repository
	blobs        *oci.Storage
	about        description
	images       []ocispec.Descriptor // of each platform
	referrers    []ocispec.Descriptor
}

func newLayout(dir, scratch, name string) (*layout, error) {
	blobs, err := oci.NewStorage(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot make the layout: %w", err)
	}
	return &layout{dir: dir, scratch: scratch, name: name, blobs: blobs}, nil
}

// addImage adds the image of a platform and returns its descriptor. What
// changes least is in the first layer.
func (l *layout) addImage(ctx context.Context, p ocispec.Platform, programs []program, about description) (ocispec.Descriptor, error) {
	contents := [][]node{base()}
	for _, prog := range slices.Backward(programs) {
		contents = append(contents, executable(prog))
	}
	config := ocispec.Image{
		Created:  &about.created,
		Platform: p,
		Config: ocispec.ImageConfig{
			User:       strconv.Itoa(nonroot) + ":" + strconv.Itoa(nonroot),
			Entrypoint: []string{"/usr/local/bin/" + programs[0].name},
			Env:        []string{"PATH=/usr/local/bin", "HOME=/home/nonroot"},
			WorkingDir: "/home/nonroot",
			Labels:     about.annotations(),
		},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	var layers []ocispec.Descriptor
	for _, nodes := range contents {
		written, err := writeLayer(l.scratch, nodes)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		if err := l.addLayer(ctx, written); err != nil {
			return ocispec.Descriptor{}, err
		}
		layers = append(layers, written.Descriptor)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, written.diffID)
		config.History = append(config.History, ocispec.History{Created: &about.created, CreatedBy: "stepd image"})
	}
	configDesc, err := l.addJSON(ctx, ocispec.MediaTypeImageConfig, config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := l.addJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: configDesc, Layers: layers, Annotations: about.annotations(),
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	l.about = about
	inIndex := desc
	inIndex.Platform = &p
	l.images = append(l.images, inIndex)
	return desc, nil
}

// attach adds a bill of materials as a referrer of subject.
func (l *layout) attach(ctx context.Context, subject ocispec.Descriptor, bom []byte, about description) error {
	blob := content.NewDescriptorFromBytes(mediaTypeBOM, bom)
	if err := l.add(ctx, blob, bom); err != nil {
		return err
	}
	annotations := map[string]string{ocispec.AnnotationCreated: about.annotations()[ocispec.AnnotationCreated]}
	desc, err := oras.PackManifest(ctx, l.blobs, oras.PackManifestVersion1_1, mediaTypeBOM, oras.PackManifestOptions{
		Subject: &subject, Layers: []ocispec.Descriptor{blob}, ManifestAnnotations: annotations,
	})
	if err != nil {
		return fmt.Errorf("cannot attach a bill of materials: %w", err)
	}
	l.referrers = append(l.referrers, desc)
	return nil
}

// close writes the index of all platforms and the layout's own files, and
// returns the index's descriptor.
func (l *layout) close(ctx context.Context) (ocispec.Descriptor, error) {
	index, err := l.addJSON(ctx, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: l.images, Annotations: l.about.annotations(),
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	index.Annotations = map[string]string{ocispec.AnnotationRefName: l.about.tag(), annotationEngineName: l.name + ":" + l.about.tag()}
	entries := append([]ocispec.Descriptor{index}, l.referrers...)
	files := map[string]any{
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
		ocispec.ImageIndexFile: ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries,
		},
	}
	for name, file := range files {
		text, err := json.Marshal(file)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("cannot encode %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(l.dir, name), text, 0o644); err != nil { //nolint:gosec // made to be published
			return ocispec.Descriptor{}, fmt.Errorf("cannot write %s: %w", name, err)
		}
	}
	// The storage leaves its folder for blobs that are being written.
	if err := os.Remove(filepath.Join(l.dir, "ingest")); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("cannot tidy the layout: %w", err)
	}
	return index, nil
}

// addLayer moves a layer into the layout; one that is there already, such as
// the same base of another platform, is left alone.
func (l *layout) addLayer(ctx context.Context, written layer) error {
	if there, err := l.blobs.Exists(ctx, written.Descriptor); err != nil || there {
		return err
	}
	f, err := os.Open(written.file)
	if err != nil {
		return fmt.Errorf("cannot read a layer: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	if err := l.blobs.Push(ctx, written.Descriptor, f); err != nil {
		return fmt.Errorf("cannot add a layer: %w", err)
	}
	return nil
}

func (l *layout) addJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("cannot encode %s: %w", mediaType, err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	return desc, l.add(ctx, desc, text)
}

func (l *layout) add(ctx context.Context, desc ocispec.Descriptor, text []byte) error {
	if there, err := l.blobs.Exists(ctx, desc); err != nil || there {
		return err
	}
	if err := l.blobs.Push(ctx, desc, bytes.NewReader(text)); err != nil {
		return fmt.Errorf("cannot add %s: %w", desc.MediaType, err)
	}
	return nil
}
