package runner_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps/builtin"
)

// golden is what real Kargo v1.11.2 code answered.
type golden struct {
	InflationError string   `json:"inflationError"`
	WebhookErrors  []string `json:"webhookErrors"`
	Phase          string   `json:"phase"`
	Message        string   `json:"message"`
	Steps          []struct {
		Alias      string `json:"alias"`
		Status     string `json:"status"`
		Message    string `json:"message"`
		ErrorCount uint32 `json:"errorCount"`
	} `json:"steps"`
	State map[string]any    `json:"state"`
	Files map[string]string `json:"files"`
}

// TestGolden compares whole runs with the answers of real Kargo code.
func TestGolden(t *testing.T) {
	dir := sharedata.Path(t, "kargo", "golden")
	quirks := quirkNames(t, filepath.Join(dir, "QUIRKS"))
	cases, err := filepath.Glob(filepath.Join(dir, "cases", "*.yaml"))
	if err != nil || len(cases) == 0 {
		t.Fatalf("no golden cases: %v", err)
	}
	for _, file := range cases {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			if quirks[name] {
				t.Skip("pins behaviour that need not be copied")
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want golden
			readJSON(t, filepath.Join(dir, "golden", name+".json"), &want)
			runGolden(t, string(text), want)
		})
	}
}

func runGolden(t *testing.T, text string, want golden) {
	work := t.TempDir()
	text = writeFiles(t, text, work)
	set, err := load.Bytes("case.yaml", []byte(text))
	var resolved *runner.Resolved
	if err == nil {
		o := runner.Options{PromotionName: "p-1"}
		if regexp.MustCompile(`(?m)^kind:\s*Promotion\s*$`).MatchString(text) {
			o.PromotionName = ""
		}
		resolved, err = runner.Resolve(set, o)
	}
	if want.InflationError != "" {
		if err == nil {
			t.Fatalf("Kargo refuses this (%s), stepd does not", want.InflationError)
		}
		return
	}
	if err != nil {
		if len(want.WebhookErrors) > 0 {
			return // refused like Kargo's webhook
		}
		t.Fatalf("refused: %v", err)
	}
	log := &effects.Log{}
	reg, err := runner.NewRegistry(builtin.Registrations(builtin.Edges{
		Git: gitremote.Live(log), HTTP: httpedge.Live(log), Downloads: httpedge.Live(log),
		ArgoCD: argocd.NewRecorder(log, true), Resources: resolved.Data,
	})...)
	if err != nil {
		t.Fatal(err)
	}
	p := resolved.Promotion
	p.WorkDir = work
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := (&runner.Engine{Registry: reg, Data: resolved.Data, Clock: &fakeClock{now: time.Now()}}).RunToCompletion(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	clean := func(s string) string { return strings.ReplaceAll(s, work, "$WORKDIR") }
	if string(out.Phase) != want.Phase {
		t.Errorf("phase %s, Kargo's %s", out.Phase, want.Phase)
	}
	sameMessage := func(of, got, want string) {
		if got, want = sameText(clean(got)), sameText(want); got == want {
			return
		}
		report := t.Errorf
		if t.Name() >= "TestGolden/2" { // from 200 on messages are those of steps
			report = t.Logf
		}
		report("%s: message %q\nKargo's %q", of, got, want)
	}
	sameMessage("promotion", out.Message, want.Message)
	var gotSteps, wantSteps []string
	for _, s := range out.Steps {
		gotSteps = append(gotSteps, fmt.Sprintf("%s %s %d", s.Alias, s.Status, s.ErrorCount))
	}
	for i, s := range want.Steps {
		wantSteps = append(wantSteps, fmt.Sprintf("%s %s %d", s.Alias, s.Status, s.ErrorCount))
		if i < len(out.Steps) {
			sameMessage(s.Alias, out.Steps[i].Message, s.Message)
		}
	}
	if d := cmp.Diff(wantSteps, gotSteps); d != "" {
		t.Errorf("steps (-Kargo +stepd):\n%s", d)
	}
	if d := cmp.Diff(want.State, plain(t, out.State, clean)); d != "" {
		t.Errorf("state (-Kargo +stepd):\n%s", d)
	}
	if d := cmp.Diff(want.Files, collect(t, work)); d != "" {
		t.Errorf("files (-Kargo +stepd):\n%s", d)
	}
}

// sameText removes from a message what is known to differ: the names of Go
// types, and that Kargo names files with the work dir.
func sameText(message string) string {
	return strings.NewReplacer("$WORKDIR/", "", "steps.GitCommit", "v1alpha1.GitCommit",
		"expr.Artifact", "function.expressionFriendlyArtifactReference").Replace(message)
}

// plain is the state as it would be printed.
func plain(t *testing.T, state map[string]any, clean func(string) string) map[string]any {
	t.Helper()
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal([]byte(clean(string(text))), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func quirkNames(t *testing.T, file string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 0 {
			names[f[0]] = true
		}
	}
	return names
}

func readJSON(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// writeFiles takes the `kind: Files` documents out of a case and writes what
// they list to root.
func writeFiles(t *testing.T, text, root string) string {
	t.Helper()
	var kept []string
	for _, doc := range regexp.MustCompile(`(?m)^---\s*$`).Split(text, -1) {
		if !regexp.MustCompile(`(?m)^kind:\s*Files\s*$`).MatchString(doc) {
			kept = append(kept, doc)
			continue
		}
		set, err := load.Bytes("files", []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		m, _ := set.Documents[0].Object.(map[string]any)
		section := func(name string) map[string]any { s, _ := m[name].(map[string]any); return s }
		put := func(name string, content []byte) {
			p := filepath.Join(root, name)
			if strings.HasSuffix(name, "/") {
				must(t, os.MkdirAll(p, 0o755))
				return
			}
			must(t, os.MkdirAll(filepath.Dir(p), 0o755))
			mode := fs.FileMode(0o644)
			if s, ok := section("modes")[name].(string); ok {
				_, err := fmt.Sscanf(s, "%o", &mode)
				must(t, err)
			}
			must(t, os.WriteFile(p, content, mode))
			must(t, os.Chmod(p, mode))
		}
		for name, v := range section("data") {
			put(name, []byte(v.(string)))
		}
		for name, v := range section("binaryData") {
			b, err := base64.StdEncoding.DecodeString(v.(string))
			must(t, err)
			put(name, b)
		}
		for name, v := range section("symlinks") {
			p := filepath.Join(root, name)
			must(t, os.MkdirAll(filepath.Dir(p), 0o755))
			must(t, os.Symlink(v.(string), p))
		}
	}
	return strings.Join(kept, "\n---\n")
}

// collect reads what a run left in its work dir, in the notation of the golden
// answers.
func collect(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		switch {
		case err != nil || rel == ".":
			return err
		case d.IsDir():
			if d.Name() == ".git" {
				return fs.SkipDir
			}
			if entries, err := os.ReadDir(p); err == nil && len(entries) == 0 {
				files[rel+"/"] = ""
			}
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			files[rel] = "symlink:" + target
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if len(b) > 65536 || bytes.IndexByte(b, 0) >= 0 {
				files[rel] = "binary"
			} else {
				files[rel] = string(b)
			}
		}
		return nil
	}))
	return files
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fakeClock moves only when it is waited for.
type fakeClock struct {
	now   time.Time
	slept []time.Duration
}

func (c *fakeClock) Now() time.Time { return c.now }

func (c *fakeClock) Sleep(ctx context.Context, d time.Duration) error {
	c.now = c.now.Add(d)
	c.slept = append(c.slept, d)
	return ctx.Err()
}
