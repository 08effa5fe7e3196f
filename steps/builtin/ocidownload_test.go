package builtin

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/steps"
)

func TestOCIDownload(t *testing.T) {
	reg := ocitest.New(t)
	manifest := func(layers ...ocispec.Descriptor) map[string]any {
		return map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": ocispec.DescriptorEmptyJSON, "layers": layers}
	}
	values := reg.Blob("application/yaml", []byte("replicas: 3\n"))
	notes := reg.Blob("text/plain", []byte("notes"))
	digest := reg.Manifest("o/r", "v1", ocitest.JSON(t, manifest(notes, values)))
	reg.Manifest("o/r", "empty", ocitest.JSON(t, manifest()))
	huge := values
	huge.Size = 200 << 20
	reg.Manifest("o/r", "huge", ocitest.JSON(t, manifest(huge)))
	reg.Manifest("o/r", "index", ocitest.JSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{
			map[string]any{"mediaType": ocispec.MediaTypeImageManifest, "digest": digest, "size": 1, "platform": map[string]any{"os": "linux", "architecture": "amd64"}},
		},
	}))
	reg.Manifest("o/r", "arm", ocitest.JSON(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{}}))

	tests := map[string]struct {
		reason   string
		config   map[string]any
		existing bool
		want     string
		err      string
		terminal bool
	}{
		"first layer":  {reason: "the default", config: map[string]any{"imageRef": "HOST/o/r:v1"}, want: "notes"},
		"media type":   {reason: "the first of that type", config: map[string]any{"imageRef": "HOST/o/r:v1", "mediaType": "application/yaml"}, want: "replicas: 3\n"},
		"by digest":    {reason: "instead of a tag", config: map[string]any{"imageRef": "HOST/o/r@" + digest}, want: "notes"},
		"oci prefix":   {reason: "is part of the grammar", config: map[string]any{"imageRef": "oci://HOST/o/r:v1"}, want: "notes"},
		"index":        {reason: "stands for linux/amd64", config: map[string]any{"imageRef": "HOST/o/r:index"}, want: "notes"},
		"other arch":   {reason: "nothing for linux/amd64", config: map[string]any{"imageRef": "HOST/o/r:arm"}, err: "linux/amd64"},
		"G16":          {reason: "Kargo's own words", config: map[string]any{"imageRef": "HOST/o/r:v1"}, existing: true, err: "file already exists at out/f and overwrite is not allowed", terminal: true},
		"overwrite":    {reason: "when asked", config: map[string]any{"imageRef": "HOST/o/r:v1", "allowOverwrite": true}, existing: true, want: "notes"},
		"no layers":    {reason: "may be tried again", config: map[string]any{"imageRef": "HOST/o/r:empty"}, err: "no layers"},
		"no such type": {reason: "may be tried again", config: map[string]any{"imageRef": "HOST/o/r:v1", "mediaType": "x"}, err: "media type"},
		"G17":          {reason: "Kargo's limit, by the declared size", config: map[string]any{"imageRef": "HOST/o/r:huge"}, err: "limit", terminal: true},
		"absent":       {reason: "says what", config: map[string]any{"imageRef": "HOST/o/r:nope"}, err: "404"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sc := &steps.Context{WorkDir: t.TempDir(), Config: tt.config, Log: slog.New(slog.DiscardHandler)}
			sc.Config["imageRef"] = strings.Replace(sc.Config["imageRef"].(string), "HOST", reg.Host(), 1)
			sc.Config["outPath"] = "out/f"
			out := filepath.Join(sc.WorkDir, "out", "f")
			if tt.existing {
				if err := os.MkdirAll(filepath.Dir(out), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(out, []byte("old"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			res, err := OCIDownload(&ociart.Transports{}).New(steps.Capabilities{}).Run(t.Context(), sc)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || res.Status != steps.Errored || steps.IsTerminal(err) != tt.terminal {
					t.Fatalf("%s: %s, %v (terminal %t)", tt.reason, res.Status, err, steps.IsTerminal(err))
				}
				return
			}
			if err != nil || res.Status != steps.Succeeded || res.Output != nil {
				t.Fatalf("%s: %+v, %v", tt.reason, res, err)
			}
			b, err := os.ReadFile(out)
			if err != nil || string(b) != tt.want {
				t.Errorf("%s: %q, %v", tt.reason, b, err)
			}
			if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", tt.reason, info.Mode(), err)
			}
		})
	}
}
