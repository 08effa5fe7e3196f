// Command docgen writes the config and output tables of docs/steps/*.md from
// the JSON Schemas, so that a field is described in one place only.
//
// A page asks for a table with a pair of markers; what stands between them is
// replaced:
//
//	<!-- config KIND -->
//	<!-- end -->
//
// and `<!-- output KIND -->` for the output schema. Run it through
// `make generate`.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/stepd/stepd/schemas"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: docgen DIR")
		os.Exit(2)
	}
	pages, err := filepath.Glob(filepath.Join(os.Args[1], "*.md"))
	if err == nil {
		for _, page := range pages {
			if err = rewrite(page); err != nil {
				break
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

var section = regexp.MustCompile(`(?s)<!-- (config|output) ([a-z-]+) -->\n.*?<!-- end -->`)

func rewrite(page string) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	var failed error
	text := section.ReplaceAllFunc(old, func(found []byte) []byte {
		m := section.FindSubmatch(found)
		table, err := table(string(m[1]), string(m[2]))
		if err != nil {
			failed = fmt.Errorf("%s: %w", page, err)
			return found
		}
		return fmt.Appendf(nil, "<!-- %s %s -->\n%s<!-- end -->", m[1], m[2], table)
	})
	if failed != nil || bytes.Equal(text, old) {
		return failed
	}
	return os.WriteFile(page, text, 0o644)
}

// schema is the part of a JSON Schema that a table shows.
type schema struct {
	Ref         string             `json:"$ref"`
	Type        any                `json:"type"`
	Description string             `json:"description"`
	Default     any                `json:"default"`
	Enum        []any              `json:"enum"`
	Properties  map[string]*schema `json:"properties"`
	Additional  json.RawMessage    `json:"additionalProperties"`
	Items       *schema            `json:"items"`
	Required    []string           `json:"required"`
	Defs        map[string]*schema `json:"$defs"`
}

func table(which, kind string) (string, error) {
	read := schemas.Config
	if which == "output" {
		read = schemas.Output
	}
	text, ok := read(kind)
	if !ok {
		return "", fmt.Errorf("no %s schema for %q", which, kind)
	}
	var root schema
	if err := json.Unmarshal(text, &root); err != nil {
		return "", fmt.Errorf("cannot read the %s schema of %q: %w", which, kind, err)
	}
	var b strings.Builder
	if which == "config" {
		b.WriteString("| field | type | default | meaning |\n|---|---|---|---|\n")
	} else {
		b.WriteString("| field | type | meaning |\n|---|---|---|\n")
	}
	t := tableWriter{root: &root, which: which, out: &b}
	t.rows("", &root)
	return b.String(), nil
}

type tableWriter struct {
	root  *schema
	which string
	out   *strings.Builder
}

func (t tableWriter) rows(prefix string, s *schema) {
	names := make([]string, 0, len(s.Properties))
	for n := range s.Properties {
		names = append(names, n)
	}
	// What must be given comes first; the rest is alphabetical.
	sort.Slice(names, func(i, j int) bool {
		ri, rj := slices.Contains(s.Required, names[i]), slices.Contains(s.Required, names[j])
		if ri != rj && t.which == "config" {
			return ri
		}
		return names[i] < names[j]
	})
	for _, n := range names {
		p := t.resolve(s.Properties[n])
		path := prefix + n
		fmt.Fprintf(t.out, "| `%s` | %s |", path, t.typeName(p))
		if t.which == "config" {
			fmt.Fprintf(t.out, " %s |", defaultText(p, slices.Contains(s.Required, n)))
		}
		fmt.Fprintf(t.out, " %s |\n", cell(describe(s.Properties[n], p)))
		switch {
		case p.Items != nil && len(t.resolve(p.Items).Properties) > 0:
			t.rows(path+"[].", t.resolve(p.Items))
		case len(p.Properties) > 0:
			t.rows(path+".", p)
		}
	}
}

func (t tableWriter) resolve(s *schema) *schema {
	for range 8 {
		name, ok := strings.CutPrefix(s.Ref, "#/$defs/")
		if !ok || t.root.Defs[name] == nil {
			return s
		}
		s = t.root.Defs[name]
	}
	return s
}

func (t tableWriter) typeName(s *schema) string {
	if len(s.Enum) > 0 {
		var values []string
		for _, v := range s.Enum {
			values = append(values, code(v))
		}
		return strings.Join(values, ", ")
	}
	var names []string
	switch v := s.Type.(type) {
	case string:
		names = []string{v}
	case []any:
		for _, n := range v {
			names = append(names, fmt.Sprint(n))
		}
	default:
		return "any"
	}
	for i, n := range names {
		switch {
		case n == "array" && s.Items != nil:
			names[i] = "list of " + t.typeName(t.resolve(s.Items))
		case n == "object" && len(s.Properties) == 0 && len(s.Additional) > 0:
			names[i] = "map"
		}
	}
	return strings.Join(names, " or ")
}

func describe(given, resolved *schema) string {
	if given.Description != "" {
		return given.Description
	}
	return resolved.Description
}

func defaultText(s *schema, required bool) string {
	switch {
	case required:
		return "required"
	case s.Default != nil:
		return code(s.Default)
	}
	return ""
}

func code(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return "`" + strings.Trim(strings.TrimSpace(b.String()), `"`) + "`"
}

func cell(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`)
}
