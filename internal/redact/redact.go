// Package redact is the one boundary through which text leaves stepd: it knows
// the secrets of a run and masks them in strings, errors, values, log records
// and streams.
//
// What a secret is, and where it comes from, belongs to whoever holds it: call
// Add, or hand credentials out through the source wrappers in sources.go.
// Nothing here decides what is printed.
package redact

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	// Mask replaces every secret. It is shorter than any secret that is masked,
	// so masking always ends.
	Mask = "***"
	// MinLength is the length in bytes from which a value is taken for a
	// secret. Shorter ones are ignored: masking "pw" or "true" wherever they
	// occur would destroy ordinary text and give the value away by its absence.
	MinLength = 6
)

// Redactor masks a growing set of secrets. All methods are safe for concurrent
// use. A nil Redactor masks nothing.
type Redactor struct {
	keepUserinfo bool
	mu           sync.Mutex // serialises Add
	forms        atomic.Pointer[[]string]
}

// New returns a Redactor without secrets. Passwords inside URLs
// (scheme://user:password@host) are masked even when nobody added them.
func New() *Redactor { return &Redactor{} }

// NewLiteral returns a Redactor that masks added secrets only and leaves every
// other text as it is.
func NewLiteral() *Redactor { return &Redactor{keepUserinfo: true} }

// Add makes secrets known. Besides the value itself the usual encodings are
// masked: base64 (also inside a longer encoded text, as in an Authorization
// header), hex, URL and JSON escapes, and each line of a value of several
// lines. Values shorter than MinLength are ignored.
func (r *Redactor) Add(secrets ...string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := map[string]bool{}
	for _, f := range r.load() {
		known[f] = true
	}
	before := len(known)
	for _, s := range secrets {
		for _, f := range forms(s) {
			if len(f) >= MinLength {
				known[f] = true
			}
		}
	}
	if len(known) == before {
		return
	}
	all := make([]string, 0, len(known))
	for f := range known {
		all = append(all, f)
	}
	slices.Sort(all)
	r.forms.Store(&all)
}

// String returns s with every secret masked.
func (r *Redactor) String(s string) string {
	if r == nil {
		return s
	}
	if !r.keepUserinfo {
		s = maskUserinfo(s)
	}
	for {
		spans := r.find(s)
		if len(spans) == 0 {
			return s
		}
		// Masking can join the text around a secret into another one, so look
		// again; the text gets shorter each time.
		s = mask(s, spans)
	}
}

// Error returns an error with err's text masked. errors.Is and errors.As see
// through it; Unwrap is not offered, since it would lead back to the text.
func (r *Redactor) Error(err error) error {
	if err == nil || r == nil {
		return err
	}
	text := err.Error()
	masked := r.String(text)
	if masked == text {
		return err
	}
	return &maskedError{err: err, text: masked}
}

type maskedError struct {
	err  error
	text string
}

func (e *maskedError) Error() string        { return e.text }
func (e *maskedError) Is(target error) bool { return errors.Is(e.err, target) }
func (e *maskedError) As(target any) bool   { return errors.As(e.err, target) }

func (r *Redactor) load() []string {
	if p := r.forms.Load(); p != nil {
		return *p
	}
	return nil
}

type span struct{ from, to int }

// find returns the places of s that hold a secret, merged and in order.
func (r *Redactor) find(s string) []span {
	var spans []span
	for _, f := range r.load() {
		// Occurrences may overlap, but looking from every byte again would be
		// quadratic for a long secret that repeats itself.
		step := max(1, len(f)/8)
		for at := 0; at < len(s); {
			i := strings.Index(s[at:], f)
			if i < 0 {
				break
			}
			spans = append(spans, span{at + i, at + i + len(f)})
			at += i + step
		}
	}
	if len(spans) < 2 {
		return spans
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from - b.from })
	merged := spans[:1]
	for _, sp := range spans[1:] {
		if last := &merged[len(merged)-1]; sp.from < last.to {
			last.to = max(last.to, sp.to)
		} else {
			merged = append(merged, sp)
		}
	}
	return merged
}

func mask(s string, spans []span) string {
	var b strings.Builder
	at := 0
	for _, sp := range spans {
		b.WriteString(s[at:sp.from])
		b.WriteString(Mask)
		at = sp.to
	}
	b.WriteString(s[at:])
	return b.String()
}

// maskUserinfo masks the password of every URL in s. The user name stays: it
// helps to find the wrong entry of a netrc file.
func maskUserinfo(s string) string {
	at := 0
	for {
		i := strings.Index(s[at:], "://")
		if i < 0 {
			return s
		}
		at += i + len("://")
		authority := s[at:]
		if end := strings.IndexFunc(authority, endsAuthority); end >= 0 {
			authority = authority[:end]
		}
		host := strings.LastIndexByte(authority, '@')
		colon := strings.IndexByte(authority, ':')
		if host < 0 || colon < 0 || colon > host || colon+1 == host {
			continue
		}
		s = s[:at+colon+1] + Mask + s[at+host:]
	}
}

func endsAuthority(c rune) bool { return c <= ' ' || strings.ContainsRune("/?#\"'<>`\\", c) }

// forms lists the ways in which a secret shows up in text.
func forms(secret string) []string {
	trimmed := strings.TrimSpace(secret)
	if len(trimmed) < MinLength {
		return nil
	}
	out := encodings(secret)
	if trimmed != secret {
		out = append(out, encodings(trimmed)...)
	}
	if strings.ContainsAny(trimmed, "\r\n") {
		for line := range strings.Lines(trimmed) {
			line = strings.TrimSpace(line)
			if len(line) < MinLength || strings.HasPrefix(line, "-----") {
				continue // PEM armour is not secret
			}
			out = append(out, encodings(line)...)
		}
	}
	return out
}

func encodings(s string) []string {
	out := []string{
		s,
		url.QueryEscape(s), url.PathEscape(s), url.UserPassword("", s).String()[1:],
		hex.EncodeToString([]byte(s)), strings.ToUpper(hex.EncodeToString([]byte(s))),
	}
	if q := strconv.Quote(s); len(q) > 2 {
		out = append(out, q[1:len(q)-1])
	}
	for _, escapeHTML := range []bool{true, false} {
		var b strings.Builder
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(escapeHTML)
		if enc.Encode(s) == nil { // a string always encodes
			q := strings.TrimSuffix(b.String(), "\n")
			out = append(out, q[1:len(q)-1])
		}
	}
	return append(out, base64Forms(s)...)
}

// base64Forms returns the encodings of s, and of s inside a longer text: three
// alignments, each without the characters that depend on what surrounds it.
func base64Forms(s string) []string {
	var out []string
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		out = append(out, enc.EncodeToString([]byte(s)))
		for shift := range 3 {
			text := enc.EncodeToString(append(make([]byte, shift), s...))
			from := (shift*8 + 5) / 6
			to := (shift + len(s)) * 8 / 6
			if to-from >= MinLength+2 {
				out = append(out, text[from:to])
			}
		}
	}
	return out
}
