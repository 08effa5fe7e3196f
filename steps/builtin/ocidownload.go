package builtin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/steps"
)

type ociDownloadConfig struct {
	ImageRef              string `json:"imageRef"`
	OutPath               string `json:"outPath"`
	MediaType             string `json:"mediaType"`
	AllowOverwrite        bool   `json:"allowOverwrite"`
	InsecureSkipTLSVerify bool   `json:"insecureSkipTLSVerify"`
}

// maxOCIDownload is Kargo's limit on a layer's declared size.
const maxOCIDownload = 100 << 20

// OCIDownload is `oci-download`: the raw bytes of one layer of an artifact. It
// verifies no signature, and an index stands for its linux/amd64 manifest.
func OCIDownload(transports *ociart.Transports) steps.Registration {
	return registration("oci-download", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		cfg, err := decodeConfig[ociDownloadConfig](sc)
		if err != nil {
			return failed(err)
		}
		if err := ociDownload(ctx, sc, cfg, transports, caps.Credentials); err != nil {
			return errored(err)
		}
		return succeeded(nil)
	}), steps.AccessCredentials)
}

func ociDownload(ctx context.Context, sc *steps.Context, cfg ociDownloadConfig, transports *ociart.Transports, creds steps.CredentialSource) error {
	out, err := within(sc, cfg.OutPath)
	if err != nil {
		return err
	}
	if !cfg.AllowOverwrite {
		if _, err := os.Lstat(out); err == nil {
			return steps.Terminal(fmt.Errorf("file already exists at %s and overwrite is not allowed", cfg.OutPath))
		}
	}
	ref, err := ociart.ParseReference(cfg.ImageRef)
	if err != nil {
		return steps.Terminal(err)
	}
	client, err := ociart.New(ociart.Options{
		Transports: transports, Credentials: creds, Project: sc.Project, InsecureSkipTLSVerify: cfg.InsecureSkipTLSVerify,
	})
	if err != nil {
		return err
	}
	repo := client.Repository(ref)
	image, err := resolveImage(ctx, repo)
	if err != nil {
		return err
	}
	layer, err := pickLayer(image.Layers, cfg.MediaType)
	if err != nil {
		return err
	}
	if layer.Size > maxOCIDownload {
		return steps.Terminal(fmt.Errorf("the layer is %d bytes, and the limit is %d", layer.Size, maxOCIDownload))
	}
	err = writeFile(out, 0o600, func(f *os.File) error {
		return repo.FetchBlob(ctx, layer, maxOCIDownload, func() (io.Writer, error) {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return nil, err
			}
			return f, f.Truncate(0)
		})
	})
	if err != nil {
		return fmt.Errorf("failed to write %q: %w", cfg.OutPath, relativeTo(sc.WorkDir, err))
	}
	return nil
}

// resolveImage follows an index to its linux/amd64 manifest, as
// go-containerregistry's remote.Image does.
func resolveImage(ctx context.Context, repo *ociart.Repository) (*ocispec.Manifest, error) {
	m, err := repo.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	if !m.IsIndex() {
		return m.Image()
	}
	index, err := m.Index()
	if err != nil {
		return nil, err
	}
	for _, d := range index.Manifests {
		if d.Platform == nil || d.Platform.OS != "linux" || d.Platform.Architecture != "amd64" {
			continue
		}
		child, err := repo.Manifest(ctx, string(d.Digest), 0)
		if err != nil {
			return nil, err
		}
		return child.Image()
	}
	return nil, errors.New("the reference is an index without a manifest for linux/amd64")
}

// pickLayer is the first layer, or the first of a media type.
func pickLayer(layers []ocispec.Descriptor, mediaType string) (ocispec.Descriptor, error) {
	if len(layers) == 0 {
		return ocispec.Descriptor{}, errors.New("the artifact has no layers")
	}
	for _, l := range layers {
		if mediaType == "" || l.MediaType == mediaType {
			return l, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("the artifact has no layer of media type %q", mediaType)
}
