// Package yamledit changes scalars in YAML text and keeps every other byte:
// comments, key order, quoting, indentation, line endings, other documents.
//
// It never re-encodes a document. A scalar's place is taken from the parser's
// node positions, its bytes are replaced, and the result is parsed again and
// compared with what was asked for: if anything but the named paths differs,
// the edit is an error and nothing is returned.
//
// Which file is edited, and whether it may be, belongs to the callers.
package yamledit

import (
	"context"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Update asks for one scalar to have a value.
type Update struct {
	// Key is a path in the syntax of SplitKey.
	Key string
	// Value is a string, bool, number (any Go number or json.Number), nil, or
	// a Scalar as Get returns it.
	Value any
	// Type says what Value becomes; the zero value is Keep.
	Type ValueType
}

// ValueType rules how a value and the scalar it replaces go together.
type ValueType string

const (
	// Keep writes the value with its own type, but refuses a number, a bool or
	// null for a scalar that is a string: Kargo has turned an unquoted 1.10
	// into 1.1 before anybody can see it.
	Keep ValueType = ""
	// AsGiven writes the value with its own type, whatever it replaces.
	AsGiven ValueType = "as-given"
	// AsString takes strings only, for the reason given at Keep.
	AsString ValueType = "string"
	// AsNumber takes a number, or a string that holds one.
	AsNumber ValueType = "number"
	// AsBoolean takes a bool, or the strings "true" and "false".
	AsBoolean ValueType = "boolean"
)

// Options of an Edit.
type Options struct {
	// File is the name used in errors; empty is "YAML".
	File string
	// CreateKeys adds mapping keys that are missing on a path.
	CreateKeys bool
	// SharedAnchors permits edits below an anchor that aliases refer to, which
	// then change with it. Otherwise such an edit is refused.
	SharedAnchors bool
}

// Change reports what an Update did.
type Change struct {
	Key string
	// Old and New are the values before and after. Old is null for a key that
	// was created.
	Old, New Scalar
	// Created is true if the key was not there.
	Created bool
	// Changed is false if the scalar was left as it was.
	Changed bool
}

// Edit applies updates, in order, to document doc (0 is the first) of src.
// Without updates it only tells whether src is YAML that has the document.
// Errors are *Error, a *SyntaxError if src cannot be parsed, or ctx's. src is
// not modified. Each update costs one parse of the whole text.
func Edit(ctx context.Context, src []byte, doc int, updates []Update, opts Options) ([]byte, []Change, error) {
	s, err := parse(src, opts.File)
	if err != nil {
		return nil, nil, err
	}
	if len(updates) == 0 {
		_, err := s.document(doc, "", true)
		return src, nil, err
	}
	changes := make([]Change, 0, len(updates))
	for _, u := range updates {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		edited, c, err := s.edit(doc, u, opts)
		if err != nil {
			return nil, nil, err
		}
		s = edited
		changes = append(changes, c)
	}
	return s.text, changes, nil
}

// Get returns the scalar at key in document doc of src. Aliases on the path
// are followed, merge keys are not. Errors are as for Edit.
func Get(src []byte, doc int, key string, opts Options) (Scalar, error) {
	s, err := parse(src, opts.File)
	if err != nil {
		return Scalar{}, err
	}
	n, err := s.find(doc, key, true)
	if err != nil {
		return Scalar{}, err
	}
	return scalarOf(n), nil
}

// Position returns where the value at parts is in document doc of src: its line
// and column, counted from 1. If parts lead nowhere it is the deepest value
// they reach, and 0, 0 if src cannot be parsed or has no such document.
func Position(src []byte, doc int, parts []string) (line, column int) {
	s, err := parse(src, "")
	if err != nil {
		return 0, 0
	}
	root, err := s.document(doc, "", false)
	if err != nil {
		return 0, 0
	}
	at := s.walk(root, parts, true)
	return at.node.Line, at.node.Column
}

// Error says why a key cannot be read or set.
type Error struct {
	File string
	// Line and Column locate the nearest place that exists, counted from 1;
	// 0 if there is none.
	Line, Column int
	// Key is empty when the whole document is meant.
	Key     string
	Problem string
	// Remedy is what the user can do; may be empty.
	Remedy string
	// Nearest are existing keys that may have been meant, best first.
	Nearest []string
	// Missing is true if the key is not there, and false for every other
	// problem.
	Missing bool
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	if e.Key != "" {
		fmt.Fprintf(&b, ": key %q", e.Key)
	}
	b.WriteString(": " + e.Problem)
	if len(e.Nearest) > 0 {
		quoted := make([]string, len(e.Nearest))
		for i, n := range e.Nearest {
			quoted[i] = fmt.Sprintf("%q", n)
		}
		fmt.Fprintf(&b, " (did you mean %s?)", strings.Join(quoted, " or "))
	}
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

// SyntaxError says that a file is not YAML that can be edited.
type SyntaxError struct {
	File string
	Err  error
}

// Error implements error.
func (e *SyntaxError) Error() string { return fmt.Sprintf("cannot parse %s: %v", e.File, e.Err) }

// Unwrap returns the parser's error.
func (e *SyntaxError) Unwrap() error { return e.Err }

// edit applies one update and returns the text parsed again, because every
// edit moves the positions of what follows.
func (s *source) edit(doc int, u Update, opts Options) (*source, Change, error) {
	fail := func(err error) (*source, Change, error) { return nil, Change{}, err }
	parts, err := SplitKey(u.Key)
	if err != nil {
		return fail(&Error{File: s.file, Key: u.Key, Problem: err.Error()})
	}
	value, err := Of(u.Value)
	if err != nil {
		return fail(&Error{File: s.file, Key: u.Key, Problem: err.Error()})
	}
	root, err := s.document(doc, u.Key, opts.CreateKeys)
	if err != nil {
		return fail(err)
	}
	at := s.walk(root, parts, false)
	if at.problem != nil {
		at.problem.Key = u.Key
		if !at.problem.Missing || !opts.CreateKeys {
			return fail(at.problem)
		}
	}
	if p := s.shared(root, at.trail); p != nil && !opts.SharedAnchors {
		p.Key = u.Key
		return fail(p)
	}

	change := Change{Key: u.Key, Changed: true, Created: at.problem != nil, Old: Scalar{Kind: Null}}
	var splices []splice
	var want *yaml.Node
	if change.Created {
		if change.New, err = convert(value, change.Old, u.Type); err != nil {
			return fail(at.error(s, u.Key, err))
		}
		splices, want, err = s.create(at, change.New)
	} else {
		change.Old = scalarOf(at.node)
		if change.New, err = convert(value, change.Old, u.Type); err != nil {
			return fail(at.error(s, u.Key, err))
		}
		if holds(at.node, change.New) {
			change.Changed = false
			return s, change, nil
		}
		splices, want, err = s.replace(at, change.New)
	}
	if err != nil {
		return fail(at.error(s, u.Key, err))
	}
	edited, err := s.verify(apply(s.text, splices), at, want)
	if err != nil {
		return fail(at.error(s, u.Key, fmt.Errorf("cannot be changed safely: %w", err)))
	}
	return edited, change, nil
}
