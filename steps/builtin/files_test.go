package builtin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepd/stepd/steps"
)

// Conformance F4, F6, F7, F9 and golden cases 210, 211.
func TestDelete(t *testing.T) {
	for _, tc := range []struct {
		reason string
		config config
		want   outcome
		absent []string
	}{
		{"a directory", config{"path": "dir"}, outcome{}, []string{"dir"}},
		{"several", config{"paths": []any{"a.txt", "dir/x"}}, outcome{}, []string{"a.txt", "dir/x"}},
		{"missing is fine", config{"path": "none/of/it"}, outcome{}, nil},
		{"unless strict, and then nothing is deleted", config{"paths": []any{"a.txt", "none"}, "strict": true}, outcome{steps.Errored, false, `path "none" does not exist`}, nil},
		{"F4 outside", config{"path": "../x"}, outcome{steps.Errored, false, `could not resolve path "../x": path attempts to traverse outside the working directory`}, nil},
		{"the work dir itself", config{"path": "."}, outcome{steps.Errored, false, "traverse outside"}, nil},
		{"outside, by a symlink among the parents", config{"path": "out/f"}, outcome{steps.Errored, false, "traverse outside"}, nil},
		{"an absolute path is below the work dir", config{"path": "/a.txt"}, outcome{}, []string{"a.txt"}},
		{"a symlink, not its target", config{"path": "link"}, outcome{}, []string{"link"}},
		{"F6 globs at any depth", config{"path": "**/*.tmp", "pathsAreGlobs": true}, outcome{}, []string{"dir/sub/b.tmp"}},
		{"globs do not follow links out", config{"path": "out/*", "pathsAreGlobs": true}, outcome{}, nil},
		{"a pattern that matches nothing", config{"path": "./zip*", "pathsAreGlobs": true, "strict": true}, outcome{steps.Errored, false, "no paths matched pattern"}, nil},
		{"too many alternatives to search for", config{"path": strings.Repeat("{a,b}", 11), "pathsAreGlobs": true}, outcome{steps.Errored, true, "more than 1024 patterns"}, nil},
		{"too many walks", config{"path": strings.Repeat("**/", 9), "pathsAreGlobs": true}, outcome{steps.Errored, true, "more than 8 **"}, nil},
		{"escaped braces are no alternatives", config{"path": strings.Repeat(`\{a,b\}`, 11), "pathsAreGlobs": true}, outcome{}, nil},
		{"F7 a malformed pattern", config{"path": "[", "pathsAreGlobs": true}, outcome{steps.Errored, true, `invalid glob pattern "[": syntax error in pattern`}, nil},
		{"F9 both", config{"path": "a", "paths": []any{"b"}}, outcome{steps.Failed, true, "oneOf"}, nil},
		{"F9 neither", config{}, outcome{steps.Failed, true, "oneOf"}, nil},
	} {
		p := newPromotion(t)
		outside := t.TempDir()
		if err := os.WriteFile(filepath.Join(outside, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		all := []string{"a.txt", "dir/x", "dir/sub/b.tmp"}
		for _, name := range all {
			p.write(name, "x")
		}
		for link, target := range map[string]string{"link": "dir", "out": outside} {
			if err := os.Symlink(target, filepath.Join(p.dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := p.run(Delete(), tc.config)
		if tc.want.status == "" {
			tc.want.status = steps.Succeeded
		}
		tc.want.check(t, tc.reason, r, err)
		for _, name := range tc.absent {
			if p.exists(name) {
				t.Errorf("%s: %s is still there", tc.reason, name)
			}
		}
		if len(tc.absent) == 0 {
			for _, name := range append(all, "link", "out") {
				if !p.exists(name) {
					t.Errorf("%s: %s is gone", tc.reason, name)
				}
			}
		}
		if _, err := os.Stat(filepath.Join(outside, "f")); err != nil {
			t.Errorf("%s: a file outside the work dir is gone", tc.reason)
		}
	}
}

// Conformance F11, F12 and golden case 221.
func TestFileWrite(t *testing.T) {
	for _, tc := range []struct {
		reason string
		config config
		want   outcome
		file   string
		mode   os.FileMode
	}{
		{"a new file and its parents", config{"path": "a/b/c", "contents": "x"}, outcome{}, "a/b/c", 0o600},
		{"permissions regardless of the umask", config{"path": "n", "contents": "x", "permissions": "0666"}, outcome{steps.Failed, true, "world-writable"}, "", 0},
		{"group-writable", config{"path": "n", "contents": "x", "permissions": "0660"}, outcome{}, "n", 0o660},
		{"overwriting takes the mode", config{"path": "f", "contents": "x", "overwrite": true, "permissions": "0640"}, outcome{}, "f", 0o640},
		{"empty contents", config{"path": "f2", "contents": ""}, outcome{}, "f2", 0o600},
		{"F11 existing", config{"path": "f", "contents": "x"}, outcome{steps.Failed, true, `file "f" already exists; set overwrite to true to replace it`}, "", 0},
		{"F12 executable", config{"path": "n", "contents": "x", "permissions": "0755"}, outcome{steps.Failed, true, "must not include executable bits"}, "", 0},
		{"F12 world-writable", config{"path": "n", "contents": "x", "permissions": "0602"}, outcome{steps.Failed, true, "must not be world-writable"}, "", 0},
		{"F12 not four digits from 0", config{"path": "n", "contents": "x", "permissions": "4600"}, outcome{steps.Failed, true, "permissions: Does not match pattern"}, "", 0},
		{"absolute", config{"path": "/abs", "contents": "x"}, outcome{steps.Failed, true, "must be relative"}, "", 0},
		{"outside", config{"path": "a/../../up", "contents": "x"}, outcome{steps.Failed, true, "traverse outside"}, "", 0},
		{"the work dir's .git", config{"path": "./.git/x", "contents": "x"}, outcome{steps.Failed, true, ".git directory is forbidden"}, "", 0},
		{"a clone's .git is not caught, as in Kargo", config{"path": "repo/.git/x", "contents": "x"}, outcome{}, "repo/.git/x", 0o600},
		{"through a symlink", config{"path": "link/z", "contents": "x"}, outcome{steps.Failed, true, `resolves to a different path "dir/z"`}, "", 0},
		{"onto a symlink", config{"path": "link", "contents": "x", "overwrite": true}, outcome{steps.Failed, true, "symlinks are forbidden"}, "", 0},
		{"onto a directory", config{"path": "dir", "contents": "x", "overwrite": true}, outcome{steps.Errored, false, `error writing file "dir"`}, "", 0},
		{"below a file", config{"path": "f/sub", "contents": "x"}, outcome{steps.Errored, false, "error creating parent directories"}, "", 0},
		{"a number", config{"path": "n", "contents": 1}, outcome{steps.Failed, true, "contents: Invalid type. Expected: string, given: integer"}, "", 0},
	} {
		p := newPromotion(t)
		p.write("f", "old")
		p.write("dir/x", "x")
		if err := os.Symlink("dir", filepath.Join(p.dir, "link")); err != nil {
			t.Fatal(err)
		}
		r, err := p.run(FileWrite(), tc.config)
		if tc.want.status == "" {
			tc.want.status = steps.Succeeded
		}
		tc.want.check(t, tc.reason, r, err)
		if tc.file == "" {
			continue
		}
		info, err := os.Stat(filepath.Join(p.dir, tc.file))
		if err != nil {
			t.Errorf("%s: %v", tc.reason, err)
			continue
		}
		if got := p.read(tc.file); got != tc.config["contents"] || info.Mode().Perm() != tc.mode {
			t.Errorf("%s: %q with mode %v", tc.reason, got, info.Mode())
		}
	}
}

type entry struct {
	name, data, link string
	size             int64 // claimed, for files without data
}

func archive(t *testing.T, entries ...entry) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o4755, Size: int64(len(e.data)), Typeflag: tar.TypeReg}
		switch {
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.name[len(e.name)-1] == '/':
			h.Typeflag = tar.TypeDir
		case e.size > 0:
			h.Size = e.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.size > 0 {
			return buf.String() // ends where the content should be
		}
		if _, err := w.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func zipped(t *testing.T, data string) string {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// Conformance F36, F37.
func TestUntar(t *testing.T) {
	const oneMiB = 1 << 20
	big := string(make([]byte, 40*oneMiB))
	for _, tc := range []struct {
		reason  string
		archive string
		config  config
		want    outcome
		present map[string]string
		absent  []string
	}{
		{reason: "outPath is replaced", archive: archive(t, entry{name: "a", data: "A"}), present: map[string]string{"out/a": "A"}, absent: []string{"out/old"}},
		{reason: "gzip is detected", archive: zipped(t, archive(t, entry{name: "d/", data: ""}, entry{name: "d/a", data: "A"})), present: map[string]string{"out/d/a": "A"}},
		{reason: "F36 leading components", archive: archive(t, entry{name: "top/a", data: "A"}, entry{name: "top", data: "T"}), config: config{"stripComponents": 1},
			present: map[string]string{"out/a": "A"}, absent: []string{"out/top"}},
		{reason: "./x is x", archive: archive(t, entry{name: "./"}, entry{name: "./a", data: "A"}), present: map[string]string{"out/a": "A"}},
		{reason: "./x with a component dropped is x too", archive: archive(t, entry{name: "./a", data: "A"}), config: config{"stripComponents": 1}, present: map[string]string{"out/a": "A"}},
		{reason: "ignore", archive: archive(t, entry{name: "a.md", data: "A"}, entry{name: "d/b.txt", data: "B"}, entry{name: "sub/c", data: "C"}, entry{name: ".git/config", data: "G"}),
			config: config{"ignore": "*.md\nsub/"}, present: map[string]string{"out/d/b.txt": "B"}, absent: []string{"out/a.md", "out/sub", "out/.git"}},
		{reason: "names that leave", archive: archive(t, entry{name: "../evil", data: "E"}, entry{name: "/abs", data: "E"}, entry{name: "a/../../evil", data: "E"}, entry{name: `b\c`, data: "E"}, entry{name: "ok", data: "O"}),
			present: map[string]string{"out/ok": "O"}, absent: []string{"evil", "out/evil", "out/abs", "abs", `out/b\c`}},
		{reason: "links that leave", archive: archive(t, entry{name: "l", link: "../old"}, entry{name: "m", link: "/etc"}, entry{name: "ok", data: "O"}, entry{name: "d/in", link: "../ok"}),
			present: map[string]string{"out/d/in": "O"}, absent: []string{"out/l", "out/m"}},
		{reason: "a file is not written through a link", archive: archive(t, entry{name: "a", data: "A"}, entry{name: "l", link: "a"}, entry{name: "l", data: "L"}),
			present: map[string]string{"out/a": "A", "out/l": "L"}},
		{reason: "F37 a large file", archive: archive(t, entry{name: "a", size: 50*oneMiB + 1}), want: outcome{steps.Errored, false, "exceeds size limit"}, present: map[string]string{"out/old": "old"}},
		{reason: "large in sum", archive: archive(t, entry{name: "a", data: big}, entry{name: "b", data: big}, entry{name: "c", data: big}),
			want: outcome{steps.Errored, false, "exceeds size limit"}, present: map[string]string{"out/old": "old"}},
		{reason: "not an archive", archive: "hello, this is no tar archive at all", want: outcome{steps.Errored, false, "failed to extract"}, present: map[string]string{"out/old": "old"}},
		{reason: "onto the work dir", archive: archive(t), config: config{"outPath": "."}, want: outcome{steps.Errored, false, "not the work dir"}, present: map[string]string{"out/old": "old"}},
	} {
		p := newPromotion(t)
		p.write("in.tar", tc.archive)
		p.write("out/old", "old")
		cfg := config{"inPath": "in.tar", "outPath": "out"}
		for k, v := range tc.config {
			cfg[k] = v
		}
		r, err := p.run(Untar(), cfg)
		if tc.want.status == "" {
			tc.want.status = steps.Succeeded
		}
		tc.want.check(t, tc.reason, r, err)
		for name, data := range tc.present {
			if got := p.read(name); got != data {
				t.Errorf("%s: %s holds %q, want %q", tc.reason, name, got, data)
			}
		}
		for _, name := range tc.absent {
			if p.exists(name) {
				t.Errorf("%s: %s is there", tc.reason, name)
			}
		}
		left, err := filepath.Glob(filepath.Join(p.dir, ".untar-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v, %v", tc.reason, left, err)
		}
	}
}

// No name in an archive leads out of the directory, or through anything that
// is not a plain component.
func FuzzEntryName(f *testing.F) {
	for _, name := range []string{"a/b", "./a", "../a", "a/../../b", "/a", `a\b`, "a//b", "..", "a/..", ""} {
		f.Add(name, 0)
		f.Add(name, 1)
	}
	f.Fuzz(func(t *testing.T, name string, strip int) {
		if strip < 0 {
			return // the schema does not accept it
		}
		if got, ok := entryName(name, strip); ok && (!filepath.IsLocal(got) || got == "." || filepath.Clean(got) != got) {
			t.Errorf("entryName(%q, %d) = %q", name, strip, got)
		}
	})
}
