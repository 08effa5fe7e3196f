package load

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Set is what was loaded, in the order it was read.
type Set struct {
	Documents []*Document
	// Partial are documents of Kargo's that the errors say something about,
	// without what could not be read. They are for looking at, not for use.
	Partial []*Document
	// Warnings tell about documents that were kept without being understood.
	Warnings []Warning
}

// Document is one Kubernetes object, or one YAML document that is none.
type Document struct {
	// File is the path as given, joined with what a directory walk found
	// below it; "-" for standard input.
	File string
	// Index counts the documents of File from 0.
	Index int
	// Line is the 1-based line of File on which the document's content starts.
	Line int

	// What the document says of itself; empty where it does not.
	APIVersion string
	Kind       string
	Namespace  string
	Name       string

	// Node is the document's root value with lines counted in File. It is nil
	// where only the YAML 1.1 reader could parse the text.
	Node *yaml.Node
	// Object is a pointer to one of the types of package kargoapi, or, for
	// other kinds, the plain JSON value (map[string]any and so on).
	Object any
	// JSON is the document as JSON, with keys sorted.
	JSON []byte
	// Unread are the JSON pointers of what a partial document lacks.
	Unread []string

	source part
}

// As returns the document's object if it is of type T.
func As[T kargoapi.Object](d *Document) (T, bool) {
	o, ok := d.Object.(T)
	return o, ok
}

// Of returns the documents of a kargoapi type, such as Of[*kargoapi.Stage].
func Of[T kargoapi.Object](s *Set) []*Document {
	var docs []*Document
	for _, d := range s.Documents {
		if _, ok := d.Object.(T); ok {
			docs = append(docs, d)
		}
	}
	return docs
}

// Position is a place in a file. Line and Column count from 1, columns in
// runes; zero is unknown.
type Position struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String returns file:line:column without the parts that are unknown.
func (p Position) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Warning is a remark about a document.
type Warning struct {
	Position
	Message string
	// Empty tells that what was named holds no document at all. Whoever only
	// looks at documents would say that all is well.
	Empty bool
}

// Error is one reason a file cannot be used.
type Error struct {
	Position
	// Pointer is the JSON pointer (RFC 6901) of the value in its document.
	Pointer string
	Message string
	// Remedy says what to do; may be empty.
	Remedy string
	// Err is the underlying error, if there is one.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	s := e.String() + ": " + e.Message
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Unwrap returns the underlying error; a document that cannot be accepted is
// a configuration error.
func (e *Error) Unwrap() []error {
	if e.Err != nil {
		return []error{e.Err}
	}
	return []error{steps.ErrConfig}
}

// Errors are all reasons found, in reading order.
type Errors []*Error

// Error implements error.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes the single errors visible to errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, x := range e {
		errs[i] = x
	}
	return errs
}

// AsErrors returns the single load errors in err's chain.
func AsErrors(err error) Errors {
	if es, ok := errors.AsType[Errors](err); ok {
		return es
	}
	return nil
}
