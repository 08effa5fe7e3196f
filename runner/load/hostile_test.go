package load_test

import (
	"strings"
	"testing"

	"github.com/stepd/stepd/runner/load"
)

// TestHostile feeds texts that are small but expensive to expand: each must
// end, in an error or in documents whose positions can be asked for.
func TestHostile(t *testing.T) {
	aliases := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	merges := "a: &a {k: 1}\n"
	for c := 'b'; c < 'k'; c++ {
		ref := "*" + string(c-1)
		aliases += string(c) + ": &" + string(c) + " [" + strings.Repeat(ref+",", 10) + "]\n"
		merges += string(c) + ": &" + string(c) + " {<<: [" + ref + ", " + ref + ", " + ref + "]}\n"
	}
	for _, tc := range []struct {
		reason, text string
		refused      bool
	}{
		{"aliases of aliases", aliases, true},
		{"merges of merges", merges, true},
		{"deep lists", strings.Repeat("[", 9000) + strings.Repeat("]", 9000), false},
		{"deeper than the parser goes", strings.Repeat("[", 20000) + strings.Repeat("]", 20000), true},
		{"deep objects", strings.Repeat("{a: ", 5000) + strings.Repeat("}", 5000), false},
		{"keys that are objects", strings.Repeat("? ", 5000) + "x", true},
		{"an alias of itself", "a: &a [*a]\n", true},
		{"nothing but markers", strings.Repeat("---\n", 100000), false},
	} {
		set, err := load.Bytes("f", []byte(tc.text))
		if (err != nil) != tc.refused {
			t.Errorf("%s: refused is %t, want %t (%.100v)", tc.reason, err != nil, tc.refused, err)
		}
		for _, d := range set.Documents {
			if pos := d.Position("/j/k/l"); pos.Line == 0 {
				t.Errorf("%s: no position", tc.reason)
			}
		}
	}
}
