package builtin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	kyaml "sigs.k8s.io/kustomize/kyaml/yaml"
	"sigs.k8s.io/kustomize/kyaml/yaml/merge2"

	"github.com/stepd/stepd/steps"
)

// YAMLMerge is `yaml-merge`: it merges YAML files, each over those before it,
// by kustomize's rules, and writes the result as kyaml formats it.
func YAMLMerge() steps.Registration { return stateless("yaml-merge", runYAMLMerge) }

func runYAMLMerge(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[struct {
		InFiles            []string `json:"inFiles"`
		OutFile            string   `json:"outFile"`
		IgnoreMissingFiles bool     `json:"ignoreMissingFiles"`
	}](sc)
	if err != nil {
		return failed(err)
	}
	// As in Kargo a file that is missing is told of before what is wrong with others.
	var found, files []string
	for _, in := range cfg.InFiles {
		file, err := within(sc, in)
		if err != nil {
			return errored(err)
		}
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			if cfg.IgnoreMissingFiles {
				continue
			}
			return errored(fmt.Errorf("input file %q not found: %w", in, relativeTo(sc.WorkDir, err)))
		}
		found, files = append(found, in), append(files, file)
	}
	var merged *kyaml.RNode
	for i, in := range found {
		if err := ctx.Err(); err != nil {
			return errored(err)
		}
		text, err := os.ReadFile(files[i])
		if err != nil {
			return errored(fmt.Errorf("error reading input file %q: %w", in, relativeTo(sc.WorkDir, err)))
		}
		node, err := kyaml.Parse(string(text))
		switch {
		case errors.Is(err, io.EOF): // nothing but space and comments
		case err != nil:
			return errored(fmt.Errorf("error merging YAML files: error reading input file %s: %w", in, err))
		case merged == nil:
			merged = node
		case max(widest(node.YNode()), widest(merged.YNode())) > maxMergeKeys:
			return errored(fmt.Errorf("error merging YAML files: error merging in file %s: a mapping has more than %d keys", in, maxMergeKeys))
		default:
			if merged, err = merge2.Merge(node, merged, kyaml.MergeOptions{}); err != nil {
				return errored(fmt.Errorf("error merging YAML files: error merging in file %s: %w", in, err))
			}
		}
	}
	var text string
	if !merged.IsNil() {
		if text, err = merged.String(); err != nil {
			return errored(fmt.Errorf("error merging YAML files: %w", err))
		}
	}
	if err := writeOutput(sc, cfg.OutFile, []byte(text)); err != nil {
		return errored(fmt.Errorf("error writing the merged YAML file: %w", err))
	}
	switch len(found) {
	case 0:
		return succeeded(nil)
	case 1:
		return succeeded(map[string]any{"commitMessage": fmt.Sprintf("Wrote %s to %s", found[0], cfg.OutFile)})
	}
	return succeeded(map[string]any{"commitMessage": fmt.Sprintf("Merged %d YAML files to %s\n- %s", len(found), cfg.OutFile, strings.Join(found, "\n- "))})
}

// maxMergeKeys bounds the mappings of files that are merged: kyaml looks each
// key up among all others.
const maxMergeKeys = 20_000

// widest returns the number of keys of the largest mapping below a node.
func widest(n *kyaml.Node) int {
	if n == nil {
		return 0
	}
	most := 0
	if n.Kind == kyaml.MappingNode {
		most = len(n.Content) / 2
	}
	for _, child := range n.Content {
		most = max(most, widest(child))
	}
	return most
}

// writeOutput writes a file that a step makes, 0600 unless it exists, with
// missing parents 0700, as Kargo's steps do.
func writeOutput(sc *steps.Context, path string, data []byte) error {
	file, err := within(sc, path)
	if err != nil {
		return err
	}
	err = os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	return relativeTo(sc.WorkDir, err)
}
