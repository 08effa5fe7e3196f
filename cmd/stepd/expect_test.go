package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNormalised(t *testing.T) {
	a, b, freight := strings.Repeat("a", 40), strings.Repeat("b", 40), strings.Repeat("f", 40)
	report := func(made, tip, ulid, dir string) string {
		return `{"phase": "Succeeded", "message": "in ` + dir + `/x",
			"steps": [
				{"uses": "git-clone", "startedAt": "2026-01-02T03:04:05Z", "finishedAt": null, "output": {"commits": {"main": "` + tip + `"}}},
				{"uses": "compose-output", "output": {"pinned": "` + freight + `", "made": "` + made + `"}}],
			"state": {"p": "prd.` + ulid + `.3b0f261"},
			"commits": [{"commit": "` + made + `", "message": "m\\n\\nStepd-Change: sha256:` + strings.Repeat("0", 64) + `"}],
			"syncs": [{"revisions": ["` + made + `"]}]}`
	}
	one, err := normalised([]byte(report(a, b, "01m80mtdr7zvs4yyek2m8rjaxb", "/tmp/stepd-run-123")), "")
	if err != nil {
		t.Fatal(err)
	}
	other, err := normalised([]byte(report(b, a, "01m80mtdxfwg9mz9xmjg7emqjv", "/work/elsewhere")), "/work/elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(one, other); diff != "" {
		t.Errorf("two runs of the same promotion differ (-one +other):\n%s", diff)
	}
	for _, want := range []string{
		`"made": "<commit 1>"`, `"main": "<commit 2>"`, `"pinned": "` + freight, `"in <workdir>/x"`, `"prd.<ulid>.3b0f261"`,
		`"startedAt": "<time>"`, `"finishedAt": null`, "Stepd-Change: <id>",
	} {
		if !strings.Contains(one, want) {
			t.Errorf("%s is missing from\n%s", want, one)
		}
	}
	for _, bad := range []string{"", "[]", "{}", `{"phase": 1}`} {
		if _, err := normalised([]byte(bad), ""); err == nil {
			t.Errorf("%q was taken for a report", bad)
		}
	}
}
