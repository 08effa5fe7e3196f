package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stepd/stepd/internal/input"
	"github.com/stepd/stepd/runner/kargoapi"
)

// Limits on what is read, so that a hostile tree cannot exhaust memory.
const (
	maxFileSize  = 16 << 20
	maxDocuments = 100_000
)

// Documents loads the documents of files, directories (recursively: *.yaml,
// *.yml and *.json, hidden directories left out) and "-", which is stdin. A
// file that is only found in a directory may be something else altogether,
// such as a Helm template: it is ignored, with a warning if it is no YAML,
// unless it mentions Kargo's API group. Objects of other APIs that are found
// there are kept without a warning.
//
// What could be read is returned even when the error, of type Errors, is not
// nil. Only ctx's own error is returned as it is.
func Documents(ctx context.Context, paths []string, stdin io.Reader) (*Set, error) {
	l := &loader{set: &Set{}, seen: map[string]bool{}}
	for _, p := range paths {
		if err := l.path(ctx, p, stdin); err != nil {
			return l.set, err
		}
	}
	if len(l.errs) > 0 {
		return l.set, l.errs
	}
	return l.set, nil
}

// Bytes loads the documents of one text; file is the name to report.
func Bytes(file string, text []byte) (*Set, error) {
	l := &loader{set: &Set{}}
	l.text(file, text)
	if len(l.errs) > 0 {
		return l.set, l.errs
	}
	return l.set, nil
}

type loader struct {
	set  *Set
	errs Errors
	// seen keeps a file that is named twice from being loaded twice.
	seen map[string]bool
	// again counts files that were not.
	again int
	// walked says that the file at hand was found in a directory, not named,
	// and found that nothing in it speaks of Kargo, either.
	walked, found bool
}

func (l *loader) fail(file string, err error) {
	l.errs = append(l.errs, &Error{Position: Position{File: file}, Message: err.Error(), Err: err})
}

func (l *loader) path(ctx context.Context, path string, stdin io.Reader) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if path == "-" {
		if stdin == nil {
			l.fail("-", errors.New("cannot read standard input: there is none"))
			return nil
		}
		return l.expecting(path, "no document on standard input", func() error {
			return l.read(ctx, "-", func() (io.ReadCloser, error) { return io.NopCloser(stdin), nil })
		})
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		l.fail(path, fmt.Errorf("cannot load documents: %w", err))
		return nil
	case !info.IsDir():
		return l.expecting(path, "no document in this file", func() error { return l.file(ctx, path) })
	}
	return l.expecting(path, "no documents in *.yaml, *.yml or *.json files here", func() error { return l.directory(ctx, path) })
}

// expecting loads what was named and warns if no document is in it.
func (l *loader) expecting(path, otherwise string, load func() error) error {
	before := l.met()
	if err := load(); err != nil {
		return err
	}
	if l.met() == before {
		l.set.Warnings = append(l.set.Warnings, Warning{Position: Position{File: path}, Message: otherwise, Empty: true})
	}
	return nil
}

// met counts what was found so far, whatever became of it.
func (l *loader) met() int {
	return len(l.set.Documents) + len(l.set.Partial) + len(l.errs) + l.again
}

func (l *loader) directory(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case err != nil:
			l.fail(path, fmt.Errorf("cannot load documents: %w", err))
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
		case d.IsDir():
			if path != dir && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
		default:
			switch strings.ToLower(filepath.Ext(path)) {
			case ".yaml", ".yml", ".json":
				if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
					l.walked = true
					err := l.file(ctx, path)
					l.walked = false
					return err
				}
			}
		}
		return nil
	})
}

func (l *loader) file(ctx context.Context, path string) error {
	if abs, err := filepath.Abs(path); err == nil {
		if l.seen[abs] {
			l.again++
			return nil
		}
		l.seen[abs] = true
	}
	return l.read(ctx, path, func() (io.ReadCloser, error) { return os.Open(path) })
}

// read loads what open opens.
func (l *loader) read(ctx context.Context, file string, open func() (io.ReadCloser, error)) error {
	text, err := input.Read(ctx, open, maxFileSize)
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		l.fail(file, fmt.Errorf("cannot load documents: %w", err))
	case len(text) > maxFileSize:
		l.fail(file, fmt.Errorf("cannot load documents: larger than %d MiB", maxFileSize>>20))
	default:
		l.text(file, text)
	}
	return nil
}

func (l *loader) text(file string, text []byte) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	// Only a file that was named, or speaks of Kargo, has to be understood.
	l.found = l.walked && !bytes.Contains(text, []byte(kargoapi.Group))
	index := 0
	for _, part := range split(text) {
		if len(l.set.Documents) >= maxDocuments {
			l.fail(file, fmt.Errorf("cannot load documents: more than %d", maxDocuments))
			return
		}
		if l.part(file, index, part) {
			index++
		}
	}
}

// part is the text of one document and the number of lines before it.
type part struct {
	text []byte
	line int
}

// split cuts a YAML stream at its document markers. A part keeps its own
// leading marker, since content may follow on the same line; comments and
// directives in front of a marker go with the document they introduce.
func split(text []byte) []part {
	var parts []part
	start, startLine, line := 0, 0, 0
	content, marked := false, false
	flush := func(end, next, nextLine int) {
		if content {
			parts = append(parts, part{text: text[start:end], line: startLine})
		}
		start, startLine, content, marked = next, nextLine, false, false
	}
	for pos := 0; pos < len(text); line++ {
		end := len(text)
		if i := bytes.IndexByte(text[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		l := bytes.TrimRight(text[pos:end], "\r\n")
		switch {
		case isMarker(l, "---"):
			if content || marked {
				flush(pos, pos, line)
			}
			marked = true
			content = len(bytes.TrimSpace(stripComment(l[3:]))) > 0
		case isMarker(l, "..."):
			flush(pos, end, line+1)
		case len(bytes.TrimSpace(l)) == 0, l[0] == '%' && !content, bytes.TrimSpace(l)[0] == '#':
		default:
			content = true
		}
		pos = end
	}
	flush(len(text), len(text), line)
	return parts
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t')
}

func stripComment(rest []byte) []byte {
	if t := bytes.TrimLeft(rest, " \t"); len(t) > 0 && t[0] == '#' {
		return nil
	}
	return rest
}
