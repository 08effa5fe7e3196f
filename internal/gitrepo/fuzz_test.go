package gitrepo

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

// What a server sends must never panic, hang or exhaust memory.

func FuzzReadPack(f *testing.F) {
	var b bytes.Buffer
	base := newObject(plumbing.TreeObject, bytes.Repeat([]byte("100644 a\x00aaaaaaaaaaaaaaaaaaaa"), 8))
	derived := newObject(plumbing.TreeObject, append(bytes.Clone(base.Data), "100644 b\x00aaaaaaaaaaaaaaaaaaaa"...))
	derived.base = &base
	if err := writePack(&b, []Object{base, derived, newObject(plumbing.BlobObject, []byte("x\n"))}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("PACK\x00\x00\x00\x02\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		err := readPack(bytes.NewReader(data), packSink{
			add:    func(o Object) error { total += len(o.Data); return nil },
			blobs:  true,
			budget: 1 << 20,
		})
		if total > 2<<20 {
			t.Errorf("%d bytes were kept (%v)", total, err)
		}
	})
}

func FuzzAdvertisement(f *testing.F) {
	f.Add("001e# service=git-upload-pack\n0000000eversion 2\n0015agent=git/2.39.5\n0013ls-refs=unborn\n0000")
	f.Add("003e" + strings.Repeat("0", 40) + " capabilities^{}\x00side-band-64k\n0000")
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := readAdvertisement(strings.NewReader(s)); err == nil && !a.known {
			t.Error("an advertisement taught nothing")
		}
	})
}

func FuzzReport(f *testing.F) {
	f.Add("0034\x01000eunpack ok\n0019ok refs/heads/main\n00000000")
	f.Add("0008\x02hi!0000")
	f.Fuzz(func(t *testing.T, s string) {
		err := readReport(&sideband{p: newPktReader(strings.NewReader(s))}, "refs/heads/main")
		if err == nil && !strings.Contains(s, "ok refs/heads/main") && !strings.Contains(s, "\x01") {
			t.Errorf("%q counts as success", s)
		}
	})
}

func FuzzObjects(f *testing.F) {
	f.Add([]byte("tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nx\n"))
	f.Add([]byte("100644 a\x00aaaaaaaaaaaaaaaaaaaa"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseCommit(ZeroHash, data) // must not panic
		tr, err := parseTree(newObject(plumbing.TreeObject, data))
		if err != nil {
			return
		}
		if again, err := parseTree(tr.with(nil)); err != nil || len(again.entries) != len(tr.entries) {
			t.Errorf("a tree does not survive: %v", err)
		}
	})
}
