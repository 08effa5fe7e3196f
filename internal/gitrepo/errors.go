package gitrepo

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// URLError says that a repository URL cannot be used. It does not repeat the
// URL, which may hold a password.
type URLError struct{ Reason string }

// Error implements error.
func (e *URLError) Error() string { return "unusable repository URL: " + e.Reason }

// StatusError is an HTTP answer that is not a success.
type StatusError struct {
	Code int
	// Text is the server's own, cleaned and shortened.
	Text string
	// RetryAfter is what the server asked for; zero if it did not.
	RetryAfter time.Duration
	location   string
}

// Error names the status and the remedy where there is one.
func (e *StatusError) Error() string {
	msg := fmt.Sprintf("the git server answered %d %s", e.Code, http.StatusText(e.Code))
	switch e.Code {
	case http.StatusUnauthorized:
		msg += ": check the repository's credentials"
	case http.StatusForbidden:
		msg += ": the credentials may not do this"
	case http.StatusNotFound:
		msg += ": no such repository, or the credentials may not see it"
	}
	if e.Text != "" {
		msg += fmt.Sprintf(" (%s)", e.Text)
	}
	return msg
}

// AccessError is a refusal by an SSH server or its host key, or a key or
// authority that is none: trying again cannot help.
type AccessError struct{ Err error }

// Error implements error.
func (e *AccessError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *AccessError) Unwrap() error { return e.Err }

// RejectedError says that the server has read a push and refused it.
type RejectedError struct {
	// Reason is from the report-status, Output what hooks printed.
	Reason, Output string
}

// Error implements error.
func (e *RejectedError) Error() string {
	msg := "the git server refused the push: " + e.Reason
	if e.Output != "" {
		msg += " (" + e.Output + ")"
	}
	return msg
}

// ServerError is an error the server reported inside the protocol.
type ServerError struct{ Text string }

// Error implements error.
func (e *ServerError) Error() string { return "the git server reported: " + e.Text }

// ProtocolError is an answer that makes no sense.
type ProtocolError struct{ Reason string }

// Error implements error.
func (e *ProtocolError) Error() string { return "malformed answer from the git server: " + e.Reason }

func malformed(format string, args ...any) error {
	return &ProtocolError{Reason: fmt.Sprintf(format, args...)}
}

// LimitError says that an answer was larger than we read.
type LimitError struct {
	What  string
	Limit int64
}

// Error implements error.
func (e *LimitError) Error() string {
	return fmt.Sprintf("the git server sent %s of more than %d bytes", e.What, e.Limit)
}

// MissingError says that the server does not give an object.
type MissingError struct{ ID Hash }

// Error implements error.
func (e *MissingError) Error() string {
	return fmt.Sprintf("the git server did not send object %s", e.ID)
}

// Permanent tells whether trying again with the same credentials is pointless:
// access was refused or the repository is not there.
func Permanent(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		switch status.Code {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
			return true
		}
		return false
	}
	var access *AccessError
	var badURL *URLError
	var format *objectFormatError
	var cert *tls.CertificateVerificationError
	return errors.As(err, &cert) || errors.As(err, &access) || errors.As(err, &badURL) || errors.As(err, &format)
}

// Nonsense tells whether the server was reached and answered, but not with what
// was asked for: an object it does not give, an error of its own, garbage.
func Nonsense(err error) bool {
	var server *ServerError
	var protocol *ProtocolError
	var limit *LimitError
	var missing *MissingError
	return errors.As(err, &server) || errors.As(err, &protocol) || errors.As(err, &limit) || errors.As(err, &missing)
}

// Unauthenticated tells whether err says that the credentials are not accepted
// (any more).
func Unauthenticated(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && status.Code == http.StatusUnauthorized
}

type objectFormatError struct{ format string }

func (e *objectFormatError) Error() string {
	return fmt.Sprintf("the repository's object format is %q; only sha1 is supported", e.format)
}

// clean makes server text safe to print: one line, no control characters, at
// most 500 bytes.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r == unicode.ReplacementChar, unicode.IsControl(r), unicode.Is(unicode.Cf, r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "") + "…"
	}
	return s
}
