package fsroot

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckTreePath(t *testing.T) {
	for name, tc := range map[string]struct {
		path   string
		ok     bool
		reason string
	}{
		"plain":            {"env/prd/values.yaml", true, "what people write"},
		"dot files":        {".github/workflows/x.yml", true, "only Git's own names are special"},
		"gitattributes":    {"a/.gitattributes", true, "an ordinary file"},
		"gitignore":        {".gitignore", true, "an ordinary file"},
		"non-ASCII":        {"ümläut/日本.yaml", true, "UTF-8 is fine"},
		"tilde":            {"git~x", true, "not a short name"},
		"empty":            {"", false, "names nothing"},
		"absolute":         {"/etc/passwd", false, "leaves the tree"},
		"trailing slash":   {"a/", false, "names a directory"},
		"dot":              {"a/./b", false, "not canonical"},
		"dot dot":          {"a/../../b", false, "leaves the tree"},
		"double slash":     {"a//b", false, "not canonical"},
		"backslash":        {`a\..\b`, false, "a separator on Windows"},
		"colon":            {"C:/x", false, "a drive"},
		"stream":           {".git::$INDEX_ALLOCATION/x", false, "NTFS stream of .git"},
		"newline":          {"a\nb", false, "control character"},
		"delete":           {"a\x7f", false, "control character"},
		"invalid UTF-8":    {"a\xff", false, "not text"},
		".git":             {".git/config", false, "Git's directory"},
		".git deep":        {"a/.git/hooks/post-checkout", false, "Git's directory of a submodule"},
		".GIT":             {".GIT/config", false, "same on Windows and macOS"},
		".git.":            {".git./config", false, "Windows drops the dot"},
		".git space":       {".git /config", false, "Windows drops the space"},
		"git~1":            {"git~1/config", false, "short name on NTFS"},
		"GIT~2":            {"GIT~2", false, "short name on NTFS"},
		"HFS zero-width":   {".g\u200cit/config", false, "HFS+ ignores the character"},
		"HFS BOM":          {".git\ufeff/config", false, "HFS+ ignores the character"},
		".gitmodules":      {".gitmodules", false, "could add a submodule with a hostile URL"},
		".GitModules":      {"x/.GitModules", false, "same on Windows"},
		"gitmod~1":         {"gitmod~1", false, "its short name"},
		"gi7eba~1":         {"gi7eba~1", false, "its hashed short name"},
		"long component":   {strings.Repeat("a", 256), false, "cannot be checked out"},
		"longest allowed":  {strings.Repeat("a", 255), true, "can be checked out"},
		"very long":        {strings.Repeat("a/", 3000) + "a", false, "cannot be checked out"},
		"right-to-left":    {"a\u202eyaml.exe", false, "looks like another name"},
		"leading space ok": {" a", true, "odd but harmless"},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckTreePath(tc.path)
			if (err == nil) != tc.ok {
				t.Fatalf("CheckTreePath(%q) = %v, want ok %t (%s)", tc.path, err, tc.ok, tc.reason)
			}
			var pe *PathError
			if err != nil && !errors.As(err, &pe) {
				t.Errorf("error is a %T", err)
			}
		})
	}
}

func FuzzCheckTreePath(f *testing.F) {
	for _, s := range []string{"a/b", ".git", "git~1", ".g\u200cit", "a\\b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if CheckTreePath(p) != nil {
			return
		}
		if !IsLocal(p) || strings.Contains(strings.ToLower(p), ".git/") {
			t.Errorf("%q was accepted", p)
		}
	})
}
