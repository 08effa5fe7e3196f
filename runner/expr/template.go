package expr

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Piece is a part of a template.
type Piece struct {
	// Text is literal text, or the code between two delimiters.
	Text string
	// Code tells which.
	Code bool
	// Offset is where Text starts in the template, in bytes.
	Offset int
}

// delimiters are the two pairs Kargo knows. They may be mixed.
var delimiters = [...]struct{ open, close string }{{"${{", "}}"}, {"${%", "%}"}}

// HasCode tells whether a string is a template at all; one that is not is
// never retyped.
func HasCode(template string) bool {
	for _, d := range delimiters {
		if strings.Contains(template, d.open) {
			return true
		}
	}
	return false
}

// Scan cuts a template into its pieces. An expression ends at the first
// closing delimiter that matches its opening one, whatever quotes or brackets
// surround it. An empty expression (`${{}}`) ends the scan: it vanishes and
// all text after it is literal, as in Kargo.
func Scan(template string) ([]Piece, error) {
	var pieces []Piece
	pos := 0
	literal := func(end int) {
		if end > pos {
			pieces = append(pieces, Piece{Text: template[pos:end], Offset: pos})
		}
	}
	for {
		start, open, closing := -1, "", ""
		for _, d := range delimiters {
			if i := strings.Index(template[pos:], d.open); i >= 0 && (start < 0 || pos+i < start) {
				start, open, closing = pos+i, d.open, d.close
			}
		}
		if start < 0 {
			literal(len(template))
			return pieces, nil
		}
		literal(start)
		code := start + len(open)
		n := strings.Index(template[code:], closing)
		if n < 0 {
			return nil, fmt.Errorf("unclosed expression: expected %q but reached end of template", closing)
		}
		pos = code + n + len(closing)
		if n == 0 {
			literal(len(template))
			return pieces, nil
		}
		pieces = append(pieces, Piece{Text: template[code : code+n], Code: true, Offset: code})
	}
}

// Text returns the text that the value of an expression adds to a template: a
// string as it is, anything else as JSON.
func Text(value any) (string, error) {
	if s, ok := value.(string); ok {
		return s, nil
	}
	b, err := json.Marshal(value)
	if err != nil {
		return "", err
	}
	return string(b), nil
}

// Type returns the value that the text of a whole template stands for, by
// Kargo's rules (pkg/expressions/json_templates.go): text in double quotes is
// the string between them, not unescaped; then whatever can be read as a
// number, a boolean or JSON is that; the rest is a string. One trailing
// newline is ignored, and kept where the result is a string.
func Type(text string) any {
	trimmed, newline := text, ""
	if t, ok := strings.CutSuffix(text, "\n"); ok {
		trimmed, newline = t, "\n"
	}
	if len(trimmed) > 1 && trimmed[0] == '"' && trimmed[len(trimmed)-1] == '"' {
		return trimmed[1:len(trimmed)-1] + newline
	}
	if f, err := strconv.ParseFloat(trimmed, 64); err == nil {
		return f
	}
	if b, err := strconv.ParseBool(trimmed); err == nil {
		return b
	}
	var v any
	if err := json.Unmarshal([]byte(trimmed), &v); err == nil {
		return v
	}
	return trimmed + newline
}
