package lint

import "strings"

// unread is what a document lacks because it could not be read, and was
// reported. What is found because of that is not worth reporting.
type unread struct {
	// parents are the values that something is missing from.
	parents []string
	// names tells that a step, a variable or its name is among it, so that
	// references cannot be checked.
	names bool
	// values tells that the value of a variable is, whose name is known.
	values bool
}

func newUnread(pointers []string) unread {
	var u unread
	for _, p := range pointers {
		parent, key := cutLast(p)
		u.parents = append(u.parents, parent)
		holder, _ := cutLast(parent)
		switch {
		case key == "/value" && strings.HasSuffix(holder, "/vars"):
			u.values = true
			continue
		case key == "/continueOnError" && strings.HasSuffix(holder, "/steps"):
			continue
		}
		switch key {
		case "/as", "/name", "/vars", "/steps":
			u.names = true
		}
		for _, list := range []string{"/steps", "/vars", "/spec"} {
			// A field of an item, which may be a misspelt name, or an item.
			u.names = u.names || strings.HasSuffix(parent, list) || strings.HasSuffix(holder, list)
		}
	}
	return u
}

// cutLast splits the last part off a JSON pointer.
func cutLast(pointer string) (parent, last string) {
	i := max(strings.LastIndexByte(pointer, '/'), 0)
	return pointer[:i], pointer[i:]
}

// explains tells whether a finding may come of what is missing.
func (u unread) explains(rule, pointer string) bool {
	if u.names {
		switch rule {
		case "unknown-variable", "variable-order", "unknown-output", "unverified":
			return true
		}
	}
	if u.values && (rule == "variable-order" || rule == "unknown-freight") {
		return true
	}
	if rule != "admission" {
		return false
	}
	for _, parent := range u.parents {
		rest, below := strings.CutPrefix(pointer, parent)
		if below && strings.Count(rest, "/") <= 1 || strings.HasPrefix(parent, pointer) {
			return true
		}
	}
	return (u.names || u.values) && strings.HasSuffix(pointer, "/task") // a missing value
}
