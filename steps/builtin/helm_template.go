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

	"github.com/otiai10/copy"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/helmcli"
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
// cluster, into one file or a directory. It needs the helm binary.
func HelmTemplate() steps.Registration {
	return registration("helm-template", runWith(runHelmTemplate), steps.AccessCredentials)
}

func runHelmTemplate(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (_ steps.Result, err error) {
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
	home, err := prepareChart(ctx, sc, caps, chart, cfg.BuildDependencies)
	if err != nil {
		return errored(relativeTo(sc.WorkDir, err))
	}
	defer func() { err = errors.Join(err, home.Close()) }()
	args, err := cfg.arguments(sc)
	if err != nil {
		return errored(err)
	}
	toFile := strings.HasSuffix(cfg.OutPath, ".yaml") || strings.HasSuffix(cfg.OutPath, ".yml")
	if !toFile && cfg.OutLayout != "flat" {
		err = renderTree(ctx, sc, home, cfg, append(args, cfg.ReleaseName, chart))
		if err != nil {
			return errored(fmt.Errorf("failed to render chart: %w", relativeTo(sc.WorkDir, err)))
		}
		return succeeded(nil)
	}
	manifests, err := home.Run(ctx, sc.WorkDir, append(args, cfg.ReleaseName, chart)...)
	if err != nil {
		return errored(fmt.Errorf("failed to render chart: %w", relativeTo(sc.WorkDir, err)))
	}
	if toFile {
		err = writeOutput(sc, cfg.OutPath, manifests)
	} else {
		err = writeFlat(sc, cfg.OutPath, string(manifests))
	}
	if err != nil {
		return errored(fmt.Errorf("failed to write rendered chart: %w", err))
	}
	return succeeded(nil)
}

// prepareChart makes helm's configuration and, if asked to, fetches the chart's
// dependencies: those of Chart.lock if there is one.
func prepareChart(ctx context.Context, sc *steps.Context, caps steps.Capabilities, chart string, build bool) (*helmcli.Home, error) {
	if !build {
		return helmcli.NewHome(nil)
	}
	dependencies, err := readDependencies(filepath.Join(chart, "Chart.yaml"))
	if err != nil {
		return nil, err
	}
	home, err := helmHome(ctx, sc, caps, chart, dependencies)
	if err != nil {
		return nil, err
	}
	verb := "build"
	if _, err := os.Stat(filepath.Join(chart, "Chart.lock")); errors.Is(err, fs.ErrNotExist) {
		verb = "update"
	}
	if _, err := home.Run(ctx, sc.WorkDir, "dependency", verb, "--", chart); err != nil {
		return nil, errors.Join(fmt.Errorf("failed to build chart dependencies: %w", err), home.Close())
	}
	return home, nil
}

// arguments are those of `helm template`, up to the positional ones.
func (c helmTemplateConfig) arguments(sc *steps.Context) ([]string, error) {
	args := []string{"template", "--namespace=" + cmp.Or(c.Namespace, sc.Project)}
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
		args = append(args, "--values="+file)
	}
	for _, v := range c.SetValues {
		flag := "--set="
		if v.Literal {
			flag = "--set-literal="
		}
		args = append(args, flag+v.Key+"="+v.Value)
	}
	for _, v := range c.APIVersions {
		args = append(args, "--api-versions="+v)
	}
	if c.KubeVersion != "" {
		args = append(args, "--kube-version="+c.KubeVersion)
	}
	if c.IncludeCRDs {
		args = append(args, "--include-crds")
	}
	if c.DisableHooks {
		args = append(args, "--no-hooks")
	}
	if c.SkipTests {
		args = append(args, "--skip-tests")
	}
	return append(args, "--"), nil
}

// renderTree lets helm write its own layout, elsewhere first: outPath may hold
// the results of other charts.
func renderTree(ctx context.Context, sc *steps.Context, home *helmcli.Home, cfg helmTemplateConfig, args []string) (err error) {
	out, err := within(sc, cfg.OutPath)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "stepd-helm-out-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	flags := []string{args[0], "--output-dir=" + tmp}
	if _, err := home.Run(ctx, sc.WorkDir, append(flags, args[1:]...)...); err != nil {
		return err
	}
	if cfg.UseReleaseName {
		// helm's own flag puts the chart's name below the release's.
		charts, err := os.ReadDir(tmp)
		if err != nil {
			return err
		}
		for _, c := range charts {
			if err := os.Rename(filepath.Join(tmp, c.Name()), filepath.Join(tmp, filepath.Base(cfg.ReleaseName))); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	return copy.Copy(tmp, out, copy.Options{OnSymlink: func(string) copy.SymlinkAction { return copy.Skip }})
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
