package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stepd/stepd/cmd/internal/cli"
)

func newVersionCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, and the version of Kargo it agrees with",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(*cobra.Command, []string) error {
		v := cli.ReadVersion()
		if output.value == "json" {
			return writeJSON(a.Out, v)
		}
		commit := v.Commit
		if commit == "" {
			commit = "unknown"
		}
		if v.Dirty {
			commit += " (modified)"
		}
		_, err := fmt.Fprintf(a.Out, "stepd %s\ncommit %s\n%s %s/%s\ncompatible with Kargo %s\n",
			v.Version, commit, v.Go, v.OS, v.Arch, v.Kargo)
		return err
	}
	return cmd
}

// writeJSON writes v indented, with <, > and & as they are.
func writeJSON(w interface{ Write([]byte) (int, error) }, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
