package e2e_test

import (
	"archive/tar"
	"context"
	"crypto/x509"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	orasremote "oras.land/oras-go/v2/registry/remote"

	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/registry/distribution"
)

const bomType = "application/vnd.cyclonedx+json"

// TestImage builds the container image for one platform as `make image` does
// for all, and reads it with another library than the one that wrote it.
func TestImage(t *testing.T) {
	first, second := buildImage(t), buildImage(t)
	if diff := cmp.Diff(checksums(t, first), checksums(t, second)); diff != "" {
		t.Errorf("two builds of the same sources differ:\n%s", diff)
	}

	index, img := readImage(t, filepath.Join(first, "oci"))
	if err := validate.Index(index); err != nil {
		t.Errorf("the layout is not consistent: %v", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"linux/amd64", "65532:65532", "/usr/local/bin/stepd"},
		[]string{config.Platform().String(), config.Config.User, strings.Join(config.Config.Entrypoint, " ")}); diff != "" {
		t.Errorf("platform, user and entrypoint (-want +got):\n%s", diff)
	}
	for _, label := range []string{ocispec.AnnotationTitle, ocispec.AnnotationVersion, ocispec.AnnotationSource, ocispec.AnnotationLicenses} {
		if config.Config.Labels[label] == "" {
			t.Errorf("no label %s in %v", label, config.Config.Labels)
		}
	}

	root := t.TempDir()
	unpackImage(t, img, root)
	out, err := exec.CommandContext(t.Context(), filepath.Join(root, config.Config.Entrypoint[0]), "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "stepd ") {
		t.Errorf("the entrypoint does not run: %v\n%s", err, out)
	}
	// The verbs that are installed in a cluster are another program's.
	for _, verb := range []string{"serve", "webhook"} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(root, config.Config.Entrypoint[0]), verb, "--help").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--metrics") {
			t.Errorf("the entrypoint does not run %s: %v\n%s", verb, err, out)
		}
	}
	authorities, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if pool := x509.NewCertPool(); !pool.AppendCertsFromPEM(authorities) || strings.Count(string(authorities), "BEGIN CERTIFICATE") < 100 {
		t.Error("the certificate authorities of the web are missing")
	}
	checkBOM(t, filepath.Join(first, "sbom-linux-amd64.cdx.json"), root)
	checkPushed(t, filepath.Join(first, "oci"), img)
}

// buildImage runs the builder and returns its output folder.
func buildImage(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	cmd := exec.CommandContext(t.Context(), "go", "run", ".", "-output", dir, "-platforms", "linux/amd64")
	cmd.Dir = filepath.Join("..", "image")
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1795305600", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the image: %v\n%s", err, out)
	}
	return dir
}

// checksums returns every file below dir with its digest.
func checksums(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		sum, _, err := v1.SHA256(f)
		sums[rel] = sum.Hex
		return err
	})
	if err != nil || len(sums) == 0 {
		t.Fatalf("cannot read the output: %d files, %v", len(sums), err)
	}
	return sums
}

// readImage returns the image index of a layout and the only image in it.
func readImage(t *testing.T, dir string) (v1.ImageIndex, v1.Image) {
	t.Helper()
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	tagged := slices.IndexFunc(manifest.Manifests, func(d v1.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] != "" })
	if tagged < 0 {
		t.Fatalf("nothing in %s has a tag", dir)
	}
	index, err := top.ImageIndex(manifest.Manifests[tagged].Digest)
	if err != nil {
		t.Fatal(err)
	}
	platforms, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(platforms.Manifests) != 1 {
		t.Fatalf("%d platforms, want 1", len(platforms.Manifests))
	}
	img, err := index.Image(platforms.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index, img
}

// unpackImage writes an image's files below root and checks that there is
// nothing in them that a container with no privilege should not have.
func unpackImage(t *testing.T, img v1.Image, root string) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for archive := tar.NewReader(r); ; {
			h, err := archive.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Mode&0o6000 != 0 || (h.Mode&0o002 != 0 && h.Name != "tmp/") || !h.ModTime.IsZero() && h.ModTime.Unix() != 0 {
				t.Errorf("%s has mode %o and time %s", h.Name, h.Mode, h.ModTime)
			}
			switch path := filepath.Join(root, filepath.Clean("/"+h.Name)); h.Typeflag {
			case tar.TypeDir:
				err = os.MkdirAll(path, 0o755)
			case tar.TypeReg:
				var f *os.File
				if f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, os.FileMode(h.Mode)&0o777); err == nil {
					_, err = io.Copy(f, archive)
					err = errors.Join(err, f.Close())
				}
			default:
				t.Errorf("%s is neither file nor folder: type %c", h.Name, h.Typeflag)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// checkBOM compares a bill of materials with what the linker recorded in the
// programs of an unpacked image.
func checkBOM(t *testing.T, file, root string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		BOMFormat  string
		Components []struct {
			Type, Name, Version, PURL string
		}
	}
	if err := json.Unmarshal(text, &bom); err != nil || bom.BOMFormat != "CycloneDX" {
		t.Fatalf("no bill of materials: %v", err)
	}
	var got, want []string
	for _, c := range bom.Components {
		if c.Type == "library" {
			got = append(got, c.Name+" "+c.Version)
			if !strings.HasPrefix(c.PURL, "pkg:golang/") {
				t.Errorf("%s has the package URL %q", c.Name, c.PURL)
			}
		}
	}
	for _, program := range []string{"stepd", "stepd-serve", "stepd-helm"} {
		info, err := buildinfo.ReadFile(filepath.Join(root, "usr/local/bin", program))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, "stdlib "+strings.TrimPrefix(info.GoVersion, "go"))
		for _, m := range info.Deps {
			want = append(want, m.Path+" "+m.Version)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(slices.Compact(want), got); diff != "" {
		t.Errorf("modules in the bill of materials (-linked +listed):\n%s", diff)
	}
}

// checkPushed pushes a layout with its referrers to a registry, as `oras cp
// --recursive --from-oci-layout` does, and reads both back.
func checkPushed(t *testing.T, dir string, img v1.Image) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reg := registry.Start(distribution.New(ctx))
	defer reg.Close()
	source, err := oci.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	var tag string
	if err := source.Tags(ctx, "", func(tags []string) error { tag = strings.Join(tags, " "); return nil }); err != nil || tag == "" {
		t.Fatalf("the layout has the tags %q: %v", tag, err)
	}
	repo, err := orasremote.NewRepository(reg.Host() + "/stepd/stepd")
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := img.Size()
	if err != nil {
		t.Fatal(err)
	}
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(want.String()), Size: size}
	// Everything that refers to the platform's image: its bill of materials, and the index.
	if err := oras.ExtendedCopyGraph(ctx, source, repo, subject, oras.DefaultExtendedCopyGraphOptions); err != nil {
		t.Fatalf("cannot push: %v", err)
	}
	if _, err := oras.Copy(ctx, source, tag, repo, tag, oras.DefaultCopyOptions); err != nil {
		t.Fatalf("cannot push: %v", err)
	}
	target := filepath.Join(t.TempDir(), "pulled")
	store, err := oci.New(target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oras.Copy(ctx, repo, tag, store, tag, oras.DefaultCopyOptions); err != nil {
		t.Fatalf("cannot pull: %v", err)
	}
	index, pulled := readImage(t, target)
	if err := validate.Index(index); err != nil {
		t.Errorf("what was pulled is not consistent: %v", err)
	}
	if got, err := pulled.Digest(); err != nil || got != want {
		t.Errorf("pulled %s, want %s: %v", got, want, err)
	}
	var boms []ocispec.Descriptor
	if err := repo.Referrers(ctx, subject, bomType, func(found []ocispec.Descriptor) error {
		boms = append(boms, found...)
		return nil
	}); err != nil || len(boms) != 1 {
		t.Errorf("the image has %d bills of materials, want 1: %v", len(boms), err)
	}
}
