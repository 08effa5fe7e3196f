package ociart

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// ErrIntegrity marks answers that no honest registry gives: bytes that do not
// hash to their digest, sizes other than claimed, content over a limit,
// encodings that were not asked for. A retry does not mend them.
var ErrIntegrity = errors.New("the registry's answer cannot be right")

// StatusError is an answer with an unexpected HTTP status.
type StatusError struct {
	// What was asked for, for example "the manifest of registry/repo:tag".
	What string
	// Code is the HTTP status code.
	Code int
	// Detail is the registry's own error text, quoted and bounded; may be
	// empty.
	Detail string
}

// Error names what was asked, the status and, for the statuses users can do
// something about, the remedy.
func (e *StatusError) Error() string {
	s := fmt.Sprintf("cannot get %s: the registry answered %d %s", e.What, e.Code, http.StatusText(e.Code))
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	switch e.Code {
	case http.StatusUnauthorized, http.StatusForbidden:
		s += "; it needs credentials that may pull from this repository"
	case http.StatusNotFound:
		s += "; check the name, and that it has been pushed"
	}
	return s
}

// IsNotFound tells whether err is a definite 404.
func IsNotFound(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == http.StatusNotFound
}

// Quote quotes text that somebody else wrote for use in a message: at most 200
// bytes, with every control and non-ASCII character escaped so that it cannot
// drive a terminal.
func Quote(s string) string {
	const limit = 200
	cut := len(s) > limit
	if cut {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	q := strconv.QuoteToASCII(s)
	if cut {
		q = strings.TrimSuffix(q, `"`) + `…"`
	}
	return q
}
