package load_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

const task = `apiVersion: kargo.akuity.io/v1alpha1
kind: PromotionTask
metadata: {name: t, namespace: demo}
spec:
  vars:
  - name: v
  steps:
  - uses: copy
    as: c
    config:
      inPath: a
      "on": [1, {x: y}]
`

func TestMixedStream(t *testing.T) {
	text := "# a comment\n---\n" + task + "---\n# nothing here\n---\n---\nkind: ConfigMap\napiVersion: v1\nmetadata:\n  name: m\n...\n" +
		"--- {apiVersion: v1, kind: Secret, metadata: {name: s}}\n---\nreplicas: 3\n"
	set, err := load.Documents(t.Context(), []string{"-"}, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range set.Documents {
		got = append(got, fmt.Sprintf("%s:%d #%d %s %s/%s %T", d.File, d.Line, d.Index, d.Kind, d.Namespace, d.Name, d.Object))
	}
	want := []string{
		"-:3 #0 PromotionTask demo/t *kargoapi.PromotionTask",
		"-:19 #1 ConfigMap /m *kargoapi.ConfigMap",
		"-:24 #2 Secret /s *kargoapi.Secret",
		"-:26 #3  / map[string]interface {}",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(set.Warnings) != 1 || set.Warnings[0].Line != 26 {
		t.Errorf("warnings %v, want one about the last document", set.Warnings)
	}
}

func TestPositions(t *testing.T) {
	set, err := load.Bytes("f.yaml", []byte("---\n"+task))
	if err != nil {
		t.Fatal(err)
	}
	d := set.Documents[0]
	for _, tc := range []struct{ reason, pointer, key, value string }{
		{"a key", "/spec/steps/0/config/inPath", "f.yaml:12:7", "f.yaml:12:15"},
		{"an item of a list", "/spec/steps/0", "f.yaml:9:5", "f.yaml:9:5"},
		{"inside a flow", "/spec/steps/0/config/on/1/x", "f.yaml:13:18", "f.yaml:13:21"},
		{"a missing key is where it should be", "/spec/steps/0/config/outPath", "f.yaml:11:5", "f.yaml:12:7"},
		{"the document", "", "f.yaml:2:1", "f.yaml:2:1"},
	} {
		if got := d.Position(tc.pointer).String(); got != tc.key {
			t.Errorf("%s: %s, want %s", tc.reason, got, tc.key)
		}
		if got := d.ValuePosition(tc.pointer).String(); got != tc.value {
			t.Errorf("%s: value %s, want %s", tc.reason, got, tc.value)
		}
	}
}

func TestPositionsThroughAnchors(t *testing.T) {
	set, err := load.Bytes("f.yaml", []byte("base: &b\n  k: 1\n  no: 2\nuse: *b\nmerged:\n  <<: *b\n  z: 3\nloop: &l {a: 1}\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := set.Documents[0]
	for pointer, want := range map[string]string{
		"/use/k": "f.yaml:2:3", "/merged/k": "f.yaml:2:3", "/merged/z": "f.yaml:7:3", "/base/false": "f.yaml:3:3",
		"/loop/a": "f.yaml:8:11",
	} {
		if got := d.Position(pointer).String(); got != want {
			t.Errorf("%s: %s, want %s", pointer, got, want)
		}
	}
}

func TestYAML11(t *testing.T) {
	set, err := load.Bytes("f", []byte("a: [y, n, off, 010, 0o17, 1_000, 0b101, 12:30:45, 2024-01-01, !!binary aGk=]\nn: {yes: 1}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"a":[true,false,false,8,15,1000,5,"12:30:45","2024-01-01","hi"],"false":{"true":1}}`
	if got := string(set.Documents[0].JSON); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestStrict(t *testing.T) {
	head := "apiVersion: kargo.akuity.io/v1alpha1\nkind: PromotionTask\nmetadata: {name: t}\nspec:\n  steps:\n"
	for _, tc := range []struct{ reason, text, at, contains string }{
		{"an unknown field, with a suggestion", head + "  - uses: copy\n    conifg: {}\n", "f:7:5", `did you mean "config"?`},
		{"letter case counts", head + "  - Uses: copy\n", "f:6:5", `did you mean "uses"?`},
		{"YAML 1.1 makes y a boolean", head + "  - uses: copy\n    as: y\n", "f:7:5", "YAML 1.1"},
		{"a number where text is wanted", head + "  - uses: copy\n    vars: [{name: a, value: 42}]\n", "f:7:22", "must be a string, not the number 42"},
		{"a list where an object is wanted", head + "  - [copy]\n", "f:6:5", "must be an object"},
		{"an object where a list is wanted", "apiVersion: kargo.akuity.io/v1alpha1\nkind: Stage\nspec: {vars: {a: b}}\n", "f:3:8", "must be a list, not an object; begin each item with a dash"},
		{"a duration", head + "  - uses: copy\n    retry: {timeout: 5}\n", "f:7:13", "must be a string, not the number 5; write it like 48h"},
		{"a bad duration", head + "  - uses: copy\n    retry: {timeout: soon}\n", "f:7:13", "not a duration"},
		{"a negative threshold", head + "  - uses: copy\n    retry: {errorThreshold: -1}\n", "f:7:13", "out of range"},
		{"a duplicate key", head + "  - uses: copy\n    uses: move\n", "f:7:5", "already set"},
		{"text in two braces without quotes", head + "  - uses: copy\n    config: {inPath: a, outPath: {{ vars.x }}}\n", "f:7:35", "put the value in quotes"},
		{"a tab", head + "  - uses: copy\n\tas: x\n", "f:7:1", "indent with spaces"},
		{"no UTF-8", head + "  - uses: \"é\xff\"\n", "f:6:13", "no UTF-8"},
		{"a bracket that is not closed", head + "  - uses: [\n", "f:6:11", "close this bracket"},
		{"a quote that is not closed", head + "  - uses: copy\n    config: {}\n  - uses: \"copy\n    config: {}\n", "f:8:11", "close this quote"},
		{"quotes in quotes", head + "  - uses: \"${{ vars[\"x\"] }}\"\n", "f:6:22", "the quoted text ends before this"},
		{"a colon in plain text", head + "  - uses: fail\n    config:\n      message: chore(x): promote\n", "f:8:16", "has a colon in it"},
		{"curly quotes", head + "  - uses: fail\n    config:\n      message: “chore: promote”\n", "f:8:16", "straight quotes"},
		{"a reserved character", head + "  - uses: @copy\n", "f:6:11", "put the value in quotes"},
		{"an indentation of one too few", head + "  - uses: copy\n    as: x\n   config: {}\n", "f:8:4", "how this line is indented"},
		{"a space that is none", head + "  - uses: copy\n\u00a0   as: x\n    config: {}\n", "f:7:1", "U+00A0"},
		{"an asterisk", head + "  - uses: delete\n    config: {path: *.yaml}\n", "f:7:20", "plain text cannot begin"},
		{"an anchor in itself", head + "  - uses: copy\n    config: &c\n      x: *c\n", "f:8:10", "contains itself"},
		{"a control character", head + "  - uses: copy\n    as: \"x\x01\"\n", "f:7:11", "U+0001"},
		{"too many levels", strings.Repeat("[", 20_000), "f:1:1", "without so many levels"},
		{"not base64", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {k: '!'}\n", "f:4:8", "stringData"},
		{"a field of Freight's that its neighbours have", "apiVersion: kargo.akuity.io/v1alpha1\nkind: Freight\nspec: {images: []}\n", "f:3:1", "top level"},
		{"a bad time", "apiVersion: kargo.akuity.io/v1alpha1\nkind: Freight\norigin: {kind: Warehouse, name: w}\ndiscoveredAt: now\n", "f:4:1", "RFC 3339"},
		{"a bool", head + "  - uses: copy\n    continueOnError: maybe\n", "f:7:5", "true or false"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			_, err := load.Bytes("f", []byte(tc.text))
			errs := load.AsErrors(err)
			if len(errs) != 1 {
				t.Fatalf("got %v, want one error", err)
			}
			if errs[0].String() != tc.at || !strings.Contains(errs[0].Error(), tc.contains) {
				t.Errorf("got %v, want it at %s with %q", errs[0], tc.at, tc.contains)
			}
			if strings.Contains(tc.reason, "field") && !errors.Is(err, steps.ErrConfig) {
				t.Error("not a configuration error")
			}
		})
	}
}

// TestMergeOverrides: Kubernetes accepts a key beside the merge key whose value
// it overrides.
func TestMergeOverrides(t *testing.T) {
	set, err := load.Bytes("f", []byte("a: &a {k: 1, l: 2}\nb: {<<: *a, k: 3}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(set.Documents[0].JSON), `{"a":{"k":1,"l":2},"b":{"k":3,"l":2}}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestPartial: what can be read of a document is there to look at.
func TestPartial(t *testing.T) {
	set, err := load.Bytes("f", []byte("apiVersion: kargo.akuity.io/v1alpha1\nkind: PromotionTask\nmetadata: {name: t}\nspec:\n  vars: [1, {name: a}]\n  steps:\n  - uses: copy\n    conifg: {}\n"))
	if len(load.AsErrors(err)) != 2 || len(set.Documents) != 0 || len(set.Partial) != 1 {
		t.Fatalf("got %v, %d documents, %d partial ones; want two errors and a partial document", err, len(set.Documents), len(set.Partial))
	}
	d := set.Partial[0]
	if diff := cmp.Diff([]string{"/spec/steps/0/conifg", "/spec/vars/0"}, d.Unread); diff != "" {
		t.Errorf("unread (-want +got):\n%s", diff)
	}
	task, _ := load.As[*kargoapi.PromotionTask](d)
	if task == nil || len(task.Spec.Vars) != 2 || task.Spec.Vars[1].Name != "a" || len(task.Spec.Steps) != 1 || task.Spec.Steps[0].Uses != "copy" {
		t.Errorf("got %+v, want the items that can be read at their places", task)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	text := "apiVersion: kargo.akuity.io/v1alpha1\nkind: Stage\nmetadata: {name: 1}\nspce: {}\n---\n" + task
	set, err := load.Bytes("f", []byte(text))
	if errs := load.AsErrors(err); len(errs) != 2 {
		t.Errorf("got %v, want two errors", err)
	}
	if len(set.Documents) != 1 {
		t.Errorf("%d documents, want the good one", len(set.Documents))
	}
}

// TestReadingEnds: nobody may ever write to a pipe that is named.
func TestReadingEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := load.Documents(ctx, []string{"-"}, r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func TestUnknownKinds(t *testing.T) {
	for _, tc := range []struct{ reason, text, warning string }{
		{"another API", "apiVersion: argoproj.io/v1alpha1\nkind: Application\n", "not a kind stepd knows"},
		{"a kind that Kargo may have by now", "apiVersion: kargo.akuity.io/v1alpha1\nkind: Quux\n", "not a kind stepd knows"},
		{"another API's Stage", "apiVersion: acme.io/v1\nkind: Stage\n", "not a kind stepd knows"},
		{"no version", "kind: Job\n", "no apiVersion"},
		{"no kind", "a: 1\n", "no kind"},
		{"a scalar", "just text\n", "no kind"},
		{"odd types", "apiVersion: [1]\nkind: {a: b}\nmetadata: x\n", "no kind"},
	} {
		set, err := load.Bytes("f", []byte(tc.text))
		if err != nil || len(set.Documents) != 1 || len(set.Warnings) != 1 || !strings.Contains(set.Warnings[0].Message, tc.warning) {
			t.Errorf("%s: %v, %v, want one raw document and %q", tc.reason, err, set.Warnings, tc.warning)
		}
	}
}

// TestMisnamed: what the API server would refuse is not left out silently.
func TestMisnamed(t *testing.T) {
	for _, tc := range []struct{ reason, text, contains string }{
		{"letter case", "apiVersion: kargo.akuity.io/v1alpha1\nkind: Promotiontask\n", "did you mean PromotionTask?"},
		{"one letter too many", "apiVersion: kargo.akuity.io/v1alpha1\nkind: Stages\n", "did you mean Stage?"},
		{"wrong version", "apiVersion: kargo.akuity.io/v1\nkind: Stage\n", "write apiVersion: kargo.akuity.io/v1alpha1"},
		{"no version", "kind: Stage\n", "write apiVersion: kargo.akuity.io/v1alpha1"},
		{"no kind", "apiVersion: kargo.akuity.io/v1alpha1\nspec: {}\n", "write kind"},
	} {
		set, err := load.Bytes("f", []byte(tc.text))
		if errs := load.AsErrors(err); len(errs) != 1 || errs[0].String() != "f:1:1" || !strings.Contains(errs[0].Error(), tc.contains) || len(set.Documents) != 0 {
			t.Errorf("%s: %v, want one error with %q", tc.reason, err, tc.contains)
		}
	}
}

func TestList(t *testing.T) {
	text := "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: a}\n- apiVersion: kargo.akuity.io/v1alpha1\n" +
		"  kind: Freight\n  metadata: {name: f}\n  origin: {kind: Warehouse, name: w}\n"
	set, err := load.Bytes("f", []byte(text))
	if err != nil || len(set.Documents) != 2 {
		t.Fatalf("%v, %d documents, want 2", err, len(set.Documents))
	}
	f, ok := load.As[*kargoapi.Freight](set.Documents[1])
	if !ok || f.Origin.Name != "w" {
		t.Errorf("got %+v", set.Documents[1].Object)
	}
	if got := set.Documents[1].Position("/origin").String(); got != "f:10:3" {
		t.Errorf("position %s", got)
	}
}

func TestFilesAndDirectories(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("b/task.yaml", task)
	write("a.yml", strings.ReplaceAll(task, "name: t", "name: t2"))
	write("c.json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m"}}`)
	write(".git/x.yaml", "{")
	write("README.md", "{")
	write("empty/none.txt", "")
	set, err := load.Documents(t.Context(), []string{dir, filepath.Join(dir, "a.yml")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range set.Documents {
		rel, _ := filepath.Rel(dir, d.File)
		got = append(got, rel+" "+d.Name)
	}
	if d := cmp.Diff([]string{"a.yml t2", "b/task.yaml t", "c.json m"}, got); d != "" {
		t.Error(d)
	}
	write("chart/templates/x.yaml", "a: {{ .Values.x }}\nb: [\n")
	write("chart/values.yaml", "replicas: 3\n")
	write("chart/app.yaml", "apiVersion: argoproj.io/v1alpha1\nkind: Application\n") // others' objects are nothing to warn of
	chart := filepath.Join(dir, "chart")
	set, err = load.Documents(t.Context(), []string{chart}, nil)
	if err != nil || len(set.Warnings) != 1 || len(set.Documents) != 2 {
		t.Errorf("%v, %v: want a warning about a template that was come across", err, set.Warnings)
	}
	if _, err = load.Documents(t.Context(), []string{filepath.Join(chart, "templates", "x.yaml")}, nil); err == nil {
		t.Error("a template that was named is accepted")
	}
	write("chart/templates/x.yaml", "apiVersion: kargo.akuity.io/v1alpha1\nb: [\n")
	if _, err = load.Documents(t.Context(), []string{chart}, nil); err == nil {
		t.Error("a broken file that speaks of Kargo is accepted")
	}
	set, err = load.Documents(t.Context(), []string{filepath.Join(dir, "empty")}, nil)
	if err != nil || len(set.Warnings) != 1 || !set.Warnings[0].Empty {
		t.Errorf("%v, %v: want a warning about a folder without documents", err, set.Warnings)
	}
	_, err = load.Documents(t.Context(), []string{filepath.Join(dir, "nope.yaml"), "-"}, nil)
	if !errors.Is(err, os.ErrNotExist) || len(load.AsErrors(err)) != 2 {
		t.Errorf("got %v, want a missing file and missing standard input", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := load.Documents(ctx, []string{dir}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

// A file that is named twice is read once, and is not empty the second time.
func TestNothingThere(t *testing.T) {
	for _, tc := range []struct {
		reason, text string
		empty        bool
	}{
		{"nothing", "", true},
		{"comments and markers", "# later\n---\n", true},
		{"a null", "~\n", true},
		{"a list of nothing", "apiVersion: v1\nkind: List\nitems: []\n", true},
		{"a document of another kind", "a: 1\n", false},
	} {
		one := filepath.Join(t.TempDir(), "one.yaml")
		if err := os.WriteFile(one, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		set, err := load.Documents(t.Context(), []string{one, one, filepath.Dir(one)}, nil)
		if err != nil || len(set.Warnings) > 1 || slices.ContainsFunc(set.Warnings, func(w load.Warning) bool { return w.Empty && w.File == one }) != tc.empty {
			t.Errorf("%s: %v, %v: want a file without documents: %v", tc.reason, err, set.Warnings, tc.empty)
		}
		set, err = load.Documents(t.Context(), []string{"-"}, strings.NewReader(tc.text))
		if err != nil || slices.ContainsFunc(set.Warnings, func(w load.Warning) bool { return w.Empty && w.File == "-" }) != tc.empty {
			t.Errorf("%s on standard input: %v, %v", tc.reason, err, set.Warnings)
		}
	}
}

func TestTooLarge(t *testing.T) {
	_, err := load.Documents(t.Context(), []string{"-"}, strings.NewReader("a: "+strings.Repeat("x", 17<<20)))
	if err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("got %v", err)
	}
}

// FuzzBytes checks that no text crashes the loader, and that whatever it
// accepts has positions inside the text.
func FuzzBytes(f *testing.F) {
	f.Add(task)
	f.Add("a: &a [*a]\n")
	f.Add("--- {a: 1}\n...\n%YAML 1.1\n---\n- x\n")
	f.Add("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List, items: []}]\n")
	f.Add("a: &a {b: 1}\nc: &c {<<: [*a, *a]}\nd: {<<: *c}\n")
	f.Add("? [a, b]\n: c\n")
	f.Fuzz(func(t *testing.T, text string) {
		set, err := load.Bytes("f", []byte(text))
		if strings.HasPrefix(text, "\xfe\xff") || strings.HasPrefix(text, "\xff\xfe") {
			return // UTF-16, whose lines this cannot count
		}
		lines := 1
		for _, r := range text {
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) { // what YAML takes for line breaks
				lines++
			}
		}
		for _, e := range load.AsErrors(err) {
			if e.Line > lines+1 {
				t.Errorf("error at line %d of %d: %v", e.Line, lines, e)
			}
		}
		for _, d := range set.Documents {
			for _, p := range []string{"", "/a/b", "/spec/steps/0/config", "/d/b", "/c/b"} {
				if pos := d.Position(p); pos.Line > lines+1 {
					t.Errorf("%s at line %d of %d", p, pos.Line, lines)
				}
			}
		}
	})
}

func BenchmarkLoad1000Tasks(b *testing.B) {
	var sb strings.Builder
	for i := range 1000 {
		sb.WriteString("---\n" + strings.ReplaceAll(task, "name: t,", fmt.Sprintf("name: t%d,", i)))
	}
	text := []byte(sb.String())
	for b.Loop() {
		if _, err := load.Bytes("f", text); err != nil {
			b.Fatal(err)
		}
	}
}
