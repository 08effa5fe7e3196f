package credentials

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/jdx/go-netrc"
	orascredentials "oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/stepd/stepd/steps"
)

// LocalOptions say where the user's own credentials are.
type LocalOptions struct {
	// Getenv reads the environment; nil is os.Getenv. Looked up are
	// GIT_USERNAME and GIT_PASSWORD, NETRC, DOCKER_CONFIG.
	Getenv func(string) string
	// Home is the user's home directory; empty is os.UserHomeDir's.
	Home string
}

// Local finds the credentials of whoever runs the process:
//
//   - git over HTTP: GIT_USERNAME and GIT_PASSWORD (both, for every host), else
//     the entry of the host in ~/.netrc (or $NETRC). Plain HTTP gets them on
//     loopback only.
//   - git over SSH: nothing; ssh asks its agent.
//   - images and Helm charts in registries: the Docker configuration
//     (~/.docker, $DOCKER_CONFIG) with its credential helpers. An identity token
//     comes with the username "<token>", as from Docker's own helpers.
//   - Helm charts over HTTPS: ~/.netrc.
//
// Projects do not matter. Files are read when first needed.
func Local(o LocalOptions) steps.CredentialSource {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	l := &local{o: o}
	l.netrc = sync.OnceValues(l.readNetrc)
	l.docker = sync.OnceValues(l.readDocker)
	return l
}

type local struct {
	o      LocalOptions
	netrc  func() (*netrc.Netrc, error)
	docker func() (*orascredentials.DynamicStore, error)
}

func (l *local) Get(ctx context.Context, _ string, typ steps.CredentialType, repoURL string) (*steps.Credentials, error) {
	u, err := url.Parse(repoURL)
	isHTTP := err == nil && (u.Scheme == "https" || u.Scheme == "http")
	switch {
	case isHTTP && u.Scheme == "http" && !isLoopback(u.Hostname()):
		return nil, nil
	case isHTTP:
		if typ == steps.CredentialsGit {
			if name, password := l.o.Getenv("GIT_USERNAME"), l.o.Getenv("GIT_PASSWORD"); name != "" && password != "" {
				return &steps.Credentials{Username: name, Password: password}, nil
			}
		}
		return l.fromNetrc(u.Hostname())
	case typ == steps.CredentialsGit:
		return nil, nil
	}
	return l.fromDocker(ctx, strings.TrimPrefix(repoURL, "oci://"))
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (l *local) home() (string, error) {
	if l.o.Home != "" {
		return l.o.Home, nil
	}
	return os.UserHomeDir()
}

func (l *local) fromNetrc(host string) (*steps.Credentials, error) {
	file, err := l.netrc()
	if err != nil || file == nil {
		return nil, err
	}
	machine := file.Machine(host)
	if machine == nil || machine.Get("password") == "" {
		return nil, nil
	}
	return &steps.Credentials{Username: machine.Get("login"), Password: machine.Get("password")}, nil
}

func (l *local) readNetrc() (*netrc.Netrc, error) {
	path := l.o.Getenv("NETRC")
	if path == "" {
		home, err := l.home()
		if err != nil {
			return nil, nil //nolint:nilerr // without a home directory there is no ~/.netrc
		}
		path = filepath.Join(home, ".netrc")
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	file, err := netrc.Parse(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return file, nil
}

func (l *local) fromDocker(ctx context.Context, repository string) (*steps.Credentials, error) {
	store, err := l.docker()
	if err != nil {
		return nil, err
	}
	host, _, hasPath := strings.Cut(repository, "/")
	if !hasPath || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host = "docker.io"
	}
	found, err := store.Get(ctx, orascredentials.ServerAddressFromRegistry(host))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot get the Docker credentials of %s: %w", host, err)
	case found.RefreshToken != "":
		return &steps.Credentials{Username: "<token>", Password: found.RefreshToken}, nil
	case found.Username != "" || found.Password != "":
		return &steps.Credentials{Username: found.Username, Password: found.Password}, nil
	}
	return nil, nil
}

func (l *local) readDocker() (*orascredentials.DynamicStore, error) {
	dir := l.o.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := l.home()
		if err != nil {
			return nil, fmt.Errorf("cannot find the Docker configuration: %w", err)
		}
		dir = filepath.Join(home, ".docker")
	}
	path := filepath.Join(dir, "config.json")
	store, err := orascredentials.NewStore(path, orascredentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return store, nil
}
