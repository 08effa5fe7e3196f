package nearname

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNearest(t *testing.T) {
	cases := map[string]struct {
		reason     string
		name       string
		candidates []string
		want       []string
	}{
		"swap":   {"neighbours swapped are one edit", "image.tga", []string{"image.tag", "image", "replicas"}, []string{"image.tag", "image"}},
		"prefix": {"a long common beginning counts", "desiredCommit", []string{"repoURL", "desiredRevision", "kustomize"}, []string{"desiredRevision"}},
		"case":   {"letter case does not count", "outpath", []string{"replicas", "outPath"}, []string{"outPath"}},
		"none":   {"nothing alike", "zzz", []string{"path", "updates"}, []string{}},
		"other":  {"nothing is left of the letters", "x", []string{"", "a", "b"}, []string{}},
		"self":   {"the name itself is no suggestion", "a", []string{"a"}, []string{}},
		"limit":  {"best first, bounded", "tag", []string{"tags", "tag1", "tax"}, []string{"tag1", "tags"}},
		"long":   {"hostile lengths are ignored", "a", []string{strings.Repeat("a", 10_000)}, []string{}},
		"runes":  {"runes are letters", "größe", []string{"grösse", "größer"}, []string{"größer", "grösse"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Nearest(tc.name, tc.candidates, 2)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}
