package runner

import (
	"crypto/sha1" //nolint:gosec // Kargo's ids are SHA-1; nothing is protected by them
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// madeUpWarehouse is the origin of Freight that comes from options only, for
// a task.
const madeUpWarehouse = "local"

// targetFreight finds the Freight to promote, lays the images and commits of
// the options into it, and makes up the Warehouses nobody wrote. Nil means that
// the promotion has no Freight.
func (r *resolver) targetFreight() (*kargoapi.Freight, error) {
	f, err := r.selectFreight()
	if err != nil {
		return nil, err
	}
	given := len(r.o.Images)+len(r.o.Commits) > 0
	switch {
	case f == nil && !given:
		if r.stage != nil {
			r.warn(r.doc.Position(""), "there is no Freight: imageFrom() and its like find nothing")
		}
		return nil, nil
	case f == nil:
		f = &kargoapi.Freight{Origin: r.inventedOrigin()}
	case given:
		c := *f
		f = &c
	}
	if given {
		f.Images = laidOver(f.Images, r.o.Images, func(i steps.Image) string { return i.RepoURL })
		f.Commits = laidOver(f.Commits, r.o.Commits, func(c steps.GitCommit) string { return repourl.Git(c.RepoURL) })
		f.Name = freightName(f)
		r.data.extra = append(r.data.extra, f)
	}
	if r.stage == nil {
		r.p.FreightRequests = []kargoapi.FreightRequest{{Origin: f.Origin, Sources: kargoapi.FreightSources{Direct: true}}}
	} else if !slices.ContainsFunc(r.p.FreightRequests, func(q kargoapi.FreightRequest) bool { return q.Origin == f.Origin }) {
		return nil, fmt.Errorf("cannot promote Freight %q: it comes from %s, which Stage %q does not request",
			f.Name, f.Origin, r.p.Stage)
	}
	// A Stage's Warehouses have to exist, as in Kargo, unless the Freight was
	// given by hand.
	w, exists := find[*kargoapi.Warehouse](r.data, r.p.Project, f.Origin.Name)
	if exists {
		return f, r.warnOfUnsubscribed(w)
	}
	if given || r.stage == nil {
		made, err := warehouseOf(f)
		if err != nil {
			return nil, err
		}
		r.data.warehouses[f.Origin.Name] = made
	}
	return f, nil
}

// warnOfUnsubscribed tells of images and commits of the options that functions
// will not find, because no Warehouse says where they come from.
func (r *resolver) warnOfUnsubscribed(w *kargoapi.Warehouse) error {
	subs, err := w.ParseSubscriptions()
	if err != nil {
		return err
	}
	for _, i := range r.o.Images {
		if !slices.ContainsFunc(subs, func(s kargoapi.Subscription) bool { return s.Type == "image" && s.RepoURL == i.RepoURL }) {
			r.warn(load.Position{}, "Warehouse %q does not subscribe to image %s: imageFrom() finds it only with warehouse(%q)",
				w.Name, i.RepoURL, w.Name)
		}
	}
	for _, c := range r.o.Commits {
		if !slices.ContainsFunc(subs, func(s kargoapi.Subscription) bool {
			return s.Type == "git" && repourl.Git(s.RepoURL) == repourl.Git(c.RepoURL)
		}) {
			r.warn(load.Position{}, "Warehouse %q does not subscribe to repository %s: commitFrom() finds it only with warehouse(%q)",
				w.Name, c.RepoURL, w.Name)
		}
	}
	return nil
}

func (r *resolver) selectFreight() (*kargoapi.Freight, error) {
	var docs []*load.Document
	for _, d := range load.Of[*kargoapi.Freight](r.set) {
		if d.Namespace == "" || d.Namespace == r.p.Project {
			docs = append(docs, d)
		}
	}
	want, origin := r.o.Freight, (*steps.FreightOrigin)(nil)
	if p := r.promotion; p != nil && want == "" {
		want, origin = p.Spec.Freight, p.Spec.Origin
	}
	var names []string
	var candidates []*kargoapi.Freight
	for _, d := range docs {
		f, _ := load.As[*kargoapi.Freight](d)
		names = append(names, f.Name)
		switch {
		case want != "" && (f.Name == want || alias(f) == want):
			return f, nil
		case want == "" && (origin == nil || f.Origin == *origin):
			candidates = append(candidates, f)
		}
	}
	switch {
	case want != "":
		return nil, fmt.Errorf("no Freight %q among the documents of project %q; there is %s",
			want, r.p.Project, listOr(names, "none"))
	case origin != nil && len(candidates) == 0:
		return nil, fmt.Errorf("no Freight from %s among the documents", origin)
	case len(candidates) == 0:
		return nil, nil
	case len(candidates) == 1:
		return candidates[0], nil
	case origin != nil:
		return newest(candidates), nil
	}
	return nil, fmt.Errorf("%d pieces of Freight among the documents; select one with --freight: %s",
		len(candidates), strings.Join(names, ", "))
}

func listOr(names []string, none string) string {
	if len(names) == 0 {
		return none
	}
	return strings.Join(names, ", ")
}

// newest is what an origin stands for in a Promotion: its latest Freight.
func newest(list []*kargoapi.Freight) *kargoapi.Freight {
	return slices.MaxFunc(list, func(a, b *kargoapi.Freight) int {
		ta, tb := a.CreationTimestamp, b.CreationTimestamp
		switch {
		case ta == nil && tb == nil:
			return 0
		case ta == nil:
			return -1
		case tb == nil:
			return 1
		}
		return ta.Compare(*tb)
	})
}

// inventedOrigin is where Freight made of options claims to come from: the
// requested Warehouse that subscribes to any of it, else the first.
func (r *resolver) inventedOrigin() steps.FreightOrigin {
	for _, q := range r.p.FreightRequests {
		w, ok := find[*kargoapi.Warehouse](r.data, r.p.Project, q.Origin.Name)
		if !ok {
			continue
		}
		subs, err := w.ParseSubscriptions()
		if err != nil {
			continue // reported when an expression needs the Warehouse
		}
		for _, s := range subs {
			if slices.ContainsFunc(r.o.Images, func(i steps.Image) bool { return s.Type == "image" && i.RepoURL == s.RepoURL }) ||
				slices.ContainsFunc(r.o.Commits, func(c steps.GitCommit) bool {
					return s.Type == "git" && repourl.Git(c.RepoURL) == repourl.Git(s.RepoURL)
				}) {
				return q.Origin
			}
		}
	}
	if len(r.p.FreightRequests) > 0 {
		return r.p.FreightRequests[0].Origin
	}
	return steps.FreightOrigin{Kind: kargoapi.KindWarehouse, Name: madeUpWarehouse}
}

// laidOver replaces what has the same key and appends the rest.
func laidOver[T any](base, over []T, key func(T) string) []T {
	out := slices.Clone(base)
	for _, o := range over {
		if i := slices.IndexFunc(out, func(b T) bool { return key(b) == key(o) }); i >= 0 {
			out[i] = o
		} else {
			out = append(out, o)
		}
	}
	return out
}

func alias(f *kargoapi.Freight) string {
	if f.Alias != "" {
		return f.Alias
	}
	return f.Labels[kargoapi.LabelAlias]
}

// warehouseOf makes up a Warehouse that subscribes to all that is in f.
func warehouseOf(f *kargoapi.Freight) (*kargoapi.Warehouse, error) {
	w := &kargoapi.Warehouse{}
	w.Name = f.Origin.Name
	var errs error
	add := func(typ string, fields map[string]string) {
		raw, err := json.Marshal(map[string]any{typ: fields})
		errs = errors.Join(errs, err)
		w.Spec.Subscriptions = append(w.Spec.Subscriptions, raw)
	}
	seen := map[string]bool{}
	once := func(key string) bool {
		first := !seen[key]
		seen[key] = true
		return first
	}
	for _, c := range f.Commits {
		if once("git " + repourl.Git(c.RepoURL)) {
			add("git", map[string]string{"repoURL": c.RepoURL})
		}
	}
	for _, i := range f.Images {
		if once("image " + i.RepoURL) {
			add("image", map[string]string{"repoURL": i.RepoURL})
		}
	}
	for _, c := range f.Charts {
		if once("chart " + c.RepoURL + " " + c.Name) {
			add("chart", map[string]string{"repoURL": c.RepoURL, "name": c.Name})
		}
	}
	for _, a := range f.Artifacts {
		if once("artifact " + a.SubscriptionName) {
			add(genericType(a.ArtifactType), map[string]string{"name": a.SubscriptionName})
		}
	}
	return w, errs
}

// genericType keeps a made-up subscription from passing for a typed one.
func genericType(typ string) string {
	switch typ {
	case "", "git", "image", "chart":
		return "artifact"
	}
	return typ
}

// freightName hashes Freight's content as Kargo does (api/v1alpha1
// freight_helpers.go GenerateID).
func freightName(f *kargoapi.Freight) string {
	parts := make([]string, 0, len(f.Commits)+len(f.Images)+len(f.Charts)+len(f.Artifacts))
	for _, c := range f.Commits {
		id := c.ID
		if c.Tag != "" {
			id = c.Tag + ":" + c.ID
		}
		parts = append(parts, repourl.Git(c.RepoURL)+":"+id)
	}
	for _, i := range f.Images {
		parts = append(parts, fmt.Sprintf("%s:%s@%s", repourl.Image(i.RepoURL), i.Tag, i.Digest))
	}
	for _, c := range f.Charts {
		parts = append(parts, strings.TrimSuffix(repourl.Helm(c.RepoURL)+"/"+c.Name, "/")+":"+c.Version)
	}
	for _, a := range f.Artifacts {
		parts = append(parts, a.SubscriptionName+":"+a.Version)
	}
	sort.Strings(parts)
	return sha1hex(f.Origin.String() + ":" + strings.Join(parts, "|"))
}

func sha1hex(s string) string {
	sum := sha1.Sum([]byte(s)) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}

// collectFreight settles which Freight the promotion sees. A Stage that
// requests Freight from one origin sees the target only; otherwise the last
// promotion's Freight from origins still requested is inherited.
func (r *resolver) collectFreight(target *kargoapi.Freight) {
	items := map[string]steps.FreightReference{}
	if r.stage != nil && len(r.p.FreightRequests) > 1 {
		if last := r.stage.Status.LastPromotion; last != nil && last.Status != nil && last.Status.FreightCollection != nil {
			for _, q := range r.p.FreightRequests {
				if ref, ok := last.Status.FreightCollection.Freight[q.Origin.String()]; ok {
					items[q.Origin.String()] = ref
				}
			}
		}
	}
	if target != nil {
		r.p.TargetFreight = target.Reference()
		r.p.TargetFreightAlias = target.Alias
		items[target.Origin.String()] = r.p.TargetFreight
	}
	names := make([]string, 0, len(items))
	for _, ref := range items {
		names = append(names, ref.Name)
	}
	sort.Strings(names)
	r.p.Freight = steps.FreightCollection{ID: sha1hex(strings.Join(names, ",")), Freight: items}
}

// A step owns what it is given, so each gets a copy of the Freight.

func cloneCollection(c steps.FreightCollection) steps.FreightCollection {
	out := steps.FreightCollection{ID: c.ID, Freight: make(map[string]steps.FreightReference, len(c.Freight))}
	for origin, ref := range c.Freight {
		out.Freight[origin] = cloneReference(ref)
	}
	return out
}

func cloneReference(r steps.FreightReference) steps.FreightReference {
	r.Commits, r.Charts, r.Artifacts = slices.Clone(r.Commits), slices.Clone(r.Charts), slices.Clone(r.Artifacts)
	r.Images = slices.Clone(r.Images)
	for i := range r.Images {
		r.Images[i].Annotations = maps.Clone(r.Images[i].Annotations)
	}
	for i := range r.Artifacts {
		r.Artifacts[i].Metadata = slices.Clone(r.Artifacts[i].Metadata)
	}
	return r
}
