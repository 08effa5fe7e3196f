package load

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/runner/kargoapi"
)

// problem is a value that does not fit the type it is decoded into.
type problem struct {
	pointer, message, remedy string
}

// check compares a JSON value (numbers as json.Number) with the Go type it
// will be decoded into and returns everything encoding/json would refuse or,
// worse, accept silently: unknown fields and fields in other letter case.
func check(value any, into any) []problem {
	c := &checker{}
	c.value(value, reflect.TypeOf(into), "")
	return c.problems
}

type checker struct{ problems []problem }

func (c *checker) report(pointer, remedy, format string, args ...any) {
	c.problems = append(c.problems, problem{pointer, fmt.Sprintf(format, args...), remedy})
}

var (
	rawMessageType = reflect.TypeFor[json.RawMessage]()
	timeType       = reflect.TypeFor[time.Time]()
	durationType   = reflect.TypeFor[kargoapi.Duration]()
	freightType    = reflect.TypeFor[kargoapi.Freight]()
)

func (c *checker) value(v any, t reflect.Type, at string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v == nil || t == rawMessageType {
		return // null is absence, as the API server prunes it
	}
	switch t {
	case timeType:
		if s, ok := c.text(v, at); ok {
			if _, err := time.Parse(time.RFC3339, s); err != nil {
				c.report(at, "write it like 2026-01-31T12:00:00Z", "%q is not an RFC 3339 time", s)
			}
		}
		return
	case durationType:
		const remedy = "write it like 48h or 1m30s"
		if s, ok := v.(string); !ok {
			c.report(at, remedy, "must be a string, not %s", describe(v))
		} else if _, err := time.ParseDuration(s); err != nil {
			c.report(at, remedy, "%q is not a duration", s)
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		c.object(v, t, at)
	case reflect.Map:
		m, ok := v.(map[string]any)
		if !ok {
			c.report(at, "", "must be an object, not %s", describe(v))
			return
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			c.value(m[k], t.Elem(), at+Pointer(k))
		}
	case reflect.Slice:
		c.list(v, t, at)
	case reflect.String:
		c.text(v, at)
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			c.report(at, "", "must be true or false, not %s", describe(v))
		}
	case reflect.Int, reflect.Int64, reflect.Uint32:
		c.integer(v, t, at)
	}
}

func (c *checker) object(v any, t reflect.Type, at string) {
	m, ok := v.(map[string]any)
	if !ok {
		c.report(at, "", "must be an object, not %s", describe(v))
		return
	}
	known := fields(t)
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		ft, ok := known[k]
		if !ok {
			remedy := ""
			if t == freightType && k == "spec" {
				remedy = "Freight has none: what is in it belongs at the top level"
			} else if near := nearname.Nearest(k, names, 1); len(near) > 0 {
				remedy = fmt.Sprintf("did you mean %q?", near[0])
			} else if len(names) <= 12 {
				sort.Strings(names)
				remedy = "known fields: " + strings.Join(names, ", ")
			}
			c.report(at+Pointer(k), remedy, "unknown field")
			continue
		}
		c.value(m[k], ft, at+Pointer(k))
	}
}

func (c *checker) list(v any, t reflect.Type, at string) {
	if t.Elem().Kind() == reflect.Uint8 {
		if s, ok := c.text(v, at); ok {
			if _, err := base64.StdEncoding.DecodeString(s); err != nil {
				c.report(at, "put plain text under stringData", "is not base64")
			}
		}
		return
	}
	items, ok := v.([]any)
	if !ok {
		c.report(at, "begin each item with a dash", "must be a list, not %s", describe(v))
		return
	}
	for i, item := range items {
		c.value(item, t.Elem(), at+Pointer(i))
	}
}

func (c *checker) text(v any, at string) (string, bool) {
	s, ok := v.(string)
	if !ok {
		remedy := ""
		switch v.(type) {
		case bool, json.Number:
			remedy = "put it in quotes (YAML 1.1 reads y, n, yes, no, on, off as booleans)"
			if _, number := v.(json.Number); number {
				remedy = "put it in quotes"
			}
		}
		c.report(at, remedy, "must be a string, not %s", describe(v))
	}
	return s, ok
}

func (c *checker) integer(v any, t reflect.Type, at string) {
	n, ok := v.(json.Number)
	if !ok {
		c.report(at, "", "must be a whole number, not %s", describe(v))
		return
	}
	i, err := strconv.ParseInt(n.String(), 10, 64)
	switch {
	case err != nil:
		c.report(at, "", "must be a whole number, not %s", n)
	case t.Kind() == reflect.Uint32 && (i < 0 || i > math.MaxUint32):
		c.report(at, "", "%d is out of range", i)
	}
}

// fields returns a struct's JSON fields by name, embedded ones included.
func fields(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || (!f.IsExported() && !f.Anonymous):
		case name == "" && f.Anonymous:
			for k, v := range fields(f.Type) {
				out[k] = v
			}
		case name == "":
			out[f.Name] = f.Type
		default:
			out[name] = f.Type
		}
	}
	return out
}

func describe(v any) string {
	switch v := v.(type) {
	case bool:
		return fmt.Sprintf("the boolean %t", v)
	case json.Number:
		return "the number " + v.String()
	case string:
		if len(v) > 40 {
			return "a string"
		}
		return fmt.Sprintf("the string %q", v)
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return "null"
}
