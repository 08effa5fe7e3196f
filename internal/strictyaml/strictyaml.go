// Package strictyaml reads a file that is one YAML or JSON document: a step's
// config, a policy. Unknown fields, keys that occur twice and further documents
// are errors.
//
// Kargo's resources are not read here: they come many to a file, and what is
// said about them needs their lines (runner/load).
package strictyaml

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	yamlv2 "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"
)

// Unmarshal decodes a document into v by v's json tags; numbers in an any are
// float64. YAML is read as Kubernetes reads it (YAML 1.1).
//
// JSON is read as JSON. It is nearly YAML, but a character beyond U+FFFF may
// be escaped in two halves there, and many programs write it so.
func Unmarshal(text []byte, v any) error {
	if !json.Valid(text) {
		if err := yaml.UnmarshalStrict(text, v); err != nil {
			return err
		}
		return oneDocument(text)
	}
	if err := distinctKeys(text); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// oneDocument refuses what follows a first document, unless it is empty: the
// decoder would not even read it.
func oneDocument(text []byte) error {
	d := yamlv2.NewDecoder(bytes.NewReader(text)) // the one that package yaml has
	for first := true; ; first = false {
		var doc content
		err := d.Decode(&doc)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case bool(doc) && !first:
			return errors.New("a second document follows the first: there may be only one")
		}
	}
}

// content tells of a document that it is not empty.
type content bool

// UnmarshalYAML is not called for null.
func (c *content) UnmarshalYAML(func(any) error) error {
	*c = true
	return nil
}

// distinctKeys refuses JSON in which an object has a key twice, of which
// encoding/json would take the last.
func distinctKeys(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // a number of any size is somebody else's to judge
	// open are the objects and arrays around the next token: an object's keys
	// so far, nil for an array.
	var open []map[string]bool
	isKey := false
	for d.More() || len(open) > 0 {
		token, err := d.Token()
		if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'):
			open = append(open, map[string]bool{})
		case json.Delim('['):
			open = append(open, nil)
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		default:
			if key, ok := token.(string); ok && isKey {
				keys := open[len(open)-1]
				if keys[key] {
					return fmt.Errorf("line %d: key %q already set in map", 1+bytes.Count(text[:d.InputOffset()], []byte("\n")), key)
				}
				keys[key] = true
				isKey = false
				continue
			}
		}
		isKey = len(open) > 0 && open[len(open)-1] != nil
	}
	return nil
}
