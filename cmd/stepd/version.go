package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// kargoVersion is the release of Kargo whose behaviour stepd reproduces.
const kargoVersion = "v1.11.2"

// version is set by release builds with -ldflags "-X main.version=…".
var version string //nolint:gochecknoglobals // the linker can only set a variable

type versionInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Dirty   bool   `json:"dirty,omitempty"`
	Built   string `json:"built,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Kargo   string `json:"kargo"`
}

func newVersionCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, and the version of Kargo it agrees with",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(*cobra.Command, []string) error {
		v := readVersion()
		if output.value == "json" {
			return writeJSON(a.out, v)
		}
		commit := v.Commit
		if commit == "" {
			commit = "unknown"
		}
		if v.Dirty {
			commit += " (modified)"
		}
		_, err := fmt.Fprintf(a.out, "stepd %s\ncommit %s\n%s %s/%s\ncompatible with Kargo %s\n",
			v.Version, commit, v.Go, v.OS, v.Arch, v.Kargo)
		return err
	}
	return cmd
}

func readVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Kargo: kargoVersion}
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

// writeJSON writes v indented, with <, > and & as they are.
func writeJSON(w interface{ Write([]byte) (int, error) }, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
