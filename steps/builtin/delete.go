package builtin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/stepd/stepd/steps"
)

type deleteConfig struct {
	Path          string   `json:"path"`
	Paths         []string `json:"paths"`
	PathsAreGlobs bool     `json:"pathsAreGlobs"`
	Strict        bool     `json:"strict"`
}

var errTraversal = errors.New("path attempts to traverse outside the working directory")

// Delete is `delete`: files, directories with what is in them, and symlinks
// rather than what they point at. Nothing is deleted unless every path could
// be resolved.
func Delete() steps.Registration { return stateless("delete", runDelete) }

func runDelete(_ context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[deleteConfig](sc)
	if err != nil {
		return failed(err)
	}
	root, err := os.OpenRoot(sc.WorkDir)
	if err != nil {
		return errored(err)
	}
	defer func() { _ = root.Close() }()
	paths := cfg.Paths
	if cfg.Path != "" {
		paths = []string{cfg.Path}
	}
	if cfg.PathsAreGlobs {
		if paths, err = expand(root, paths, cfg.Strict); err != nil {
			return errored(err)
		}
	}
	var doomed []string
	for _, path := range paths {
		name, err := resolveLeaf(sc.WorkDir, path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && cfg.Strict:
			return errored(fmt.Errorf("path %q does not exist", path))
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return errored(fmt.Errorf("could not resolve path %q: %w", path, relativeTo(sc.WorkDir, err)))
		default:
			doomed = append(doomed, name)
		}
	}
	for _, name := range doomed {
		if err := root.RemoveAll(name); err != nil {
			return errored(fmt.Errorf("failed to delete %q: %w", name, err))
		}
	}
	return succeeded(nil)
}

// expand returns what glob patterns match. A malformed pattern is terminal.
func expand(root *os.Root, patterns []string, strict bool) ([]string, error) {
	var all []string
	for _, pattern := range patterns {
		if err := checkCost(pattern); err != nil {
			return nil, steps.Terminal(fmt.Errorf("invalid glob pattern %q: %w", pattern, err))
		}
		matches, err := doublestar.Glob(root.FS(), strings.TrimPrefix(pattern, "./"))
		if err != nil {
			return nil, steps.Terminal(fmt.Errorf("invalid glob pattern %q: %w", pattern, err))
		}
		if len(matches) == 0 && strict {
			return nil, fmt.Errorf("no paths matched pattern %q", pattern)
		}
		all = append(all, matches...)
	}
	return all, nil
}

// Limits on patterns: each combination of alternatives is a search of its own,
// and each ** walks all that is below what the one before it found.
const (
	maxAlternatives = 1024
	maxDoubleStars  = 8
)

// checkCost refuses patterns whose search would take for ever.
func checkCost(pattern string) error {
	combinations := 1
	var commas []int // of the open braces
	for _, c := range strings.NewReplacer(`\\`, "", `\{`, "", `\}`, "", `\,`, "").Replace(pattern) {
		switch last := len(commas) - 1; {
		case c == '{':
			commas = append(commas, 0)
		case c == ',' && last >= 0:
			commas[last]++
		case c == '}' && last >= 0:
			combinations *= commas[last] + 1
			commas = commas[:last]
		}
		if combinations > maxAlternatives {
			return fmt.Errorf("it stands for more than %d patterns", maxAlternatives)
		}
	}
	if strings.Count(pattern, "**") > maxDoubleStars {
		return fmt.Errorf("it has more than %d **", maxDoubleStars)
	}
	return nil
}

// resolveLeaf returns path relative to the work dir with the symlinks among
// its parents resolved; the last element is not followed.
func resolveLeaf(workDir, path string) (string, error) {
	clean := filepath.Clean(path)
	if filepath.IsAbs(clean) {
		clean = strings.TrimPrefix(clean, string(filepath.Separator))
	}
	if clean == "" || clean == "." || !filepath.IsLocal(clean) {
		return "", errTraversal
	}
	base, err := filepath.EvalSymlinks(workDir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Join(base, filepath.Dir(clean)))
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(base, parent)
	if err != nil || !filepath.IsLocal(rel) {
		return "", errTraversal
	}
	name := filepath.Join(rel, filepath.Base(clean))
	_, err = os.Lstat(filepath.Join(base, name))
	return name, err
}
