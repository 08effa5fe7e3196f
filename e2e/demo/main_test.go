package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestDemo runs the demo as `make demo` does, and looks whether it left
// anything in the place for temporary files.
func TestDemo(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var out bytes.Buffer
	if err := inTemporaryDir(func(dir string) error { return demo(t.Context(), &out, dir) }); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	left, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("the demo left %v behind", left)
	}
	if n := strings.Count(out.String(), "== Attack:"); n != 4 {
		t.Errorf("%d attacks were shown, want 4", n)
	}
}

// TestExpectationsCanFail checks that the demo fails when something that it
// expects does not hold.
func TestExpectationsCanFail(t *testing.T) {
	var out bytes.Buffer
	teller := &teller{out: &out}
	if err := teller.expect(expectation{"fine", true}); err != nil {
		t.Errorf("all held, and yet: %v", err)
	}
	err := teller.expect(expectation{"fine", true}, expectation{"not fine", false})
	if err == nil || !strings.Contains(err.Error(), "not fine") {
		t.Errorf("the error does not name what failed: %v", err)
	}
	if want := "✓ fine\n✓ fine\n✗ not fine\n"; out.String() != want {
		t.Errorf("told %q, want %q", out.String(), want)
	}
}
