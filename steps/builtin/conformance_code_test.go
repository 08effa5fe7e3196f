package builtin

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/steps"
)

// Cases of the conformance list that follow from Kargo's code only (C): where
// one of them disagrees with Kargo, look into Kargo first.

// F14 and F22: yaml-update edits lines. What that damages, Kargo damages, and
// stepd does not.
func TestConformanceYAMLUpdateLines(t *testing.T) {
	for name, tc := range map[string]struct {
		reason, in string
		updates    []any
		want       string
	}{
		"F14": {"the comment of a changed line is lost", "a:\n- b: old # note\n", []any{config{"key": "a.0.b", "value": "new"}}, "a:\n- b: new\n"},
		"F22": {"Kargo keeps the last of two updates of a line, and loses its rest", "m: {a: 1x, b: 2x}\n",
			[]any{config{"key": "m.a", "value": "3x"}, config{"key": "m.b", "value": "4x"}}, "m: {a: 3x, b: 4x}\n"},
	} {
		p := newPromotion(t)
		p.write("v.yaml", tc.in)
		p.must(YAMLUpdate(), config{"path": "v.yaml", "updates": tc.updates})
		if diff := cmp.Diff(tc.want, p.read("v.yaml")); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", name, tc.reason, diff)
		}
	}
}

// F32: json-update sets scalars only, and all of them or none.
func TestConformanceF32Scalars(t *testing.T) {
	for _, value := range []any{nil, config{"k": 1}, []any{}} {
		p := newPromotion(t)
		p.write("f.json", "{}")
		r, err := p.run(JSONUpdate(), config{"path": "f.json", "updates": []any{config{"key": "a", "value": 1}, config{"key": "b", "value": value}}})
		outcome{steps.Errored, false, `value for key "b" is not a scalar type`}.check(t, "F32", r, err)
		if p.read("f.json") != "{}" {
			t.Error("half of the updates were written")
		}
	}
}

// G6: a generated branch is named after the promotion, and forced.
func TestConformanceG6GeneratedBranch(t *testing.T) {
	server := gitopsServer(t)
	p := newPromotion(t)
	git := liveGit(p)
	branch := "kargo/promotion/" + p.name
	p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"), "checkout": []any{config{"branch": "main", "path": "a"}}})
	base := server.MustGit(t, "gitops.git", "log", "--format=%s", "main")
	// What is on the branch already is replaced.
	server.MustGit(t, "gitops.git", "branch", branch, server.MustGit(t, "gitops.git", "commit-tree", "-m", "unrelated", "main^{tree}"))
	p.write("a/rendered.yaml", "a: 1\n")
	p.must(git.commit, config{"path": "a", "message": "render"})
	for range 2 { // a second push of it is not refused
		out := p.must(git.push, config{"path": "a", "generateTargetBranch": true})
		if out["branch"] != branch {
			t.Errorf("branch %v, want %s", out["branch"], branch)
		}
	}
	if got := server.MustGit(t, "gitops.git", "log", "--format=%s", branch); got != "render\n"+base {
		t.Errorf("the promotion's branch holds %q", got)
	}
	var messages []string
	for _, c := range p.log.Commits() {
		messages = append(messages, c.Branch+": "+strings.TrimSpace(c.Message))
	}
	if diff := cmp.Diff([]string{branch + ": render"}, messages); diff != "" {
		t.Errorf("logged commits (-want +got):\n%s", diff)
	}
}

// G14: a reference needs a tag or a digest, and takes one of them.
func TestConformanceG14Reference(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ reason, ref string }{
		"neither": {"a tag or a digest is required", "registry.example.com/o/r"},
		"both":    {"Kargo takes one of them only", "registry.example.com/o/r:v1@sha256:" + strings.Repeat("0", 64)},
		"empty":   {"there is no default", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reg := OCIDownload(&ociart.Transports{})
			schema, err := configschema.Compile(reg.ConfigSchema)
			if err != nil {
				t.Fatal(err)
			}
			if v := schema.Validate(map[string]any{"imageRef": tt.ref, "outPath": "f"}); len(v) == 0 {
				t.Errorf("%s: %q was accepted", tt.reason, tt.ref)
			}
		})
	}
}

// G32: the field is desiredRevision.
func TestConformanceG32DesiredCommit(t *testing.T) {
	p := newPromotion(t)
	r, err := p.run(ArgoCDUpdate(argocd.NewRecorder(p.log, false), "argocd"), config{"apps": []any{config{
		"name": "app", "sources": []any{config{"repoURL": "https://git.example.com/a.git", "desiredCommit": "abc"}},
	}}})
	outcome{steps.Failed, true, "Additional property desiredCommit is not allowed"}.check(t, "G32", r, err)
}

// H9: an author without a key commits unsigned, whoever the
// system's user is.
func TestConformanceH9AuthorWithoutKey(t *testing.T) {
	server := gitopsServer(t)
	p := newPromotion(t)
	p.caps.GitUser = gitUserFunc(func() (steps.GitUser, error) {
		return steps.GitUser{Name: "System", Email: "sys@example.com", SigningKey: "unusable", SigningKeyType: "gpg"}, nil
	})
	git := liveGit(p)
	p.must(git.clone, config{"repoURL": server.RepoURL("gitops.git"),
		"author":   config{"name": "Ada", "email": "ada@example.com"},
		"checkout": []any{config{"branch": "main", "path": "g"}}})
	p.write("g/a", "a")
	p.must(git.commit, config{"path": "g", "message": "m"})
	if got, _ := exec(t, p.dir+"/g", "git", "log", "-1", "--format=%an %ae %cn %G?"); got != "Ada ada@example.com Ada N" {
		t.Errorf("commit is by %q", got)
	}
	p.write("g/b", "b")
	p.must(git.commit, config{"path": "g", "message": "m", "author": config{"name": "Eve", "email": "eve@example.com"}})
	if got, _ := exec(t, p.dir+"/g", "git", "log", "-1", "--format=%an %ce"); got != "Eve eve@example.com" {
		t.Errorf("git-commit's author did not win: %q", got)
	}
}
