package gitrepo

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/aymanbagabas/go-udiff"

	"github.com/stepd/stepd/internal/effects"
)

// diffAll renders each commit of a push as a unified diff against its parent,
// reading the old blobs. What cannot be read or shown as text is named.
func diffAll(ctx context.Context, r Remote, p Push) []string {
	var ids []Hash
	fresh := map[Hash][]byte{}
	for _, c := range p.Commits {
		for _, ch := range c.Changes {
			if ch.Mode != ModeAbsent {
				fresh[ch.ID] = ch.Data
			}
		}
	}
	for _, c := range p.Commits {
		for _, ch := range c.Changes {
			if e := c.Parent.Entry(ch.Path); e.Mode.IsFile() && e.ID != ch.ID && fresh[e.ID] == nil {
				ids = append(ids, e.ID)
			}
		}
	}
	old, err := r.Blobs(ctx, ids)
	if err != nil {
		old = nil // the diff says so, file by file; a push does not fail for it
	}
	texts := make([]string, len(p.Commits))
	for i, c := range p.Commits {
		texts[i] = diff(c, func(id Hash) ([]byte, bool) {
			if b, ok := fresh[id]; ok {
				return b, true
			}
			b, ok := old[id]
			return b, ok
		})
	}
	return texts
}

func diff(c NewCommit, blob func(Hash) ([]byte, bool)) string {
	var b strings.Builder
	for _, ch := range c.Changes {
		e := c.Parent.Entry(ch.Path)
		if e.Mode == ch.Mode && e.ID == ch.ID {
			continue
		}
		fmt.Fprintf(&b, "diff --git a/%s b/%s\n", ch.Path, ch.Path)
		from, to := "a/"+ch.Path, "b/"+ch.Path
		switch {
		case e.Mode == ModeAbsent:
			fmt.Fprintf(&b, "new file mode %s\n", ch.Mode)
			from = "/dev/null"
		case ch.Mode == ModeAbsent:
			fmt.Fprintf(&b, "deleted file mode %s\n", e.Mode)
			to = "/dev/null"
		case e.Mode != ch.Mode:
			fmt.Fprintf(&b, "old mode %s\nnew mode %s\n", e.Mode, ch.Mode)
		}
		var before []byte
		if e.Mode != ModeAbsent && e.ID != ch.ID {
			var ok bool
			if before, ok = blob(e.ID); !ok {
				fmt.Fprintf(&b, "--- %s\n(the server did not send the old content, blob %s)\n+++ %s\n", from, e.ID, to)
				continue
			}
		}
		if e.ID == ch.ID {
			continue
		}
		if isBinary(before) || isBinary(ch.Data) {
			fmt.Fprintf(&b, "Binary files %s and %s differ\n", from, to)
			continue
		}
		b.WriteString(udiff.Unified(from, to, string(before), string(ch.Data)))
	}
	return b.String()
}

func isBinary(b []byte) bool { return bytes.IndexByte(b, 0) >= 0 || !utf8.Valid(b) }

func record(log *effects.Log, url string, p Push, diffs []string, pushed bool) {
	for i, c := range p.Commits {
		paths := make([]string, 0, len(c.Changes))
		for _, ch := range c.Changes {
			paths = append(paths, ch.Path)
		}
		sort.Strings(paths)
		log.Commit(effects.Commit{
			RepoURL: url, Branch: p.Branch, Commit: c.Commit.ID.String(), Pushed: pushed,
			Paths: paths, Diff: diffs[i], Message: c.Commit.Message, Step: c.Step,
		})
	}
}
