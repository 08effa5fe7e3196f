package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/stepd/stepd/internal/helmrun"
	"github.com/stepd/stepd/internal/yamledit"
	"github.com/stepd/stepd/steps"
)

type helmUpdateChartConfig struct {
	Path   string            `json:"path"`
	Charts []chartDependency `json:"charts"`
}

// HelmUpdateChart is `helm-update-chart`: it sets the versions of a chart's
// dependencies and fetches them. Without charts it takes the newest versions
// in the ranges of Chart.yaml. Helm runs in a process of its own.
func HelmUpdateChart(helm helmrun.Command) steps.Registration {
	return registration("helm-update-chart", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		return runHelmUpdateChart(ctx, sc, caps, helm)
	}), steps.AccessCredentials)
}

func runHelmUpdateChart(ctx context.Context, sc *steps.Context, caps steps.Capabilities, helm helmrun.Command) (steps.Result, error) {
	cfg, err := decodeConfig[helmUpdateChartConfig](sc)
	if err != nil {
		return failed(err)
	}
	chart, err := within(sc, cfg.Path)
	if err != nil {
		return errored(err)
	}
	if err := setDependencyVersions(ctx, sc, chart, cfg.Charts); err != nil {
		return errored(fmt.Errorf("failed to update chart dependency versions: %w", relativeTo(sc.WorkDir, err)))
	}
	changes, err := updateDependencies(ctx, sc, caps, helm, chart)
	if err != nil {
		return errored(fmt.Errorf("failed to update chart dependencies: %w", relativeTo(sc.WorkDir, err)))
	}
	if len(changes) == 0 {
		return succeeded(nil)
	}
	message := "Updated chart dependencies for " + cfg.Path + "\n"
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		message += "\n- " + name + ": " + changes[name]
	}
	return succeeded(map[string]any{"commitMessage": message})
}

// setDependencyVersions edits Chart.yaml the way yaml-update does.
func setDependencyVersions(ctx context.Context, sc *steps.Context, chart string, charts []chartDependency) error {
	file := filepath.Join(chart, "Chart.yaml")
	dependencies, err := readDependencies(file)
	if err != nil {
		return err
	}
	var updates []yamledit.Update
	for i, d := range dependencies {
		for _, c := range charts {
			if c.Name == d.Name && c.Repository == d.Repository && c.Version != d.Version {
				updates = append(updates, yamledit.Update{Key: "dependencies." + strconv.Itoa(i) + ".version", Value: c.Version, Type: yamledit.AsGiven})
			}
		}
	}
	if len(updates) == 0 {
		return nil
	}
	src, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	out, err := updateYAML(ctx, sc.Log, src, "Chart.yaml", updates)
	if err != nil {
		return err
	}
	return os.WriteFile(file, out, 0o644) //nolint:gosec // the mode applies to no file: it exists
}

// updateDependencies runs Helm and says what changed in Chart.lock. A lock file
// that only got a new time is put back.
func updateDependencies(ctx context.Context, sc *steps.Context, caps steps.Capabilities, helm helmrun.Command, chart string) (_ map[string]string, err error) {
	if err := checkLinks(sc.WorkDir, chart); err != nil {
		return nil, err
	}
	dependencies, err := readDependencies(filepath.Join(chart, "Chart.yaml"))
	if err != nil {
		return nil, err
	}
	lock := filepath.Join(chart, "Chart.lock")
	before, err := readDependencies(lock)
	if err != nil {
		return nil, err
	}
	old, err := os.ReadFile(lock)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	home, err := helmHome(ctx, sc, caps, chart, dependencies)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, home.Close()) }()
	if _, err := home.Run(ctx, helm, sc.WorkDir, helmrun.Request{Chart: chart, Dependencies: helmrun.Update}); err != nil {
		return nil, err
	}
	after, err := readDependencies(lock)
	if err != nil {
		return nil, err
	}
	changes := lockChanges(before, after)
	if now, err := os.ReadFile(lock); err == nil && len(changes) == 0 && old != nil && !bytes.Equal(now, old) {
		return nil, os.WriteFile(lock, old, 0o644) //nolint:gosec // the mode applies to no file: it exists
	}
	return changes, nil
}

func lockChanges(before, after []chartDependency) map[string]string {
	old, now := map[string]string{}, map[string]string{}
	for _, d := range before {
		old[d.Name] = d.Version
	}
	changes := map[string]string{}
	for _, d := range after {
		now[d.Name] = d.Version
		switch v, ok := old[d.Name]; {
		case !ok:
			changes[d.Name] = d.Version
		case v != d.Version:
			changes[d.Name] = strings.Join([]string{v, d.Version}, " -> ")
		}
	}
	for name := range old {
		if _, ok := now[name]; !ok {
			changes[name] = "removed"
		}
	}
	return changes
}
