package configschema

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/stepd/stepd/internal/nearname"
)

// rootField is how gojsonschema calls the root in a message.
const rootField = "(root)"

// explain says what Kargo says; nil if Kargo has no words for it.
func (s *Schema) explain(v any) (out []Violation) {
	if s.foreign {
		return nil
	}
	x := &explainer{schema: s, open: map[visit]bool{}, left: maxApplied}
	found := x.explain(s.compiled, place{value: v}).found
	if x.left < 0 {
		return nil
	}
	for _, f := range found {
		out = append(out, f.Violation)
	}
	return out
}

// explanation is what gojsonschema says of a value: the violations in its order,
// and its score, by which it chooses the alternative of a combination that was
// most likely meant (v1.2.0, validation.go and result.go). Where its order is
// that of a Go map, ours is alphabetical.
type explanation struct {
	found []finding
	score int
}

type finding struct {
	Violation
	required bool
}

func (e *explanation) valid() bool { return len(e.found) == 0 }

func (e *explanation) merge(other *explanation) {
	e.found = append(e.found, other.found...)
	e.score += other.score
}

// explainer explains one value.
type explainer struct {
	schema *Schema
	// open are the schemas that are being applied, by how deep in the value: one
	// that leads back to itself says nothing more.
	open map[visit]bool
	// left is how many more times a schema is applied: alternatives of alternatives
	// multiply.
	left int
}

// maxApplied bounds the work on one value.
const maxApplied = 200_000

type visit struct {
	schema *jsonschema.Schema
	depth  int
}

// place is a value in the document.
type place struct {
	path  []string
	value any
}

func (p place) child(name string, value any) place {
	return place{append(p.path[:len(p.path):len(p.path)], name), value}
}

func (p place) field() string {
	if len(p.path) == 0 {
		return rootField
	}
	return strings.Join(p.path, ".")
}

// say adds a violation.
func (e *explanation) say(p place, format string, args ...any) *finding {
	e.found = append(e.found, finding{Violation: Violation{
		Pointer: pointer(p.path),
		Message: p.field() + ": " + fmt.Sprintf(format, args...),
	}})
	e.score -= 2
	return &e.found[len(e.found)-1]
}

func (x *explainer) explain(sch *jsonschema.Schema, p place) *explanation {
	e := &explanation{}
	x.apply(e, sch, p)
	return e
}

func (x *explainer) apply(e *explanation, sch *jsonschema.Schema, p place) {
	v := visit{sch, len(p.path)}
	x.left--
	if x.open[v] || x.left < 0 {
		return
	}
	x.open[v] = true
	defer delete(x.open, v)

	if sch.Bool != nil {
		if !*sch.Bool {
			e.say(p, "False always fails validation")
		}
		return
	}
	if sch.Ref != nil {
		x.apply(e, sch.Ref, p)
		if sch.DraftVersion >= 2019 { // what stands beside it counts, too; gojsonschema does not look
			beside := *sch
			beside.Ref = nil
			e.found = append(e.found, x.explain(&beside, p).found...)
		}
		return
	}
	given := typeOf(p.value)
	if !x.schema.allows(sch, given) {
		e.say(p, "Invalid type. Expected: %s, given: %s", x.schema.typeNames(sch), given).Type = true
		return
	}
	x.combinations(e, sch, p)
	switch value := p.value.(type) {
	case map[string]any:
		x.object(e, sch, p, value)
		common(e, sch, p)
		for _, name := range slices.Sorted(maps.Keys(sch.Properties)) {
			if child, ok := value[name]; ok {
				x.apply(e, sch.Properties[name], p.child(name, child))
			}
		}
	case []any:
		x.array(e, sch, p, value)
		common(e, sch, p)
	case nil:
		common(e, sch, p)
	case string:
		common(e, sch, p)
		text(e, sch, p, value)
	case bool:
		common(e, sch, p)
	default:
		number(e, sch, p)
		common(e, sch, p)
	}
	e.score++
}

func (x *explainer) combinations(e *explanation, sch *jsonschema.Schema, p place) {
	x.alternatives(e, sch.AnyOf, p, "Must validate at least one schema (anyOf)", 1)
	x.alternatives(e, sch.OneOf, p, "Must validate one and only one schema (oneOf)", 2)
	failed := false
	for _, part := range sch.AllOf {
		found := x.explain(part, p)
		failed = failed || !found.valid()
		e.merge(found)
	}
	if failed {
		e.say(p, "Must validate all the schemas (allOf)").Combination = true
	}
	if sch.Not != nil && x.explain(sch.Not, p).valid() {
		e.say(p, "Must not validate the schema (not)").Combination = true
	}
	x.dependencies(e, sch, p)
	if sch.If != nil {
		branch, text := sch.Then, `Must validate "then" as "if" was valid`
		if !x.explain(sch.If, p).valid() {
			branch, text = sch.Else, `Must validate "else" as "if" was not valid`
		}
		if branch != nil {
			if found := x.explain(branch, p); !found.valid() {
				e.say(p, "%s", text).Combination = true
				e.merge(found)
			}
		}
	}
	e.score++
}

// alternatives explains the one with the best score, if none holds, and stops when
// enough have held; one has to.
func (x *explainer) alternatives(e *explanation, schemas []*jsonschema.Schema, p place, text string, enough int) {
	valid := 0
	var all []*explanation
	var best *explanation
	for _, sch := range schemas {
		found := x.explain(sch, p)
		all = append(all, found)
		if found.valid() {
			if valid++; valid == enough {
				break
			}
		} else if best == nil || found.score > best.score {
			best = found
		}
	}
	if len(schemas) == 0 || valid == 1 {
		return
	}
	said := e.say(p, "%s", text)
	said.Combination, said.Choice = true, choice(all, pointer(p.path))
	if valid == 0 {
		e.merge(best)
	}
}

// choice returns the properties that the alternatives miss in the object at
// pointer, if each misses another one.
func choice(alternatives []*explanation, pointer string) string {
	var names []string
	for _, a := range alternatives {
		var missing []string
		for _, f := range a.found {
			if f.required && f.Pointer == pointer {
				missing = append(missing, f.Property)
			}
		}
		if len(missing) != 1 || slices.Contains(names, missing[0]) {
			return ""
		}
		names = append(names, missing[0])
	}
	if len(names) < 2 {
		return ""
	}
	return strings.Join(names, ", ")
}

func (x *explainer) dependencies(e *explanation, sch *jsonschema.Schema, p place) {
	object, ok := p.value.(map[string]any)
	if !ok {
		return
	}
	needs := func(names []string) {
		for _, name := range names {
			if _, ok := object[name]; !ok {
				e.say(p, "Has a dependency on %s", name).Property = name
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		switch d := sch.Dependencies[name].(type) {
		case []string:
			needs(d)
		case *jsonschema.Schema:
			x.apply(e, d, p)
		}
		needs(sch.DependentRequired[name])
		if d := sch.DependentSchemas[name]; d != nil {
			x.apply(e, d, p)
		}
	}
}

func (x *explainer) object(e *explanation, sch *jsonschema.Schema, p place, object map[string]any) {
	if sch.MinProperties != nil && len(object) < *sch.MinProperties {
		e.say(p, "Must have at least %d properties", *sch.MinProperties)
	}
	if sch.MaxProperties != nil && len(object) > *sch.MaxProperties {
		e.say(p, "Must have at most %d properties", *sch.MaxProperties)
	}
	for _, name := range sch.Required {
		if _, ok := object[name]; ok {
			e.score++
			continue
		}
		said := e.say(p, "%s is required", name)
		said.Property, said.required = name, true
	}
	names := slices.Sorted(maps.Keys(object))
	for _, name := range names {
		matched := false
		for _, pattern := range slices.SortedFunc(maps.Keys(sch.PatternProperties), func(a, b jsonschema.Regexp) int { return strings.Compare(a.String(), b.String()) }) {
			if pattern.MatchString(name) {
				matched = true
				e.merge(x.explain(sch.PatternProperties[pattern], p.child(name, object[name])))
			}
		}
		if matched {
			e.score++
		}
		if sch.Properties[name] != nil || matched {
			continue
		}
		switch additional := sch.AdditionalProperties.(type) {
		case bool:
			if !additional {
				said := e.say(p, "Additional property %s is not allowed", name)
				said.Property, said.Hint = name, didYouMean(name, slices.Collect(maps.Keys(sch.Properties)))
			}
		case *jsonschema.Schema:
			e.merge(x.explain(additional, p.child(name, object[name])))
		}
	}
	if sch.PropertyNames != nil {
		for _, name := range names {
			if found := x.explain(sch.PropertyNames, place{p.path, name}); !found.valid() {
				e.say(p, "Property name of %q does not match", name).Property = name
				e.merge(found)
			}
		}
	}
	e.score++
}

func (x *explainer) array(e *explanation, sch *jsonschema.Schema, p place, items []any) {
	each := func(sch *jsonschema.Schema, from, to int) {
		for i := from; sch != nil && i < to; i++ {
			e.merge(x.explain(sch, p.child(strconv.Itoa(i), items[i])))
		}
	}
	tuple, rest := sch.PrefixItems, sch.Items2020
	if list, ok := sch.Items.([]*jsonschema.Schema); ok { // before 2020-12
		tuple = list
		rest, _ = sch.AdditionalItems.(*jsonschema.Schema)
	} else if one, ok := sch.Items.(*jsonschema.Schema); ok {
		rest = one
	}
	for i, sch := range tuple[:min(len(tuple), len(items))] {
		each(sch, i, i+1)
	}
	if more, ok := sch.AdditionalItems.(bool); ok && !more && len(tuple) > 0 && len(items) > len(tuple) {
		e.say(p, "No additional items allowed on array")
	}
	each(rest, len(tuple), len(items))
	if sch.MinItems != nil && len(items) < *sch.MinItems {
		e.say(p, "Array must have at least %d items", *sch.MinItems)
	}
	if sch.MaxItems != nil && len(items) > *sch.MaxItems {
		e.say(p, "Array must have at most %d items", *sch.MaxItems)
	}
	if sch.UniqueItems {
		last := map[string]int{}
		for j, item := range items {
			key := canonical(item)
			if i, ok := last[key]; ok {
				e.say(p, "array items[%d,%d] must be unique", i, j)
			}
			last[key] = j
		}
	}
	x.contains(e, sch, p, items)
	e.score++
}

func (x *explainer) contains(e *explanation, sch *jsonschema.Schema, p place, items []any) {
	if sch.Contains == nil {
		return
	}
	least, matched := 1, 0
	if sch.MinContains != nil {
		least = *sch.MinContains
	}
	var best *explanation
	for i, item := range items {
		found := x.explain(sch.Contains, p.child(strconv.Itoa(i), item))
		if found.valid() {
			matched++
		} else if best == nil || found.score > best.score {
			best = found
		}
	}
	switch {
	case matched < least && least == 1:
		e.say(p, "At least one of the items must match")
		if best != nil {
			e.merge(best)
		}
	case matched < least:
		e.say(p, "At least %d of the items must match", least)
	case sch.MaxContains != nil && matched > *sch.MaxContains:
		e.say(p, "At most %d of the items may match", *sch.MaxContains)
	}
}

// common holds for values of every type.
func common(e *explanation, sch *jsonschema.Schema, p place) {
	if sch.Const != nil {
		if want := canonical(*sch.Const); canonical(p.value) != want {
			e.say(p, "%s does not match: %s", p.field(), want)
		}
	}
	if sch.Enum != nil {
		var allowed, names []string
		for _, v := range sch.Enum.Values {
			allowed = append(allowed, canonical(v))
			if name, ok := v.(string); ok {
				names = append(names, name)
			}
		}
		if !slices.Contains(allowed, canonical(p.value)) {
			given, _ := p.value.(string)
			e.say(p, "%s must be one of the following: %s", p.field(), strings.Join(allowed, ", ")).Hint = didYouMean(given, names)
		}
	}
	e.score++
}

func text(e *explanation, sch *jsonschema.Schema, p place, value string) {
	length := utf8.RuneCountInString(value)
	if sch.MinLength != nil && length < *sch.MinLength {
		e.say(p, "String length must be greater than or equal to %d", *sch.MinLength)
	}
	if sch.MaxLength != nil && length > *sch.MaxLength {
		e.say(p, "String length must be less than or equal to %d", *sch.MaxLength)
	}
	if sch.Pattern != nil && !sch.Pattern.MatchString(value) {
		e.say(p, "Does not match pattern '%s'", sch.Pattern)
	}
	if sch.Format != nil && sch.Format.Validate(value) != nil {
		e.say(p, "Does not match format '%s'", sch.Format.Name)
	}
	e.score++
}

func number(e *explanation, sch *jsonschema.Schema, p place) {
	value, ok := new(big.Rat).SetString(canonical(p.value))
	if !ok {
		return
	}
	say := func(wrong bool, format string, bound *big.Rat) {
		if wrong {
			e.say(p, format, new(big.Float).SetRat(bound))
		}
	}
	if m := sch.MultipleOf; m != nil {
		say(!new(big.Rat).Quo(value, m).IsInt(), "Must be a multiple of %v", m)
	}
	if m := sch.Maximum; m != nil {
		say(value.Cmp(m) > 0, "Must be less than or equal to %v", m)
	}
	if m := sch.ExclusiveMaximum; m != nil {
		say(value.Cmp(m) >= 0, "Must be less than %v", m)
	}
	if m := sch.Minimum; m != nil {
		say(value.Cmp(m) < 0, "Must be greater than or equal to %v", m)
	}
	if m := sch.ExclusiveMinimum; m != nil {
		say(value.Cmp(m) <= 0, "Must be greater than %v", m)
	}
	e.score++
}

// typeOf is a value's type; gojsonschema tells integers from other numbers.
func typeOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	case float64:
		if v != math.Trunc(v) {
			return "number"
		}
	}
	return "integer"
}

func (s *Schema) allows(sch *jsonschema.Schema, given string) bool {
	if sch.Types == nil || sch.Types.IsEmpty() {
		return true
	}
	types := sch.Types.ToStrings()
	return slices.Contains(types, given) || given == "integer" && slices.Contains(types, "number")
}

// typeNames are the types that a schema allows, in the order in which it does.
func (s *Schema) typeNames(sch *jsonschema.Schema) string {
	names := sch.Types.ToStrings()
	if len(names) == 1 {
		return names[0]
	}
	if declared, ok := s.source(sch.Location + "/type").([]any); ok && len(declared) == len(names) {
		for i, n := range declared {
			names[i], _ = n.(string)
		}
	}
	return "[" + strings.Join(names, ",") + "]"
}

// source is what a schema document has at a location.
func (s *Schema) source(location string) any {
	document, fragment, _ := strings.Cut(location, "#")
	node := s.documents[document]
	for name := range strings.SplitSeq(strings.TrimPrefix(fragment, "/"), "/") {
		name, _ = url.PathUnescape(name)
		name = strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
		switch n := node.(type) {
		case map[string]any:
			node = n[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(n) {
				return nil
			}
			node = n[i]
		default:
			return nil
		}
	}
	return node
}

// canonical is JSON in which equal values have equal text.
func canonical(v any) string {
	if n, err := normalize(v); err == nil {
		v = n
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

// libraryWords are for schemas with keywords that gojsonschema has no words for.
func libraryWords(e *jsonschema.ValidationError) (out []Violation) {
	if len(e.Causes) == 0 {
		p := place{path: e.InstanceLocation}
		return []Violation{{
			Pointer: pointer(p.path),
			Message: p.field() + ": " + e.ErrorKind.LocalizedString(message.NewPrinter(language.English)),
		}}
	}
	for _, c := range e.Causes {
		out = append(out, libraryWords(c)...)
	}
	return out
}

func didYouMean(name string, candidates []string) string {
	near := nearname.Nearest(name, candidates, 1)
	if len(near) == 0 {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", near[0])
}

func pointer(path []string) string {
	var b strings.Builder
	for _, p := range path {
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(p))
	}
	return b.String()
}
