package builtin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/helmrun"
	"github.com/stepd/stepd/steps"
)

// chartDependency is an entry of Chart.yaml's or Chart.lock's dependencies.
type chartDependency struct {
	Name       string `json:"name"`
	Version    string `json:"version"`
	Repository string `json:"repository"`
}

// readDependencies reads Chart.yaml or Chart.lock; a file that is absent has
// none.
func readDependencies(file string) ([]chartDependency, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var chart struct {
		Dependencies []chartDependency `json:"dependencies"`
	}
	if err := yaml.Unmarshal(text, &chart); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", filepath.Base(file), err)
	}
	return chart.Dependencies, nil
}

// helmHome makes the configuration that a chart's dependencies are fetched
// with, after a check that local ones stay in the work dir.
func helmHome(ctx context.Context, sc *steps.Context, caps steps.Capabilities, chart string, dependencies []chartDependency) (*helmrun.Home, error) {
	var repositories []helmrun.Repository
	seen := map[string]bool{}
	for _, d := range dependencies {
		if path, ok := strings.CutPrefix(d.Repository, "file://"); ok {
			if err := checkLocalChart(sc.WorkDir, chart, path); err != nil {
				return nil, fmt.Errorf("dependency %q: %w", d.Name, err)
			}
			continue
		}
		if d.Repository == "" || seen[d.Repository] || caps.Credentials == nil {
			continue
		}
		seen[d.Repository] = true
		lookup := d.Repository
		if strings.HasPrefix(lookup, "oci://") {
			lookup = strings.TrimSuffix(lookup, "/") + "/" + d.Name
		}
		creds, err := caps.Credentials.Get(ctx, sc.Project, steps.CredentialsHelm, lookup)
		if err != nil {
			return nil, fmt.Errorf("cannot get credentials for chart repository %q: %w", d.Repository, err)
		}
		if creds != nil {
			repositories = append(repositories, helmrun.Repository{URL: d.Repository, Username: creds.Username, Password: creds.Password})
		}
	}
	return helmrun.NewHome(repositories)
}

// checkLocalChart refuses a file:// dependency that is not below the work dir.
func checkLocalChart(workDir, chart, path string) error {
	if filepath.IsAbs(path) {
		return fmt.Errorf("the path %q of a file:// repository must be relative", path)
	}
	dir := filepath.Join(chart, path)
	if _, ok := below(workDir, dir); !ok {
		return fmt.Errorf("the path %q of a file:// repository leads out of the work dir", path)
	}
	return checkLinks(workDir, dir)
}

// checkLinks refuses a chart with a symlink that leads out of the work dir:
// Helm follows links, and templates can show any file of the chart.
func checkLinks(workDir, chart string) error {
	root, err := filepath.EvalSymlinks(workDir)
	if err != nil {
		return err
	}
	return filepath.WalkDir(chart, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target, err := filepath.EvalSymlinks(path)
		if err != nil {
			return fmt.Errorf("cannot follow the symlink %q: %w", path, err)
		}
		if _, ok := below(root, target); !ok {
			return fmt.Errorf("the symlink %q leads out of the work dir", path)
		}
		return nil
	})
}
