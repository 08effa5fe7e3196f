// Command image builds stepd's container image with no container engine: an OCI
// image layout with one manifest per platform, and a bill of materials for each.
//
// It is a module of its own so that what describes an image is no dependency of
// what runs in it. Only the building is here; what the programs do belongs to
// the module above. docs/decisions says why the image is as it is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const usage = `image builds the container image of stepd into a folder:

  OUTPUT/oci/                        OCI image layout: the image for every platform, bills of materials as referrers
  OUTPUT/sbom-OS-ARCH.cdx.json       the same bills of materials (CycloneDX)
  OUTPUT/digest                      digest of the image index, to pin

The same commit and Go release give the same bytes. SOURCE_DATE_EPOCH (seconds) sets the time of creation; the
default is the commit's.

  go run -C image . -checkout .. -output ../bin/image
  oras cp --recursive --from-oci-layout bin/image/oci:VERSION registry.example.com/stepd:VERSION

`

func main() {
	// The second signal ends the process the hard way.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(os.Stderr, "image: %v\n", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, status io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(status)
	flags.Usage = func() {
		_, _ = io.WriteString(status, usage) // nowhere to report a broken stderr
		flags.PrintDefaults()
	}
	checkout := flags.String("checkout", "..", "folder of the sources")
	output := flags.String("output", "", "folder to write to, absent or empty (required)")
	name := flags.String("name", "ghcr.io/stepd/stepd", "repository that a container engine calls the image by when it loads the layout")
	platforms := flags.String("platforms", "linux/amd64,linux/arm64", "platforms to build for")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *output == "" || flags.NArg() > 0 {
		return errors.New("usage: image -output FOLDER; see image -help")
	}
	var wanted []ocispec.Platform
	for _, s := range strings.Split(*platforms, ",") {
		goos, arch, ok := strings.Cut(s, "/")
		if !ok || goos != "linux" || arch == "" {
			return fmt.Errorf("cannot build for %q: platforms are linux/ARCH", s)
		}
		wanted = append(wanted, ocispec.Platform{OS: goos, Architecture: arch})
	}
	created, err := sourceDate(getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	if entries, err := os.ReadDir(*output); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty: remove it first", *output)
	}
	if err := os.MkdirAll(*output, 0o755); err != nil {
		return fmt.Errorf("cannot make the output folder: %w", err)
	}
	scratch, err := os.MkdirTemp("", "stepd-image-")
	if err != nil {
		return fmt.Errorf("cannot make a scratch folder: %w", err)
	}
	defer os.RemoveAll(scratch) //nolint:errcheck // at worst a temporary folder stays

	layout, err := newLayout(filepath.Join(*output, "oci"), scratch, *name)
	if err != nil {
		return err
	}
	for _, p := range wanted {
		programs, err := build(ctx, *checkout, filepath.Join(scratch, p.Architecture), p)
		if err != nil {
			return err
		}
		about, err := describe(programs[0].info, created)
		if err != nil {
			return err
		}
		desc, err := layout.addImage(ctx, p, programs, about)
		if err != nil {
			return fmt.Errorf("cannot assemble the image for %s/%s: %w", p.OS, p.Architecture, err)
		}
		bom, err := billOfMaterials(programs, desc, about)
		if err != nil {
			return fmt.Errorf("cannot list what is in the image for %s/%s: %w", p.OS, p.Architecture, err)
		}
		if err := layout.attach(ctx, desc, bom, about); err != nil {
			return err
		}
		list := filepath.Join(*output, "sbom-"+p.OS+"-"+p.Architecture+".cdx.json")
		if err := os.WriteFile(list, bom, 0o644); err != nil { //nolint:gosec // made to be published
			return fmt.Errorf("cannot write the bill of materials: %w", err)
		}
		_, _ = fmt.Fprintf(status, "%s/%s  %s\n", p.OS, p.Architecture, desc.Digest) // status only
	}
	index, err := layout.close(ctx)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(status, "index        %s  %s\n", index.Digest, index.Annotations[ocispec.AnnotationRefName]) // status only
	return os.WriteFile(filepath.Join(*output, "digest"), []byte(index.Digest.String()+"\n"), 0o644)                //nolint:gosec // made to be published
}

// sourceDate reads SOURCE_DATE_EPOCH (reproducible-builds.org); zero if unset.
func sourceDate(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q, want seconds since 1970", epoch)
	}
	return time.Unix(seconds, 0).UTC(), nil
}
