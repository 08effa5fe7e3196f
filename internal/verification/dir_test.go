package verification_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/verification"
)

func TestDir(t *testing.T) {
	d := verification.Dir{Path: filepath.Join(t.TempDir(), "ledger")}
	k := verification.Key{Project: "acme", Promotion: "p1", Alias: "task::config"}
	want := verification.Record{
		Repository: "ghcr.io/acme/configs", Tag: "v1", Digest: "sha256:1", LayerDigest: "sha256:2", Path: "values.yaml",
		Annotations: map[string]string{"a": "b"},
		Signer:      verification.Signer{Subject: "s", SignedAt: time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)},
	}
	if _, err := d.Get(t.Context(), k); !isAbsent(err) {
		t.Fatalf("before: %v, want a NotFoundError", err)
	}
	if err := d.Put(t.Context(), k, verification.Record{Digest: "old"}); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), k, want); err != nil {
		t.Fatal(err)
	}
	got, err := verification.Dir{Path: d.Path}.Get(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	for reason, other := range map[string]verification.Key{
		"another project":   {Project: "acme2", Promotion: "p1", Alias: "task::config"},
		"another promotion": {Project: "acme", Promotion: "p2", Alias: "task::config"},
		"another alias":     {Project: "acme", Promotion: "p1", Alias: "config"},
		"shifted parts":     {Project: "acmep1", Promotion: "", Alias: "task::config"},
	} {
		if _, err := d.Get(t.Context(), other); !isAbsent(err) {
			t.Errorf("%s: %v, want a NotFoundError", reason, err)
		}
	}
	if info, err := os.Stat(d.Path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the ledger's mode is %v, %v; want 0700", info.Mode(), err)
	}
}

func TestDirDoesNotTrustAMovedFile(t *testing.T) {
	d := verification.Dir{Path: t.TempDir()}
	mine := verification.Key{Project: "acme", Promotion: "p1", Alias: "config"}
	theirs := verification.Key{Project: "evil", Promotion: "p9", Alias: "config"}
	if err := d.Put(t.Context(), theirs, verification.Record{Digest: "sha256:evil"}); err != nil {
		t.Fatal(err)
	}
	from := onlyFile(t, d.Path)
	if err := d.Put(t.Context(), mine, verification.Record{Digest: "sha256:mine"}); err != nil {
		t.Fatal(err)
	}
	var to string
	for _, f := range files(t, d.Path) {
		if f != from {
			to = f
		}
	}
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
	if r, err := d.Get(t.Context(), mine); err == nil {
		t.Errorf("got %v from another key's file", r)
	}
	if err := os.WriteFile(to, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(t.Context(), mine); err == nil || isAbsent(err) {
		t.Errorf("a broken file: %v, want an error that is not NotFoundError", err)
	}
}

func TestDirPrune(t *testing.T) {
	d := verification.Dir{Path: t.TempDir()}
	if err := d.Put(t.Context(), verification.Key{Alias: "a"}, verification.Record{}); err != nil {
		t.Fatal(err)
	}
	old := onlyFile(t, d.Path)
	unfinished := filepath.Join(d.Path, ".new-1") // of a process that was killed
	if err := os.WriteFile(unfinished, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{old, unfinished} {
		if err := os.Chtimes(name, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Put(t.Context(), verification.Key{Alias: "b"}, verification.Record{}); err != nil {
		t.Fatal(err)
	}
	if err := d.Prune(time.Unix(1000, 0)); err != nil {
		t.Fatal(err)
	}
	if left := onlyFile(t, d.Path); left == old {
		t.Error("the wrong record was removed")
	}
	if err := (verification.Dir{Path: filepath.Join(d.Path, "absent")}).Prune(time.Now()); err != nil {
		t.Errorf("nothing to prune: %v", err)
	}
}

func isAbsent(err error) bool {
	_, ok := errors.AsType[*verification.NotFoundError](err)
	return ok
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func onlyFile(t *testing.T, dir string) string {
	t.Helper()
	names := files(t, dir)
	if len(names) != 1 {
		t.Fatalf("want one file, got %v", names)
	}
	return names[0]
}
