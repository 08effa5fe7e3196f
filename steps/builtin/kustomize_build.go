package builtin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/api/types"

	"github.com/stepd/stepd/steps"
)

type kustomizeBuildConfig struct {
	Path         string `json:"path"`
	OutPath      string `json:"outPath"`
	OutputFormat string `json:"outputFormat"`
	Plugin       struct {
		Helm struct {
			APIVersions []string `json:"apiVersions"`
			KubeVersion string   `json:"kubeVersion"`
		} `json:"helm"`
	} `json:"plugin"`
}

// KustomizeBuild is `kustomize-build`: it renders a Kustomization into one file
// or into a directory with a file for each manifest. It reads nothing outside
// the work dir but what kustomize itself clones; Helm charts need a helm binary.
func KustomizeBuild() steps.Registration {
	var one sync.Mutex // kustomize keeps its schema in package variables
	return stateless("kustomize-build", func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		one.Lock()
		defer one.Unlock()
		return runKustomizeBuild(ctx, sc)
	})
}

func runKustomizeBuild(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[kustomizeBuildConfig](sc)
	if err != nil {
		return failed(err)
	}
	if err := ctx.Err(); err != nil {
		return errored(err)
	}
	dir, err := within(sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	built, err := kustomize(sc.WorkDir, dir, cfg)
	if err != nil {
		return errored(fmt.Errorf("cannot build the Kustomization in %q: %w", cfg.Path, relativeTo(sc.WorkDir, err)))
	}
	if err := writeManifests(sc, cfg, built); err != nil {
		return errored(fmt.Errorf("cannot write the manifests to %q: %w", cfg.OutPath, err))
	}
	return succeeded(nil)
}

func kustomize(workDir, dir string, cfg kustomizeBuildConfig) (built resmap.ResMap, err error) {
	disk, err := newConfinedDisk(workDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	defer func() {
		// kustomize is known to panic on manifests of unexpected shapes.
		if p := recover(); p != nil {
			err = fmt.Errorf("kustomize panicked: %v", p)
		}
	}()
	options := &krusty.Options{LoadRestrictions: types.LoadRestrictionsNone, PluginConfig: types.DisabledPluginConfig()}
	options.PluginConfig.HelmConfig = types.HelmConfig{
		Enabled: true, Command: "helm", ApiVersions: cfg.Plugin.Helm.APIVersions, KubeVersion: cfg.Plugin.Helm.KubeVersion,
	}
	rel, err := filepath.Rel(workDir, dir)
	if err != nil {
		return nil, err
	}
	built, err = krusty.MakeKustomizer(options).Run(disk, filepath.Join(disk.workDir, rel))
	if errors.Is(err, osexec.ErrNotFound) {
		err = errors.New("it renders Helm charts, for which kustomize runs the program helm, and there is none: install helm, or render the charts with helm-template before")
	}
	return built, err
}

func writeManifests(sc *steps.Context, cfg kustomizeBuildConfig, built resmap.ResMap) error {
	if ext := filepath.Ext(cfg.OutPath); ext == ".yaml" || ext == ".yml" {
		text, err := built.AsYaml()
		if err != nil {
			return err
		}
		return writeOutput(sc, cfg.OutPath, text)
	}
	out, err := within(sc, cfg.OutPath)
	if err == nil {
		err = os.MkdirAll(out, 0o700)
	}
	if err != nil {
		return relativeTo(sc.WorkDir, err)
	}
	several := len(built.GroupedByCurrentNamespace()) > 1
	for _, r := range built.Resources() {
		if r.GetKind() == "" || r.GetName() == "" {
			return fmt.Errorf("resource kind and name of %q must be non-empty to write to a directory", r.CurId())
		}
		text, err := r.AsYAML()
		if err != nil {
			return err
		}
		name := strings.ToLower(manifestName(r, cfg.OutputFormat, several))
		if err := writeOutput(sc, filepath.Join(cfg.OutPath, filepath.Base(name)), text); err != nil {
			return err
		}
	}
	return nil
}

// manifestName is the file of a manifest: Kargo's [namespace-]kind-name.yaml,
// or kustomize's [namespace_]group_version_kind_name.yaml, where the namespace
// only shows if the manifests have more than one.
func manifestName(r *resource.Resource, format string, several bool) string {
	if cmp.Or(format, "kargo") == "kargo" {
		return strings.Join(nonEmpty(r.GetNamespace(), r.GetKind(), r.GetName()), "-") + ".yaml"
	}
	namespace := ""
	if id := r.CurId(); several && !id.IsClusterScoped() {
		namespace = id.EffectiveNamespace()
	}
	return strings.Join(nonEmpty(namespace, r.GetGvk().StringWoEmptyField(), r.GetName()), "_") + ".yaml"
}

func nonEmpty(parts ...string) []string {
	var kept []string
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return kept
}
