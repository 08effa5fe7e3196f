package load

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/stepd/stepd/runner/kargoapi"
)

// maxListDepth bounds Lists in Lists.
const maxListDepth = 4

// part decodes one document. It reports whether there was one: a part of
// comments or a lone null is none.
func (l *loader) part(file string, index int, p part) bool {
	text, err := k8syaml.YAMLToJSONStrict(p.text)
	if err != nil {
		if l.found {
			l.set.Warnings = append(l.set.Warnings, Warning{
				Position: Position{File: file, Line: p.line + 1}, Message: "not valid YAML, and nothing of Kargo's; ignored",
			})
			return true
		}
		l.syntax(file, p, err)
		return true
	}
	node := parseNode(p)
	if string(text) == "null" {
		return false
	}
	d := &Document{File: file, Index: index, Line: p.line + 1, Node: node, JSON: text}
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
		if !l.found || d.Kind != "" {
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
		}
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
		sub := &Document{File: d.File, Index: d.Index, Line: d.Line, JSON: text}
		if node := d.Find(Pointer("items", i)); node != nil {
			sub.Node, sub.Line = node, node.Line
		}
		l.document(sub, depth+1)
	}
}

func unknownKind(d *Document) string {
	switch {
	case d.Kind == "":
		return "not a Kubernetes object (it has no kind); ignored"
	case d.APIVersion == "":
		return fmt.Sprintf("%s has no apiVersion; ignored", d.Kind)
	case kargoapi.New(kargoapi.GroupVersion, d.Kind) != nil:
		return fmt.Sprintf("%s of apiVersion %s is not Kargo's (%s); ignored", d.Kind, d.APIVersion, kargoapi.GroupVersion)
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

// lineInText finds the line the YAML parser names; it offers it in no other
// way than in its text.
var lineInText = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)

// syntax reports a YAML error with lines counted in the file.
func (l *loader) syntax(file string, p part, err error) {
	messages := []string{strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")}
	if te, ok := errors.AsType[*yamlv2.TypeError](err); ok {
		messages = te.Errors
	}
	for _, msg := range messages {
		e := &Error{Position: Position{File: file, Line: p.line + 1}, Message: "not valid YAML: " + msg, Err: err}
		if m := lineInText.FindStringSubmatch(msg); m != nil {
			n, _ := strconv.Atoi(m[1])
			n = min(n, bytes.Count(p.text, []byte("\n"))+1) // the parser may count past the end
			e.Line, e.Message = p.line+n, "not valid YAML: "+m[2]
		} else {
			e.Message = "not valid YAML: " + strings.TrimPrefix(msg, "yaml: ")
		}
		l.errs = append(l.errs, e)
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
