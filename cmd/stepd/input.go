package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/stepd/stepd/cmd/internal/cli"
)

// readInput reads a file, or stdin for "-", and returns the file's absolute
// path too. More than limit bytes are an error. It does not outlive ctx, though
// what it reads may be a terminal or a pipe that says nothing.
func readInput(ctx context.Context, name string, stdin io.Reader, limit int64) ([]byte, string, error) {
	var path string
	if name != "-" {
		var err error
		if path, err = filepath.Abs(name); err != nil {
			return nil, "", err
		}
	}
	type content struct {
		text []byte
		err  error
	}
	done := make(chan content, 1)
	go func() {
		text, err := readUpTo(limit, path, stdin)
		done <- content{text, err}
	}()
	select {
	case c := <-done:
		return c.text, path, c.err
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

func readUpTo(limit int64, path string, in io.Reader) ([]byte, error) {
	if path != "" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("it is longer than %d bytes", limit)
	}
	return text, err
}

// inputError ends a verb whose input cannot be used, or was not waited for.
func inputError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &cli.ExitError{Code: cli.ExitFailed, Err: err}
	}
	return cli.UsageErrorf("%w", err)
}
