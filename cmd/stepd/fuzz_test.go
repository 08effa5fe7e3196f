package main

import (
	"strings"
	"testing"
)

func FuzzParseImage(f *testing.F) {
	f.Add("ghcr.io/acme/shop:v1.2.0")
	f.Add("localhost:5000/a@sha256:" + strings.Repeat("0", 64))
	f.Add("a:b@c")
	f.Fuzz(func(t *testing.T, s string) {
		img, err := parseImage(s)
		if err != nil {
			return
		}
		if img.RepoURL == "" || img.Tag == "" && img.Digest == "" {
			t.Fatalf("%q gives %+v", s, img)
		}
		back := img.RepoURL
		if img.Tag != "" {
			back += ":" + img.Tag
		}
		if img.Digest != "" {
			back += "@" + img.Digest
		}
		if back != s {
			t.Fatalf("%q came back as %q", s, back)
		}
	})
}

func FuzzNormalised(f *testing.F) {
	f.Add(`{"phase":"Failed","steps":[{"startedAt":"x"}],"commits":[{"commit":"abc"}]}`, "/tmp/w")
	f.Fuzz(func(t *testing.T, report, workDir string) {
		once, err := normalised([]byte(report), workDir)
		if err != nil {
			return
		}
		if _, err := normalised([]byte(once), ""); err != nil {
			t.Fatalf("what was normalised is no report any more: %v\n%s", err, once)
		}
	})
}
