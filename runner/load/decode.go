package load

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/runner/kargoapi"
)

// maxListDepth bounds Lists in Lists.
const maxListDepth = 4

// part decodes one document. It reports whether there was one: a part of
// comments or a lone null is none.
func (l *loader) part(file string, index int, p part) bool {
	node := parseNode(p)
	text, err := k8syaml.YAMLToJSONStrict(p.text)
	if err != nil && node != nil && len(duplicateKeys(node)) == 0 {
		// The strict reader also refuses a key beside the merge key that it
		// overrides, which Kubernetes accepts.
		text, err = k8syaml.YAMLToJSON(p.text)
	}
	if err != nil {
		if l.found {
			l.set.Warnings = append(l.set.Warnings, Warning{
				Position: Position{File: file, Line: p.line + 1}, Message: "not valid YAML, and nothing of Kargo's; ignored",
			})
			return true
		}
		l.syntax(file, p, node, err)
		return true
	}
	if string(text) == "null" {
		return false
	}
	d := &Document{File: file, Index: index, Line: p.line + 1, Node: node, JSON: text, source: p}
	if node != nil {
		d.Line = node.Line
	}
	l.document(d, 0)
	return true
}

// document decodes d's JSON into the type its kind has and adds it to the set.
func (l *loader) document(d *Document, depth int) {
	dec := json.NewDecoder(bytes.NewReader(d.JSON))
	dec.UseNumber()
	var value any
	if err := dec.Decode(&value); err != nil {
		l.errs = append(l.errs, &Error{Position: d.Position(""), Message: err.Error(), Err: err})
		return
	}
	d.Object = value
	m, _ := value.(map[string]any)
	d.APIVersion, _ = m["apiVersion"].(string)
	d.Kind, _ = m["kind"].(string)
	if meta, ok := m["metadata"].(map[string]any); ok {
		d.Name, _ = meta["name"].(string)
		d.Namespace, _ = meta["namespace"].(string)
	}
	if items, ok := m["items"].([]any); ok && isList(d) && depth < maxListDepth {
		l.list(d, items, depth)
		return
	}
	obj := kargoapi.New(d.APIVersion, d.Kind)
	if obj == nil {
		if message, remedy := misnamed(d); message != "" && (!l.walked || isKargo(d.APIVersion)) {
			l.errs = append(l.errs, &Error{Position: d.Position(""), Message: message, Remedy: remedy})
			return
		}
		if !l.walked || isKargo(d.APIVersion) || d.Kind != "" && d.APIVersion == "" {
			l.set.Warnings = append(l.set.Warnings, Warning{Position: d.Position(""), Message: unknownKind(d)})
		}
		l.set.Documents = append(l.set.Documents, d)
		return
	}
	if problems := check(value, obj); len(problems) > 0 {
		for _, p := range problems {
			l.errs = append(l.errs, &Error{
				Position: d.Position(p.pointer), Pointer: p.pointer,
				Message: fmt.Sprintf("%s: %s", dotted(p.pointer), p.message), Remedy: p.remedy,
			})
			d.Unread = append(d.Unread, p.pointer)
			value = without(value, splitPointer(p.pointer))
		}
		l.partial(d, value, obj)
		return
	}
	if err := json.Unmarshal(d.JSON, obj); err != nil {
		l.errs = append(l.errs, &Error{
			Position: d.Position(""), Message: fmt.Sprintf("cannot decode %s: %v", d.Kind, err), Err: err,
		})
		return
	}
	d.Object = obj
	l.set.Documents = append(l.set.Documents, d)
}

// partial adds a document without what cannot be read of it to those that are
// only good to look at.
func (l *loader) partial(d *Document, value any, obj kargoapi.Object) {
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, obj)
	}
	if err != nil {
		return // its problems are reported already
	}
	d.Object, d.JSON = obj, text
	l.set.Partial = append(l.set.Partial, d)
}

// without returns a JSON value without what is at a path. The items of a list
// keep their places: null stands for one that is gone.
func without(v any, path []string) any {
	if len(path) == 0 {
		return nil
	}
	switch v := v.(type) {
	case map[string]any:
		if child, ok := v[path[0]]; ok && len(path) > 1 {
			v[path[0]] = without(child, path[1:])
		} else {
			delete(v, path[0])
		}
	case []any:
		if i, err := strconv.Atoi(path[0]); err == nil && i >= 0 && i < len(v) {
			v[i] = without(v[i], path[1:])
		}
	}
	return v
}

// isList tells whether d is a Kubernetes list, as `kubectl get -o yaml` prints.
func isList(d *Document) bool {
	return (d.APIVersion == kargoapi.CoreVersion && d.Kind == "List") ||
		(d.APIVersion == kargoapi.GroupVersion && strings.HasSuffix(d.Kind, "List"))
}

func (l *loader) list(d *Document, items []any, depth int) {
	for i, item := range items {
		text, err := json.Marshal(item)
		if err != nil {
			l.errs = append(l.errs, &Error{Position: d.Position(""), Message: err.Error(), Err: err})
			return
		}
		sub := &Document{File: d.File, Index: d.Index, Line: d.Line, JSON: text, source: d.source}
		if node := d.Find(Pointer("items", i)); node != nil {
			sub.Node, sub.Line = node, node.Line
		}
		l.document(sub, depth+1)
	}
}

// isKargo tells whether an API version is of Kargo's group.
func isKargo(apiVersion string) bool {
	group, _, _ := strings.Cut(apiVersion, "/")
	return group == kargoapi.Group
}

// misnamed says what is wrong with a document that is Kargo's but for its kind or
// apiVersion, and so would be left out; "" if it is not.
func misnamed(d *Document) (message, remedy string) {
	known := kargoapi.New(kargoapi.GroupVersion, d.Kind) != nil
	switch {
	case d.Kind == "" && isKargo(d.APIVersion):
		return "no kind", "write kind: PromotionTask, or whichever it is"
	case known && d.APIVersion == "":
		return fmt.Sprintf("%s has no apiVersion", d.Kind), "write apiVersion: " + kargoapi.GroupVersion
	case known && isKargo(d.APIVersion):
		return fmt.Sprintf("%s is not an apiVersion of Kargo", d.APIVersion), "write apiVersion: " + kargoapi.GroupVersion
	case isKargo(d.APIVersion):
		if near := nearname.Nearest(d.Kind, kargoapi.Kinds(), 1); len(near) > 0 {
			return fmt.Sprintf("%s is not a kind of Kargo", d.Kind), fmt.Sprintf("did you mean %s?", near[0])
		}
	}
	return "", ""
}

func unknownKind(d *Document) string {
	switch {
	case d.Kind == "":
		return "not a Kubernetes object (it has no kind); ignored"
	case d.APIVersion == "":
		return fmt.Sprintf("%s has no apiVersion; ignored", d.Kind)
	case kargoapi.New(kargoapi.CoreVersion, d.Kind) != nil:
		return fmt.Sprintf("%s of apiVersion %s is not known (%s is); ignored", d.Kind, d.APIVersion, kargoapi.CoreVersion)
	}
	return fmt.Sprintf("%s %s is not a kind stepd knows; ignored", d.APIVersion, d.Kind)
}

// parseNode parses a part again to learn positions. YAML 1.2 syntax is nearly
// 1.1's; where it is not, positions are unknown.
func parseNode(p part) *yaml.Node {
	var doc yaml.Node
	if err := yaml.Unmarshal(p.text, &doc); err != nil || len(doc.Content) == 0 {
		return nil
	}
	shift(&doc, p.line, map[*yaml.Node]bool{})
	return doc.Content[0]
}

func shift(n *yaml.Node, by int, done map[*yaml.Node]bool) {
	if n == nil || by == 0 || done[n] {
		return
	}
	done[n] = true
	n.Line += by
	for _, c := range n.Content {
		shift(c, by, done)
	}
}

// dotted turns a JSON pointer into the notation people write: spec.steps[0].
func dotted(pointer string) string {
	var sb strings.Builder
	for _, tok := range splitPointer(pointer) {
		switch _, err := strconv.Atoi(tok); {
		case err == nil:
			sb.WriteString("[" + tok + "]")
		case sb.Len() > 0:
			sb.WriteString("." + tok)
		default:
			sb.WriteString(tok)
		}
	}
	if sb.Len() == 0 {
		return "document"
	}
	return sb.String()
}
