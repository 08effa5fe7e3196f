package atomiccommit

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/internal/gitrepo"
)

// TestAttributesAsGitReadsThem holds what we read of random .gitattributes
// files against `git check-attr`. A file we refuse to understand is fine.
func TestAttributesAsGitReadsThem(t *testing.T) {
	names := []string{"filter", "text", "eol", "working-tree-encoding", "ident", "crlf"}
	patterns := []string{
		"*", "*.yaml", "/*.yaml", "f.yaml", "dir/*.yaml", "dir/**", "**/f.yaml", "**/dir/*", "a/**/b.yaml", "/dir", "dir/", "dir",
		"[fg].yaml", "[!f].yaml", "[^f].yaml", "?.yaml", "*.[xy]aml", "{f,g}.yaml", `\{f\}.yaml`, `\*.yaml`, "a**b.yaml", "**", "dir/**/x/*", "d*/f.yaml", "/**/f.yaml",
		`"f.yaml"`, `"a b.yaml"`, "!f.yaml", "[[:alpha:]].yaml", "[]f].yaml", "[f-h].yaml", "*.YAML", "dir//f.yaml", "./f.yaml", "***/f.yaml", "dir/***", `f\.yaml`, `[\f].yaml`, "[a", `"\146.yaml"`,
	}
	states := []string{
		"filter=lfs", "-filter", "!filter", "filter", "text", "-text", "!text", "text=auto", "eol=lf", "eol=crlf", "-eol", "binary", "-binary", "!binary",
		"working-tree-encoding=UTF-16", "ident", "-ident", "crlf", "-crlf", "crlf=input", "mine", "-mine", "!mine", "filter=", "-filter=x", "*=x", "bad/name", "text=set",
	}
	paths := []string{"f.yaml", "g.yaml", "b.yaml", "{f}.yaml", "*.yaml", "a b.yaml", "dir/f.yaml", "dir/x/y.yaml", "a/b.yaml", "a/c/d/b.yaml", "axb.yaml", "dir/x/z/f.yaml", "a/dir/q.yaml", "].yaml", "sub/f.yaml", "sub/dir/f.yaml"}
	r := rand.New(rand.NewPCG(4, 2)) //nolint:gosec // a test's choice of cases
	line := func() string {
		s := patterns[r.IntN(len(patterns))]
		if r.IntN(8) == 0 {
			s = "[attr]mine"
		}
		for range 1 + r.IntN(3) {
			s += " " + states[r.IntN(len(states))]
		}
		return s + "\n"
	}
	dir := t.TempDir()
	git := gitIn(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	understood := 0
	for range 300 {
		var root, sub strings.Builder
		for range 1 + r.IntN(4) {
			root.WriteString(line())
		}
		for range r.IntN(3) {
			sub.WriteString(line())
		}
		for file, text := range map[string]string{".gitattributes": root.String(), "sub/.gitattributes": sub.String()} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		inRoot, err1 := parseAttributes([]byte(root.String()), "")
		inSub, err2 := parseAttributes([]byte(sub.String()), "sub")
		if err1 != nil || err2 != nil {
			continue
		}
		understood++
		rules := append(append(builtinAttributes(), inRoot...), inSub...)
		fields := strings.Split(git(strings.Join(paths, "\x00")+"\x00", append([]string{"check-attr", "-z", "--stdin"}, names...)...), "\x00")
		for ; len(fields) > 3; fields = fields[3:] {
			path, name, want := fields[0], fields[1], fields[2]
			if want == "" { // an empty value names no filter and no encoding
				want = "unspecified"
			}
			got := map[string]string{set: "set", unset: "unset"}[lookUp(rules, path)[name]]
			if v, ok := lookUp(rules, path)[name]; got == "" {
				if got = v; !ok {
					got = "unspecified"
				}
			}
			if got != want {
				t.Errorf("%s of %q is %q, git says %q, with\n%s\nand in sub\n%s", name, path, got, want, root.String(), sub.String())
			}
		}
		if t.Failed() {
			return
		}
	}
	if understood < 100 {
		t.Errorf("only %d files were understood", understood)
	}
	fmt.Fprintln(t.Output(), understood, "files")
}

// gitIn makes a repository and returns what runs git in it.
func gitIn(t *testing.T, dir string) func(stdin string, args ...string) string {
	t.Helper()
	git := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_ATTR_NOSYSTEM=1"}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v", args, err)
		}
		return string(out)
	}
	git("", "init", "--quiet")
	return git
}

// TestLineEndingsAsGitStoresThem holds what becomes of files of a work tree
// against what `git add` stores.
func TestLineEndingsAsGitStoresThem(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2)) //nolint:gosec // a test's choice of cases
	pick := func(from []string) string { return from[r.IntN(len(from))] }
	content := func() string {
		var b strings.Builder
		for range r.IntN(6) {
			b.WriteString(pick([]string{"a: 1", "ä", "x\x01y", "\x00", "\x1b[1m", strings.Repeat("long ", 60), "\x7f"}))
			b.WriteString(pick([]string{"\r\n", "\r\n", "\n", "\r", "\r\r\n", ""}))
		}
		return b.String() + pick([]string{"", "", "\x1a", "\r", "\r\n"})
	}
	attrs := []string{"", "text", "-text", "text=auto", "text=auto", "text=input", "text=x", "eol=lf", "eol=crlf", "text=auto eol=crlf", "text=auto eol=lf", "-text eol=lf", "crlf", "-crlf", "crlf=input", "crlf=auto", "text=x -crlf", "binary"}
	dir := t.TempDir()
	git := gitIn(t, dir)
	converted := 0
	for range 250 {
		line := "* " + pick(attrs) + "\n"
		old, data := content(), content()
		if err := os.WriteFile(filepath.Join(dir, ".gitattributes"), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		w := worktree{attributes: builtinAttributes(), head: map[string]gitrepo.Entry{}, blob: func(gitrepo.Hash) ([]byte, error) { return []byte(old), nil }}
		rules, err := parseAttributes([]byte(line), "")
		if err != nil {
			t.Fatal(err)
		}
		w.attributes = append(w.attributes, rules...)
		git("", "rm", "--quiet", "--cached", "--force", "--ignore-unmatch", "f")
		if r.IntN(3) > 0 {
			id := strings.TrimSpace(git(old, "hash-object", "-w", "--stdin", "--no-filters"))
			git("", "update-index", "--add", "--cacheinfo", "100644,"+id+",f")
			w.head["f"] = gitrepo.Entry{Name: "f", Mode: gitrepo.ModeFile}
		}
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		git("", "add", "f")
		want := strings.Fields(git("", "ls-files", "--stage", "f"))[1]
		c := gitrepo.Change{Path: "f", Mode: gitrepo.ModeFile, ID: gitrepo.BlobID([]byte(data)), Data: []byte(data)}
		if err := w.convert(&c); err != nil {
			t.Fatal(err)
		}
		if c.ID.String() != want {
			t.Errorf("%q over %q (%t) with %q: stored as %q, not as git does", data, old, len(w.head) > 0, line, c.Data)
		}
		if len(c.Data) != len(data) {
			converted++
		}
	}
	if converted < 20 {
		t.Errorf("only %d files were converted", converted)
	}
}
