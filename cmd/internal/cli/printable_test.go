package cli

import "testing"

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain é\ttab\n":       "plain é\ttab\n",
		"\x1b[31mred\x1b[0m":   `\x1b[31mred\x1b[0m`,
		"a\rb":                 `a\rb`,
		"right\u202eto left":   `right\u202eto left`,
		"bad \xff byte":        `bad \ufffd byte`,
		"zero\u200bwidth\x00x": `zero\u200bwidth\x00x`,
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q) is %q, want %q", in, got, want)
		}
	}
}
