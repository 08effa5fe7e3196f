// Package tools builds the programs that the end-to-end suite runs: stepd
// itself, both majors of cosign, the Sigstore servers, and a Kubernetes API
// server with its database; and finds, or fetches, a Python with gRPC. Released programs
// are built once per version and Go release and kept in the user's cache
// folder ($XDG_CACHE_HOME/stepd/tools), outside the checkout.
package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/gofrs/flock"
)

// Tool is a program from a Go module, at one version.
type Tool struct {
	// Package is the main package's import path.
	Package string
	// Version is the module's version.
	Version string
}

// The released programs.
var (
	CosignV3 = Tool{"github.com/sigstore/cosign/v3/cmd/cosign", "v3.1.3"}
	CosignV2 = Tool{"github.com/sigstore/cosign/v2/cmd/cosign", "v2.6.5"}
	Fulcio   = Tool{"github.com/sigstore/fulcio", "v1.8.8"}
	RekorV2  = Tool{"github.com/sigstore/rekor-tiles/v2/cmd/rekor-server/posix", "v2.3.0"}
)

// Path returns the program's path, building it if the cache lacks it: minutes
// for some. Processes that want the same program wait for one another.
func (t Tool) Path(ctx context.Context) (string, error) {
	return cached(strings.ReplaceAll(t.Package, "/", "_")+"@"+t.Version, path.Base(t.Package), func(dir string) *exec.Cmd {
		cmd := goCommand(ctx, os.TempDir(), "install", "-trimpath", "-ldflags=-s -w", t.Package+"@"+t.Version)
		cmd.Env = append(cmd.Env, "GOBIN="+dir)
		return cmd
	})
}

// TimestampAuthority returns the path of a program that serves Sigstore's
// timestamp authority (see servers/tsa, whose go.mod has the version).
func TimestampAuthority(ctx context.Context) (string, error) {
	root, err := Checkout()
	if err != nil {
		return "", err
	}
	src := filepath.Join(root, "e2e", "servers", "tsa")
	out, err := goCommand(ctx, src, "list", "-m", "-f", "{{.Version}}", "github.com/sigstore/timestamp-authority/v2").Output()
	if err != nil {
		return "", fmt.Errorf("cannot read the timestamp authority's version: %w", err)
	}
	return cached("tsa@"+strings.TrimSpace(string(out)), "tsa", func(dir string) *exec.Cmd {
		return goCommand(ctx, src, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "tsa"), ".")
	})
}

// KubeAPIServer returns the path of Kubernetes' API server (see servers/kube,
// whose go.mod has the version). Building it takes minutes.
func KubeAPIServer(ctx context.Context) (string, error) {
	return fromKube(ctx, "kube-apiserver", "k8s.io/kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver",
		// The server refuses to start as v0.0.0, which is what it is when nobody says.
		"-X k8s.io/component-base/version.gitVersion=%[1]s -X k8s.io/component-base/version.gitMajor=%[2]s"+
			" -X k8s.io/component-base/version.gitMinor=%[3]s -X k8s.io/component-base/version.gitTreeState=clean")
}

// Etcd returns the path of etcd (see servers/kube, whose go.mod has the
// version).
func Etcd(ctx context.Context) (string, error) {
	return fromKube(ctx, "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", "")
}

// fromKube builds a program with the versions of servers/kube. The linker's
// flags may name the module's version, and its major and minor number.
func fromKube(ctx context.Context, name, module, pkg, ldflags string) (string, error) {
	root, err := Checkout()
	if err != nil {
		return "", err
	}
	src := filepath.Join(root, "e2e", "servers", "kube")
	out, err := goCommand(ctx, src, "list", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("cannot read the version of %s: %w", name, err)
	}
	version := strings.TrimSpace(string(out))
	if ldflags != "" {
		major, minor, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
		minor, _, _ = strings.Cut(minor, ".")
		ldflags = " " + fmt.Sprintf(ldflags, version, major, minor)
	}
	return cached(name+"@"+version, name, func(dir string) *exec.Cmd {
		return goCommand(ctx, src, "build", "-trimpath", "-ldflags=-s -w"+ldflags, "-o", filepath.Join(dir, name), pkg)
	})
}

// Stepd builds stepd from the checkout into dir and returns the binary's path.
// It runs every verb but serve and webhook; see StepdServing.
func Stepd(ctx context.Context, dir string) (string, error) { return own(ctx, dir, "stepd") }

// StepdServing is Stepd with stepd-serve beside it: all verbs run.
func StepdServing(ctx context.Context, dir string) (string, error) {
	if _, err := own(ctx, dir, "stepd-serve"); err != nil {
		return "", err
	}
	return own(ctx, dir, "stepd")
}

// own builds one of the project's programs.
//
// The binary is a copy, as an installed one is: what the linker has just written
// is in the page cache in other pieces, of which a process maps up to 4 MiB more.
func own(ctx context.Context, dir, program string) (string, error) {
	root, err := Checkout()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, program)
	linked := bin + ".linked"
	if out, err := goCommand(ctx, root, "build", "-o", linked, "./cmd/"+program).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build %s: %w\n%s", program, err, out)
	}
	if err := move(linked, bin); err != nil {
		return "", fmt.Errorf("cannot install %s: %w", program, err)
	}
	return bin, nil
}

// move copies a program and removes the original.
func move(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	return os.Remove(from)
}

// Checkout is the root of the checkout: the nearest folder above the working
// directory that holds .ci. Tests and the demo run inside it.
func Checkout() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("cannot find the checkout: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, ".ci")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("cannot find the checkout: no folder with .ci above %s", wd)
		}
	}
}

// cached returns the path of name in the cache entry key, which build's command
// fills. An entry appears by rename, so that it is whole or absent.
func cached(key, name string, build func(dir string) *exec.Cmd) (string, error) {
	home, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cannot find the cache folder: %w", err)
	}
	dir := filepath.Join(home, "stepd", "tools", key+"-"+runtime.Version())
	bin := filepath.Join(dir, name)
	if _, err := os.Stat(bin); !errors.Is(err, fs.ErrNotExist) {
		return bin, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("cannot make the cache folder: %w", err)
	}
	lock := flock.New(dir + ".lock")
	if err := lock.Lock(); err != nil {
		return "", fmt.Errorf("cannot lock the cache: %w", err)
	}
	defer lock.Unlock() //nolint:errcheck // the lock goes with the process
	if _, err := os.Stat(bin); !errors.Is(err, fs.ErrNotExist) {
		return bin, err // somebody else built it meanwhile
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".building-")
	if err != nil {
		return "", fmt.Errorf("cannot make a folder to build in: %w", err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // at worst a cache folder keeps a stray entry
	if out, err := build(tmp).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build %s: %w\n%s", key, err, out)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("cannot open the built folder: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("cannot keep what was built: %w", err)
	}
	return bin, nil
}

// goCommand is a go command that builds static programs and ignores any
// workspace around dir.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	return cmd
}
