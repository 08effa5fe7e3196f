package helmlib

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/downloader"
	"helm.sh/helm/v3/pkg/getter"
	"helm.sh/helm/v3/pkg/registry"

	"github.com/stepd/stepd/internal/helmrun"
)

// fetchDependencies does what `helm dependency build` or `update` does, with
// the request's configuration and without plugins.
func fetchDependencies(r helmrun.Request) error {
	client, err := registryClient(r)
	if err != nil {
		return err
	}
	m := &downloader.Manager{
		Out:       io.Discard,
		ChartPath: r.Chart,
		Getters: getter.Providers{
			{Schemes: []string{"http", "https"}, New: getter.NewHTTPGetter},
			{Schemes: []string{registry.OCIScheme}, New: getter.NewOCIGetter},
		},
		RegistryClient:   client,
		RepositoryConfig: filepath.Join(r.Home, helmrun.RepositoriesFile),
		RepositoryCache:  filepath.Join(r.Home, "repository"),
	}
	switch r.Dependencies {
	case helmrun.Build:
		return m.Build()
	case helmrun.Update:
		return m.Update()
	}
	return fmt.Errorf("unknown treatment of dependencies %q", r.Dependencies)
}

// registryClient speaks plain HTTP only if every registry of the chart is on
// loopback: Helm's client has one setting for all.
func registryClient(r helmrun.Request) (*registry.Client, error) {
	options := []registry.ClientOption{registry.ClientOptCredentialsFile(filepath.Join(r.Home, helmrun.RegistryFile))}
	c, err := loader.LoadDir(r.Chart)
	if err != nil {
		return nil, err
	}
	local, remote := false, false
	for _, d := range c.Metadata.Dependencies {
		if !registry.IsOCI(d.Repository) {
			continue
		}
		if u, err := url.Parse(d.Repository); err == nil && onLoopback(u.Hostname()) {
			local = true
		} else {
			remote = true
		}
	}
	if local && !remote {
		options = append(options, registry.ClientOptPlainHTTP())
	}
	return registry.NewClient(options...)
}

func onLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
