package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/package-url/packageurl-go"
)

// billOfMaterials lists, as CycloneDX JSON, what was linked into the programs
// of an image: the modules that the Go linker recorded in each, no more and no
// less, and the standard library.
func billOfMaterials(programs []program, image ocispec.Descriptor, about description) ([]byte, error) {
	purl := packageurl.NewPackageURL(packageurl.TypeOCI, "", "stepd", image.Digest.String(), nil, "").ToString()
	container := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeContainer, Name: "stepd", Version: about.version, PackageURL: purl}
	components := map[string]cdx.Component{}
	var graph []cdx.Dependency
	var names []string
	for _, p := range programs {
		app := cdx.Component{
			BOMRef: "/usr/local/bin/" + p.name, Type: cdx.ComponentTypeApplication, Name: p.name, Version: about.version,
			PackageURL: modulePURL(p.info.Main.Path, about.version) + "#cmd/" + p.name,
			Licenses:   &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
		}
		components[app.BOMRef] = app
		names = append(names, app.BOMRef)
		std := cdx.Component{Type: cdx.ComponentTypeLibrary, Name: "stdlib", Version: strings.TrimPrefix(p.info.GoVersion, "go")}
		std.PackageURL = modulePURL("stdlib", std.Version)
		std.BOMRef = std.PackageURL
		components[std.BOMRef] = std
		linked := []string{std.BOMRef}
		for _, m := range p.info.Deps {
			lib := library(m)
			components[lib.BOMRef] = lib
			linked = append(linked, lib.BOMRef)
		}
		slices.Sort(linked)
		graph = append(graph, cdx.Dependency{Ref: app.BOMRef, Dependencies: &linked})
	}
	graph = append(graph, cdx.Dependency{Ref: container.BOMRef, Dependencies: &names})
	list := slices.SortedFunc(maps.Values(components), func(a, b cdx.Component) int { return cmp.Compare(a.BOMRef, b.BOMRef) })

	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: about.created.Format(time.RFC3339), Component: &container}
	bom.Components, bom.Dependencies = &list, &graph
	var out bytes.Buffer
	// 1.6 is the newest that scanners read.
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("cannot encode the bill of materials: %w", err)
	}
	return out.Bytes(), nil
}

// library describes a linked module; of a replaced one, what replaced it.
func library(m *debug.Module) cdx.Component {
	if m.Replace != nil {
		m = m.Replace
	}
	purl := modulePURL(m.Path, m.Version)
	c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: purl}
	if m.Sum != "" { // Go's hash of a module's tree is not one that CycloneDX knows
		c.Properties = &[]cdx.Property{{Name: "go:sum", Value: m.Sum}}
	}
	return c
}

// modulePURL is the package URL of a Go module (purl-spec, type golang).
func modulePURL(module, version string) string {
	namespace, name := path.Split(module)
	return packageurl.NewPackageURL(packageurl.TypeGolang, strings.TrimSuffix(namespace, "/"), name, version, nil, "").ToString()
}
