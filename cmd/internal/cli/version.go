package cli

import (
	"runtime"
	"runtime/debug"
)

// kargoVersion is the release of Kargo whose behaviour stepd reproduces.
const kargoVersion = "v1.11.2"

// version is set by release builds, of all programs alike, with
// -ldflags "-X github.com/stepd/stepd/cmd/internal/cli.version=…".
var version string //nolint:gochecknoglobals // the linker can only set a variable

// Version says what a program was built from.
type Version struct {
	// Version is the release, or what Go's tool made of the commit, or (devel).
	Version string `json:"version"`
	// Commit, Dirty and Built are empty where Go's tool found no repository.
	Commit string `json:"commit,omitempty"`
	Dirty  bool   `json:"dirty,omitempty"`
	Built  string `json:"built,omitempty"`
	Go     string `json:"go"`
	OS     string `json:"os"`
	Arch   string `json:"arch"`
	// Kargo is the release of Kargo that it agrees with.
	Kargo string `json:"kargo"`
}

// ReadVersion returns what this program was built from.
func ReadVersion() Version {
	v := Version{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Kargo: kargoVersion}
	if info, ok := debug.ReadBuildInfo(); ok {
		if v.Version == "" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = s.Value
			case "vcs.time":
				v.Built = s.Value
			case "vcs.modified":
				v.Dirty = s.Value == "true"
			}
		}
	}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	return v
}
