// Package schemas holds the JSON Schemas (draft 2020-12) of step configs and
// outputs, embedded. A schema file is the only place a config field is
// declared: <kind>.json is the config of a step kind, <kind>.output.json its
// output. Validation does not belong here; see internal/configschema.
package schemas

import (
	"embed"
	"io/fs"
	"sort"
	"strings"
)

//go:generate go run ../internal/docgen ../docs/steps

//go:embed *.json
var files embed.FS

// Config returns the config schema of a step kind.
func Config(kind string) ([]byte, bool) { return read(kind + ".json") }

// Output returns the output schema of a step kind.
func Output(kind string) ([]byte, bool) { return read(kind + ".output.json") }

// Kinds lists the step kinds that have a config schema, sorted.
func Kinds() []string {
	names, err := fs.Glob(files, "*.json")
	if err != nil {
		panic(err) // the pattern is constant
	}
	kinds := make([]string, 0, len(names))
	for _, n := range names {
		if !strings.HasSuffix(n, ".output.json") {
			kinds = append(kinds, strings.TrimSuffix(n, ".json"))
		}
	}
	sort.Strings(kinds)
	return kinds
}

func read(name string) ([]byte, bool) {
	if strings.ContainsAny(name, `/\`) {
		return nil, false
	}
	b, err := files.ReadFile(name)
	return b, err == nil
}
