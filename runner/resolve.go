package runner

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// Options say which promotion to make of a set of documents. What is empty is
// taken from the documents where they are unambiguous.
type Options struct {
	// Stage or Task selects a document by name. At most one is set; neither
	// selects the Promotion document's Stage, the only Stage, or the only task.
	Stage string
	Task  string
	// Project is the namespace; default: the documents'.
	Project string
	// StageName is ctx.stage for a task that runs without a Stage; default
	// DefaultStageName.
	StageName string
	// PromotionName is ctx.promotion; default: the Promotion document's, or
	// one made the way Kargo makes it. It also selects among several Promotion
	// documents.
	PromotionName string
	// Actor is ctx.meta.promotion.actor; default: the Promotion document's.
	Actor string
	// Rollback is ctx.meta.promotion.rollback; a Promotion document may set it
	// too.
	Rollback bool
	// UIBaseURL is ctx.uiBaseUrl.
	UIBaseURL string
	// Freight is the name or alias of the target Freight among the documents;
	// default: the Promotion document's, or the only one.
	Freight string
	// Images and Commits are laid into the target Freight, or make one, with
	// a Warehouse that subscribes to them where there is none.
	Images  []steps.Image
	Commits []steps.GitCommit
	// Vars come after the Stage's own and so win over them. For a task by
	// itself they are the promotion's: those of a referencing step would be
	// evaluated after the task's defaults, which may need them.
	Vars []kargoapi.Variable
	// SharedNamespace is where shared ConfigMaps and Secrets are; default
	// DefaultSharedNamespace.
	SharedNamespace string
	// Now is used for the promotion's name; zero is the current time.
	Now time.Time
}

// Names used where documents and options give none.
const (
	DefaultProject   = "default"
	DefaultStageName = "local"
)

// Resolved is a promotion ready to run, but for its WorkDir.
type Resolved struct {
	Promotion Promotion
	// Data serves expression functions from the documents, and from the
	// Freight and Warehouse that Options made.
	Data *DocumentData
	// Document is the Stage or task that was selected.
	Document *load.Document
	// Warnings tell what was assumed.
	Warnings []load.Warning
}

// Resolve makes a Promotion of documents the way Kargo's admission does: it
// applies the rules of CRDs and webhooks, collects vars and Freight, and
// inflates tasks. What Kargo refuses is refused, where a document is to blame
// as load.Errors.
//
// A task runs as the only step, {task: {name: …}}, of a Stage made up for it,
// whose Warehouses are those the Freight comes from.
func Resolve(set *load.Set, o Options) (*Resolved, error) {
	r := &resolver{set: set, o: o}
	if err := r.resolve(); err != nil {
		return nil, err
	}
	return &Resolved{Promotion: r.p, Data: r.data, Document: r.doc, Warnings: r.warnings}, nil
}

type resolver struct {
	set      *load.Set
	o        Options
	p        Promotion
	data     *DocumentData
	warnings []load.Warning

	// doc is the selected document; stage is nil if it is a task.
	doc       *load.Document
	stage     *kargoapi.Stage
	promotion *kargoapi.Promotion
}

func (r *resolver) resolve() error {
	if err := r.selectDocument(); err != nil {
		return err
	}
	if errs := Admit(r.doc); len(errs) > 0 {
		return errs
	}
	r.data = NewDocumentData(r.set, r.p.Project, r.o.SharedNamespace)
	template, err := r.template()
	if err != nil {
		return err
	}
	freight, err := r.targetFreight()
	if err != nil {
		return err
	}
	r.collectFreight(freight)
	r.metadata(freight)
	r.p.Steps, err = Inflate(template, r.p.Vars, r.lookup)
	if err != nil {
		err = fmt.Errorf("failed to inflate Promotion steps: %w", err)
		if _, missing := errors.AsType[*MissingVariableError](err); missing && r.stage == nil {
			err = fmt.Errorf("%w; give %s", err, strings.Join(r.requiredFlags(), " "))
		}
		if missing, ok := errors.AsType[*NotFoundError](err); ok {
			err = r.missingTask(err, template, missing)
		}
		return err
	}
	r.warnOfUnusedVars()
	return nil
}

// warnOfUnusedVars tells of variables of the options that no document speaks of:
// a misspelt name leaves another value in place without a word.
func (r *resolver) warnOfUnusedVars() {
	docs := append(load.Of[*kargoapi.PromotionTask](r.set), load.Of[*kargoapi.ClusterPromotionTask](r.set)...)
	docs = append(docs, r.doc)
	for _, v := range r.o.Vars {
		if slices.ContainsFunc(docs, func(d *load.Document) bool {
			return slices.ContainsFunc([]string{`"name":"` + v.Name + `"`, "vars." + v.Name, "vars['" + v.Name, `vars[\"` + v.Name},
				func(mention string) bool { return bytes.Contains(d.JSON, []byte(mention)) })
		}) {
			continue
		}
		hint := ""
		if near := nearname.Nearest(v.Name, r.variableNames(), 1); len(near) > 0 {
			hint = fmt.Sprintf("; did you mean %q?", near[0])
		}
		r.warn(load.Position{}, "nothing uses the variable %q of --var%s", v.Name, hint)
	}
}

// variableNames are those that the Stage, the task and its references declare.
func (r *resolver) variableNames() []string {
	var names []string
	add := func(vars []kargoapi.Variable) {
		for _, v := range vars {
			if !slices.Contains(r.o.Vars, v) {
				names = append(names, v.Name)
			}
		}
	}
	add(r.p.Vars)
	for _, s := range r.p.Steps {
		add(s.Vars)
	}
	if r.stage == nil {
		if task, err := r.lookup(r.doc.Kind, r.doc.Name); err == nil {
			add(task.Spec.Vars)
		}
	}
	return names
}

// missingTask adds where a task is referred to that is not there, and what may
// have been meant.
func (r *resolver) missingTask(err error, template []Step, missing *NotFoundError) error {
	docs, others := load.Of[*kargoapi.PromotionTask](r.set), load.Of[*kargoapi.ClusterPromotionTask](r.set)
	if missing.Kind == kargoapi.KindClusterPromotionTask {
		docs, others = others, docs
	}
	remedy := "load it with -f"
	for _, d := range inNamespace(others, r.p.Project) {
		if d.Name == missing.Name {
			remedy = fmt.Sprintf("the one at %s is a %s: write kind: %s", d.Position(""), d.Kind, d.Kind)
		}
	}
	var names []string
	for _, d := range docs {
		names = append(names, d.Name)
		if d.Name == missing.Name {
			remedy = fmt.Sprintf("the one at %s is of project %q, not %q", d.Position(""), d.Namespace, r.p.Project)
		}
	}
	if near := nearname.Nearest(missing.Name, names, 1); len(near) > 0 {
		remedy += fmt.Sprintf(", or did you mean %q?", near[0])
	}
	for _, s := range template {
		if s.Task != nil && s.Task.Name == missing.Name {
			if at := s.Position("/task/name"); at.Line > 0 {
				return fmt.Errorf("%w; %s: %s", err, at, remedy)
			}
		}
	}
	return fmt.Errorf("%w; %s", err, remedy)
}

// requiredFlags lists what a task that runs by itself still needs.
func (r *resolver) requiredFlags() []string {
	task, err := r.lookup(r.doc.Kind, r.doc.Name)
	if err != nil {
		return nil
	}
	given := namesWithValue(r.o.Vars)
	var flags []string
	for _, v := range task.Spec.Vars {
		if v.Value == "" && !given[v.Name] {
			flags = append(flags, "--var "+v.Name+"=…")
		}
	}
	return flags
}

func (r *resolver) warn(at load.Position, format string, args ...any) {
	r.warnings = append(r.warnings, load.Warning{Position: at, Message: fmt.Sprintf(format, args...)})
}

// selectDocument finds the Stage or task to run, and the Promotion document
// that asks for it if there is one. It settles the project.
func (r *resolver) selectDocument() error {
	if r.o.Stage != "" && r.o.Task != "" {
		return errors.New("cannot run both a Stage and a task: name one of them")
	}
	stages := r.inProject(load.Of[*kargoapi.Stage](r.set))
	tasks := append(r.inProject(load.Of[*kargoapi.PromotionTask](r.set)), load.Of[*kargoapi.ClusterPromotionTask](r.set)...)
	if r.o.Task == "" {
		if err := r.selectPromotion(); err != nil {
			return err
		}
	}
	stage, project := r.o.Stage, r.o.Project
	if r.promotion != nil {
		if stage == "" {
			stage = r.promotion.Spec.Stage
		}
		project = cmp.Or(project, r.promotion.Namespace) // where Kargo looks for its Stage
		stages = inNamespace(stages, project)
	}
	var err error
	switch {
	case r.o.Task != "":
		r.doc, err = named("task", tasks, r.o.Task, project)
	case stage != "":
		r.doc, err = named("Stage", stages, stage, project)
	case len(stages) > 0:
		r.doc, err = only("Stage", "--stage", stages)
	case len(tasks) > 0:
		r.doc, err = only("task", "--task", tasks)
	default:
		in := ""
		if r.o.Project != "" {
			in = fmt.Sprintf(" of project %q", r.o.Project)
		}
		err = fmt.Errorf("nothing to run: the documents hold neither a Stage nor a PromotionTask%s", in)
	}
	if err != nil {
		return err
	}
	r.stage, _ = load.As[*kargoapi.Stage](r.doc)
	r.p.Project = r.project()
	return nil
}

func (r *resolver) inProject(docs []*load.Document) []*load.Document {
	return inNamespace(docs, r.o.Project)
}

// inNamespace leaves out documents of other namespaces than the given one, if
// one is given.
func inNamespace(docs []*load.Document, namespace string) []*load.Document {
	if namespace == "" {
		return docs
	}
	var in []*load.Document
	for _, d := range docs {
		if d.Namespace == "" || d.Namespace == namespace {
			in = append(in, d)
		}
	}
	return in
}

// inProjects is an error if documents of one name are those of several projects.
func inProjects(what string, docs []*load.Document, name string) error {
	var projects []string
	for _, d := range docs {
		if d.Name == name && d.Namespace != "" && !slices.Contains(projects, d.Namespace) {
			projects = append(projects, d.Namespace)
		}
	}
	if len(projects) < 2 {
		return nil
	}
	return fmt.Errorf("there is a %s %q in each of the projects %s; select one with --project", what, name, strings.Join(projects, ", "))
}

// named returns the last document of a name, which is the one that counts when
// several are applied.
func named(what string, docs []*load.Document, name, project string) (*load.Document, error) {
	if err := inProjects(what, docs, name); err != nil {
		return nil, err
	}
	names := make([]string, len(docs))
	for i := len(docs) - 1; i >= 0; i-- {
		if docs[i].Name == name {
			return docs[i], nil
		}
		names[i] = docs[i].Name
	}
	remedy := ""
	switch near := nearname.Nearest(name, names, 1); {
	case len(near) > 0:
		remedy = fmt.Sprintf("; did you mean %q?", near[0])
	case len(names) > 0:
		remedy = "; there is " + strings.Join(names, ", ")
	}
	of := ""
	if project != "" {
		of = fmt.Sprintf(" of project %q", project)
	}
	return nil, fmt.Errorf("no %s %q among the documents%s%s", what, name, of, remedy)
}

func only(what, flag string, docs []*load.Document) (*load.Document, error) {
	if len(docs) == 1 {
		return docs[0], nil
	}
	var names, places []string
	for _, d := range docs {
		if !slices.Contains(names, d.Name) {
			names = append(names, d.Name)
		}
		places = append(places, d.Position("").String())
	}
	if len(names) == 1 {
		if err := inProjects(what, docs, names[0]); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%d %ss of the name %q among the documents: %s; keep one, or give %s %s, which takes the last",
			len(docs), what, names[0], strings.Join(places, ", "), flag, names[0])
	}
	return nil, fmt.Errorf("%d %ss among the documents; select one with %s: %s",
		len(docs), what, flag, strings.Join(names, ", "))
}

// selectPromotion finds the Promotion document that the run stands for.
func (r *resolver) selectPromotion() error {
	var found []*load.Document
	for _, d := range r.inProject(load.Of[*kargoapi.Promotion](r.set)) {
		p, _ := load.As[*kargoapi.Promotion](d)
		if r.o.Stage == "" || p.Spec.Stage == r.o.Stage {
			found = append(found, d)
		}
	}
	if len(found) > 1 && r.o.PromotionName != "" {
		for _, d := range found {
			if d.Name == r.o.PromotionName {
				found = []*load.Document{d}
				break
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	d, err := only("Promotion", "--promotion", found)
	if err != nil {
		return err
	}
	if errs := Admit(d); len(errs) > 0 {
		return errs
	}
	r.promotion, _ = load.As[*kargoapi.Promotion](d)
	if len(r.promotion.Spec.Steps) > 0 || len(r.promotion.Spec.Vars) > 0 {
		r.warn(d.Position("/spec"), "the Promotion's own vars and steps are ignored: "+
			"Kargo overwrites them with the Stage's when it is created")
	}
	return nil
}

// project is the namespace the promotion runs in.
func (r *resolver) project() string {
	switch {
	case r.o.Project != "":
		return r.o.Project
	case r.doc.Namespace != "":
		return r.doc.Namespace
	case r.promotion != nil && r.promotion.Namespace != "":
		return r.promotion.Namespace
	}
	if projects := load.Of[*kargoapi.Project](r.set); len(projects) == 1 {
		return projects[0].Name
	}
	found := ""
	for _, d := range r.set.Documents {
		if _, isFreight := d.Object.(*kargoapi.Freight); isFreight && d.Namespace != "" {
			if found != "" && found != d.Namespace {
				return DefaultProject
			}
			found = d.Namespace
		}
	}
	if found != "" {
		return found
	}
	return DefaultProject
}

// template returns the steps to inflate and settles vars, Stage name and
// requested Freight.
func (r *resolver) template() ([]Step, error) {
	if r.stage == nil {
		r.p.Stage = r.o.StageName
		if r.p.Stage == "" {
			r.p.Stage = DefaultStageName
		}
		ref := &kargoapi.PromotionTaskReference{Name: r.doc.Name, Kind: r.doc.Kind}
		r.p.Vars = r.o.Vars
		return []Step{{PromotionStep: kargoapi.PromotionStep{Task: ref}}}, nil
	}
	s := r.stage
	r.p.Stage = s.Name
	r.p.FreightRequests = s.Spec.RequestedFreight
	if s.Spec.PromotionTemplate == nil || len(s.Spec.PromotionTemplate.Spec.Steps) == 0 {
		return nil, load.Errors{{
			Position: r.doc.Position("/spec/promotionTemplate"), Pointer: "/spec/promotionTemplate",
			Message: fmt.Sprintf("Stage %q in namespace %q defines no promotion steps", s.Name, r.p.Project),
		}}
	}
	t := s.Spec.PromotionTemplate.Spec
	// Concatenated, not merged: later ones win when they are evaluated.
	r.p.Vars = append(append(append([]kargoapi.Variable(nil), s.Spec.Vars...), t.Vars...), r.o.Vars...)
	template := make([]Step, len(t.Steps))
	for i, step := range t.Steps {
		template[i] = Step{
			PromotionStep: step, Document: r.doc,
			Pointer: load.Pointer("spec", "promotionTemplate", "spec", "steps", i),
		}
	}
	return template, nil
}

// lookup finds a task among the documents and applies admission's rules to it.
func (r *resolver) lookup(kind, name string) (*Task, error) {
	var docs []*load.Document
	if kind == kargoapi.KindClusterPromotionTask {
		docs = load.Of[*kargoapi.ClusterPromotionTask](r.set)
	} else {
		docs = load.Of[*kargoapi.PromotionTask](r.set)
	}
	for i := len(docs) - 1; i >= 0; i-- {
		d := docs[i]
		if d.Name != name {
			continue
		}
		if kind == kargoapi.KindPromotionTask && d.Namespace != "" && d.Namespace != r.p.Project && d != r.doc {
			continue
		}
		if errs := Admit(d); len(errs) > 0 {
			return nil, errs
		}
		switch o := d.Object.(type) {
		case *kargoapi.PromotionTask:
			return &Task{Spec: o.Spec, Document: d}, nil
		case *kargoapi.ClusterPromotionTask:
			return &Task{Spec: o.Spec, Document: d}, nil
		}
	}
	return nil, &NotFoundError{Kind: kind, Name: name}
}

// metadata settles what ctx says of the promotion itself.
func (r *resolver) metadata(freight *kargoapi.Freight) {
	r.p.UIBaseURL, r.p.Actor, r.p.Rollback, r.p.Name = r.o.UIBaseURL, r.o.Actor, r.o.Rollback, r.o.PromotionName
	if p := r.promotion; p != nil {
		if r.p.Actor == "" {
			r.p.Actor = p.Actor()
		}
		r.p.Rollback = r.p.Rollback || p.IsRollback()
		if r.p.Name == "" {
			r.p.Name = p.Name
		}
	}
	if r.p.Name == "" {
		now := r.o.Now
		if now.IsZero() {
			now = time.Now()
		}
		name := ""
		if freight != nil {
			name = freight.Name
		}
		r.p.Name = PromotionName(r.p.Stage, name, now)
	}
}

// PromotionName makes a name the way Kargo does: <stage>.<ulid>.<freight7>, in
// lower case, the stage shortened so that it is no longer than 253.
func PromotionName(stage, freight string, now time.Time) string {
	id := ulid.MustNew(ulid.Timestamp(now), rand.Reader).String()
	suffix := "." + id
	if freight != "" {
		suffix += "." + freight[:min(7, len(freight))]
	}
	if over := len(stage) + len(suffix) - 253; over > 0 {
		stage = strings.TrimRight(stage[:len(stage)-over], ".-")
	}
	return strings.ToLower(stage + suffix)
}
