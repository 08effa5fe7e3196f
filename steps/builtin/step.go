package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"

	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
)

// stateless registers a step that needs no capability.
func stateless(kind string, run steps.RunnerFunc) steps.Registration {
	return registration(kind, func(steps.Capabilities) steps.Runner { return run })
}

func registration(kind string, factory func(steps.Capabilities) steps.Runner, needs ...steps.Capability) steps.Registration {
	r := steps.Registration{Name: kind, New: factory}
	r.RequiredCapabilities = needs
	r.ConfigSchema, _ = schemas.Config(kind)
	r.OutputSchema, _ = schemas.Output(kind)
	return r
}

// runWith adapts a function that wants capabilities to a factory.
func runWith(run func(context.Context, *steps.Context, steps.Capabilities) (steps.Result, error)) func(steps.Capabilities) steps.Runner {
	return func(caps steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			return run(ctx, sc, caps)
		})
	}
}

// decodeConfig returns a step's config, which its schema has accepted, as T.
func decodeConfig[T any](sc *steps.Context) (T, error) {
	var cfg T
	text, err := json.Marshal(sc.Config)
	if err == nil {
		err = json.Unmarshal(text, &cfg)
	}
	if err != nil {
		return cfg, fmt.Errorf("cannot read the step's config: %w: %w", steps.ErrConfig, err)
	}
	return cfg, nil
}

// failed is Kargo's outcome for what a user has to mend: Failed, never retried.
func failed(err error) (steps.Result, error) {
	return steps.Result{Status: steps.Failed}, steps.Terminal(err)
}

// errored is Kargo's outcome for technical failures.
func errored(err error) (steps.Result, error) {
	return steps.Result{Status: steps.Errored}, err
}

func succeeded(output map[string]any) (steps.Result, error) {
	return steps.Result{Status: steps.Succeeded, Output: output}, nil
}

// within returns the absolute path of a configured path. ".." and absolute
// paths are clamped into the work dir and symlinks resolved inside it, as Kargo
// does: "../../x" is <work dir>/x.
func within(sc *steps.Context, path string) (string, error) {
	abs, err := securejoin.SecureJoin(sc.WorkDir, path)
	if err != nil {
		return "", fmt.Errorf("cannot resolve path %q: %w", path, relativeTo(sc.WorkDir, err))
	}
	return abs, nil
}

// relativeTo takes dir out of an error's text, so that messages name paths the
// way the step's config does.
func relativeTo(dir string, err error) error {
	if err == nil {
		return nil
	}
	text := strings.ReplaceAll(err.Error(), dir+string(filepath.Separator), "")
	return &relativeError{text: strings.ReplaceAll(text, dir, "."), err: err}
}

type relativeError struct {
	text string
	err  error
}

func (e *relativeError) Error() string { return e.text }
func (e *relativeError) Unwrap() error { return e.err }

// writeFile writes name through a temporary file beside it, so that a reader
// or a crash never meets half of it. Missing parents get mode 0700.
func writeFile(name string, mode os.FileMode, write func(*os.File) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".partial-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	err = write(tmp)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}
