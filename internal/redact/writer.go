package redact

import (
	"io"
	"strings"
	"sync"
)

// Writer masks secrets in a stream, also where one is split over several
// writes: the end of a write that may be the beginning of a secret is held back
// until the next one, or Flush. It is safe for concurrent use.
type Writer struct {
	r    *Redactor
	mu   sync.Mutex
	next io.Writer
	held string
}

// Writer returns a stream to next. Call Flush at its end.
func (r *Redactor) Writer(next io.Writer) *Writer { return &Writer{r: r, next: next} }

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.held + string(p)
	cut := w.r.cut(text)
	w.held = text[cut:]
	if _, err := io.WriteString(w.next, w.r.String(text[:cut])); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what was held back.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.held
	w.held = ""
	_, err := io.WriteString(w.next, w.r.String(text))
	return err
}

// cut returns how much of s can be written: all but an end that may be the
// beginning of a secret, and never half of a secret.
func (r *Redactor) cut(s string) int {
	if r == nil {
		return len(s)
	}
	cut := len(s)
	for _, f := range r.load() {
		for from := max(0, len(s)-len(f)+1); from < cut; from++ {
			if strings.HasPrefix(f, s[from:]) {
				cut = from
			}
		}
	}
	if !r.keepUserinfo {
		cut = min(cut, openURL(s))
	}
	for _, sp := range r.find(s) {
		if sp.from < cut && cut < sp.to {
			cut = sp.from
		}
	}
	return cut
}

// maxHeldURL bounds what an unfinished URL can hold back.
const maxHeldURL = 4096

// openURL returns where a URL begins whose password may still be incomplete at
// the end of s, or len(s).
func openURL(s string) int {
	if i := strings.LastIndex(s, "://"); i >= 0 && len(s)-i < maxHeldURL && !strings.ContainsFunc(s[i+3:], endsAuthority) {
		return i
	}
	for _, begun := range []string{":/", ":"} {
		if strings.HasSuffix(s, begun) {
			return len(s) - len(begun)
		}
	}
	return len(s)
}
