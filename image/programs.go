package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// program is an executable in the image.
type program struct {
	name string
	// file is where it was built.
	file string
	info *debug.BuildInfo
}

// build compiles the image's programs for a platform into dir. stepd, which the
// image is named after, is the first; the one that changes least is the last.
// Nothing of the caller's environment but where modules come from and are cached
// reaches the compiler.
func build(ctx context.Context, checkout, dir string, p ocispec.Platform) ([]program, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make a folder to build in: %w", err)
	}
	names := []string{"stepd", "stepd-serve", "stepd-helm"}
	args := []string{"build", "-trimpath", "-buildvcs=auto", "-ldflags=-s -w", "-o", dir}
	for _, name := range names {
		args = append(args, "./cmd/"+name)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = checkout
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Architecture,
		"GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cannot build for %s/%s: %w\n%s", p.OS, p.Architecture, err, out)
	}
	var programs []program
	for _, name := range names {
		file := filepath.Join(dir, name)
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read what %s was built from: %w", name, err)
		}
		programs = append(programs, program{name: name, file: file, info: info})
	}
	return programs, nil
}

// description is what labels and annotations say about an image.
type description struct {
	version, revision string
	created           time.Time
}

// describe reads version, commit and time from what the Go tool recorded in a
// program. A zero created is replaced by the commit's time.
func describe(info *debug.BuildInfo, created time.Time) (description, error) {
	d := description{version: info.Main.Version, created: created}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			d.revision = s.Value
		case "vcs.time":
			if !created.IsZero() {
				break
			}
			t, err := time.Parse(time.RFC3339, s.Value)
			if err != nil {
				return d, fmt.Errorf("cannot read the commit's time: %w", err)
			}
			d.created = t.UTC()
		}
	}
	if d.created.IsZero() {
		return d, errors.New("cannot tell the time of the sources: Go finds no git repository (it does not look into linked worktrees); set SOURCE_DATE_EPOCH")
	}
	if d.version == "" || d.version == "(devel)" {
		d.version = "devel"
	}
	return d, nil
}

// tag is the version as a tag, in which "+" is not allowed (OCI distribution).
func (d description) tag() string { return strings.ReplaceAll(d.version, "+", "-") }

// annotations are those that image, index and referrers share.
func (d description) annotations() map[string]string {
	a := map[string]string{
		ocispec.AnnotationTitle:       "stepd",
		ocispec.AnnotationDescription: "Signature-verified, atomic config promotion for Kargo",
		ocispec.AnnotationSource:      "https://github.com/stepd/stepd",
		ocispec.AnnotationLicenses:    "Apache-2.0",
		ocispec.AnnotationVersion:     d.version,
		ocispec.AnnotationCreated:     d.created.Format(time.RFC3339),
	}
	if d.revision != "" {
		a[ocispec.AnnotationRevision] = d.revision
	}
	return a
}
