package load

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

// lineInText finds the line the YAML parser names; it offers it in no other
// way than in its text.
var lineInText = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)

// syntax reports a YAML error with lines counted in the file. node is what the
// other YAML reader made of the text, or nil.
func (l *loader) syntax(file string, p part, node *yaml.Node, err error) {
	report := func(pos Position, remedy, message string) {
		pos.File = file
		l.errs = append(l.errs, &Error{Position: pos, Message: "not valid YAML: " + message, Remedy: remedy, Err: err})
	}
	if i := invalidUTF8(p.text); i >= 0 {
		report(positionOf(p, i), "save the file as UTF-8", "a byte that is no UTF-8")
		return
	}
	if i := bytes.IndexFunc(p.text, isControl); i >= 0 && !isUTF16(p.text) {
		r, _ := utf8.DecodeRune(p.text[i:])
		report(positionOf(p, i), "remove it, or write it as an escape in double quotes", fmt.Sprintf("the control character U+%04X", r))
		return
	}
	if node != nil {
		keys, message, remedy := compoundKeys(node), "a mapping or a list cannot be a key", `put the value in quotes; an expression is written "${{ … }}"`
		if len(keys) == 0 {
			keys, message, remedy = duplicateKeys(node), "", ""
		}
		for _, k := range keys {
			text := message
			if text == "" {
				text, remedy = fmt.Sprintf("key %q already set in map", k.Value), "remove one of them; an item of a list begins with a dash"
			}
			report(Position{Line: k.Line, Column: k.Column}, remedy, text)
		}
		if len(keys) > 0 {
			return
		}
	}
	messages := []string{strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")}
	if te, ok := errors.AsType[*yamlv2.TypeError](err); ok {
		messages = te.Errors
	}
	lines := strings.Split(string(p.text), "\n")
	for _, msg := range messages {
		f := fault{}
		f.line, f.message = named(msg, lines)
		f.find(p.text, lines)
		if f.remedy == "" && f.line == 1 {
			f.remedy = "write it without so many levels or aliases"
		}
		report(Position{Line: p.line + f.line, Column: f.column}, f.remedy, f.message)
	}
}

// named splits the message of a YAML parser into the line it names, from 1, and
// the rest. Errors of the parser proper name the line before, and may count past
// the end.
func named(msg string, lines []string) (int, string) {
	msg = strings.TrimPrefix(msg, "yaml: ")
	m := lineInText.FindStringSubmatch(msg)
	if m == nil {
		return 1, msg
	}
	line, _ := strconv.Atoi(m[1])
	if ofParser.MatchString(m[2]) {
		line++
	}
	line = max(1, min(line, len(lines)))
	for line > 1 && strings.TrimSpace(lines[line-1]) == "" {
		line--
	}
	return line, m[2]
}

// fault is a YAML error, with what people most often did wrong where it is.
type fault struct {
	line, column    int
	message, remedy string
}

var (
	ofParser    = regexp.MustCompile(`^did not find expected (?:key|node content|'-' indicator|',' or|<)`)
	aliasInText = regexp.MustCompile(`^(?:unknown )?anchor '([^']+)'`)
	// What follows needs no more than to be the likeliest reading of a line that
	// is no YAML.
	valueStart   = `(?:^|[\s\[{,])(?:- +|[^\s"'#][^"'#]*: +)`
	openQuote    = regexp.MustCompile(valueStart + `(["'])`)
	quotedTooFar = regexp.MustCompile(valueStart + `(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*') *([^\s,\]}:#])`)
	curlyQuote   = regexp.MustCompile(valueStart + `([“”„‘’«»])`)
	reserved     = regexp.MustCompile(valueStart + "([@`%]|[*&][^A-Za-z0-9_-])")
	openBracket  = regexp.MustCompile(valueStart + `([\[{])[^\]}]*$`)
	innerColon   = regexp.MustCompile(`^\s*(?:- +)*[^\s"'#\[{][^:"#]*: +([^\s"'\[{|>&*#][^#]*?:)(?: |$)`)
)

// find looks for the place and the remedy.
func (f *fault) find(text []byte, lines []string) {
	line := strings.TrimSuffix(lines[f.line-1], "\r")
	f.at(line, len(line)-len(strings.TrimLeft(line, " \t")), "")
	if m := aliasInText.FindStringSubmatch(f.message); m != nil {
		f.anchor(lines, m[1])
		return
	}
	for n := f.line; n > 0 && n > f.line-2; n-- { // such a space makes a line part of the one before
		line := lines[n-1]
		indentation := line[:len(line)-len(strings.TrimLeftFunc(line, unicode.IsSpace))]
		i := strings.IndexFunc(indentation, func(r rune) bool { return r != ' ' && r != '\r' })
		if i < 0 {
			continue
		}
		f.line = n
		if indentation[i] == '\t' {
			f.at(line, i, "indent with spaces: YAML takes no tabs")
			return
		}
		r, _ := utf8.DecodeRuneInString(indentation[i:])
		f.at(line, i, fmt.Sprintf("indent with ordinary spaces: this is U+%04X", r))
		return
	}
	for _, c := range []struct {
		pattern *regexp.Regexp
		remedy  string
	}{
		{curlyQuote, `use straight quotes, " or '`},
		{quotedTooFar, `the quoted text ends before this; put the whole value in '…', or write a quote in "…" as \"`},
		{reserved, "put the value in quotes: plain text cannot begin with this character"},
		{openBracket, "close this bracket"},
		{innerColon, "put the value in quotes: it has a colon in it"},
	} {
		if m := c.pattern.FindStringSubmatchIndex(line); m != nil {
			f.at(line, m[2], c.remedy)
			return
		}
	}
	// The other reader names the line on which something began.
	var ignored yaml.Node
	if err := yaml.Unmarshal(text, &ignored); err != nil {
		began, _ := named(err.Error(), lines)
		for _, n := range []int{began, began - 1} {
			if n < 1 {
				continue
			}
			line := lines[n-1]
			if m := openQuote.FindStringSubmatchIndex(line); m != nil && strings.Count(line[m[2]:], line[m[2]:m[3]])%2 == 1 {
				f.line = n
				f.at(line, m[2], "close this quote")
				return
			}
		}
	}
	if strings.HasPrefix(f.message, "did not find expected") || strings.HasPrefix(f.message, "mapping values") {
		f.remedy = "check how this line is indented: it continues nothing that is above it"
	}
}

// at places the fault at a byte of its line.
func (f *fault) at(line string, i int, remedy string) {
	f.column, f.remedy = utf8.RuneCountInString(line[:i])+1, remedy
}

// anchor places the fault where the name of an anchor is first referred to.
func (f *fault) anchor(lines []string, name string) {
	reference := regexp.MustCompile(`(?:^|[\s\[{,])(\*` + regexp.QuoteMeta(name) + `)(?:[\s\]},]|$)`)
	for i, line := range lines {
		if m := reference.FindStringSubmatchIndex(line); m != nil {
			f.line = i + 1
			f.at(line, m[2], "name an anchor (&"+name+") that ends before this; put the value in quotes if it is text")
			return
		}
	}
}

// invalidUTF8 returns where the first byte is that is no UTF-8, or -1. Text in
// UTF-16, which YAML allows, is left to the parser.
func invalidUTF8(text []byte) int {
	if isUTF16(text) {
		return -1
	}
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

func isUTF16(text []byte) bool {
	return bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff"))
}

// isControl tells of characters that YAML does not allow in a document (YAML 1.1,
// 4.1.1).
func isControl(r rune) bool {
	return r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r >= 0x7f && r < 0xa0 && r != 0x85
}

// positionOf is where a byte of a part is.
func positionOf(p part, i int) Position {
	line := bytes.LastIndexByte(p.text[:i], '\n') + 1
	return Position{Line: p.line + 1 + bytes.Count(p.text[:i], []byte("\n")), Column: utf8.RuneCount(p.text[line:i]) + 1}
}

// compoundKeys returns the keys that are no scalars, which JSON does not have.
// Most are what {{ … }} without quotes is to YAML.
func compoundKeys(n *yaml.Node) []*yaml.Node {
	var found []*yaml.Node
	everyMapping(n, func(m *yaml.Node) {
		for i := 0; i+1 < len(m.Content); i += 2 {
			if k := m.Content[i]; k.Kind == yaml.MappingNode || k.Kind == yaml.SequenceNode {
				found = append(found, k)
			}
		}
	})
	return found
}

// duplicateKeys returns the keys that their mapping has already.
func duplicateKeys(n *yaml.Node) []*yaml.Node {
	var found []*yaml.Node
	everyMapping(n, func(m *yaml.Node) {
		seen := make(map[string]bool, len(m.Content)/2)
		for i := 0; i+1 < len(m.Content); i += 2 {
			k := m.Content[i]
			if k.Kind != yaml.ScalarNode {
				continue
			}
			if text := keyText(k); seen[text] {
				found = append(found, k)
			} else {
				seen[text] = true
			}
		}
	})
	return found
}

// everyMapping calls f for the mappings of a document as it is written: what an
// alias stands for is not visited again.
func everyMapping(n *yaml.Node, f func(*yaml.Node)) {
	if n.Kind == yaml.MappingNode {
		f(n)
	}
	for _, c := range n.Content {
		everyMapping(c, f)
	}
}
