package builtin

import (
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/steps"
)

// dataSteps are the steps that read and write files and nothing else, which
// can be held against Kargo's answers without an engine.
func dataSteps() map[string]steps.Registration {
	kinds := map[string]steps.Registration{}
	for _, reg := range []steps.Registration{
		JSONParse(), JSONUpdate(), KustomizeBuild(), KustomizeSetImage(memory{}), TOMLParse(), TOMLUpdate(), YAMLMerge(), YAMLParse(), YAMLUpdate(),
		Copy(), Delete(), FileWrite(), Untar(),
	} {
		kinds[reg.Name] = reg
	}
	return kinds
}

type goldenCase struct {
	steps []struct {
		Uses   string         `json:"uses"`
		As     string         `json:"as"`
		Config map[string]any `json:"config"`
	}
	freight steps.FreightCollection
	files   struct {
		Data       map[string]string `json:"data"`
		BinaryData map[string]string `json:"binaryData"`
		Symlinks   map[string]string `json:"symlinks"`
	}
}

type goldenAnswer struct {
	Steps []struct {
		Alias  string       `json:"alias"`
		Status steps.Status `json:"status"`
	} `json:"steps"`
	State map[string]any    `json:"state"`
	Files map[string]string `json:"files"`
}

// TestGoldenData runs the cases that need nothing but data steps and no
// expressions, and compares with what real Kargo code answered. All cases,
// these included, run through the whole program in scripts/check-golden.sh.
func TestGoldenData(t *testing.T) {
	cases, err := filepath.Glob(filepath.Join(sharedata.Path(t, "kargo", "golden", "cases"), "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	quirks, err := os.ReadFile(sharedata.Path(t, "kargo", "golden", "QUIRKS"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := dataSteps()
	ran := 0
	for _, file := range cases {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		c, ok := readGoldenCase(t, file)
		if !ok || slices.ContainsFunc(strings.Split(string(quirks), "\n"), func(l string) bool { return strings.HasPrefix(l, name+"\t") }) {
			continue
		}
		known := len(c.steps) > 0
		for _, s := range c.steps {
			_, ok := kinds[s.Uses]
			known = known && ok
		}
		if !known {
			continue
		}
		ran++
		t.Run(name, func(t *testing.T) { runGoldenCase(t, c, name, kinds) })
	}
	if ran == 0 {
		t.Error("no case was run")
	}
}

func runGoldenCase(t *testing.T, c goldenCase, name string, kinds map[string]steps.Registration) {
	text, err := os.ReadFile(sharedata.Path(t, "kargo", "golden", "golden", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var want goldenAnswer
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	p := newPromotion(t)
	p.freight = c.freight
	for f, data := range c.files.Data {
		p.write(f, data)
	}
	for f, data := range c.files.BinaryData {
		b, err := base64.StdEncoding.DecodeString(data)
		if err != nil {
			t.Fatal(err)
		}
		p.write(f, string(b))
	}
	for f, to := range c.files.Symlinks {
		if err := os.Symlink(to, filepath.Join(p.dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	state := map[string]any{}
	for i, s := range c.steps {
		r, err := p.run(kinds[s.Uses], s.Config)
		if r.Status != want.Steps[i].Status {
			t.Errorf("%s %v: %s (%v), want %s", s.As, s.Config, r.Status, err, want.Steps[i].Status)
		}
		var output any
		b, err := json.Marshal(r.Output)
		if err == nil {
			err = json.Unmarshal(b, &output)
		}
		if err != nil {
			t.Fatal(err)
		}
		state[s.As] = output
	}
	if diff := cmp.Diff(want.State, state); diff != "" {
		t.Errorf("state (-Kargo +ours):\n%s", diff)
	}
	if diff := cmp.Diff(want.Files, filesBelow(t, p.dir)); diff != "" {
		t.Errorf("files (-Kargo +ours):\n%s", diff)
	}
}

// readGoldenCase reports false for a case that needs an engine.
func readGoldenCase(t *testing.T, file string) (c goldenCase, ok bool) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "${{") {
		return c, false
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var head struct {
			Kind string `json:"kind"`
			Spec struct {
				Vars     []any `json:"vars"`
				Template struct {
					Spec struct {
						Steps json.RawMessage `json:"steps"`
					} `json:"spec"`
				} `json:"promotionTemplate"`
			} `json:"spec"`
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			return c, false
		}
		switch head.Kind {
		case "Files":
			if err := yaml.Unmarshal([]byte(doc), &c.files); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
		case "Freight":
			var f steps.FreightReference
			if err := yaml.Unmarshal([]byte(doc), &f); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			c.freight.Freight = map[string]steps.FreightReference{f.Origin.String(): f}
		case "Stage":
			if err := json.Unmarshal(head.Spec.Template.Spec.Steps, &c.steps); err != nil {
				return c, false
			}
		}
	}
	return c, true
}

// filesBelow reads a tree the way the golden files describe one.
func filesBelow(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || name == ".":
			return err
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(filepath.Join(root, name))
			found[name] = "symlink:" + to
			return err
		case d.IsDir():
			entries, err := os.ReadDir(filepath.Join(root, name))
			if len(entries) == 0 {
				found[name+"/"] = ""
			}
			return err
		}
		b, err := os.ReadFile(filepath.Join(root, name))
		if !utf8.Valid(b) {
			t.Errorf("%s is binary, which this test does not compare", name)
		}
		found[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
