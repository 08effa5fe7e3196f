// Package input reads what people name on a command line: files, named pipes and
// standard input. What is in it is its readers' business.
package input

import (
	"context"
	"io"
)

// Read reads what open opens to its end, or to one byte more than limit, by which
// the caller knows that it is too long. Nothing but the end of the process ends
// the opening or reading of a pipe that nobody writes to, so that is left alone
// when ctx ends; the error is ctx's then.
func Read(ctx context.Context, open func() (io.ReadCloser, error), limit int64) ([]byte, error) {
	type content struct {
		text []byte
		err  error
	}
	done := make(chan content, 1)
	go func() {
		r, err := open()
		if err != nil {
			done <- content{nil, err}
			return
		}
		text, err := io.ReadAll(io.LimitReader(r, limit+1))
		_ = r.Close()
		done <- content{text, err}
	}()
	select {
	case c := <-done:
		return c.text, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
