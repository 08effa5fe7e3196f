package yamledit

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Kind is the type of a scalar, by the names of JSON Schema.
type Kind string

// The kinds of scalars. What YAML calls a timestamp or binary, and scalars
// with a tag of their own, count as strings.
const (
	String  Kind = "string"
	Number  Kind = "number"
	Boolean Kind = "boolean"
	Null    Kind = "null"
)

// Scalar is a scalar value with its type.
type Scalar struct {
	Kind Kind
	// Text is the string; the number as it is written; "true" or "false";
	// empty for null.
	Text string
}

// Of makes a Scalar of a Go value: string, bool, any number, json.Number, nil
// or Scalar.
func Of(v any) (Scalar, error) {
	switch v := v.(type) {
	case Scalar:
		return v, nil
	case nil:
		return Scalar{Kind: Null}, nil
	case string:
		if !utf8.ValidString(v) {
			return Scalar{}, fmt.Errorf("the value is not valid UTF-8")
		}
		return Scalar{String, v}, nil
	case bool:
		return Scalar{Boolean, strconv.FormatBool(v)}, nil
	case json.Number:
		if !jsonNumber.MatchString(v.String()) {
			return Scalar{}, fmt.Errorf("%q is not a number", v.String())
		}
		if f, err := v.Float64(); err == nil && strings.ContainsAny(v.String(), "eE") {
			return Of(f) // not every YAML reader knows all forms of exponents
		}
		return Scalar{Number, v.String()}, nil
	case int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		return Scalar{Number, fmt.Sprint(v)}, nil
	case float32:
		return Of(float64(v))
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return Scalar{}, fmt.Errorf("%v is not a number that can be written", v)
		}
		return Scalar{Number, formatFloat(v)}, nil
	}
	return Scalar{}, fmt.Errorf("the value is a %T, not a scalar", v)
}

// Value returns a Go value: string, int64, float64, bool or nil.
func (s Scalar) Value() any {
	switch s.Kind {
	case Boolean:
		return s.Text == "true"
	case Null:
		return nil
	case Number:
		var v any
		n := yaml.Node{Kind: yaml.ScalarNode, Value: s.Text}
		if err := n.Decode(&v); err == nil {
			switch v := v.(type) {
			case int:
				return int64(v)
			case int64:
				return v
			case uint64:
				return float64(v)
			case float64:
				if !math.IsNaN(v) && !math.IsInf(v, 0) {
					return v
				}
			}
		}
	}
	return s.Text
}

// Equal tells whether two scalars have the same type and value; 1.0 equals 1.
func (s Scalar) Equal(o Scalar) bool {
	if s.Kind != o.Kind {
		return false
	}
	if s.Kind != Number || s.Text == o.Text {
		return s.Text == o.Text
	}
	a, aInt := s.Value().(int64)
	b, bInt := o.Value().(int64)
	if aInt && bInt {
		return a == b
	}
	x, xOK := asFloat(s.Value())
	y, yOK := asFloat(o.Value())
	return xOK && yOK && x == y && math.Abs(x) < 1<<53
}

// String describes the scalar for messages: strings are quoted, and cut when
// they are long.
func (s Scalar) String() string {
	switch s.Kind {
	case String:
		return shorten(s.Text)
	case Null:
		return "null"
	}
	return s.Text
}

func asFloat(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// formatFloat writes whole numbers without exponent or fraction, and other
// numbers so that YAML 1.1 and 1.2 read them as numbers.
func formatFloat(f float64) string {
	if a := math.Abs(f); a == 0 || a >= 1e-9 && a < 1e21 {
		if f == 0 {
			f = 0 // no negative zero
		}
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	text := strconv.FormatFloat(f, 'e', -1, 64)
	if mantissa, exp, _ := strings.Cut(text, "e"); !strings.Contains(mantissa, ".") {
		text = mantissa + ".0e" + exp
	}
	return text
}

// scalarOf reads a scalar node.
func scalarOf(n *yaml.Node) Scalar {
	switch n.ShortTag() {
	case nullTag:
		return Scalar{Kind: Null}
	case intTag, floatTag:
		return Scalar{Number, n.Value}
	case boolTag:
		return Scalar{Boolean, strings.ToLower(n.Value)}
	}
	return Scalar{String, n.Value}
}

// convert applies a ValueType to a value that is to replace old.
func convert(v, old Scalar, t ValueType) (Scalar, error) {
	switch t {
	case AsGiven:
		return v, nil
	case AsNumber:
		if v.Kind == String && jsonNumber.MatchString(v.Text) {
			return Scalar{Number, v.Text}, nil
		}
		if v.Kind == Number {
			return v, nil
		}
		return v, &Error{Problem: fmt.Sprintf("%s is not a number", v)}
	case AsBoolean:
		if v.Kind == Boolean || v.Kind == String && (v.Text == "true" || v.Text == "false") {
			return Scalar{Boolean, v.Text}, nil
		}
		return v, &Error{Problem: fmt.Sprintf("%s is not a boolean", v)}
	case AsString:
		if v.Kind == String {
			return v, nil
		}
	case Keep:
		if v.Kind == String || old.Kind != String {
			return v, nil
		}
		if v.Kind == Boolean && boolean11.MatchString(old.Text) {
			return v, nil
		}
	default:
		return v, &Error{Problem: fmt.Sprintf("unknown value type %q", t)}
	}
	what := fmt.Sprintf("the %s %s", v.Kind, v)
	if v.Kind == Null {
		what = "null"
	}
	wanted := "the scalar is the string " + shorten(old.Text)
	if t == AsString {
		wanted = "it is to become a string"
	}
	return v, &Error{
		Problem: fmt.Sprintf("%s, but the value is %s", wanted, what),
		Remedy:  "wrap the expression in quote(…) so that text like 1.10 stays text, or set valueType to change the scalar's type",
	}
}

func shorten(s string) string {
	const limit = 80
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit]) + "…"
	}
	return strconv.Quote(s)
}

// holds tells whether a node already has a value, written in a way that no
// YAML reader takes for another type.
func holds(n *yaml.Node, v Scalar) bool {
	if n.ShortTag() == "!!binary" || !scalarOf(n).Equal(v) {
		return false
	}
	if v.Kind == String && isPlain(n) && n.Style&yaml.TaggedStyle == 0 {
		return plainIsString(v.Text)
	}
	return true
}

func isPlain(n *yaml.Node) bool {
	return n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
}

// plainIsString tells whether every common reader (YAML 1.1 and 1.2) takes the
// plain scalar for a string.
func plainIsString(text string) bool {
	n := yaml.Node{Kind: yaml.ScalarNode, Value: text}
	return n.ShortTag() == strTag && !boolean11.MatchString(text) && !other11.MatchString(text)
}

var (
	jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)
	// boolean11 is https://yaml.org/type/bool.html in any letter case.
	boolean11 = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false)$`)
	// other11 are the remaining non-strings of https://yaml.org/type/, with
	// what lenient readers add.
	other11 = regexp.MustCompile(`^(?i:` + strings.Join([]string{
		`~|null|nil|=|<<`,
		`[-+]?0b[01_]+|[-+]?0o?[0-7_]+|[-+]?0x[0-9a-f_]+`,
		`[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?`,
		`[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(e[-+]?[0-9]+)?`,
		`[-+]?\.?(inf|nan|infinity)`,
		`[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([t ].*)?`,
	}, "|") + `)$`)
)
