package builtin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stepd/stepd/steps"
)

func TestCopy(t *testing.T) {
	tree := func(p *promotion) {
		for name, data := range map[string]string{
			"src/a.txt": "a", "src/sub/b.txt": "b", "src/x.tmp": "x", "src/keep.tmp": "k", "src/.git/config": "c",
			"exist/old.txt": "old", "exist/a.txt": "stale",
		} {
			p.write(name, data)
		}
		outside := filepath.Join(t.TempDir(), "a.txt")
		for link, target := range map[string]string{
			"src/link": "a.txt", "alias": "src", "leads/a.txt": outside, "leadsup/sub": filepath.Dir(outside), "inner/a.txt": "../exist/a.txt",
		} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(p.dir, link)), 0o755); err != nil {
				p.t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(p.dir, link)); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		reason  string
		config  config
		want    outcome
		present map[string]string
		absent  []string
	}{
		{reason: "F2 symlinks and .git are skipped", config: config{"inPath": "src", "outPath": "out"},
			present: map[string]string{"out/a.txt": "a", "out/sub/b.txt": "b"}, absent: []string{"out/link", "out/.git"}},
		{reason: "a directory is merged", config: config{"inPath": "src", "outPath": "exist"},
			present: map[string]string{"exist/old.txt": "old", "exist/a.txt": "a"}},
		{reason: "inPath may itself be a symlink", config: config{"inPath": "alias", "outPath": "out"},
			present: map[string]string{"out/a.txt": "a"}, absent: []string{"out/link"}},
		{reason: ".git can be asked for", config: config{"inPath": "src", "outPath": "out", "ignore": "!.git/"},
			present: map[string]string{"out/.git/config": "c"}},
		{reason: "comments, negation", config: config{"inPath": "src", "outPath": "out", "ignore": "# no\n\n*.tmp\n!keep.tmp"},
			present: map[string]string{"out/keep.tmp": "k"}, absent: []string{"out/x.tmp"}},
		{reason: "patterns are anchored at inPath", config: config{"inPath": "src", "outPath": "out", "ignore": "/b.txt\n/a.txt"},
			present: map[string]string{"out/sub/b.txt": "b"}, absent: []string{"out/a.txt"}},
		{reason: "paths are clamped into the work dir", config: config{"inPath": "../../src/a.txt", "outPath": "/abs/x"},
			present: map[string]string{"abs/x": "a"}},
		{reason: "a file is not copied into a directory", config: config{"inPath": "src/a.txt", "outPath": "exist"},
			want: outcome{steps.Errored, false, `failed to copy "src/a.txt" to "exist": open exist: is a directory`}},
		{reason: "no source", config: config{"inPath": "nope", "outPath": "z"},
			want: outcome{steps.Errored, false, `failed to copy "nope" to "z": lstat nope: no such file or directory`}},
		{reason: "a file copied onto itself keeps its text", config: config{"inPath": "src/a.txt", "outPath": "alias/a.txt"},
			present: map[string]string{"src/a.txt": "a"}},
		{reason: "a directory copied onto itself keeps its files", config: config{"inPath": "src", "outPath": "src"},
			present: map[string]string{"src/a.txt": "a", "src/sub/b.txt": "b"}},
		{reason: "a directory does not go into itself", config: config{"inPath": ".", "outPath": "src/all"},
			want: outcome{steps.Errored, false, "the target is inside the source"}, absent: []string{"src/all/src/all/src"}},
		{reason: "unless the target is ignored", config: config{"inPath": ".", "outPath": "all", "ignore": "/all"},
			present: map[string]string{"all/src/a.txt": "a"}, absent: []string{"all/all"}},
		{reason: "a link of the target that stays is written through", config: config{"inPath": "src", "outPath": "inner"},
			present: map[string]string{"exist/a.txt": "a"}},
		{reason: "a link of the target to a file outside that is not there", config: config{"inPath": "src", "outPath": "leads"},
			want: outcome{steps.Errored, false, "the target leads/a.txt is a symlink to nothing"}, absent: []string{"leads/sub"}},
		{reason: "a link of the target to a directory outside", config: config{"inPath": "src", "outPath": "leadsup"},
			want: outcome{steps.Errored, false, "the target leadsup/sub is a symlink that leads out of the working directory"}, absent: []string{"leadsup/sub/b.txt"}},
		{reason: "F1 no outPath", config: config{"inPath": "src"},
			want: outcome{steps.Failed, true, "invalid copy config: (root): outPath is required"}},
	} {
		p := newPromotion(t)
		tree(p)
		r, err := p.run(Copy(), tc.config)
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
	}
}
