package atomiccommit_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stepd/stepd/steps/atomiccommit"
)

// A process that lives for months keeps no files for ever, and does not look
// through them at every commit.
func TestOldIntentsGoWhileTheProcessLives(t *testing.T) {
	now := time.Now()
	b := newBench(t, func(o *atomiccommit.Options) { o.Clock = func() time.Time { return now } })
	b.seed(map[string]string{"a": "0\n"})
	old := filepath.Join(b.opts.IntentDir, "old.json")
	commits := 0
	for _, tc := range []struct {
		reason string
		later  time.Duration
		left   bool
	}{
		{"the first commit of a process looks", 0, false},
		{"the next one does not", 23 * time.Hour, true},
		{"a day later one does", time.Hour, false},
		{"and then not again", time.Hour, true},
		{"until another day is over", 24 * time.Hour, false},
	} {
		now = now.Add(tc.later)
		if err := os.MkdirAll(b.opts.IntentDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(old, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		age := now.Add(-31 * 24 * time.Hour)
		if err := os.Chtimes(old, age, age); err != nil {
			t.Fatal(err)
		}
		commits++
		b.promote(name(commits), map[string]string{"a": tc.reason + "\n"}).must()
		if _, err := os.Stat(old); (err == nil) != tc.left {
			t.Errorf("%s: stat of the old intent: %v", tc.reason, err)
		}
		kept, err := filepath.Glob(filepath.Join(b.opts.IntentDir, "*.json"))
		if err != nil || len(kept) < commits {
			t.Errorf("%s: %d files after %d commits, %v", tc.reason, len(kept), commits, err)
		}
	}
}
