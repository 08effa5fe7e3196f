// Package configschema validates step configs and outputs against their JSON
// Schemas and says what is wrong in the words Kargo uses (those of
// xeipuuv/gojsonschema), so that a message is the same in both places.
//
// The schemas themselves are in package schemas. What a violation means for a
// step, and where in a YAML file it is, belongs to the callers.
package configschema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/mail"
	"net/url"
	"reflect"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Schema is a compiled schema. It is safe for concurrent use.
type Schema struct {
	compiled *jsonschema.Schema
	// documents are the sources by URL.
	documents map[string]any
	// foreign tells of keywords that gojsonschema does not know.
	foreign bool
}

// Violation is one way in which a value does not satisfy a schema.
type Violation struct {
	// Pointer is the JSON pointer (RFC 6901) of the offending value; empty for
	// the root. For a property that is missing, or not allowed, it points at
	// the object.
	Pointer string
	// Property is the name of the missing or forbidden property; empty for
	// other violations.
	Property string
	// Type tells that the value is of a wrong type, whatever it is.
	Type bool
	// Message is the violation as Kargo words it: a dotted path or "(root)",
	// a colon and what is wrong, for example "(root): path is required".
	Message string
	// Hint names what may have been meant, for example `did you mean
	// "desiredRevision"?`; empty when nothing is near.
	Hint string
	// Combination is set for a violation of allOf, anyOf, oneOf or not as such;
	// what the nearest alternative refuses follows.
	Combination bool
	// Choice names the properties of which one has to be given, separated by
	// ", ", where each alternative of a combination wants another one.
	Choice string
}

// Sibling is another schema document that a schema may refer to by name.
type Sibling struct {
	// Name is the document's file name as used in $ref, for example
	// "argocd-common.json".
	Name   string
	Schema []byte
}

// baseURL is where schemas pretend to be; nothing is ever loaded from it.
const baseURL = "stepd:///"

// Compile compiles a JSON Schema: draft 2020-12 unless $schema names an older
// one; `definitions` works in all of them. The formats are asserted, email
// and uri by the rules of gojsonschema. References leave the document only
// for a given sibling: neither the network nor a file is ever read.
func Compile(schema []byte, siblings ...Sibling) (*Schema, error) {
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	c.AssertFormat()
	c.RegisterFormat(&jsonschema.Format{Name: "email", Validate: checkEmail})
	c.RegisterFormat(&jsonschema.Format{Name: "uri", Validate: checkURI})
	const root = baseURL + "schema.json"
	documents := map[string]any{}
	for _, d := range append([]Sibling{{"schema.json", schema}}, siblings...) {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(d.Schema))
		if err != nil {
			return nil, fmt.Errorf("cannot parse schema %s: %w", d.Name, err)
		}
		documents[baseURL+url.PathEscape(d.Name)] = doc
		if err := c.AddResource(baseURL+url.PathEscape(d.Name), doc); err != nil {
			return nil, fmt.Errorf("cannot add schema %s: %w", d.Name, err)
		}
	}
	compiled, err := c.Compile(root)
	if err != nil {
		return nil, fmt.Errorf("cannot compile schema: %w", err)
	}
	return &Schema{compiled: compiled, documents: documents, foreign: foreign(reflect.ValueOf(compiled), map[*jsonschema.Schema]bool{})}, nil
}

// Validate returns all violations in the order in which Kargo lists them, that of
// properties alphabetical; nil means v is valid. One that two parts of the schema
// are violated by is there twice.
// v is made of JSON types, any Go integer or float type included; other
// values count as what encoding/json makes of them.
func (s *Schema) Validate(v any) []Violation {
	v, err := normalize(v)
	if err != nil {
		return []Violation{{Message: rootField + ": " + err.Error()}}
	}
	verr := s.compiled.Validate(v)
	if verr == nil {
		return nil
	}
	var ve *jsonschema.ValidationError
	if !errors.As(verr, &ve) {
		return []Violation{{Message: rootField + ": " + verr.Error()}}
	}
	if out := s.explain(v); out != nil {
		return out
	}
	return libraryWords(ve)
}

// Messages returns the messages of vs, one a line, as Kargo joins them.
func Messages(vs []Violation) string {
	lines := make([]string, len(vs))
	for i, v := range vs {
		lines[i] = v.Message
	}
	return strings.Join(lines, "\n")
}

// foreign tells whether a schema reachable from v has a keyword that
// gojsonschema has no words for. The library exposes schemas only through the
// fields of its Schema type.
func foreign(v reflect.Value, seen map[*jsonschema.Schema]bool) bool {
	switch v.Kind() {
	case reflect.Interface:
		return foreign(v.Elem(), seen)
	case reflect.Pointer:
		sch, ok := v.Interface().(*jsonschema.Schema)
		if !ok || sch == nil || seen[sch] {
			return false
		}
		seen[sch] = true
		if sch.UnevaluatedItems != nil || sch.UnevaluatedProperties != nil || sch.DynamicRef != nil || sch.RecursiveRef != nil ||
			sch.ContentEncoding != nil || sch.ContentMediaType != nil || sch.ContentSchema != nil {
			return true
		}
		for i := range v.Elem().NumField() {
			if v.Elem().Type().Field(i).IsExported() && foreign(v.Elem().Field(i), seen) {
				return true
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if foreign(v.Index(i), seen) {
				return true
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if foreign(v.MapIndex(k), seen) {
				return true
			}
		}
	}
	return false
}

type noLoader struct{}

// Load implements jsonschema.URLLoader.
func (noLoader) Load(u string) (any, error) {
	return nil, fmt.Errorf("%s is not part of the schema, and nothing is loaded from elsewhere", strings.TrimPrefix(u, baseURL))
}

func checkEmail(v any) error {
	if s, ok := v.(string); ok {
		_, err := mail.ParseAddress(s)
		return err
	}
	return nil
}

func checkURI(v any) error {
	s, ok := v.(string)
	if !ok {
		return nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return err
	case u.Scheme == "":
		return errors.New("no scheme")
	case strings.Contains(s, `\`):
		return errors.New("backslash")
	}
	return nil
}

// normalize reduces v to what the validator understands and can compute with:
// no NaN, no infinities, no numbers of absurd size, no typed maps or slices.
func normalize(v any) (any, error) {
	switch v := v.(type) {
	case nil, bool, string, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		return v, nil
	case float32:
		return normalize(float64(v))
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v is not a JSON number", v)
		}
		return v, nil
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i, nil
		}
		f, err := v.Float64()
		if err != nil {
			return nil, fmt.Errorf("number %.32s is out of range", v.String())
		}
		return f, nil
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			n, err := normalize(e)
			if err != nil {
				return nil, err
			}
			m[k] = n
		}
		return m, nil
	case []any:
		a := make([]any, len(v))
		for i, e := range v {
			n, err := normalize(e)
			if err != nil {
				return nil, err
			}
			a[i] = n
		}
		return a, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("not a JSON value: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out any
	if err := d.Decode(&out); err != nil {
		return nil, fmt.Errorf("not a JSON value: %w", err)
	}
	return normalize(out)
}
