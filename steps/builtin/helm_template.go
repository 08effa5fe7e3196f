package builtin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/helmrun"
	"github.com/stepd/stepd/steps"
)

type helmTemplateConfig struct {
	Path                    string   `json:"path"`
	OutPath                 string   `json:"outPath"`
	OutLayout               string   `json:"outLayout"`
	ReleaseName             string   `json:"releaseName"`
	UseReleaseName          bool     `json:"useReleaseName"`
	Namespace               string   `json:"namespace"`
	ValuesFiles             []string `json:"valuesFiles"`
	IgnoreMissingValueFiles bool     `json:"ignoreMissingValueFiles"`
	SetValues               []struct {
		Key     string `json:"key"`
		Value   string `json:"value"`
		Literal bool   `json:"literal"`
	} `json:"setValues"`
	BuildDependencies bool     `json:"buildDependencies"`
	IncludeCRDs       bool     `json:"includeCRDs"`
	DisableHooks      bool     `json:"disableHooks"`
	SkipTests         bool     `json:"skipTests"`
	KubeVersion       string   `json:"kubeVersion"`
	APIVersions       []string `json:"apiVersions"`
}

// HelmTemplate is `helm-template`: it renders a chart in the work dir without a
// cluster, into one file or a directory. Helm runs in a process of its own.
func HelmTemplate(helm helmrun.Command) steps.Registration {
	return registration("helm-template", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		return runHelmTemplate(ctx, sc, caps, helm)
	}), steps.AccessCredentials)
}

func runHelmTemplate(ctx context.Context, sc *steps.Context, caps steps.Capabilities, helm helmrun.Command) (steps.Result, error) {
	cfg, err := decodeConfig[helmTemplateConfig](sc)
	if err != nil {
		return failed(err)
	}
	chart, err := within(sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	if err := checkLinks(sc.WorkDir, chart); err != nil {
		return errored(fmt.Errorf("failed to load chart from %q: %w", cfg.Path, relativeTo(sc.WorkDir, err)))
	}
	render, err := cfg.render(sc)
	if err != nil {
		return errored(err)
	}
	manifests, err := renderChart(ctx, sc, caps, helm, helmrun.Request{Chart: chart, Render: render}, cfg.BuildDependencies)
	if err != nil {
		return errored(fmt.Errorf("failed to render chart: %w", relativeTo(sc.WorkDir, err)))
	}
	switch {
	case strings.HasSuffix(cfg.OutPath, ".yaml"), strings.HasSuffix(cfg.OutPath, ".yml"):
		err = writeOutput(sc, cfg.OutPath, []byte(stream(manifests)))
	case cfg.OutLayout == "flat":
		err = writeFlat(sc, cfg.OutPath, stream(manifests))
	default:
		err = writeTree(sc, cfg, manifests)
	}
	if err != nil {
		return errored(fmt.Errorf("failed to write rendered chart: %w", err))
	}
	return succeeded(nil)
}

// renderChart runs Helm, with credentials only if dependencies are fetched.
func renderChart(ctx context.Context, sc *steps.Context, caps steps.Capabilities, helm helmrun.Command, r helmrun.Request, build bool) (_ []helmrun.Manifest, err error) {
	var dependencies []chartDependency
	if build {
		r.Dependencies = helmrun.Build
		if dependencies, err = readDependencies(filepath.Join(r.Chart, "Chart.yaml")); err != nil {
			return nil, err
		}
	}
	home, err := helmHome(ctx, sc, caps, r.Chart, dependencies)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, home.Close()) }()
	return home.Run(ctx, helm, sc.WorkDir, r)
}

// render says what is asked of Helm.
func (c helmTemplateConfig) render(sc *steps.Context) (*helmrun.Render, error) {
	r := &helmrun.Render{
		ReleaseName: c.ReleaseName, Namespace: cmp.Or(c.Namespace, sc.Project), KubeVersion: c.KubeVersion, APIVersions: c.APIVersions,
		IncludeCRDs: c.IncludeCRDs, NoHooks: c.DisableHooks, SkipTests: c.SkipTests,
	}
	for _, f := range c.ValuesFiles {
		file, err := within(sc, f)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			if c.IgnoreMissingValueFiles {
				continue
			}
			return nil, fmt.Errorf("values file %q does not exist", f)
		}
		r.ValuesFiles = append(r.ValuesFiles, file)
	}
	for _, v := range c.SetValues {
		if v.Literal {
			r.SetLiteral = append(r.SetLiteral, v.Key+"="+v.Value)
		} else {
			r.Set = append(r.Set, v.Key+"="+v.Value)
		}
	}
	return r, nil
}

// stream is how `helm template` prints manifests.
func stream(manifests []helmrun.Manifest) string {
	var text strings.Builder
	for _, m := range manifests {
		fmt.Fprintf(&text, "---\n# Source: %s\n%s\n", m.Source, m.Text)
	}
	return text.String()
}

// writeTree writes the manifests of each template to a file named as the
// template is, below the chart's or the release's name.
func writeTree(sc *steps.Context, cfg helmTemplateConfig, manifests []helmrun.Manifest) error {
	out, err := within(sc, cfg.OutPath)
	if err == nil {
		err = os.MkdirAll(out, 0o700)
	}
	if err != nil {
		return relativeTo(sc.WorkDir, err)
	}
	files := map[string][]helmrun.Manifest{}
	for _, m := range manifests {
		files[m.Source] = append(files[m.Source], m)
	}
	for source, of := range files {
		if !filepath.IsLocal(source) {
			return fmt.Errorf("the template name %q leads out of the chart", source)
		}
		if _, rest, ok := strings.Cut(source, "/"); ok && cfg.UseReleaseName {
			source = filepath.Join(filepath.Base(cfg.ReleaseName), rest)
		}
		if err := writeOutput(sc, filepath.Join(cfg.OutPath, source), []byte(stream(of))); err != nil {
			return err
		}
	}
	return nil
}

// writeFlat writes each manifest to [group-]kind[-namespace]-name.yaml.
func writeFlat(sc *steps.Context, dir, manifests string) error {
	for _, text := range separator().Split("\n"+manifests, -1) {
		var head struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Metadata   struct {
				Name      string `json:"name"`
				Namespace string `json:"namespace"`
			} `json:"metadata"`
		}
		if err := yaml.Unmarshal([]byte(text), &head); err != nil {
			return fmt.Errorf("cannot read a rendered manifest: %w", err)
		}
		if head.Kind == "" {
			continue // nothing but comments
		}
		group, _, grouped := strings.Cut(head.APIVersion, "/")
		if !grouped {
			group = ""
		}
		name := strings.Join(nonEmpty(strings.ReplaceAll(group, ".", "_"), head.Kind, head.Metadata.Namespace, head.Metadata.Name), "-")
		if err := writeOutput(sc, filepath.Join(dir, filepath.Base(strings.ToLower(name))+".yaml"), []byte(strings.TrimLeft(text, "\n"))); err != nil {
			return err
		}
	}
	return nil
}

func separator() *regexp.Regexp { return regexp.MustCompile(`\n---[ \t]*\n`) }
