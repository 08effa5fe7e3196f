package atomiccommit

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestIgnoredAsGitIgnores holds which untracked files are taken, by random
// .gitignore files, against what git would add.
func TestIgnoredAsGitIgnores(t *testing.T) {
	patterns := []string{
		"*", "*.yaml", "/*.yaml", "f.yaml", "dir/*.yaml", "dir/**", "**/f.yaml", "**/dir", "a/**/b.yaml", "/dir", "dir/", "dir", "x/", "*/x", "[fg].yaml",
		"!f.yaml", "!dir/", "!dir/f.yaml", "?.yaml", "**", "a**b", `\!f.yaml`, `\#c`, "#c", "f.yaml ", `f.yaml\ `, "d*/", "/**/f.yaml", "*.y*", "!*.yaml",
		"dir/x/", "!/dir/x", "{f,g}.yaml", "[!f].yaml", "sub/", "!sub/f.yaml", "f.yam", "**/x/**", "[a", "!", "/", `f\`,
	}
	paths := []string{"f.yaml", "g.yaml", "b.yaml", "dir/f.yaml", "dir/x/y.yaml", "a/b.yaml", "a/c/d/b.yaml", "dir/x/f.yaml", "a/dir/q.yaml", "sub/f.yaml", "sub/dir/f.yaml", "#c", "x/dir", "!f.yaml", "{f,g}.yaml", "f.yaml "}
	r := rand.New(rand.NewPCG(7, 2)) //nolint:gosec // a test's choice of cases
	dir := t.TempDir()
	git := gitIn(t, dir)
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range paths {
		write(p, "x")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	lines := func(n int) string {
		var b strings.Builder
		for range n {
			b.WriteString(patterns[r.IntN(len(patterns))] + "\n")
		}
		return b.String()
	}
	for range 200 {
		top, sub := lines(1+r.IntN(3)), lines(r.IntN(2))
		write(".gitignore", top)
		write("sub/.gitignore", sub)
		want := strings.FieldsFunc(git("", "ls-files", "-z", "--others", "--exclude-standard"), func(c rune) bool { return c == 0 })
		w := &worktree{ctx: t.Context(), dir: root, seen: map[string]bool{}, attributes: builtinAttributes()}
		if err := w.walk("", false); err != nil {
			t.Fatal(err)
		}
		got := changedPaths(w.changes)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("with %q, and %q in sub: %q, git would add %q", top, sub, got, want)
		}
	}
}
