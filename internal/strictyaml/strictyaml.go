// Package strictyaml reads a file that is one YAML or JSON document: a step's
// config, a policy. Unknown fields and keys that occur twice are errors.
//
// Kargo's resources are not read here: they come many to a file, and what is
// said about them needs their lines (runner/load).
package strictyaml

import (
	"bytes"
	"encoding/json"
	"fmt"

	"sigs.k8s.io/yaml"
)

// Unmarshal decodes a document into v by v's json tags; numbers in an any are
// float64. YAML is read as Kubernetes reads it (YAML 1.1).
//
// JSON is read as JSON. It is nearly YAML, but a character beyond U+FFFF may
// be escaped in two halves there, and many programs write it so.
func Unmarshal(text []byte, v any) error {
	if !json.Valid(text) {
		return yaml.UnmarshalStrict(text, v)
	}
	if err := distinctKeys(text); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(v)
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
