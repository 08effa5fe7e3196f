package atomiccommit

import (
	"strings"
	"testing"

	"github.com/stepd/stepd/steps"
)

// FuzzMessage: whatever the user writes, the trailers Git reads are ours.
func FuzzMessage(f *testing.F) {
	f.Add("subject\n\nbody", "Ticket", "OPS-1", "admin")
	f.Add("x\n\nSigned-By: me", "A", "b\nKargo-Stage: x", "m\r\nSigned-By: y")
	f.Add("---\n\n---", "A", "", "\u2028Kargo-Stage: x")
	f.Fuzz(func(t *testing.T, message, key, value, actor string) {
		sc := &steps.Context{Project: "p", Stage: "s", Promotion: "s.x.y", PromotionActor: actor}
		c := &change{id: "sha256:00"}
		text, err := composeMessage(sc, &config{Message: message, Trailers: map[string]string{key: value}}, nil, c)
		if err != nil || !trailerLine.MatchString(key+": x") {
			return
		}
		count := map[string]int{}
		for _, tr := range parseTrailers(text) {
			if reserved.MatchString(tr.key) {
				count[strings.ToLower(tr.key)]++
			}
		}
		for k, n := range count {
			if n != 1 {
				t.Errorf("%d trailers %s in %q", n, k, text)
			}
		}
		if cl := readClaim(text); !cl.is(c.id) || cl.stage != "s" || cl.promotion != "s.x.y" {
			t.Errorf("claim %+v of %q", cl, text)
		}
	})
}

// FuzzAttributes: a repository's .gitattributes must not panic.
func FuzzAttributes(f *testing.F) {
	for _, s := range []string{"dir/ filter=x", "* text=auto\n*.x -text", "[attr]m -text\n* m", `"a\tb" x`, "/ x", "**/ x", "a/**/b x", "[a", "{x} y"} {
		f.Add(s, "dir/f.yaml")
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		rules, err := parseAttributes([]byte(text), "")
		if err != nil {
			return
		}
		a := attributesOf(append(builtinAttributes(), rules...), path)
		if a.filter != "" && !strings.Contains(text, "filter") {
			t.Errorf("filter %q out of %q", a.filter, text)
		}
	})
}
