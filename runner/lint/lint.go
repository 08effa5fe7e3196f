// Package lint finds what is wrong with Kargo documents before a promotion
// runs: step configs against their schemas, expressions, references to
// variables and outputs, and what Kargo accepts but people regret.
//
// It looks at documents as package load returns them and knows steps by their
// registrations. It runs nothing. How findings are printed belongs in cmd.
package lint

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
)

// Severity says whether a finding keeps a document from being used.
type Severity string

// The severities. An error is refused by Kargo or fails when it runs; a warning
// does something that is rarely meant.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Finding is one thing that is wrong at one place.
type Finding struct {
	load.Position
	Severity Severity `json:"severity"`
	// Rule is the finding's kind; see Rules.
	Rule    string `json:"rule"`
	Message string `json:"message"`
	// Remedy says what to do; may be empty.
	Remedy string `json:"remedy,omitempty"`
	// Document is the document's kind and name, "PromotionTask/promote".
	Document string `json:"document,omitempty"`
	// Pointer is the JSON pointer of the value in its document.
	Pointer string `json:"pointer,omitempty"`
}

// String returns the finding as compilers write theirs.
func (f Finding) String() string {
	s := fmt.Sprintf("%s: %s: %s", f.Position, f.Severity, f.Message)
	if f.Remedy != "" {
		s += "; " + f.Remedy
	}
	return s + " [" + f.Rule + "]"
}

// Rules maps the name of every rule to what it finds.
func Rules() map[string]string {
	return map[string]string{
		"document":           "a document that cannot be read",
		"admission":          "a document that Kargo refuses when it is applied",
		"unknown-step":       "a kind of step that nobody registered",
		"config":             "a step config that its schema refuses",
		"alias":              "an alias that is hard to refer to, or that means more than it seems to",
		"expression":         "an expression that does not compile",
		"unknown-variable":   "an expression that uses a variable that nothing declares",
		"variable-order":     "a variable that is used before it has a value",
		"unknown-output":     "a reference to the output of a step that does not run before",
		"condition":          "an `if` that cannot yield a bool, or that lets a step run after a failure",
		"endless-poll":       "a step that Kargo may repeat for ever",
		"deprecated":         "what Kargo announced to remove",
		"tag-becomes-number": "a tag, version or commit id that Kargo may turn into a number",
		"quoting":            "quote() and its kin where their quotes stay visible",
		"empty-expression":   "an empty expression, after which nothing is evaluated any more",
		"unevaluated":        "an expression where Kargo evaluates none",
		"always-null":        "an expression that is always null, or a comparison that is always false",
		"unknown-freight":    "an image, commit, chart or artifact that no requested Warehouse subscribes to",
		"unverified":         "a `verified` setting that names no earlier oci-download-verified step",
		"unknown-task":       "a reference to a task that is not among the documents",
	}
}

// Options say what a check may rely on.
type Options struct {
	// Registry knows the kinds of step and their schemas. Required.
	Registry *runner.Registry
	// KnownSteps are kinds that exist elsewhere, as those of plugins do; their
	// config is not checked.
	KnownSteps []string
}

// Run checks all documents and returns what it found in reading order. errs is
// the error load.Documents returned with the set.
func Run(ctx context.Context, set *load.Set, errs load.Errors, o Options) ([]Finding, error) {
	l := &linter{set: set, Options: o, code: newCompiler(), schemas: map[string]*stepSchema{}, outputs: map[string]*outputSchema{}, objects: map[objectKey]*load.Document{}}
	for _, e := range errs {
		l.add(Finding{Position: e.Position, Severity: Error, Rule: "document", Message: e.Message, Remedy: e.Remedy, Pointer: e.Pointer})
	}
	for _, w := range set.Warnings {
		f := Finding{Position: w.Position, Severity: Warning, Rule: "document", Message: w.Message}
		if w.Empty { // nothing was checked, which is not the same as nothing being wrong
			f.Severity, f.Remedy = Error, nameInputs
		}
		l.add(f)
	}
	l.documents = append(append(l.documents, set.Documents...), set.Partial...)
	if len(l.documents) > 0 && len(l.findings) == 0 && !slices.ContainsFunc(l.documents, known) {
		l.add(Finding{
			Position: load.Position{File: l.documents[0].File}, Severity: Warning, Rule: "document",
			Message: "neither this nor any other document is of a kind stepd knows: nothing was checked", Remedy: nameInputs,
		})
	}
	l.index()
	for _, d := range l.documents {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l.document(d)
	}
	return l.sorted(), nil
}

// nameInputs is what to do when nothing was checked.
const nameInputs = "name the files or directories that hold Kargo's documents"

func known(d *load.Document) bool {
	_, ok := d.Object.(kargoapi.Object)
	return ok
}

type linter struct {
	Options
	set *load.Set
	// documents are those of the set, partial ones included.
	documents []*load.Document
	code      *compiler
	schemas   map[string]*stepSchema
	outputs   map[string]*outputSchema
	// tasks finds tasks by kind and name; there are several of a name where the
	// documents of more than one project, or file, are checked together.
	tasks map[taskKey][]*load.Document
	// objects are the first documents of their name in a file.
	objects map[objectKey]*load.Document
	// stages are those with a promotion template.
	stages   []*load.Document
	findings []Finding
	seen     map[Finding]bool
}

type taskKey struct{ kind, namespace, name string }

type objectKey struct{ file, apiVersion, kind, namespace, name string }

func (l *linter) add(f Finding) {
	if l.seen == nil {
		l.seen = map[Finding]bool{}
	}
	if !l.seen[f] {
		l.seen[f] = true
		l.findings = append(l.findings, f)
	}
}

// sorted orders findings by file in the order the files were read, then place.
func (l *linter) sorted() []Finding {
	order := map[string]int{}
	for _, d := range l.documents {
		if _, ok := order[d.File]; !ok {
			order[d.File] = len(order)
		}
	}
	sort.SliceStable(l.findings, func(i, j int) bool {
		a, b := l.findings[i], l.findings[j]
		if a.File != b.File {
			x, knownA := order[a.File]
			y, knownB := order[b.File]
			if knownA != knownB {
				return knownA
			}
			if x != y {
				return x < y
			}
			return a.File < b.File
		}
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Column < b.Column
	})
	return l.findings
}

func (l *linter) index() {
	l.tasks = map[taskKey][]*load.Document{}
	for _, d := range l.documents {
		switch o := d.Object.(type) {
		case *kargoapi.Stage:
			if o.Spec.PromotionTemplate != nil {
				l.stages = append(l.stages, d)
			}
		case *kargoapi.PromotionTask:
			k := taskKey{"PromotionTask", d.Namespace, d.Name}
			l.tasks[k] = append(l.tasks[k], d)
		case *kargoapi.ClusterPromotionTask:
			k := taskKey{"ClusterPromotionTask", "", d.Name}
			l.tasks[k] = append(l.tasks[k], d)
		}
	}
}

// task finds the task that a step of document from refers to, or nil. The one
// in the same file is preferred, and files often leave the namespace to kubectl.
func (l *linter) task(from *load.Document, ref *kargoapi.PromotionTaskReference) *load.Document {
	keys := []taskKey{{"PromotionTask", from.Namespace, ref.Name}, {"PromotionTask", "", ref.Name}}
	if ref.Kind == "ClusterPromotionTask" {
		keys = []taskKey{{"ClusterPromotionTask", "", ref.Name}}
	}
	for _, k := range keys {
		found := l.tasks[k]
		for _, d := range found {
			if d.File == from.File {
				return d
			}
		}
		if len(found) > 0 {
			return found[0]
		}
	}
	return nil
}

// document checks one document of a kind that has steps.
func (l *linter) document(d *load.Document) {
	c := &docLinter{linter: l, doc: d, unread: newUnread(d.Unread)}
	for _, e := range runner.Admit(d) {
		c.reportAt(Error, "admission", e.Position, e.Pointer, e.Remedy, "%s", e.Message)
	}
	c.resource()
	switch o := d.Object.(type) {
	case *kargoapi.PromotionTask:
		c.taskDocument(o.Spec)
	case *kargoapi.ClusterPromotionTask:
		c.taskDocument(o.Spec)
	case *kargoapi.Stage:
		c.stageDocument(o)
	}
}

// docLinter checks one document.
type docLinter struct {
	*linter
	doc    *load.Document
	unread unread
}

// report adds a finding about the value at a pointer, at its key.
func (c *docLinter) report(sev Severity, rule, pointer, remedy, format string, args ...any) {
	c.reportAt(sev, rule, c.doc.Position(pointer), pointer, remedy, format, args...)
}

func (c *docLinter) reportAt(sev Severity, rule string, at load.Position, pointer, remedy, format string, args ...any) {
	if c.unread.explains(rule, pointer) {
		return
	}
	c.add(Finding{
		Position: at, Severity: sev, Rule: rule, Message: fmt.Sprintf(format, args...), Remedy: remedy,
		Document: c.doc.Kind + "/" + c.doc.Name, Pointer: pointer,
	})
}
