package lint

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
)

// resource checks what Kargo's CRDs say of values that no promotion looks at,
// which is why package runner does not refuse them (compat.md 1).
func (c *docLinter) resource() {
	switch o := c.doc.Object.(type) {
	case *kargoapi.Stage:
		c.name(o.Name)
		for i, r := range o.Spec.RequestedFreight {
			at := load.Pointer("spec", "requestedFreight", i, "sources")
			c.oneOf(at+"/availabilityStrategy", r.Sources.AvailabilityStrategy, "All", "OneOf", "")
			if a := r.Sources.AutoPromotionOptions; a != nil {
				c.oneOf(at+"/autoPromotionOptions/selectionPolicy", a.SelectionPolicy, "NewestFreight", "MatchUpstream")
			}
		}
		if t := o.Spec.PromotionTemplate; t != nil && t.Spec.Steps != nil && len(t.Spec.Steps) == 0 {
			c.report(Error, "admission", "/spec/promotionTemplate/spec/steps", "leave promotionTemplate out: without one this is a control flow Stage",
				"a promotion template must not have an empty list of steps")
		}
	case *kargoapi.PromotionTask:
		c.name(o.Name)
	case *kargoapi.ClusterPromotionTask:
		c.name(o.Name)
	case *kargoapi.Warehouse:
		c.name(o.Name)
		c.warehouseDocument(o)
	case *kargoapi.Promotion:
	default:
		return
	}
	c.duplicate()
}

// resourceName is what Kubernetes lets an object be called.
var resourceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func (c *docLinter) name(name string) {
	if name != "" && (len(name) > 253 || !resourceName.MatchString(name)) {
		c.report(Error, "admission", "/metadata/name", "use lower-case letters, digits, - and .", "%q is not a resource name", name)
	}
}

func (c *docLinter) oneOf(at, value string, allowed ...string) {
	if value != "" && !slices.Contains(allowed, value) {
		remedy := near(value, allowed)
		if remedy == "" {
			remedy = "it is one of " + strings.TrimSuffix(strings.Join(allowed, ", "), ", ")
		}
		c.report(Error, "admission", at, remedy, "%q is not allowed here", value)
	}
}

// duplicate warns about a second document of a kind and name in a file:
// whichever is applied last wins.
func (c *docLinter) duplicate() {
	k := objectKey{c.doc.File, c.doc.APIVersion, c.doc.Kind, c.doc.Namespace, c.doc.Name}
	first, seen := c.objects[k]
	switch {
	case c.doc.Name == "":
	case !seen:
		c.objects[k] = c.doc
	default:
		c.report(Warning, "document", "/metadata/name", "the one that is applied last replaces the others", "%s %q is in this file already, in line %d", c.doc.Kind, c.doc.Name, first.Line)
	}
}

func (c *docLinter) warehouseDocument(w *kargoapi.Warehouse) {
	c.oneOf("/spec/freightCreationPolicy", w.Spec.FreightCreationPolicy, "Automatic", "Manual")
	if len(w.Spec.Subscriptions) == 0 {
		c.report(Error, "admission", "/spec/subscriptions", "", "a Warehouse must have at least one subscription")
	}
	names := map[string]bool{}
	for i, raw := range w.Spec.Subscriptions {
		at := load.Pointer("spec", "subscriptions", i)
		var types map[string]json.RawMessage
		if err := json.Unmarshal(raw, &types); err != nil || len(types) != 1 {
			c.report(Error, "admission", at, "write - git:, - image:, - chart: or another type, each as an item of its own",
				"a subscription must be an object with exactly one key")
			continue
		}
		for typ, raw := range types {
			var s struct {
				RepoURL, Name, CommitSelectionStrategy, ImageSelectionStrategy string
			}
			if err := json.Unmarshal(raw, &s); err != nil {
				c.report(Error, "admission", at+load.Pointer(typ), "", "a subscription must be an object whose repoURL and name are strings")
				continue
			}
			c.subscription(at+load.Pointer(typ), typ, s.RepoURL, s.Name, names)
			c.oneOf(at+load.Pointer(typ, "commitSelectionStrategy"), s.CommitSelectionStrategy, "Lexical", "NewestFromBranch", "NewestTag", "SemVer")
			c.oneOf(at+load.Pointer(typ, "imageSelectionStrategy"), s.ImageSelectionStrategy, "Digest", "Lexical", "NewestBuild", "SemVer")
		}
	}
}

// subscription checks one subscription; names are those of the generic ones so
// far.
func (c *docLinter) subscription(at, typ, repoURL, name string, names map[string]bool) {
	switch typ {
	case "git", "image", "chart":
		if repoURL == "" {
			c.report(Error, "admission", at, "", "repoURL is required")
		}
		last := repoURL[strings.LastIndexByte(repoURL, '/')+1:]
		if typ == "image" && strings.ContainsAny(last, ":@") && last != repoURL {
			c.report(Error, "admission", at+"/repoURL", "leave it out", "the repository of an image has no tag or digest")
		}
		if typ == "chart" && strings.HasPrefix(repoURL, "oci://") && name != "" {
			c.report(Error, "admission", at+"/name", "leave it out", "a chart in an OCI repository has no name besides the repository's")
		}
	default:
		switch {
		case name == "":
			c.report(Error, "admission", at, "", "name is required: artifactFrom() finds the artifact by it")
		case names[name]:
			c.report(Error, "admission", at+"/name", "", "another subscription has the name %q", name)
		}
		names[name] = true
	}
}
