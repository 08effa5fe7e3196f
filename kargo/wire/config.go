package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/stepd/stepd/runner/expr"
)

// Skeleton identifies a config without what its expressions yield: the SHA-256,
// in hex, of the canonical encoded config in which every value is null. It is
// the same for every evaluation of one config, and for no other config.
type Skeleton string

// ErrMalformed says that something is not what EncodeConfig made, whatever its
// expressions may have yielded.
var ErrMalformed = errors.New("the encoded config is malformed")

// ConfigError says that a config cannot be evaluated, for a reason that Kargo
// would have too.
type ConfigError struct{ Err error }

// Error implements error.
func (e *ConfigError) Error() string { return "cannot evaluate the config: " + e.Err.Error() }

// Unwrap returns the reason.
func (e *ConfigError) Unwrap() error { return e.Err }

// EncodeConfig returns the body of the http step for a step's config: text in
// which every expression of the user stands in a template of its own, in the
// user's own delimiters, and which Kargo evaluates to the JSON of a Request.
// A nil config and null are an empty one.
//
// The config inside is JSON as it is, except that
//
//   - a string with expressions is {"$t": ["text", value, "text", …, "text"]}:
//     its literal text, which may be empty, alternating with what the
//     expressions yielded: a string, or, of any other type, ["[value]"];
//   - a key that starts with $ has one more $ in front.
//
// Literal text is ASCII without a $, so that none of it can begin an
// expression, or be changed by the YAML decoder that Kargo sends configs through.
//
// A string that Kargo cannot scan (an expression that is not closed) fails the
// step when it is evaluated. The body is then that string, so that it does.
// What is no JSON object, has numbers beyond float64 or an expression beyond
// expr.MaxCode, or makes a body beyond MaxRequest, is an error.
func EncodeConfig(config json.RawMessage) (body string, skeleton Skeleton, err error) {
	if len(config) == 0 {
		config = json.RawMessage("{}")
	}
	// As Kargo decodes it: what fails here would always fail there.
	var native map[string]any
	if err := json.Unmarshal(config, &native); err != nil {
		return "", "", fmt.Errorf("cannot encode the config: %w", err)
	}
	var in map[string]any
	dec := json.NewDecoder(bytes.NewReader(config))
	dec.UseNumber()
	if err := dec.Decode(&in); err != nil {
		return "", "", fmt.Errorf("cannot encode the config: %w", err)
	}
	if in == nil {
		in = map[string]any{}
	}
	var e encoder
	blank := e.value(in)
	switch {
	case e.tooLong > 0:
		return "", "", fmt.Errorf("cannot encode the config: an expression of %d bytes is longer than %d", e.tooLong, expr.MaxCode)
	case e.Len() > MaxRequest:
		return "", "", fmt.Errorf("cannot encode the config: it makes %d bytes, more than %d", e.Len(), MaxRequest)
	case e.unclosed != nil:
		return *e.unclosed, "", nil
	}
	skeleton, err = hash(blank)
	if err != nil {
		return "", "", err
	}
	// The quotes are Kargo's way to keep text a string; it takes them off.
	return `"{"attempt":{"startedAt":` + startedAt + `,"errorCount":` + errorCount + `},"config":` + e.String() + `}"`, skeleton, nil
}

// encoder writes the template of an encoded config.
type encoder struct {
	strings.Builder
	// unclosed is the first string that cannot be scanned.
	unclosed *string
	// tooLong is the length of an expression that is not compiled for its size.
	tooLong int
}

// value writes v and returns it in encoded form, with null for every value
// that an expression will yield.
func (e *encoder) value(v any) (blank any) {
	switch v := v.(type) {
	case string:
		return e.text(v)
	case []any:
		out := make([]any, len(v))
		e.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				e.WriteByte(',')
			}
			out[i] = e.value(item)
		}
		e.WriteByte(']')
		return out
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		out := make(map[string]any, len(v))
		e.WriteByte('{')
		for i, k := range keys {
			if i > 0 {
				e.WriteByte(',')
			}
			name := k
			if strings.HasPrefix(name, "$") {
				name = "$" + name
			}
			e.quote(name)
			e.WriteByte(':')
			out[name] = e.value(v[k])
		}
		e.WriteByte('}')
		return out
	case json.Number:
		e.WriteString(v.String())
		return v
	case bool:
		e.WriteString(strconv.FormatBool(v))
		return v
	}
	e.WriteString("null")
	return nil
}

func (e *encoder) text(s string) (blank any) {
	if !expr.HasCode(s) {
		e.quote(s)
		return s
	}
	pieces, err := expr.Scan(s)
	if err != nil {
		if e.unclosed == nil {
			e.unclosed = &s
		}
		return nil
	}
	var parts []any
	literal := ""
	e.WriteString(`{"\u0024t":[`)
	for _, p := range pieces {
		if !p.Code {
			literal += p.Text
			continue
		}
		if len(p.Text) > expr.MaxCode {
			e.tooLong = len(p.Text)
			return nil
		}
		parts = append(parts, literal, nil)
		e.quote(literal)
		literal = ""
		open, closing := s[p.Offset-3:p.Offset], "}}"
		if open == "${%" {
			closing = "%}"
		}
		e.WriteString("," + open + asJSON(p.Text) + closing + ",")
	}
	e.quote(literal)
	e.WriteString("]}")
	return map[string]any{templateKey: append(parts, literal)}
}

// templateKey marks a templated string.
const templateKey = "$t"

// asJSON returns code that yields, as JSON, what code yields: a string as it is,
// and anything else as an array that holds the text of its JSON, itself in an
// array so that expr does not follow pointers.
//
// Kargo puts a string into a template as it is and anything else as its JSON,
// quotes included, even if that is a string's: of a version, a time, or a type
// that only has string's kind, which only == tells from a string. The nil beside
// it keeps expr from knowing the type, or it would not compile the comparison.
//
// The parentheses keep statements together, of which the last may not end in a
// semicolon there; the newline ends a comment, and NEL, the one character that
// YAML changes in what json.Marshal writes, is escaped. Code begins about where
// it was, so that errors point to the same place.
//
// Code that is no expression stays as it is, and fails as it would have. With
// anything around it, it might become one.
func asJSON(code string) string {
	if !expr.Parses(code) {
		return code
	}
	return "[(" + strings.TrimPrefix(expr.WithoutEnd(code), " ") + "\n),nil]" +
		`|map(type(#)=="string"&&#==string(#)?#:[toJSON([#])])|first()|toJSON()|replace("\u0085","\\u0085")`
}

// quote writes a string as JSON in ASCII and without a $.
func (e *encoder) quote(s string) {
	e.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			e.WriteByte('\\')
			e.WriteRune(r)
		case r >= ' ' && r < 0x7f && r != '$':
			e.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			_, _ = fmt.Fprintf(e, `\u%04x\u%04x`, hi, lo)
		default:
			_, _ = fmt.Fprintf(e, `\u%04x`, r)
		}
	}
	e.WriteByte('"')
}

// DecodeConfig returns the config that Kargo would have computed from what
// EncodeConfig encoded, after the expressions in it were evaluated: strings are
// put together and typed by Kargo's rules, and all goes through Kargo's decoder.
// Whole numbers are int.
//
// The skeleton is there unless the error is ErrMalformed, so that it can be
// compared first. A *ConfigError is a config that fails in Kargo too.
func DecodeConfig(encoded json.RawMessage) (config map[string]any, skeleton Skeleton, err error) {
	if !json.Valid(encoded) { // limits the depth, too
		return nil, "", fmt.Errorf("%w: it is not JSON", ErrMalformed)
	}
	d := decoder{json.NewDecoder(bytes.NewReader(encoded))}
	d.UseNumber()
	value, blank, err := d.value()
	if err != nil {
		return nil, "", err
	}
	in, isObject := value.(map[string]any)
	outer, _ := blank.(map[string]any)
	if _, templated := outer[templateKey]; !isObject || templated {
		return nil, "", fmt.Errorf("%w: it is no object", ErrMalformed)
	}
	if skeleton, err = hash(blank); err != nil {
		return nil, "", err
	}
	if err := numbers(in); err != nil {
		return nil, skeleton, &ConfigError{err}
	}
	if config, err = expr.Decode(in); err != nil {
		return nil, skeleton, &ConfigError{err}
	}
	return config, skeleton, nil
}

// decoder reads an encoded config, in one go: what expressions yielded keeps
// its text, which is the text that Kargo would have put into the string.
type decoder struct{ *json.Decoder }

// value returns the next value with its templated strings evaluated, and in its
// encoded form with every value null.
func (d decoder) value() (v, blank any, err error) {
	token, err := d.Token()
	if err != nil {
		return nil, nil, malformed(err)
	}
	switch token {
	case json.Delim('['):
		return d.array()
	case json.Delim('{'):
		return d.object()
	}
	return token, token, nil
}

func (d decoder) array() (v, blank any, err error) {
	values, blanks := []any{}, []any{}
	for d.More() {
		v, blank, err := d.value()
		if err != nil {
			return nil, nil, err
		}
		values, blanks = append(values, v), append(blanks, blank)
	}
	_, err = d.Token()
	return values, blanks, err
}

func (d decoder) object() (v, blank any, err error) {
	values, blanks := map[string]any{}, map[string]any{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, nil, malformed(err)
		}
		name, _ := token.(string)
		if _, twice := blanks[name]; twice {
			return nil, nil, fmt.Errorf("%w: key %q is there twice", ErrMalformed, name)
		}
		if name == templateKey {
			if len(blanks) > 0 {
				return nil, nil, fmt.Errorf("%w: %s is not alone", ErrMalformed, templateKey)
			}
			v, blank, err := d.template()
			if err != nil {
				return nil, nil, err
			}
			return v, map[string]any{templateKey: blank}, nil
		}
		key, escaped := strings.CutPrefix(name, "$")
		if escaped && !strings.HasPrefix(key, "$") {
			return nil, nil, fmt.Errorf("%w: unknown key %q", ErrMalformed, name)
		}
		v, blank, err := d.value()
		if err != nil {
			return nil, nil, err
		}
		values[key], blanks[name] = v, blank
	}
	_, err = d.Token()
	return values, blanks, err
}

// template reads what follows the key $t, and the end of its object.
func (d decoder) template() (v, blank any, err error) {
	var pieces []json.RawMessage
	if err := d.Decode(&pieces); err != nil {
		return nil, nil, malformed(err)
	}
	if end, err := d.Token(); err != nil || end != json.Delim('}') {
		return nil, nil, fmt.Errorf("%w: %s is not alone", ErrMalformed, templateKey)
	}
	if len(pieces)%2 == 0 {
		return nil, nil, fmt.Errorf("%w: a templated string has %d pieces", ErrMalformed, len(pieces))
	}
	var text strings.Builder
	blanks := make([]any, len(pieces))
	for i, raw := range pieces {
		s, isText, err := piece(raw)
		switch {
		case err != nil:
			return nil, nil, malformed(err)
		case i%2 == 0 && !isText:
			return nil, nil, fmt.Errorf("%w: piece %d of a templated string is no text", ErrMalformed, i)
		case i%2 == 0:
			blanks[i] = s
		}
		text.WriteString(s)
	}
	return expr.Type(text.String()), blanks, nil
}

// piece returns what a piece of a templated string adds to its text.
func piece(raw json.RawMessage) (text string, isText bool, err error) {
	if raw[0] == '"' {
		err = json.Unmarshal(raw, &text)
		return text, true, err
	}
	var outer []string
	if err := json.Unmarshal(raw, &outer); err != nil {
		return "", false, err
	}
	if len(outer) != 1 {
		return "", false, fmt.Errorf("a value of a templated string is an array of %d", len(outer))
	}
	var inner []json.RawMessage
	if err := json.Unmarshal([]byte(outer[0]), &inner); err != nil {
		return "", false, err
	}
	if len(inner) != 1 {
		return "", false, fmt.Errorf("a value of a templated string is an array of %d arrays", len(inner))
	}
	var compact bytes.Buffer
	err = json.Compact(&compact, inner[0])
	return compact.String(), false, err
}

func malformed(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

// numbers turns every json.Number in v into a float64, as decoding v in one
// step would have.
func numbers(v any) error {
	number := func(v any) (any, error) {
		n, ok := v.(json.Number)
		if !ok {
			return v, numbers(v)
		}
		f, err := n.Float64()
		if err != nil {
			return nil, fmt.Errorf("number %s is beyond the range of a float64", n)
		}
		return f, nil
	}
	var err error
	switch v := v.(type) {
	case []any:
		for i := range v {
			if v[i], err = number(v[i]); err != nil {
				return err
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = number(v[k]); err != nil {
				return err
			}
		}
	}
	return nil
}

// hash returns the skeleton of an encoded config without its values.
func hash(blank any) (Skeleton, error) {
	canonical, err := json.Marshal(blank) // sorts keys
	if err != nil {
		return "", fmt.Errorf("cannot hash the config: %w", err)
	}
	sum := sha256.Sum256(canonical)
	return Skeleton(hex.EncodeToString(sum[:])), nil
}
