package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/input"
)

// readInput reads a file, or stdin for "-", and returns the file's absolute
// path too. More than limit bytes are an error. It does not outlive ctx.
func readInput(ctx context.Context, name string, stdin io.Reader, limit int64) ([]byte, string, error) {
	var path string
	open := func() (io.ReadCloser, error) { return io.NopCloser(stdin), nil }
	if name != "-" {
		var err error
		if path, err = filepath.Abs(name); err != nil {
			return nil, "", err
		}
		open = func() (io.ReadCloser, error) { return os.Open(path) }
	}
	text, err := input.Read(ctx, open, limit)
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("it is longer than %d bytes", limit)
	}
	return text, path, err
}

// inputError ends a verb whose input cannot be used, or was not waited for.
func inputError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	return cli.UsageErrorf("%w", err)
}
