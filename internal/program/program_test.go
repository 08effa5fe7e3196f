package program

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBeside(t *testing.T) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		t.Fatal(err)
	}
	const name = "program-beside-the-test"
	want := filepath.Join(filepath.Dir(self), name)
	t.Cleanup(func() { _ = os.Remove(want) })
	for _, tc := range []struct {
		reason string
		change func() error
		says   string // empty where it is found
	}{
		{"nothing there", func() error { return nil }, "there is no program " + want},
		{"no executable", func() error { return os.WriteFile(want, nil, 0o600) }, "permission denied"},
		{"a program", func() error { return os.Chmod(want, 0o700) }, ""},
	} {
		if err := tc.change(); err != nil {
			t.Fatal(err)
		}
		switch got, err := Beside(name); {
		case tc.says == "" && (got != want || err != nil):
			t.Errorf("%s: %q, %v, want %q", tc.reason, got, err, want)
		case tc.says != "" && (got != "" || !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: %q, %v, want it to say %q of %s", tc.reason, got, err, tc.says, want)
		}
	}
}
