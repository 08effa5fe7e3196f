package configschema

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/stepd/stepd/internal/nearname"
)

// rootField is how gojsonschema calls the root in a message.
const rootField = "(root)"

// violations flattens the tree of causes into gojsonschema's list.
func (s *Schema) violations(root *jsonschema.ValidationError, v any) []Violation {
	f := flattener{schema: s, value: v}
	found := f.flatten(root)
	sort.SliceStable(found, func(i, j int) bool {
		if c := comparePaths(found[i].path, found[j].path); c != 0 {
			return c < 0
		}
		if found[i].rank != found[j].rank {
			return found[i].rank < found[j].rank
		}
		// Names missing keep the schema's order, as in gojsonschema.
		return found[i].rank != rankRequired && found[i].Message < found[j].Message
	})
	var out []Violation
	for _, f := range found {
		if len(out) == 0 || out[len(out)-1] != f.Violation {
			out = append(out, f.Violation)
		}
	}
	return out
}

// located is a violation with what it is ordered by.
type located struct {
	Violation
	path []string
	rank int
}

// Ranks order the violations of one value.
const (
	rankCombination = iota
	rankRequired
	rankOther
)

// flattener turns the tree of causes for one value into a list.
type flattener struct {
	schema *Schema
	value  any
}

func (f flattener) flatten(e *jsonschema.ValidationError) (out []located) {
	path := e.InstanceLocation
	add := func(rank int, property, text, hint string) {
		field := rootField
		if len(path) > 0 {
			field = strings.Join(path, ".")
		}
		out = append(out, located{
			Violation: Violation{
				Pointer:  pointer(path),
				Property: property,
				Message:  field + ": " + text,
				Hint:     hint,

				Combination: rank == rankCombination,
			},
			path: append([]string(nil), path...),
			rank: rank,
		})
	}
	field := rootField
	if len(path) > 0 {
		field = strings.Join(path, ".")
	}
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		for _, m := range k.Missing {
			add(rankRequired, m, m+" is required", "")
		}
	case *kind.Dependency:
		for _, m := range k.Missing {
			add(rankOther, m, "Has a dependency on "+m, "")
		}
	case *kind.DependentRequired:
		for _, m := range k.Missing {
			add(rankOther, m, "Has a dependency on "+m, "")
		}
	case *kind.AdditionalProperties:
		for _, p := range k.Properties {
			add(rankOther, p, "Additional property "+p+" is not allowed", didYouMean(p, f.schema.properties(e.SchemaURL)))
		}
	case *kind.Type:
		add(rankOther, "", fmt.Sprintf("Invalid type. Expected: %s, given: %s", typeNames(k.Want), f.typeOf(path, k.Got)), "")
		out[len(out)-1].Type = true
	case *kind.Enum:
		var names []string
		for _, w := range k.Want {
			if n, ok := w.(string); ok {
				names = append(names, n)
			}
		}
		got, _ := k.Got.(string)
		add(rankOther, "", field+" must be one of the following: "+jsonList(k.Want), didYouMean(got, names))
	case *kind.Const:
		add(rankOther, "", field+" does not match: "+jsonList([]any{k.Want}), "")
	case *kind.MinLength:
		add(rankOther, "", fmt.Sprintf("String length must be greater than or equal to %d", k.Want), "")
	case *kind.MaxLength:
		add(rankOther, "", fmt.Sprintf("String length must be less than or equal to %d", k.Want), "")
	case *kind.Pattern:
		add(rankOther, "", "Does not match pattern '"+k.Want+"'", "")
	case *kind.Format:
		add(rankOther, "", "Does not match format '"+k.Want+"'", "")
		// The validator ends with the format; Kargo's also looks at the length.
		if sch, text := f.schema.byLocation[e.SchemaURL], fmt.Sprint(k.Got); sch != nil && sch.MinLength != nil && utf8.RuneCountInString(text) < *sch.MinLength {
			add(rankOther, "", fmt.Sprintf("String length must be greater than or equal to %d", *sch.MinLength), "")
		}
	case *kind.MinItems:
		add(rankOther, "", fmt.Sprintf("Array must have at least %d items", k.Want), "")
	case *kind.MaxItems:
		add(rankOther, "", fmt.Sprintf("Array must have at most %d items", k.Want), "")
	case *kind.UniqueItems:
		add(rankOther, "", fmt.Sprintf("array items[%d,%d] must be unique", k.Duplicates[0], k.Duplicates[1]), "")
	case *kind.AdditionalItems:
		add(rankOther, "", "No additional items allowed on array", "")
	case *kind.Contains, *kind.MinContains:
		add(rankOther, "", "At least one of the items must match", "")
	case *kind.MinProperties:
		add(rankOther, "", fmt.Sprintf("Must have at least %d properties", k.Want), "")
	case *kind.MaxProperties:
		add(rankOther, "", fmt.Sprintf("Must have at most %d properties", k.Want), "")
	case *kind.PropertyNames:
		add(rankOther, k.Property, fmt.Sprintf("Property name of %q does not match", k.Property), "")
	case *kind.Minimum:
		add(rankOther, "", "Must be greater than or equal to "+number(k.Want), "")
	case *kind.ExclusiveMinimum:
		add(rankOther, "", "Must be greater than "+number(k.Want), "")
	case *kind.Maximum:
		add(rankOther, "", "Must be less than or equal to "+number(k.Want), "")
	case *kind.ExclusiveMaximum:
		add(rankOther, "", "Must be less than "+number(k.Want), "")
	case *kind.MultipleOf:
		add(rankOther, "", "Must be a multiple of "+number(k.Want), "")
	case *kind.Not:
		add(rankCombination, "", "Must not validate the schema (not)", "")
	case *kind.FalseSchema:
		add(rankOther, "", "False always fails validation", "")
	case *kind.AllOf:
		add(rankCombination, "", "Must validate all the schemas (allOf)", "")
		out = append(out, f.all(e.Causes)...)
	case *kind.AnyOf:
		add(rankCombination, "", "Must validate at least one schema (anyOf)", "")
		out[0].Choice = choice(e.Causes, path)
		out = append(out, f.nearest(e.Causes)...)
	case *kind.OneOf:
		add(rankCombination, "", "Must validate one and only one schema (oneOf)", "")
		out[0].Choice = choice(e.Causes, path)
		out = append(out, f.nearest(e.Causes)...)
	case *kind.Schema, *kind.Group, *kind.Reference:
		out = append(out, f.all(e.Causes)...)
	default:
		add(rankOther, "", e.Error(), "")
	}
	return out
}

func (f flattener) all(causes []*jsonschema.ValidationError) (out []located) {
	for _, c := range causes {
		out = append(out, f.flatten(c)...)
	}
	return out
}

// nearest reports the alternative that has the fewest violations, which is
// most likely the one that was meant.
func (f flattener) nearest(alternatives []*jsonschema.ValidationError) (out []located) {
	for i, a := range alternatives {
		if found := f.flatten(a); i == 0 || len(found) < len(out) {
			out = found
		}
	}
	return out
}

// choice returns the properties that the alternatives miss in the value at path,
// if each misses another one.
func choice(alternatives []*jsonschema.ValidationError, path []string) string {
	var names []string
	for _, a := range alternatives {
		missing := ""
		for _, e := range append([]*jsonschema.ValidationError{a}, a.Causes...) {
			if k, ok := e.ErrorKind.(*kind.Required); ok && len(e.InstanceLocation) == len(path) && len(k.Missing) == 1 {
				missing = k.Missing[0]
			}
		}
		if missing == "" || slices.Contains(names, missing) {
			return ""
		}
		names = append(names, missing)
	}
	if len(names) < 2 {
		return ""
	}
	return strings.Join(names, ", ")
}

// typeOf tells integers from other numbers, as gojsonschema does.
func (f flattener) typeOf(path []string, got string) string {
	if got != "number" {
		return got
	}
	v := f.value
	for _, p := range path {
		switch c := v.(type) {
		case map[string]any:
			v = c[p]
		case []any:
			i, err := strconv.Atoi(p)
			if err != nil || i >= len(c) {
				return got
			}
			v = c[i]
		}
	}
	if n, ok := v.(float64); ok && n != math.Trunc(n) {
		return got
	}
	return "integer"
}

// properties are the names declared by the schema at a location.
func (s *Schema) properties(location string) []string {
	sch := s.byLocation[location]
	if sch == nil {
		return nil
	}
	names := make([]string, 0, len(sch.Properties))
	for n := range sch.Properties {
		names = append(names, n)
	}
	return names
}

func didYouMean(name string, candidates []string) string {
	near := nearname.Nearest(name, candidates, 1)
	if len(near) == 0 {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", near[0])
}

func typeNames(names []string) string {
	if len(names) == 1 {
		return names[0]
	}
	return "[" + strings.Join(names, ",") + "]"
}

func jsonList(vs []any) string {
	texts := make([]string, len(vs))
	for i, v := range vs {
		b, err := json.Marshal(v)
		if err != nil {
			b = fmt.Append(nil, v)
		}
		texts[i] = string(b)
	}
	return strings.Join(texts, ", ")
}

func number(r *big.Rat) string {
	f, _ := r.Float64()
	return strconv.FormatFloat(f, 'g', -1, 64)
}

func pointer(path []string) string {
	var b strings.Builder
	for _, p := range path {
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(p))
	}
	return b.String()
}

// comparePaths orders parents before children, array items by index and
// properties by name.
func comparePaths(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		x, errX := strconv.Atoi(a[i])
		y, errY := strconv.Atoi(b[i])
		if errX == nil && errY == nil && x != y {
			return x - y
		}
		return strings.Compare(a[i], b[i])
	}
	return len(a) - len(b)
}
