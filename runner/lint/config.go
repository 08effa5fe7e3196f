package lint

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/nearname"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
)

// stepSchema is the compiled config schema of a kind of step; nil accepts all.
type stepSchema struct{ schema *configschema.Schema }

// config checks a step's kind and config.
func (c *docLinter) config(step *kargoapi.PromotionStep, at string, s *scope) {
	config, ok := c.decodeConfig(step, at)
	if !ok {
		return
	}
	w := &configWalker{docLinter: c, step: step, scope: s, templates: map[string]bool{}, typedOnly: map[string]bool{}}
	checked := w.value(config, at+"/config", "")
	reg, known := c.Registry.Lookup(step.Uses)
	if !known && contains(c.KnownSteps, step.Uses) {
		return
	}
	if !known {
		c.report(Error, "unknown-step", at+"/uses", c.unknownStep(step.Uses), "there is no step of kind %q", step.Uses)
		return
	}
	c.verified(config, at, s)
	c.surprises(step, config, at)
	schema, err := c.schema(reg.Name, reg.ConfigSchema)
	if err != nil {
		c.report(Error, "config", at+"/uses", "this is a fault of the step", "cannot compile the schema of step %q: %v", step.Uses, err)
		return
	}
	if schema == nil {
		return
	}
	var violations []configschema.Violation
	for _, v := range schema.Validate(checked) {
		if !w.undecided(v) {
			violations = append(violations, v)
		}
	}
	for _, v := range telling(violations) {
		c.violation(step.Uses, v, at)
	}
	c.expressions(step.Uses, config, at)
	c.keys(step.Uses, config, at)
	c.signers(step.Uses, config, at)
}

// telling leaves out what only repeats another violation: the same again, that no
// alternative holds where it is said what the nearest one lacks, and that one name
// of a choice is missing where the choice is reported.
func telling(violations []configschema.Violation) []configschema.Violation {
	var out []configschema.Violation
	for i, v := range violations {
		repeats := slices.ContainsFunc(violations, func(o configschema.Violation) bool {
			same := o.Pointer == v.Pointer
			switch {
			case v.Combination && v.Choice == "":
				return same && (!o.Combination || o.Choice != "") || strings.HasPrefix(o.Pointer, v.Pointer+"/")
			case !v.Combination && v.Property != "":
				return same && slices.Contains(strings.Split(o.Choice, ", "), v.Property)
			}
			return false
		})
		if !repeats && !slices.Contains(out, v) {
			out = append(out, violations[i])
		}
	}
	return out
}

// verified checks that the setting `verified` of our steps names a step that
// verifies something before.
func (c *docLinter) verified(config map[string]any, at string, s *scope) {
	alias, ok := config["verified"].(string)
	step := s.aliases[s.index]
	if !ok || expr.HasCode(alias) || step.uses != "config-apply" && step.uses != "atomic-commit" {
		return
	}
	var candidates []string
	for i, a := range s.aliases {
		if namespace, _, nested := strings.Cut(alias, "::"); nested && a.isTask && a.name == namespace {
			return
		}
		if i < s.index && a.uses == "oci-download-verified" {
			if a.name == alias {
				return
			}
			candidates = append(candidates, a.name)
		}
	}
	remedy := "add an oci-download-verified step before this one"
	if len(candidates) > 0 {
		remedy = "there is " + strings.Join(candidates, ", ")
	}
	c.report(Error, "unverified", at+"/config/verified", remedy, "no oci-download-verified step %q runs before this one", alias)
}

// surprises warns about configs that are valid and do what few people expect.
func (c *docLinter) surprises(step *kargoapi.PromotionStep, config map[string]any, at string) {
	switch step.Uses {
	case "http":
		if config["successExpression"] == nil && config["failureExpression"] == nil && (step.Retry == nil || step.Retry.Timeout == nil) {
			c.report(Warning, "endless-poll", at+"/config", "set failureExpression: response.status >= 400, or retry.timeout",
				"without expressions, an answer that is not 2xx makes Kargo send the request again for ever")
		}
	case "git-commit":
		if config["author"] != nil {
			c.report(Warning, "deprecated", at+"/config/author", "set the author in git-clone", "Kargo plans to remove git-commit's author")
		}
	case "git-clone":
		if url, _ := config["repoURL"].(string); strings.HasPrefix(url, "ssh://") || strings.HasPrefix(url, "git@") {
			c.report(Warning, "deprecated", at+"/config/repoURL", "use the https:// URL", "Kargo plans to remove SSH URLs")
		}
	}
}

// decodeConfig returns a step's config as plain values; ok is false if it is no
// object, which is reported.
func (c *docLinter) decodeConfig(step *kargoapi.PromotionStep, at string) (map[string]any, bool) {
	if len(step.Config) == 0 || string(step.Config) == "null" {
		return map[string]any{}, true
	}
	var v any
	if err := json.Unmarshal(step.Config, &v); err != nil {
		c.report(Error, "config", at+"/config", "", "cannot read the config: %v", err)
		return nil, false
	}
	m, ok := v.(map[string]any)
	if !ok {
		c.report(Error, "config", at+"/config", "write the settings as keys below config", "the config must be an object")
	}
	return m, ok
}

func (c *docLinter) schema(kind string, text []byte) (*configschema.Schema, error) {
	if s, ok := c.schemas[kind]; ok {
		return s.schema, nil
	}
	s := &stepSchema{}
	if len(text) > 0 {
		compiled, err := configschema.Compile(text)
		if err != nil {
			return nil, err
		}
		s.schema = compiled
	}
	c.schemas[kind] = s
	return s.schema, nil
}

// violation reports what a schema refuses, with the remedy for fields that were
// renamed.
func (c *docLinter) violation(kind string, v configschema.Violation, at string) {
	pointer := at + "/config" + v.Pointer
	remedy := v.Hint
	if v.Choice != "" {
		remedy = "give one of " + v.Choice
	}
	if v.Property != "" {
		child := pointer + load.Pointer(v.Property)
		if c.doc.Find(child) != nil {
			pointer = child
		}
		if r, ok := renamed(kind, v.Property); ok {
			remedy = r
		}
	}
	if remedy == "" && v.Type && isExpression(pointer) {
		remedy = undelimited
	}
	if _, written := c.doc.Boolean11(pointer); written != "" && remedy == "" {
		remedy = "put it in quotes: YAML 1.1 reads " + written + " as a boolean"
	}
	c.report(Error, "config", pointer, remedy, "invalid %s config: %s", kind, v.Message)
}

// renamed knows fields of earlier versions of Kargo, and of its documentation.
func renamed(kind, field string) (string, bool) {
	r, ok := map[string]string{
		"argocd-update.desiredCommit":            "the field is desiredRevision",
		"argocd-update.desiredCommitFromStep":    "write desiredRevision: ${{ outputs['<alias>'].commit }}",
		"argocd-update.desiredCommitFromFreight": "write desiredRevision: ${{ commitFrom('<repoURL>').ID }}",
		"argocd-update.fromFreight":              "write the value as an expression, such as ${{ imageFrom('<repoURL>').Tag }}",
		"argocd-update.fromOrigin":               "pass warehouse('<name>') to the function in the expression",
		"git-clone.fromFreight":                  "write commit: ${{ commitFrom('<repoURL>').ID }}",
		"git-clone.fromOrigin":                   "pass warehouse('<name>') to commitFrom() in the expression",
		"git-commit.messageFromSteps":            "write message: ${{ outputs['<alias>'].commitMessage }}",
		"git-open-pr.sourceBranchFromStep":       "write sourceBranch: ${{ outputs['<alias>'].branch }}",
		"git-wait-for-pr.prNumberFromStep":       "write prNumber: ${{ outputs['<alias>'].pr.id }}",
		"kustomize-set-image.fromOrigin":         "pass warehouse('<name>') to imageFrom() in the expression",
		"kustomize-set-image.useDigest":          "write digest: ${{ imageFrom('<image>').Digest }}",
		"helm-update-chart.fromOrigin":           "pass warehouse('<name>') to chartFrom() in the expression",
		"oci-download.verify":                    "use the step oci-download-verified, which verifies signatures",
	}[kind+"."+field]
	return r, ok
}

// unknownStep says what may have been meant, or where such a step exists.
func (c *docLinter) unknownStep(kind string) string {
	if expr.HasCode(kind) {
		return "the kind of a step is never evaluated: write its name"
	}
	if where := runner.Elsewhere(kind); where != "" {
		return where
	}
	if found := nearname.Nearest(kind, append(c.Registry.Kinds(), c.KnownSteps...), 3); len(found) > 0 {
		return "did you mean " + strings.Join(found, " or ") + "?"
	}
	return "`stepd schema` lists the steps there are"
}

// configWalker checks the templates of a config and makes a copy for the schema
// in which every template is replaced by a value of the type it will have.
type configWalker struct {
	*docLinter
	step  *kargoapi.PromotionStep
	scope *scope
	// templates are the pointers, within the config, of values that only a run
	// can tell.
	templates map[string]bool
	// typedOnly are those of values whose type is certain and nothing else.
	typedOnly map[string]bool
}

func (w *configWalker) value(v any, at, pointer string) any {
	switch v := v.(type) {
	case string:
		return w.text(v, at, pointer)
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			p := load.Pointer(i)
			out[i] = w.value(item, at+p, pointer+p)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			p := load.Pointer(k)
			if written, _ := w.doc.Boolean11(at + p); written != "" {
				w.report(Warning, "document", at+p, "put it in quotes", "YAML 1.1 reads the key %s as %s", written, k)
			}
			w.decodable(k, at+p)
			if expr.HasCode(k) {
				w.report(Warning, "unevaluated", at+p, "use a fixed key", "keys are never evaluated")
			}
			out[k] = w.value(v[k], at+p, pointer+p)
		}
		return out
	}
	return v
}

// text checks one string and returns what the schema may look at.
func (w *configWalker) text(s, at, pointer string) any {
	w.decodable(s, at)
	o := w.template(s, at, w.scope, inConfig)
	if !expr.HasCode(s) {
		return s
	}
	if o.version != "" && !o.quoted {
		w.versionValue(o.version, at, pointer)
	}
	typed, known := w.typed(s)
	if known {
		w.typedOnly[pointer] = true
	} else {
		w.templates[pointer] = true
	}
	return typed
}

// decodable reports a character for which Kargo drops the whole config without
// a word (compat.md 3.4).
func (w *configWalker) decodable(text, at string) {
	i := strings.IndexFunc(text, func(r rune) bool { return r >= 0x7f && r < 0xa0 || r == 0xfffe || r == 0xffff })
	if i < 0 {
		return
	}
	if _, err := expr.Decode(map[string]any{"": text}); err != nil {
		w.report(Error, "config", at, fmt.Sprintf("remove the character U+%04X", []rune(text[i:])[0]), "%v", err)
	}
}

// typed returns a value of the type that a template will have, if that is
// certain: text that no number, boolean or JSON begins with stays text, and an
// expression of another type than string keeps its type.
func (w *configWalker) typed(s string) (any, bool) {
	pieces, err := expr.Scan(s)
	if err != nil {
		return s, false
	}
	if wholeExpression(pieces) {
		for _, p := range pieces {
			if p.Code {
				out := w.code.compile(p.Text, true)
				if callee(out.tree) == "quote" || callee(out.tree) == "asYAML" || callee(out.tree) == "asJSON" {
					return s, true
				}
				return sample(out)
			}
		}
	}
	if len(pieces) > 0 && !pieces[0].Code && staysText(pieces[0].Text) {
		return s, true
	}
	return s, false
}

// staysText tells whether no text with this beginning can be read as a number, a
// boolean or JSON.
func staysText(beginning string) bool {
	p := strings.ToLower(strings.TrimLeft(beginning, " \t\n"))
	if p == "" || strings.ContainsAny(p[:1], `0123456789+-."{[`) {
		return false
	}
	for _, word := range []string{"null", "nan", "infinity", "true", "false"} {
		if strings.HasPrefix(word, p) {
			return false
		}
	}
	return true
}

// sample returns a value of an expression's static type.
func sample(out code) (any, bool) {
	if out.err != nil || out.typ == nil {
		return "", false
	}
	switch out.typ.Kind() {
	case reflect.Int, reflect.Int64, reflect.Float64:
		return 1.0, true
	case reflect.Bool:
		return true, true
	}
	return "", false
}

// undecided tells whether a violation depends on a value that only a run can
// tell.
func (w *configWalker) undecided(v configschema.Violation) bool {
	if v.Property != "" {
		return false // a missing or unknown field is one whatever the values are
	}
	if w.typedOnly[v.Pointer] && !v.Type {
		return true
	}
	for t := range w.templates {
		if t == v.Pointer || strings.HasPrefix(t, v.Pointer+"/") || strings.HasPrefix(v.Pointer, t+"/") {
			return true
		}
	}
	return false
}

// versionValue warns about a tag or commit id that stands alone as a value and
// is taken as what it looks like (compat.md 3.2).
func (w *configWalker) versionValue(source, at, pointer string) {
	switch uses := w.step.Uses; {
	case (uses == "config-apply" || uses == "yaml-update" || uses == "json-update" || uses == "toml-update") && isUpdateValue(pointer),
		uses == "compose-output", uses == "set-metadata",
		uses == "git-tag" && pointer == "/tag",
		uses == "helm-update-chart" && strings.HasSuffix(pointer, "/version"),
		uses == "kustomize-set-image" && strings.HasSuffix(pointer, "/tag"),
		uses == "argocd-update" && strings.HasSuffix(pointer, "/value"),
		strings.HasSuffix(source, ".ID"):
		w.becomesNumber(source, at, "")
	}
}

func (c *docLinter) becomesNumber(source, at, variable string) {
	example := "1.10 becomes 1.1"
	if strings.HasSuffix(source, ".ID") {
		example = "1234e5 becomes 123400000"
	}
	if variable != "" {
		example += " in vars." + variable
	}
	c.reportAt(Warning, "tag-becomes-number", c.doc.ValuePosition(at), at, "wrap it: ${{ quote(…) }}",
		"%s becomes a number if it looks like one: %s", source, example)
}

// isUpdateValue recognises /updates/<n>/value.
func isUpdateValue(pointer string) bool {
	parts := strings.Split(pointer, "/")
	if len(parts) != 4 || parts[1] != "updates" || parts[3] != "value" {
		return false
	}
	_, err := strconv.Atoi(parts[2])
	return err == nil
}
