package fsroot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClean(t *testing.T) {
	for name, want := range map[string]string{
		"a":                    "a",
		"./a/./b//c.yaml":      "a/b/c.yaml",
		"gitops/.gitignore":    "gitops/.gitignore",
		"git/git~x":            "git/git~x",
		"a..b/...c":            "a..b/...c",
		"ä ö/漢字":               "ä ö/漢字",
		".gitattributes":       ".gitattributes",
		strings.Repeat("x", 9): "xxxxxxxxx",
	} {
		got, err := Clean(name)
		if err != nil || got != want {
			t.Errorf("Clean(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	for _, name := range []string{
		"", ".", "./.", "/etc/passwd", "..", "a/../b", "../a", "a/..", "a/", `a\b`, "c:/x", "a:b", "a\x00b", "a\nb", "a\x7f", "a\xff",
		".git", "a/.git/config", ".GIT/x", ".Git", ".git./x", ".git /x", ".git. . /x", "git~1", "GIT~1/x", "git~12",
		".g\u200cit/config", "\ufeff.git", ".gitmodules", "a/.GITMODULES", "gitmod~1", ".git::$INDEX_ALLOCATION/x",
		strings.Repeat("x", 256),
	} {
		got, err := Clean(name)
		var refused *PathError
		if !errors.As(err, &refused) {
			t.Errorf("Clean(%q) = %q, %v; want a refusal", name, got, err)
		}
	}
}

func open(t *testing.T) (*Root, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, dir
}

func TestReadWrite(t *testing.T) {
	r, dir := open(t)
	if err := r.WriteFile("./new/dir/f.yaml", []byte("one")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "new/dir/f.yaml")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteFile("new/dir/f.yaml", []byte("two")); err != nil {
		t.Fatal(err)
	}
	got, err := r.ReadFile("new/dir/f.yaml", 3)
	if err != nil || string(got) != "two" {
		t.Errorf("read %q, %v", got, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; an existing file keeps its own", info.Mode(), err)
	}
	var large *TooLargeError
	if _, err := r.ReadFile("new/dir/f.yaml", 2); !errors.As(err, &large) {
		t.Errorf("over the limit: %v", err)
	}
	if _, err := r.ReadFile("none/f", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestStaleTemporaryFile(t *testing.T) {
	r, dir := open(t)
	if err := r.WriteFile("f", []byte("one")); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	// An earlier step may have put anything where the temporary file goes.
	if err := os.Symlink(outside, filepath.Join(dir, ".stepd-252f10c83610ebca")); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteFile("f", []byte("two")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "safe" {
		t.Errorf("the file outside holds %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "two" {
		t.Errorf("f holds %q, %v", b, err)
	}
}

func TestLinksAndKinds(t *testing.T) {
	r, dir := open(t)
	outside := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(outside, "f"), []byte("secret"), 0o600))
	must(os.Mkdir(filepath.Join(dir, "real"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "real/f"), []byte("x"), 0o600))
	must(os.Symlink(outside, filepath.Join(dir, "out")))
	must(os.Symlink("real", filepath.Join(dir, "in")))
	must(os.Symlink("f", filepath.Join(dir, "real/link")))
	must(os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	for name, why := range map[string]string{
		"out/f": "a directory outside", "in/f": "a directory inside", "real/link": "a file inside", "dangling": "nothing",
		"real/f/x": "below a file", "real": "a directory",
	} {
		var refused *PathError
		if _, err := r.ReadFile(name, 100); !errors.As(err, &refused) {
			t.Errorf("read %s (%s): %v", name, why, err)
		}
		if err := r.WriteFile(name, []byte("y")); !errors.As(err, &refused) {
			t.Errorf("write %s (%s): %v", name, why, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(outside, "f")); err != nil || string(b) != "secret" {
		t.Errorf("the file outside holds %q, %v", b, err)
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"a/b", "../x", ".git/x", "a/./b", "git~1", "\u200d.git"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := Clean(name)
		if err != nil {
			return
		}
		if !filepath.IsLocal(clean) || strings.Contains(strings.ToLower("/"+clean+"/"), "/.git/") {
			t.Errorf("Clean(%q) = %q", name, clean)
		}
		if again, err := Clean(clean); err != nil || again != clean {
			t.Errorf("Clean(%q) = %q, %v", clean, again, err)
		}
	})
}
