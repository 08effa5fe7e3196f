package lint_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/lint"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
)

// kinds is a registry with the schemas of all steps.
func kinds(tb testing.TB) *runner.Registry {
	tb.Helper()
	var regs []steps.Registration
	for _, kind := range schemas.Kinds() {
		reg := steps.Registration{Name: kind, New: func(steps.Capabilities) steps.Runner { return nil }}
		reg.ConfigSchema, _ = schemas.Config(kind)
		reg.OutputSchema, _ = schemas.Output(kind)
		regs = append(regs, reg)
	}
	r, err := runner.NewRegistry(regs...)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func run(t *testing.T, text string) []lint.Finding {
	t.Helper()
	set, err := load.Bytes("f.yaml", []byte(text))
	findings, err := lint.Run(t.Context(), set, load.AsErrors(err), lint.Options{Registry: kinds(t)})
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

// task returns a task whose steps begin in line 7.
func task(vars, steps string) string {
	return "apiVersion: kargo.akuity.io/v1alpha1\nkind: PromotionTask\nmetadata: {name: t}\nspec:\n  vars: [" + vars + "]\n  steps:\n" + steps
}

func stage(vars, steps string) string {
	return "apiVersion: kargo.akuity.io/v1alpha1\nkind: Stage\nmetadata: {name: s}\nspec:\n" +
		"  requestedFreight: [{origin: {kind: Warehouse, name: w}, sources: {direct: true}}]\n" +
		"  promotionTemplate: {spec: {vars: [" + vars + "], steps: [\n" + steps + "]}}\n"
}

func TestFindings(t *testing.T) {
	cases := map[string]struct {
		reason string
		text   string
		// want lists "line:column severity rule" and, after a colon, a part of
		// message or remedy.
		want []string
	}{
		"Clean": {
			reason: "nothing to say about what is right",
			text: task("{name: repo, value: ghcr.io/a/b}", `  - uses: compose-output
    as: one
    config: {tag: "${{ quote(imageFrom(vars.repo).Tag) }}"}
  - uses: compose-output
    if: ${{ success() && status('one') == 'Succeeded' }}
    config:
      text: ${{ task.outputs.one.tag }} by ${{ ctx.meta.promotion.actor }}
`),
		},
		"Renamed": {
			reason: "a field of the article that never existed",
			text: task("", `  - uses: argocd-update
    config:
      apps:
      - name: a
        sources:
        - repoURL: https://h/r.git
          desiredCommit: abc
`),
			want: []string{"13:11 error config: the field is desiredRevision"},
		},
		"UnknownKey": {
			reason: "a misspelt field names the nearest",
			text:   task("", "  - uses: copy\n    config: {inPath: a, outPaht: b}\n"),
			want:   []string{`8:5 error config: outPath is required`, `8:25 error config: did you mean "outPath"`},
		},
		"TemplatedText": {
			reason: "that a value is text says nothing about which",
			text: task("{name: tag}", `  - uses: oci-download-verified
    config: {imageRef: "ghcr.io/a/b:${{ vars.tag }}", outPath: c, verify: {identities: [{issuer: i, subject: s}]}}
  - uses: git-push
    config: {path: "${{ quote(vars.tag) }}", maxAttempts: "${{ quote(vars.tag) }}"}
`),
			want: []string{"10:46 error config: Expected: integer, given: string"},
		},
		"LiteralType": {
			reason: "literal values are validated now",
			text:   task("", "  - uses: git-push\n    config: {path: a, maxAttempts: many}\n"),
			want:   []string{"8:23 error config: Expected: integer, given: string"},
		},
		"TemplatedType": {
			reason: "an expression of a known type is validated, one of an unknown type is not",
			text: task("{name: num}", `  - uses: git-push
    config: {path: "${{ 1 + 1 }}", maxAttempts: "${{ vars.num }}"}
  - uses: git-push
    config: {path: "p-${{ vars.num }}", maxAttempts: "n-${{ vars.num }}"}
`),
			want: []string{"8:14 error config: Expected: string, given: integer", "10:41 error config: Expected: integer, given: string"},
		},
		"OneOf": {
			reason: "a choice that depends on an expression is left to the run",
			text:   task("{name: b}", "  - uses: git-push\n    config: {path: a, targetBranch: \"${{ vars.b }}\", generateTargetBranch: false}\n"),
		},
		"UnknownStep": {
			reason: "a near kind is named",
			text:   task("", "  - uses: git-psh\n"),
			want:   []string{"7:5 error unknown-step: did you mean git-push"},
		},
		"CommercialStep": {
			reason: "Kargo's commercial edition has steps of its own",
			text:   task("", "  - uses: jira\n    config: {a: 1}\n"),
			want:   []string{"7:5 error unknown-step: only the commercial edition"},
		},
		"Tags": {
			reason: "a tag that stands alone becomes a number, directly or through a variable",
			text: task("{name: repo, value: r}, {name: v, value: \"${{ imageFrom(vars.repo).Tag }}\"}, {name: q, value: \"${{ quote(imageFrom(vars.repo).Tag) }}\"}", `  - uses: yaml-update
    config:
      path: p
      updates:
      - {key: a, value: "${{ imageFrom(vars.repo).Tag }}"}
      - {key: b, value: "${{ vars.v }}"}
      - {key: c, value: "${{ vars.q }}"}
      - {key: d, value: "${{ quote(vars.v) }}"}
      - {key: e, value: "v${{ vars.v }}"}
      - {key: f, value: "${{ imageFrom(vars.repo)?.Tag ?? 'x' }}"}
`),
			want: []string{
				"5:51 warning tag-becomes-number: vars.v",
				"11:25 warning tag-becomes-number: quote(", "12:25 warning tag-becomes-number", "13:25 warning tag-becomes-number",
				"16:25 warning tag-becomes-number",
			},
		},
		"Syntax": {
			reason: "the place inside the template is given",
			text: task("", `  - uses: compose-output
    config:
      a: x ${{ 1 + }}
      b: "${{ nosuch(1) }}"
      c: ${{ quote() }}
      d: ${{ semverPrase('1') }}
      e: ${{ 'a
`),
			want: []string{
				"9:19 error expression: cannot compile", "10:15 error expression: no function nosuch",
				"11:14 error expression: not enough arguments to call quote",
				"12:14 error expression: did you mean semverParse",
				"13:10 error expression: unclosed expression",
			},
		},
		"Variables": {
			reason: "undeclared variables are null",
			text: stage("{name: one, value: a}, {name: two, value: \"${{ vars.three }}\"}, {name: three, value: c}", `
  {uses: compose-output, config: {a: "${{ vars.onne }}", b: "${{ vrs.one }}", c: "${{ one }}", d: "${{ ctx.stge }}", e: "${{ vars.x ?? 'd' }}"}}
`),
			want: []string{
				"6:89 error variable-order: vars.three is declared later",
				"8:48 error unknown-variable: did you mean one",
				"8:66 error unknown-variable: did you mean vars",
				"8:87 error unknown-variable: write vars.one",
				"8:108 error unknown-variable: did you mean stage",
			},
		},
		"DefaultsBeforeReferences": {
			reason: "a default cannot use what the reference gives",
			text:   task("{name: a}, {name: b, value: \"x-${{ vars.a }}\"}", "  - uses: compose-output\n    config: {b: \"${{ vars.b }}\"}\n"),
			want:   []string{"5:50 warning variable-order: vars.a is null here when the step that refers to the task gives it"},
		},
		"PromotionVariables": {
			reason: "outputs and status functions are not available yet",
			text: stage(`{name: a, value: "${{ outputs.x }}"}, {name: b, value: "${{ success() }}"}, {name: c, value: "${{ task.outputs.x }}"}`,
				"{uses: fail, config: {message: \"${{ secrets.x }}\"}}"),
			want: []string{
				"6:59 error unknown-variable: outputs is not available", "6:97 error expression: not available in variables",
				"6:135 error unknown-variable: task is only available", "7:37 error unknown-variable: secret('<name>')",
			},
		},
		"Outputs": {
			reason: "only steps that ran have outputs",
			text: stage("", `
  {uses: compose-output, as: first, config: {a: "${{ outputs.second.x }}"}},
  {uses: compose-output, as: second, config: {a: "${{ outputs.first.a }}", b: "${{ outputs.frist.a }}", c: "${{ outputs.gone?.a ?? 1 }}"}},
  {uses: compose-output, as: my-step, config: {a: "${{ outputs['second'].a }}", b: "${{ stepMetas['nope'].Status }}"}},
  {uses: compose-output, config: {a: "${{ outputs.my-step.a }}", b: "${{ status('first') }}", c: "${{ stepMetas.first.Status == 'Failed' }}"}}
`),
			want: []string{
				"8:62 error unknown-output: runs later",
				"9:92 error unknown-output: did you mean first", "9:121 warning unknown-output: no step \"gone\"",
				"10:98 error unknown-output: no step \"nope\"",
				"11:51 error unknown-output: write outputs['my-step']", "11:126 warning always-null: status('<alias>')",
			},
		},
		"TaskOutputs": {
			reason: "steps of a task are found under task.outputs",
			text: task("", `  - uses: compose-output
    as: one
    config: {a: 1}
  - uses: compose-output
    as: two
    config: {a: "${{ task.outputs.on.a }}", b: "${{ outputs.one.a }}", c: "${{ outputs.elsewhere.x }}", d: "${{ task.one.a }}"}
`),
			want: []string{
				"12:35 error unknown-output: did you mean one", "12:61 warning unknown-output: write task.outputs.one",
				"12:118 error unknown-variable: write task.outputs.one",
			},
		},
		"OutputMembers": {
			reason: "what a step has no output of is null",
			text: task("", `  - uses: oci-download-verified
    as: dl
    config: {imageRef: "h/a:b", outPath: o, verify: {keys: [{path: k}]}}
  - uses: git-commit
    as: commit
    config: {path: w, message: m}
  - uses: compose-output
    as: out
    config: {a: "${{ task.outputs.dl.digest }}", b: "${{ task.outputs.dl.digset }}", c: "${{ task.outputs.dl.signer.sha }}", d: "${{ task.outputs.dl?.annotations.x }}"}
  - uses: compose-output
    config: {a: "${{ task.outputs.commit.id }}", b: "${{ task.outputs.out.whatever }}", c: "${{ task.outputs.dl?.sha ?? 'x' }}", d: "${{ let x = task.outputs.dl.tags; x }}"}
`),
			want: []string{
				"15:74 error unknown-output: did you mean digest", "15:117 error unknown-output: signer.sha",
				"17:42 warning unknown-output: it has commit", "17:114 warning unknown-output: it has", "17:162 error unknown-output: did you mean tag",
			},
		},
		"TaskReference": {
			reason: "a Stage sees what its tasks compose, and has to give what they require",
			text: task("{name: need}, {name: has, value: d}", "  - {uses: compose-output, as: out, config: {a: 1}}\n") + "---\n" +
				stage("", `{task: {name: t}, as: x}, {task: {name: tt}}, {uses: compose-output, config: {a: "${{ outputs.x.a }}", b: "${{ outputs['x::out'].a }}", c: "${{ outputs['x::oot'].a }}"}}`),
			want: []string{
				"15:2 error admission: missing value for variable \"need\"", "15:35 warning unknown-task: did you mean t",
				"15:152 error unknown-output: did you mean out",
			},
		},
		"TaskElsewhere": {
			reason: "a task of another kind or namespace is not the one that is meant",
			text: task("", "  - {uses: fail}\n") + "---\napiVersion: kargo.akuity.io/v1alpha1\nkind: PromotionTask\nmetadata: {name: far, namespace: b}\nspec: {steps: [{uses: fail}]}\n---\n" +
				strings.Replace(stage("", `{task: {name: t, kind: ClusterPromotionTask}}, {task: {name: far}}`), "{name: s}", "{name: s, namespace: a}", 1),
			want: []string{"20:9 warning unknown-task: write kind: PromotionTask", "20:56 warning unknown-task: in namespace \"b\""},
		},
		"TaskStatus": {
			reason: "status() sees neither tasks nor their steps from a Stage, and a task has no metadata",
			text: task("", "  - {uses: compose-output, as: one, config: {a: 1}}\n  - {uses: compose-output, as: two, if: \"${{ status('one') == '' }}\", config: {a: 1}}\n") + "---\n" +
				stage("", `{task: {name: t}, as: x},
  {uses: fail, if: "${{ success() && status('x') == 'Succeeded' }}"},
  {uses: fail, if: "${{ success() && status('x::two') == 'Succeeded' }}"},
  {uses: compose-output, config: {a: "${{ stepMetas.x.Status }}", b: "${{ stepMetas['x::two'].Status }}", c: "${{ stepMetas['x::to'].Status }}"}}`),
			want: []string{
				"17:38 warning unknown-output: write string(stepMetas['x::two'].Status)", "18:38 warning unknown-output: always empty",
				"19:53 error unknown-output: no status of its own", "19:124 error unknown-output: did you mean two",
			},
		},
		"UnusedReferenceVariable": {
			reason: "a misspelt name leaves the default in place",
			text: task("{name: colour, value: red}", "  - {uses: compose-output, config: {a: \"${{ vars.colour }} ${{ vars.extra }}\"}}\n") + "---\n" +
				stage("", `{task: {name: t}, as: x, vars: [{name: color, value: blue}, {name: extra, value: "1"}]}`),
			want: []string{"15:34 warning unknown-variable: did you mean colour"},
		},
		"Admission": {
			reason: "what Kargo's API refuses is an error here",
			text:   task("{name: 1a, value: x}", "  - {uses: compose-output, as: step-1, config: {a: 1}}\n  - {task: {name: other}}\n"),
			want:   []string{`5:11 error admission: "1a"`, `7:28 error admission: reserved`, "8:5 error admission: must not reference another task"},
		},
		"Quoting": {
			reason: "quotes that stay visible",
			text: task("{name: a, value: b}", `  - uses: compose-output
    config: {a: "v${{ quote(vars.a) }}", b: "${{ unsafeQuote('x') }}", c: "${{ quote(vars.a) }}"}
`),
			want: []string{"8:17 warning quoting: stay visible", "8:45 warning quoting: use quote()"},
		},
		"Empty": {
			reason: "an empty expression ends evaluation",
			text:   task("{name: a, value: b}", "  - uses: compose-output\n    config: {a: \"x ${{}} ${{ vars.a }}\"}\n"),
			want:   []string{"8:20 warning empty-expression"},
		},
		"Unevaluated": {
			reason: "templates where Kargo sees none",
			text:   task("{name: a, value: b}", "  - uses: compose-output\n    config: {a: \"{{ vars.a }}\", \"${{ vars.a }}\": 1, c: \"{{ .Values.a }}\"}\n"),
			want:   []string{"8:18 warning unevaluated: write ${{", "8:33 warning unevaluated: keys are never evaluated"},
		},
		"Conditions": {
			reason: "a condition is an expression that yields a bool",
			text: task("", `  - {uses: fail, if: success()}
  - {uses: fail, if: "${{ 1 + 1 }}"}
  - {uses: fail, if: "${{ true }} "}
  - {uses: fail, if: "not ${{ false }}"}
  - {uses: fail, if: "${{ failure() }}"}
  - {uses: fail, if: "${{ failure }}"}
`),
			want: []string{
				"7:22 error condition: plain text", "8:22 error condition: not a number",
				"9:22 warning condition: also runs after an earlier one failed", "10:22 warning condition",
				"12:27 error unknown-variable: failure()",
			},
		},
		"ConditionsAndFailure": {
			reason: "an if takes the place of the check for success; the first step has nothing before it",
			text: task("{name: go, value: \"true\"}", `  - {uses: fail, as: a, if: "${{ vars.go }}"}
  - {uses: fail, if: "${{ vars.go }}"}
  - {uses: fail, if: "${{ vars.go && success() }}"}
  - {uses: fail, if: "${{ status('a') == 'Failed' }}"}
  - {uses: fail, if: "${{ false }}"}
`),
			want: []string{"8:22 warning condition: success() &&"},
		},
		"Surprises": {
			reason: "valid, and not what it looks like",
			text: task("", `  - {uses: http, config: {url: "https://h"}}
  - {uses: http, retry: {timeout: 5m}, config: {url: "https://h"}}
  - {uses: http, config: {url: "https://h", successExpression: "response.status == 200"}}
  - {uses: git-clone, config: {repoURL: "git@h:r.git", checkout: [{branch: main, path: a}]}}
  - {uses: git-commit, config: {path: a, message: m, author: {name: a, email: a@b.c}}}
`),
			want: []string{"7:18 warning endless-poll: failureExpression", "10:32 warning deprecated: SSH", "11:54 warning deprecated: author"},
		},
		"DelimitedExpression": {
			reason: "an expression that the step evaluates has no delimiters; a template may be part of it",
			text: task("{name: code}", `  - {uses: http, config: {url: "https://h", successExpression: "${{ response.status == 200 }}"}}
  - {uses: http, config: {url: "https://h", successExpression: "response.status == ${{ vars.code }}"}}
  - {uses: yaml-parse, config: {path: p, outputs: [{name: a, fromExpression: "${{ image.tag }}"}]}}
`),
			want: []string{
				"7:45 error config: write it without ${{", "7:69 error unknown-variable: write it without ${{",
				"9:83 error unknown-variable: write it without ${{",
			},
		},
		"StructInVariable": {
			reason: "in a variable a struct has JSON keys",
			text: task("{name: i, value: \"${{ imageFrom('r') }}\"}", `  - uses: compose-output
    config: {a: "${{ vars.i.Tag }}", b: "x${{ vars.i.tag }}"}
`),
			want: []string{"8:29 error always-null: write vars.i.tag"},
		},
		"Separator": {
			reason: "an alias with :: is one of a task's step",
			text:   task("", "  - {uses: compose-output, as: \"a::b\", config: {a: 1}}\n  - {uses: compose-output, as: Get, config: {a: 1}}\n"),
			want:   []string{"7:28 warning alias: use another separator", "8:28 warning alias: is a method"},
		},
		"Undecodable": {
			reason: "one such character and the step gets no config at all",
			text:   task("", "  - {uses: compose-output, config: {a: \"x\\x7fy\", b: \"\\u0085\", \"k\\u0081\": 1}}\n"),
			want:   []string{"7:37 error config: remove the character U+007F", "7:63 error config: without one"},
		},
		"ConfigNotAnObject": {
			reason: "as Kargo says only when it runs",
			text:   task("", "  - {uses: compose-output, config: [a]}\n"),
			want:   []string{"7:28 error config: must be an object"},
		},
		"Freight": {
			reason: "a Stage finds only what its Warehouses subscribe to",
			text: "apiVersion: kargo.akuity.io/v1alpha1\nkind: Warehouse\nmetadata: {name: w}\nspec:\n" +
				"  subscriptions: [{image: {repoURL: ghcr.io/a/shop}}, {git: {repoURL: https://h/r.git}}, {cfg: {name: knobs}}]\n---\n" +
				stage("{name: repo, value: ghcr.io/a/shap}", `{uses: compose-output, config: {
  a: "x${{ imageFrom('ghcr.io/a/shop').Tag }}",
  b: "x${{ imageFrom(vars.repo).Tag }}",
  c: "x${{ commitFrom('https://H/r').ID }}",
  d: "x${{ artifactFrom('nobs')?.Version ?? 'none' }}",
  e: "x${{ imageFrom('other', warehouse('elsewhere')).Tag }}"}}`),
			want: []string{"15:12 error unknown-freight: did you mean ghcr.io/a/shop", "17:12 warning unknown-freight: did you mean knobs"},
		},
		"Warehouse": {
			reason: "a subscription is of one type",
			text:   "apiVersion: kargo.akuity.io/v1alpha1\nkind: Warehouse\nmetadata: {name: w}\nspec:\n  subscriptions: [{image: {repoURL: a}, git: {repoURL: b}}]\n",
			want:   []string{"5:19 error admission: exactly one key"},
		},
		"Context": {
			reason: "names of ctx are known at every level",
			text:   task("", "  - uses: compose-output\n    config: {a: \"${{ ctx.meta.step.alas }}\", b: \"${{ ctx.targetFreight.nme.x }}\", c: \"${{ ctx.meta.promotion.actor }}\"}\n"),
			want:   []string{"8:36 error unknown-variable: did you mean alias", "8:72 error unknown-variable: ctx.targetFreight has no nme"},
		},
		"Fields": {
			reason: "an artifact's fields have Go's names",
			text:   task("", "  - uses: compose-output\n    config: {a: \"v${{ imageFrom('r').tag }}\"}\n"),
			want:   []string{"8:38 error expression: write .Tag"},
		},
		"RawExpressions": {
			reason: "settings that are expressions without delimiters",
			text: task("", `  - uses: http
    config:
      url: https://h
      successExpression: response.status = 200
      failureExpression: len(response.body)
      errorExpression: response.bdy.message + respnse.x
      outputs:
      - {name: a, fromExpression: "quote(response.header('x'))"}
      - {name: b, fromExpression: "let x = response.body; x.b + string(response.status)"}
  - uses: yaml-parse
    config: {path: a, outputs: [{name: a, fromExpression: "image.tag + upr(x)"}, {name: b, fromExpression: "${{ 'image.tag' }}"}]}
`),
			want: []string{
				"10:42 error expression: cannot compile", "11:26 error condition: this must yield a bool",
				"12:33 error unknown-variable: did you mean body", "12:47 error unknown-variable: respnse",
				"14:36 error expression: not available here",
				"17:72 error expression: no function upr",
			},
		},
		"Keys": {
			reason: "keys are split now",
			text:   task("", "  - uses: yaml-update\n    config: {path: a, updates: [{key: a..b, value: 1}, {key: 'a\\.b.0', value: 1}]}\n"),
			want:   []string{`8:34 error config: empty key part`},
		},
		"Signers": {
			reason: "the verifier's own rules hold for what is literal",
			text: task("{name: who}", `  - uses: oci-download-verified
    config:
      imageRef: h/a:b
      outPath: o
      verify:
        identities:
        - {issuer: i, subjectRegExp: ".*"}
        - {issuer: i, subjectRegExp: "${{ vars.who }}"}
        - {issuer: i}
        keys: [{pem: none}]
        attestations: [{predicateType: t, cel: "1 +"}]
`),
			want: []string{
				"13:11 error config: matches arbitrary text", "15:11 error config: give one of subject, subjectRegExp",
				"16:16 error config: keys.0", "17:24 error config: attestations.0",
			},
		},
		"NothingToAskOfASignature": {
			reason: "what a signature must carry is asked in vain where none is required",
			text:   task("", "  - uses: oci-download-verified\n    config: {imageRef: h/a:b, outPath: o, verify: {keys: [{path: k}], requireSignature: false, attestations: [{predicateType: t}], signedAnnotations: {a: b}}}\n"),
			want:   []string{"8:43 error config: signedAnnotations"},
		},
		"NobodyNeedSign": {
			reason: "neither a signature nor an attestation",
			text:   task("", "  - uses: oci-download-verified\n    config: {imageRef: h/a:b, outPath: o, verify: {keys: [{path: \"${{ vars.k }}\"}], requireSignature: false}}\n"),
			want:   []string{"8:43 error config: requireSignature: false needs", "8:76 warning unknown-variable"},
		},
		"NoSigners": {
			reason: "what is missing from a choice is named once",
			text:   task("", "  - uses: oci-download-verified\n    config: {imageRef: h/a:b, outPath: o, verify: {}}\n"),
			want:   []string{"8:43 error config: give one of identities, keys"},
		},
		"NeverEvaluated": {
			reason: "kinds and aliases are fixed",
			text:   task("{name: a}", "  - uses: ${{ vars.a }}\n  - {uses: compose-output, as: \"${{ vars.a }}\", config: {a: 1}}\n"),
			want:   []string{"7:5 error unknown-step: never evaluated", "8:28 warning unevaluated: aliases are never"},
		},
		"PlaceInBlocks": {
			reason: "the place is that in the file, whatever the style",
			text: task("", `  - uses: compose-output
    config:
      a: |
        one
          two ${{ vars.b }} ${{ vars.c }}
      b: >-
        folded
        ${{ vars.b }}
      c: "a\tb ${{ vars.c }}"
      d: 'it''s ${{ vars.d }}'
      e: plain
        ${{ vars.e }}
`),
			want: []string{
				"11:24 warning unknown-variable: vars.b", "11:38 warning unknown-variable: vars.c", "14:18 warning unknown-variable",
				"15:25 warning unknown-variable", "16:26 warning unknown-variable", "18:18 warning unknown-variable",
			},
		},
		"YAML11": {
			reason: "to YAML 1.1, n and on are booleans, as keys and as values",
			text:   task("", "  - uses: compose-output\n    config: {n: 1, 'y': 2, a: {on: no}, true: 1}\n  - uses: yaml-parse\n    config: {path: a, outputs: [{name: n, fromExpression: x}]}\n"),
			want:   []string{"8:14 warning document: reads the key n as false", "8:32 warning document: reads the key on as true", "10:34 error config: reads n as a boolean"},
		},
		"MaybeSkipped": {
			reason: "what was skipped has no outputs to look into",
			text: task("{name: v}", `  - {uses: compose-output, as: a, if: "${{ success() && vars.v == 'x' }}", config: {k: 1}}
  - {uses: compose-output, as: b, if: "${{ always() }}", config: {k: "${{ task.outputs.a.k }}"}}
  - {uses: compose-output, as: c, config: {k: "${{ task.outputs.a?.k }}", l: "${{ task.outputs.a == nil ? 0 : task.outputs.a.k }}", m: "${{ task.outputs.b.k }}", n1: "${{ task.outputs['a'].k }}"}}
  - {uses: compose-output, if: "${{ status('a') == 'Succeeded' }}", config: {k: "${{ task.outputs.a.k }}"}}
`),
			want: []string{"8:90 warning unknown-output: may be skipped", "9:190 warning unknown-output"},
		},
		"Comment": {
			reason: "a # after a space ends a plain value",
			text:   task("{name: l}", "  - uses: compose-output\n    config:\n      a: ${{ map(vars.l, # + 1) }}\n"),
			want:   []string{"9:10 error expression: a comment begins at the #"},
		},
		"ClosedEarly": {
			reason: "a mapping's braces end an expression",
			text:   task("", "  - uses: compose-output\n    config: {a: \"${{ {'a': {'b': 1}}.a }}\"}\n"),
			want:   []string{"8:34 error expression: can hold }}"},
		},
		"NoSteps": {
			reason: "a Stage without a template is one of control flow, one with an empty list is refused",
			text: stage("", "") + "---\n" + "apiVersion: kargo.akuity.io/v1alpha1\nkind: Stage\nmetadata: {name: s2}\nspec:\n" +
				"  requestedFreight: [{origin: {kind: Warehouse, name: w}, sources: {direct: true, availabilityStrategy: Some}}]\n",
			want: []string{"6:40 error admission: control flow Stage", "13:83 error admission: it is one of All, OneOf"},
		},
		"Resources": {
			reason: "rules of the CRDs that no promotion depends on",
			text: "apiVersion: kargo.akuity.io/v1alpha1\nkind: Warehouse\nmetadata: {name: W_1}\nspec:\n  freightCreationPolicy: Auto\n  subscriptions:\n" +
				"  - image: {repoURL: 'h:5000/a/b:v1', imageSelectionStrategy: Semver}\n  - git: {}\n  - chart: {repoURL: oci://h/c, name: c}\n  - cfg: {name: k}\n  - cfg: {name: k}\n---\n" +
				"apiVersion: kargo.akuity.io/v1alpha1\nkind: Promotion\nmetadata: {name: p}\nspec: {stage: s, freight: f, origin: {kind: Warehouse, name: w}}\n---\n" +
				"apiVersion: kargo.akuity.io/v1alpha1\nkind: Promotion\nmetadata: {name: p}\nspec: {stage: s, freight: f}\n",
			want: []string{
				"3:12 error admission: not a resource name", "5:3 error admission: did you mean Automatic",
				"7:13 error admission: no tag or digest", "7:39 error admission: did you mean SemVer",
				"8:5 error admission: repoURL is required", "9:33 error admission: OCI", "11:11 error admission: another subscription",
				"16:30 error admission: exactly one", "20:12 warning document: in line 13",
			},
		},
		"Partial": {
			reason: "what cannot be read does not hide the rest, nor is it reported twice",
			text: task("{nme: a}, {name: b, value: 1}", `  - {use: copy, as: x}
  - {uses: copy, retry: {attempts: 3}, config: {inPath: a}}
  - {uses: compose-output, config: {a: "${{ vars.a }} ${{ task.outputs.y }} ${{ nosuch() }}"}}
  - [copy]
`),
			want: []string{
				"5:11 error document: unknown field", "5:30 error document: must be a string",
				"7:6 error document: did you mean \"uses\"", "8:26 error document: unknown field", "8:40 error config: outPath is required",
				"9:81 error expression: no function nosuch", "10:5 error document: must be an object",
			},
		},
		"PartialValue": {
			reason: "a value that cannot be read makes no secret of the variable's name, and none can be told from it",
			text: task("{name: need, value: 8}, {name: image, value: 5}, {name: d, value: \"${{ vars.need }}\"}", `  - {uses: copy, as: x, continueOnError: "true", config: {inPath: "${{ vars.ned }}", outPath: "${{ vars.need }}"}}
`) + "---\n" + stage("", `{task: {name: t}}`),
			want: []string{
				"5:23 error document: must be a string", "5:48 error document: must be a string",
				"7:25 error document: must be true or false", "7:77 error unknown-variable: did you mean need",
			},
		},
		"Unverified": {
			reason: "what was verified has to be verified before",
			text: task("", `  - {uses: config-apply, config: {inPath: a, outPath: b, verified: later, updates: [{key: a, value: b}]}}
  - {uses: oci-download-verified, as: later, config: {imageRef: "h/r:t", outPath: a, verify: {keys: [{path: k}]}}}
  - {uses: config-apply, config: {inPath: a, outPath: b, verified: later, updates: [{key: a, value: b}]}}
`),
			want: []string{"7:58 error unverified: no oci-download-verified step \"later\" runs before"},
		},
		"Document": {
			reason: "a document that cannot be read",
			text:   "apiVersion: kargo.akuity.io/v1alpha1\nkind: PromotionTask\nmetadata: {name: t}\nspec:\n  step: []\n",
			want:   []string{"5:3 error document: did you mean \"steps\""},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			findings := run(t, tc.text)
			var got, want []string
			for i, f := range findings {
				place := fmt.Sprintf("%d:%d %s %s", f.Line, f.Column, f.Severity, f.Rule)
				got = append(got, place)
				if i >= len(tc.want) {
					continue
				}
				if _, text, ok := strings.Cut(tc.want[i], ": "); ok && !strings.Contains(f.Message+"; "+f.Remedy, text) {
					t.Errorf("%s: finding %d is %q, want %q in it", tc.reason, i, f, text)
				}
			}
			for _, w := range tc.want {
				place, _, _ := strings.Cut(w, ": ")
				want = append(want, place)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s\n%s", tc.reason, diff, strings.Join(texts(findings), "\n"))
			}
		})
	}
}

func texts(findings []lint.Finding) []string {
	out := make([]string, len(findings))
	for i, f := range findings {
		out[i] = f.String()
	}
	return out
}
