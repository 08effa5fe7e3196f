package helmlib

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"

	"github.com/stepd/stepd/internal/helmrun"
)

// render does what a client-only dry run of an installation does: custom
// resource definitions, manifests in the order of installation, hooks.
func render(dir string, r helmrun.Render) ([]helmrun.Manifest, error) {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return nil, err
	}
	if c.Metadata.Type != "" && c.Metadata.Type != "application" {
		return nil, fmt.Errorf("%s charts are not installable", c.Metadata.Type)
	}
	if err := checkDependencies(c); err != nil {
		return nil, err
	}
	capabilities, err := capabilitiesFor(c, r)
	if err != nil {
		return nil, err
	}
	// Without a getter, values come from files only.
	given, err := (&values.Options{ValueFiles: r.ValuesFiles, Values: r.Set, LiteralValues: r.SetLiteral}).MergeValues(nil)
	if err != nil {
		return nil, err
	}
	if err := chartutil.ProcessDependenciesWithMerge(c, given); err != nil {
		return nil, err
	}
	if err := checkSchemas(c); err != nil {
		return nil, err
	}
	release := chartutil.ReleaseOptions{Name: r.ReleaseName, Namespace: r.Namespace, Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, given, release, capabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	for name := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			delete(files, name)
		}
	}
	hooks, manifests, err := releaseutil.SortManifests(files, capabilities.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return nil, err
	}
	return collect(c, r, manifests, hooks), nil
}

// checkDependencies is pkg/action's of that name, which comes with the storage
// of releases in databases.
func checkDependencies(c *chart.Chart) error {
	for _, want := range c.Metadata.Dependencies {
		if !slices.ContainsFunc(c.Dependencies(), func(d *chart.Chart) bool { return d.Name() == want.Name }) {
			return fmt.Errorf("the dependency %q is in Chart.yaml, but not in the chart's charts directory", want.Name)
		}
	}
	return nil
}

func capabilitiesFor(c *chart.Chart, r helmrun.Render) (*chartutil.Capabilities, error) {
	capabilities := chartutil.DefaultCapabilities.Copy()
	if r.KubeVersion != "" {
		version, err := chartutil.ParseKubeVersion(r.KubeVersion)
		if err != nil {
			return nil, fmt.Errorf("invalid kubeVersion %q: %w", r.KubeVersion, err)
		}
		capabilities.KubeVersion = *version
	}
	capabilities.APIVersions = append(capabilities.APIVersions, r.APIVersions...)
	if want := c.Metadata.KubeVersion; want != "" && !chartutil.IsCompatibleRange(want, capabilities.KubeVersion.String()) {
		return nil, fmt.Errorf("the chart requires kubeVersion %s, which is incompatible with Kubernetes %s", want, capabilities.KubeVersion.String())
	}
	return capabilities, nil
}

func collect(c *chart.Chart, r helmrun.Render, manifests []releaseutil.Manifest, hooks []*release.Hook) []helmrun.Manifest {
	var all []helmrun.Manifest
	if r.IncludeCRDs {
		for _, crd := range c.CRDObjects() {
			all = append(all, helmrun.Manifest{Source: crd.Filename, Text: string(crd.File.Data)})
		}
	}
	for _, m := range manifests {
		all = append(all, helmrun.Manifest{Source: m.Name, Text: m.Content})
	}
	for _, h := range hooks {
		if !r.NoHooks && (!r.SkipTests || !slices.Contains(h.Events, release.HookTest)) {
			all = append(all, helmrun.Manifest{Source: h.Path, Text: h.Manifest})
		}
	}
	return all
}

// checkSchemas refuses values schemas that refer to anything outside: Helm would
// read files and URLs of the chart's choice.
func checkSchemas(c *chart.Chart) error {
	if len(c.Schema) > 0 {
		var schema any
		if err := json.Unmarshal(c.Schema, &schema); err != nil {
			return fmt.Errorf("cannot read values.schema.json of chart %q: %w", c.Name(), err)
		}
		if ref := outsideReference(schema); ref != "" {
			return fmt.Errorf("values.schema.json of chart %q refers to %q; only references inside of it are followed", c.Name(), ref)
		}
	}
	for _, d := range c.Dependencies() {
		if err := checkSchemas(d); err != nil {
			return err
		}
	}
	return nil
}

// outsideReference returns a reference that needs another document, or nothing.
func outsideReference(schema any) string {
	switch s := schema.(type) {
	case []any:
		for _, e := range s {
			if ref := outsideReference(e); ref != "" {
				return ref
			}
		}
	case map[string]any:
		for key, v := range s {
			text, isText := v.(string)
			switch {
			case !isText:
				if ref := outsideReference(v); ref != "" {
					return ref
				}
			case key == "$schema" && !knownDraft(text), strings.HasSuffix(key, "Ref") && key[0] == '$' && !strings.HasPrefix(text, "#"), key == "$ref" && !strings.HasPrefix(text, "#"):
				return text
			}
		}
	}
	return ""
}

// knownDraft tells whether the library has a draft's own schema.
func knownDraft(url string) bool {
	return regexp.MustCompile(`^https?://json-schema\.org/(draft-0[467]|draft/2019-09|draft/2020-12)/schema#?$`).MatchString(url)
}
