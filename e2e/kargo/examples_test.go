package kargo_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/stepd/stepd/e2e/sandbox"
)

// TestExamples promotes with the examples' own files: the tasks that `stepd run`
// runs, and the Stages and Applications of examples/kargo. Only where things
// are is another: project, registry, git server and Sigstore.
func TestExamples(t *testing.T) {
	p := newProject(t)
	if p.restartKargo == nil {
		t.Skip("the examples' Stages take Freight that stg has verified, which only the stand-in does not ask for")
	}
	s, err := sandbox.Start(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	trusted, err := s.Authority.TrustedRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root, err := json.Marshal(map[string]string{"inline": string(trusted)})
	if err != nil {
		t.Fatal(err)
	}
	base := s.Git.MustGit(t, sandbox.GitOps, "rev-parse", "main")
	for _, region := range []string{sandbox.RegionUS, sandbox.RegionCA} {
		if _, err := s.Publish(t.Context(), sandbox.Config(region), sandbox.Release()); err != nil {
			t.Fatal(err)
		}
	}
	moved := []any{
		map[string]any{"name": "configRepo", "value": s.Repository()},
		map[string]any{"name": "gitopsRepo", "value": s.RepoURL()},
		map[string]any{"name": "trustedRoot", "value": string(root)},
	}
	environments := []string{"prd-us", "prd-ca"}
	for _, elem := range [][]string{
		{"promotiontasks", "prd-us.yaml"}, {"promotiontasks", "prd-ca.yaml"}, {"kargo", "project", "stages.yaml"}, {"kargo", "applications.yaml"},
	} {
		for _, u := range p.exampleObjects(t, s.RepoURL(), elem...) {
			switch {
			case u.GetKind() == "ProjectConfig", strings.HasSuffix(u.GetName(), "dev"), strings.HasSuffix(u.GetName(), "stg"),
				strings.Contains(u.GetName(), "-dev-"), strings.Contains(u.GetName(), "-stg-"):
				continue // their tasks are not here
			case u.GetKind() == "Stage":
				vars, _, _ := unstructured.NestedSlice(u.Object, "spec", "vars")
				if err := unstructured.SetNestedSlice(u.Object, append(vars, moved...), "spec", "vars"); err != nil {
					t.Fatal(err)
				}
			}
			p.create(t, u)
			p.removeLater(t, u)
		}
	}
	var names []string
	for _, environment := range environments {
		names = append(names, p.promote(t, environment))
	}
	for _, name := range names {
		p.succeed(t, name)
	}
	h, err := s.History(base)
	if err != nil {
		t.Fatal(err)
	}
	if !h.Linear || !h.Changed(sandbox.ValuesPath(sandbox.RegionUS), sandbox.ValuesPath(sandbox.RegionCA)) ||
		!h.Trailers("Config-Artifact", "Signed-By", "Source-Commit", "Kargo-Promotion", "Kargo-Stage", "Kargo-Freight", "Promoted-By", "Stepd-Change") {
		t.Errorf("two commits in a line, one for each region, with all trailers are wanted, got %+v", h.Commits)
	}
	for _, region := range []string{sandbox.RegionUS, sandbox.RegionCA} {
		if got := h.Files[sandbox.ValuesPath(region)]; got != string(sandbox.Promoted(region)) {
			t.Errorf("%s on main is\n%s", region, got)
		}
	}
}

// exampleObjects are those of an example, moved into the project and to another
// gitops repository.
func (p *project) exampleObjects(t *testing.T, gitops string, elem ...string) []*unstructured.Unstructured {
	t.Helper()
	file, err := example(elem...)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.NewReplacer("devex-kargo", p.name, "https://github.com/yourorg/devex-gitops.git", gitops).Replace(string(text))
	copied := t.TempDir() + "/example.yaml"
	if err := os.WriteFile(copied, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := objects(copied)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
