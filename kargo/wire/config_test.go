package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

const resources = `
apiVersion: kargo.akuity.io/v1alpha1
kind: Warehouse
metadata: {name: goods, namespace: demo}
spec:
  subscriptions:
  - git: {repoURL: https://git.io/A/b.git}
  - image: {repoURL: reg.io/app}
  - settings: {name: cfg}
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: demo}
stringData: {k: "a\"b\\c\nd ${{ 1 }}", number: "1.10"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m, namespace: demo}
data: {k: "from: configmap\n"}
`

var started = time.Date(2026, 11, 22, 3, 4, 5, 678, time.UTC)

func evaluator(tb testing.TB) *expr.Evaluator {
	tb.Helper()
	set, err := load.Bytes("resources", []byte(resources))
	if err != nil {
		tb.Fatal(err)
	}
	return expr.NewEvaluator(runner.NewDocumentData(set, "demo", ""), func() time.Time { return started })
}

// scope is a step "t::a" of a task, on its third attempt.
func scope(vars ...kargoapi.Variable) *expr.Scope {
	goods := steps.FreightOrigin{Kind: "Warehouse", Name: "goods"}
	ref := steps.FreightReference{
		Name: "f", Origin: goods,
		Commits:   []steps.GitCommit{{RepoURL: "https://git.io/A/b.git", ID: "c0ffee", Message: "a\n\"b\"\n"}},
		Images:    []steps.Image{{RepoURL: "reg.io/app", Tag: "1.10", Annotations: map[string]string{"z": "1", "a": "<&>"}}},
		Artifacts: []steps.ArtifactReference{{ArtifactType: "settings", SubscriptionName: "cfg", Version: "7", Metadata: json.RawMessage(`{"x":1}`)}},
	}
	return &expr.Scope{
		Project: "demo", Stage: "prod", Promotion: "p-1", Actor: "ada", Alias: "t::a", TargetFreight: ref,
		FreightRequests: []kargoapi.FreightRequest{{Origin: goods}},
		Freight:         steps.FreightCollection{Freight: map[string]steps.FreightReference{goods.String(): ref}},
		StepVars: append([]kargoapi.Variable{
			{Name: "s", Value: "text"}, {Name: "n", Value: "42"}, {Name: "nl", Value: "line\n"}, {Name: "q", Value: `"quoted"`},
			{Name: "json", Value: `{"$t": ["x", 1], "a": [null]}`}, {Name: "obj", Value: "${% {'k': [1, 2.5, nil], '$t': '}}'} %}"},
			{Name: "odd", Value: "\u2028 \u007f \u0085\u0085 \u0091 \ufeff \U0001f600 $ %} }} \\ \" \t"},
			{Name: "nel", Value: "a \u0085\u0085 b\u0085"}, {Name: "one", Value: "1\u0085"},
		}, vars...),
		Outputs: map[string]any{"t::x": map[string]any{"digest": "sha256:ab", "n": 1e21, "i": int64(9007199254740993)}},
		StepMetadata: []kargoapi.StepExecutionMetadata{
			{Alias: "t::x", Status: steps.Succeeded, StartedAt: &started, FinishedAt: &started},
			{Alias: "t::a", Status: steps.Errored, StartedAt: &started, ErrorCount: 2},
		},
	}
}

// overWire takes a config the way it takes in a cluster: the webhook encodes
// it, Kargo evaluates the http step, the sidecar decodes the body.
func overWire(t *testing.T, e *expr.Evaluator, s *expr.Scope, config string) (map[string]any, error) {
	t.Helper()
	body, skeleton, err := wire.EncodeConfig(json.RawMessage(config))
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(map[string]any{"body": body, "method": "POST"})
	if err != nil {
		t.Fatal(err)
	}
	evaluated, err := e.Config(t.Context(), s, text)
	if err != nil {
		return nil, err
	}
	received, ok := evaluated["body"].(string)
	if !ok {
		t.Fatalf("%s: the body is %T: the http step would refuse it", config, evaluated["body"])
	}
	req, err := wire.ParseRequest([]byte(received))
	if err != nil {
		t.Fatalf("%s: %v\n%s\nof\n%s", config, err, received, body)
	}
	if want := (wire.Attempt{StartedAt: started.Truncate(time.Second), ErrorCount: 2}); !cmp.Equal(want, req.Attempt) {
		t.Fatalf("the attempt is %+v", req.Attempt)
	}
	got, decoded, err := wire.DecodeConfig(req.Config)
	if errors.Is(err, wire.ErrMalformed) {
		t.Fatalf("%s: %v\n%s\nof\n%s", config, err, received, body)
	}
	if decoded != skeleton {
		t.Fatalf("%s: the skeleton was %s and is %s:\n%s", config, skeleton, decoded, received)
	}
	return got, err
}

// same checks that a config arrives as it would be evaluated natively, or fails
// as it would.
func same(t *testing.T, e *expr.Evaluator, s *expr.Scope, config string) (evaluated bool) {
	t.Helper()
	want, wantErr := e.Config(t.Context(), s, json.RawMessage(config))
	got, err := overWire(t, e, s, config)
	if (err == nil) != (wantErr == nil) {
		t.Errorf("%s:\nnative error: %v\n  wire error: %v", config, wantErr, err)
		return false
	}
	if wantErr != nil {
		if is, was := problem(err), problem(wantErr); is != was && !strings.HasPrefix(is, "unclosed expression") {
			t.Errorf("%s:\nnative error: %s\n  wire error: %s", config, was, is)
		}
		return false
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-native +wire):\n%s", config, d)
	}
	return true
}

// problem is the first line of an error, without who says it and where in an
// expression it is. Of several problems, the one that is reported is the same,
// but for an expression that is not closed: that comes first.
func problem(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	for _, who := range []string{"cannot evaluate the config: ", "cannot encode the config: ", "input is not valid JSON; are all expressions enclosed in quotes? "} {
		line = strings.TrimPrefix(line, who)
	}
	return place.ReplaceAllString(line, "")
}

var place = regexp.MustCompile(` \(\d+:\d+\)$`)

func TestConfigOverWire(t *testing.T) {
	e := evaluator(t)
	for _, tc := range []struct{ reason, config string }{
		{"no config", ``},
		{"null", `null`},
		{"an empty object", `{}`},
		{"JSON without expressions", `{"a":[1,2.50,-0,1e3,12345678901234567890,true,null,{"b":"c"},[],{}],"":"empty key"}`},
		{"a number beyond float64", `{"a":1e400}`},
		{"no object", `["${{ 1 }}"]`},
		{"no JSON", `{"a":`},
		{"text that looks like something else", `{"a":"42","b":"true","c":"{}","d":"\"x\"","e":"1.10","f":"null"}`},
		{"text with everything", `{"a":"quote \" backslash \\ nl \n tab \t nul \u0000 esc \u001b ls \u2028 nbsp \u00a0 é 😀 $ $$ ${ %} }} {{ <&>"}`},
		{"DEL", `{"a":"\u007f"}`},
		{"a C1 control", `{"a":"\u0091"}`},
		{"next line", `{"a":"x \u0085\u0085 y\u0085"}`},
		{"half a surrogate pair", `{"a":"\ud800 x"}`},
		{"keys", `{"$t":["x",1],"$":1,"$$":2,"$$t":{"$t":"${{ 1 }}"},"${{ 1 }}":"x","k\u0085\"\\":1,"é":1}`},
		{"a key YAML refuses", `{"` + strings.Repeat("k", 1100) + `":1}`},
		{"a key YAML refuses, in a value", `{"a":"${{ fromJSON('{\"` + strings.Repeat("k", 1100) + `\":1}') }}"}`},
		{"a value of each type", `{"a":"${{ 1 }}","b":"${{ 1.5 }}","c":"${{ true }}","d":"${{ nil }}","e":"${{ 'x' }}","f":"${{ [1,'a'] }}","g":"${{ {'k':1} }}"}`},
		{"both delimiters", `{"a":"${{ 'x' }}-${% '}}' %}-${{ '%}' }}"}`},
		{"typing of the whole text", `{"a":"1${{ 2 }}","b":"${{ 'tr' }}ue","c":"[${{ 1 }},${{ '2' }}]","d":"v${{ 1 }}"}`},
		{"quotes around the whole text", `{"a":"\"${{ 1 }}\"","b":"\"${{ 1 }}\"\n","c":"${{ vars.q }}","d":"\"${{ 'a' }}"}`},
		{"a trailing newline", `{"a":"${{ 'x' }}\n","b":"${{ 1 }}\n","c":"${{ vars.nl }}\n","d":"${{ 'true' }}\n\n"}`},
		{"quote and its kin", `{"a":"${{ quote('1.10') }}","b":"${{ quote(\"a\\nb\") }}","c":"${{ asYAML(vars.obj) }}","d":"${{ asJSON(vars.obj) }}","e":"${{ unsafeQuote('x') }}","f":"v${{ quote(1) }}","g":"${{ quote(nil) }}"}`},
		{"text that becomes JSON", `{"a":"${{ vars.json }}","b":"${{ vars.obj }}","c":"x ${{ vars.obj }}"}`},
		{"odd characters in a value", `{"a":"${{ vars.odd }}"}`},
		{"next lines in values", `{"a":"${{ vars.nel }}","b":"${{ vars.one }}","c":"x${{ vars.nel }}y"}`},
		{"structs", `{"a":"${{ imageFrom('reg.io/app') }}","b":"x ${{ imageFrom('reg.io/app') }}","c":"${{ imageFrom('reg.io/app').Tag }}","d":"${{ quote(imageFrom('reg.io/app').Tag) }}","e":"${{ artifactFrom('cfg') }} ${{ commitFrom('https://git.io/A/b.git') }}"}`},
		{"a struct that is not there", `{"a":"${{ imageFrom('nope') }}","b":"${{ imageFrom('nope')?.Tag ?? 'none' }}"}`},
		{"a member of a struct that is not there", `{"a":"${{ imageFrom('nope').Tag }}"}`},
		{"versions", `{"a":"${{ semverParse('v1.2') }}","b":"x${{ semverParse('v1.2') }}","c":"${{ semverParse('1.2.3').IncMinor() }}"}`},
		{"secrets and ConfigMaps", `{"a":"${{ secret('s').k }}","b":"${{ secret('s').number }}","c":"${{ configMap('m') }}","d":"${{ secret('nope').k }}"}`},
		{"outputs, metadata and status", `{"a":"${{ task.outputs.x.digest }}","b":"${{ outputs['t::x'].n }} ${{ outputs['t::x'].i }}","c":"${{ stepMetas['t::x'] }}","d":"${{ status('x') }} ${{ failure() }}","e":"${{ stepMetas['t::a'].ErrorCount }}"}`},
		{"big integers in longer text", `{"a":"${{ 9007199254740993 }}","b":"x${{ 9007199254740993 }}"}`},
		{"negative zero", `{"a":"${{ -0.0 }}","b":"x${{ -0.0 }}"}`},
		{"what JSON cannot hold", `{"a":"${{ 1e308 * 10 }}"}`},
		{"nor text", `{"a":"${{ 'nan' }}"}`},
		{"maps JSON cannot hold", `{"a":"${{ fromPairs([['x', 7]]) }}"}`},
		{"times", `{"a":"${{ now() }}","b":"${{ duration('1h') }}","c":"${{ now().Year() }}"}`},
		{"bytes that are not UTF-8", `{"a":"${{ fromBase64('/w==') }}"}`},
		{"comments", `{"a":"${{ 1 // }\n}}","b":"${{ 1 // one }}","c":"${{ /* two */ 2 }}","d":"${{ 'x' // ' }}"}`},
		{"only a comment", `{"a":"${{ // }}"}`},
		{"statements", `{"a":"${{ let x = 1; let y = 'b'; [x, y] }}","b":"${{ 1; 2 }}","c":"${{let x = 1; x}}"}`},
		{"a semicolon at the end", `{"a":"${{ 1; }}","b":"${{ let x = 'é;'; x; // c; }}","c":"${{ 1; /* ; */\n}}","d":"${% vars.s;%}","e":"${{ ';' }}"}`},
		{"two of them", `{"a":"${{ 1;; }}"}`},
		{"nothing else", `{"a":"${{ ; }}"}`},
		{"if and pipes", `{"a":"${{ if true { 'x' } else { 'y' } }}","b":"${{ [1,2] | map(# * 2) | toJSON() }}","c":"${{ 'a' | upper() ?? 1 }}"}`},
		{"a brace before the delimiter", `{"a":"${{ {'a':1}}}","b":1}`},
		{"one with a space", `{"a":"${{ {'a':1} }}","b":"${%{'a':1}%}"}`},
		{"an expression with brackets of its own", `{"a":"${{ 1)) + toJSON((2 }}"}`},
		{"and with a comma", `{"a":"${{ 1, 2 }}"}`},
		{"and with a comment that opens", `{"a":"${{ 1 /* }}","b":"${{ */ 2 }}"}`},
		{"an expression in an expression", `{"a":"${{ '${{' }}","b":"${{ '${%' }}","c":"${% '${{ 1 }}' %}"}`},
		{"an expression without content", `{"a":"1${{}}2","b":"x${{}}${{ 1 }}","c":"${{ 1 }}${%%}${{ y }}","d":"${{}}","e":"${{}}${{"}`},
		{"blank", `{"a":"${{ }}"}`},
		{"not closed", `{"a":"x ${{ y","b":1}`},
		{"not closed, but closed by what follows", `{"a":"x ${{ 1 + ","b":"2 }}"}`},
		{"not closed, with the other delimiter", `{"a":"x ${{ 1 %}"}`},
		{"no expression", `{"a":"${{ 1 + }}"}`},
		{"a wrong call", `{"a":"${{ quote() }}"}`},
		{"a wrong type", `{"a":"${{ 1 + 'a' }}"}`},
		{"an unknown function", `{"a":"${{ nosuch(1) }}"}`},
		{"nil members", `{"a":"${{ nosuch.member }}"}`},
		{"string conversion", `{"a":"${{ string(1.50) }}","b":"${{ string(true) }}x","c":"${{ string(nil) }}"}`},
		{"a type of string's kind", `{"a":"${{ stepMetas['t::x'].Status }}","b":"x${{ stepMetas['t::x'].Status }}","c":"x${{ [stepMetas['t::x'].Status][0] }} ${{ warehouse('goods').Kind }}"}`},
		{"optional members", `{"a":"${{ nosuch?.member }}","b":"${{ nosuch?.a.b ?? 'x' }}"}`},
	} {
		t.Run(tc.reason, func(t *testing.T) { same(t, e, scope(), tc.config) })
	}
}

// TestBrokenVariables has variables that cannot be evaluated.
func TestBrokenVariables(t *testing.T) {
	same(t, evaluator(t), scope(kargoapi.Variable{Name: "x", Value: "${{ nosuch.member }}"}), `{"a":1}`)
}

// TestEveryCharacter sends each character of the basic plane as literal text
// and as a value, in the places where YAML would treat it differently.
func TestEveryCharacter(t *testing.T) {
	e := evaluator(t)
	for r := rune(1); r <= 0xffff; r++ {
		if r >= 0xd800 && r < 0xe000 || r > 0x300 && r < 0x2000 || r > 0x2100 && r < 0xfe00 {
			continue // letters
		}
		s := fmt.Sprintf("a %c%c b%c", r, r, r)
		code, err := json.Marshal(map[string]string{"literal": s, "value": "${{ vars.x }}", "both": s + "${{ vars.x }}", s: "key"})
		if err != nil {
			t.Fatal(err)
		}
		same(t, e, scope(kargoapi.Variable{Name: "x", Value: s}), string(code))
	}
}

// TestRandomConfigs is the property that everything rests on: what arrives is
// what native evaluation gives.
func TestRandomConfigs(t *testing.T) {
	var e *expr.Evaluator
	n, evaluated := 10_000, 0
	if testing.Short() {
		n = 2_000
	}
	for i := range n {
		g := generator{rand.New(rand.NewPCG(7, uint64(i)))}
		config, err := json.Marshal(g.object(3))
		if err != nil {
			t.Fatal(err)
		}
		// A new evaluator for each would compile everything anew; one for all
		// would keep every program.
		if i%500 == 0 {
			e = evaluator(t)
		}
		if same(t, e, scope(), string(config)) && bytes.Contains(config, []byte("${")) {
			evaluated++
		}
		if t.Failed() {
			t.Fatalf("seed %d", i)
		}
	}
	if evaluated < n/4 || evaluated > n-n/4 {
		t.Errorf("only one outcome was tried: of %d configs %d have expressions and can be evaluated", n, evaluated)
	}
}

// FuzzConfigOverWire lets the fuzzer write configs and variables.
func FuzzConfigOverWire(f *testing.F) {
	f.Add(`{"a":"x ${{ vars.x }} y","$t":["${% 1 %}"]}`, "v")
	f.Add(`{"a":"${{}}${{ 1","b":"}}"}`, "1.10\n")
	f.Add(`{"a":"${{ let a = [1]; a // c\n}}"}`, "\"\u0085\"")
	f.Fuzz(func(t *testing.T, config, x string) {
		// These print addresses, which differ every time.
		if strings.Contains(config+x, "string") || strings.Contains(config+x, "$env") {
			t.Skip()
		}
		same(t, evaluator(t), scope(kargoapi.Variable{Name: "x", Value: x}), config)
	})
}

func TestEncodeConfigRefuses(t *testing.T) {
	for _, tc := range []struct{ reason, config, want string }{
		{"no object", `[]`, "cannot unmarshal array"},
		{"no JSON", `{`, "unexpected end"},
		{"a long expression", `{"a":"${{ 1` + strings.Repeat(" ", 20_000) + `}}"}`, "an expression of 20002 bytes is longer than 16384"},
		{"a large config", `{"a":"` + strings.Repeat("é", 200_000) + `"}`, "more than 1048576"},
	} {
		body, skeleton, err := wire.EncodeConfig(json.RawMessage(tc.config))
		if err == nil || !strings.Contains(err.Error(), tc.want) || body != "" || skeleton != "" {
			t.Errorf("%s: got %q, %q, %v", tc.reason, body, skeleton, err)
		}
	}
}

func TestDecodeConfigRefuses(t *testing.T) {
	for _, tc := range []struct{ reason, encoded string }{
		{"no JSON", `{"a":`},
		{"nothing", ``},
		{"more than one value", `{} {}`},
		{"no object", `[]`},
		{"a templated string for a config", `{"$t":["{}"]}`},
		{"no pieces", `{"a":{"$t":[]}}`},
		{"no list of pieces", `{"a":{"$t":"x"}}`},
		{"pieces that do not alternate", `{"a":{"$t":["x","y"]}}`},
		{"a literal that is no text", `{"a":{"$t":[["1"]]}}`},
		{"a value that is neither text nor wrapped", `{"a":{"$t":["",1,""]}}`},
		{"an empty wrapping", `{"a":{"$t":["",[],""]}}`},
		{"a wrapping of two", `{"a":{"$t":["",["[1]","[2]"],""]}}`},
		{"a wrapping of no text", `{"a":{"$t":["",[1],""]}}`},
		{"a wrapping of no array", `{"a":{"$t":["",["1"],""]}}`},
		{"a wrapping of no JSON", `{"a":{"$t":["",["[1"],""]}}`},
		{"an inner wrapping of two", `{"a":{"$t":["",["[1,2]"],""]}}`},
		{"something beside $t", `{"a":{"$t":["x"],"b":1}}`},
		{"something before $t", `{"a":{"b":1,"$t":["x"]}}`},
		{"an unknown $ key", `{"a":{"$x":1}}`},
		{"one key twice", `{"a":1,"a":2}`},
		{"too deep", strings.Repeat(`{"a":`, 20_000) + `1` + strings.Repeat(`}`, 20_000)},
	} {
		config, skeleton, err := wire.DecodeConfig(json.RawMessage(tc.encoded))
		if !errors.Is(err, wire.ErrMalformed) || config != nil || skeleton != "" {
			t.Errorf("%s: got %v, skeleton %q, %v", tc.reason, config, skeleton, err)
		}
	}
}

// TestDecodeConfigErrors has configs that are well-formed, and fail as in Kargo.
func TestDecodeConfigErrors(t *testing.T) {
	for _, tc := range []struct{ reason, encoded string }{
		{"a control character", `{"a":"\u007f"}`},
		{"a number beyond float64", `{"a":[1e400]}`},
		{"no number", `{"a":{"$t":["n","a","n"]}}`},
	} {
		config, skeleton, err := wire.DecodeConfig(json.RawMessage(tc.encoded))
		var failed *wire.ConfigError
		if !errors.As(err, &failed) || config != nil || skeleton == "" {
			t.Errorf("%s: got %v, skeleton %q, %v", tc.reason, config, skeleton, err)
		}
	}
}

// TestSkeleton changes one thing after the other in what was encoded.
func TestSkeleton(t *testing.T) {
	of := func(encoded string) wire.Skeleton {
		_, skeleton, err := wire.DecodeConfig(json.RawMessage(encoded))
		if errors.Is(err, wire.ErrMalformed) {
			t.Fatalf("%s: %v", encoded, err)
		}
		return skeleton
	}
	const signed = `{"a":{"$t":["x","value","y",["[1]"],""]},"b":[1.10,true,null],"$$c":"text"}`
	for _, same := range []string{
		`{"$$c":"text","b":[1.10,true,null],"a":{"$t":["x","other","y",["[{\"k\":2}]"],""]}}`,
		` { "a" : { "$t" : [ "\u0078" , [ "[null]" ] , "y" , "" , "" ] } , "b":[1.10,true,null],"$$c":"te\u0078t"}`,
	} {
		if of(same) != of(signed) {
			t.Errorf("another evaluation of the config has another skeleton: %s", same)
		}
	}
	for _, other := range []string{
		`{"a":{"$t":["X","value","y",["[1]"],""]},"b":[1.10,true,null],"$$c":"text"}`,
		`{"a":{"$t":["x","value","y"]},"b":[1.10,true,null],"$$c":"text"}`,
		`{"a":"xvaluey1","b":[1.10,true,null],"$$c":"text"}`,
		`{"a":{"$$t":["x","value","y",["[1]"],""]},"b":[1.10,true,null],"$$c":"text"}`,
		`{"a":{"$t":["x","value","y",["[1]"],""]},"b":[1.1,true,null],"$$c":"text"}`,
		`{"a":{"$t":["x","value","y",["[1]"],""]},"b":[true,1.10,null],"$$c":"text"}`,
		`{"a":{"$t":["x","value","y",["[1]"],""]},"b":[1.10,true,null],"$$c":"text","d":null}`,
		`{"a":{"$t":["x","value","y",["[1]"],""]},"b":[1.10,true,null],"c":"text"}`,
		`{"a":{"$t":["x","value","y",["[1]"],""]},"b":[1.10,true],"$$c":"text"}`,
	} {
		if of(other) == of(signed) {
			t.Errorf("another config has the same skeleton: %s", other)
		}
	}
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add([]byte(`{"a":{"$t":["x","value","y",["[1]"],""]},"b":[1.10,true,null],"$$c":"text"}`))
	f.Add([]byte(`{"a":{"$t":["",["[{\"a\":[1]}]"],""]}}`))
	f.Fuzz(func(t *testing.T, encoded []byte) {
		config, skeleton, err := wire.DecodeConfig(encoded)
		var failed *wire.ConfigError
		switch {
		case err == nil:
			if config == nil || len(skeleton) != 64 {
				t.Errorf("%q: config %v, skeleton %q", encoded, config, skeleton)
			}
		case errors.As(err, &failed):
			if config != nil || len(skeleton) != 64 {
				t.Errorf("%q: config %v, skeleton %q, %v", encoded, config, skeleton, err)
			}
		case !errors.Is(err, wire.ErrMalformed) || config != nil || skeleton != "":
			t.Errorf("%q: config %v, skeleton %q, %v", encoded, config, skeleton, err)
		}
	})
}
