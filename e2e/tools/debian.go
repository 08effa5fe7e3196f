package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debianPython is the interpreter that Debian's packages are built for.
const debianPython = "/usr/bin/python3"

// Python returns a command that runs Debian's Python with gRPC and protobuf:
// those of the machine, or else those that apt-get downloads, and verifies,
// from the archives that the machine is set up for. They are unpacked in the
// cache and nothing is installed; so nobody has to be root.
func Python(ctx context.Context) (func(ctx context.Context, args ...string) *exec.Cmd, error) {
	if _, err := os.Stat(debianPython); err != nil {
		return nil, fmt.Errorf("cannot run Python: %w", err)
	}
	machines := func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, debianPython, args...)
	}
	if importsGRPC(ctx, machines) == nil {
		return machines, nil
	}
	root, err := debianPackages(ctx, "python3-grpcio", "python3-protobuf")
	if err != nil {
		return nil, err
	}
	libraries, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu*"))
	if err != nil {
		return nil, err
	}
	fetched := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := machines(ctx, args...)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "usr/lib/python3/dist-packages"),
			"LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
		return cmd
	}
	return fetched, importsGRPC(ctx, fetched)
}

func importsGRPC(ctx context.Context, python func(context.Context, ...string) *exec.Cmd) error {
	if out, err := python(ctx, "-c", "import grpc, google.protobuf").CombinedOutput(); err != nil {
		return fmt.Errorf("%s has no gRPC: %w\n%s", debianPython, err, out)
	}
	return nil
}

// debianPackages downloads packages, and of what they depend on what the
// machine lacks, and returns the folder in which all of it is unpacked. The
// cache's key is what decides which versions apt-get takes: the machine's
// release and which packages it has.
func debianPackages(ctx context.Context, names ...string) (string, error) {
	for _, program := range []string{"apt-get", "dpkg-deb", "dpkg-query"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("cannot download Debian packages: %w", err)
		}
	}
	version, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", "python3").Output()
	if err != nil {
		return "", fmt.Errorf("cannot download Debian packages: which python3 this is, dpkg-query does not say: %w", err)
	}
	marker, err := cached(strings.Join(names, "+")+"@python3-"+string(version), "unpacked", func(dir string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "bash", append([]string{"-euo", "pipefail", "-c", downloadScript, "download"}, names...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
		return cmd
	})
	if err != nil {
		return "", errors.Join(err, errors.New("install "+strings.Join(names, " and ")+", or let apt-get reach its archives"))
	}
	return filepath.Dir(marker), nil
}

// downloadScript runs in the cache folder that is being filled. Lists and
// archives are its own, because the machine's lists can be absent or too old to
// download by, and only root can renew those.
const downloadScript = `
mkdir -p apt/lists/partial apt/cache/archives/partial
apt=(apt-get -q -o Dir::State::Lists="$PWD/apt/lists" -o Dir::Cache="$PWD/apt/cache" -o APT::Sandbox::User= -o Acquire::Retries=2)
"${apt[@]}" update
missing=$("${apt[@]}" -s --no-install-recommends install "$@" | sed -n 's/^Inst \([^ ]*\).*/\1/p')
mkdir debs
(cd debs && "${apt[@]}" download $missing)
for deb in debs/*.deb; do dpkg-deb -x "$deb" .; done
rm -r apt debs
touch unpacked
`
