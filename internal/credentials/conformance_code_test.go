package credentials

import (
	"context"
	"testing"

	"github.com/stepd/stepd/steps"
)

// Cases of the conformance list that follow from Kargo's code only (C).
func TestConformanceChoiceOfSecret(t *testing.T) {
	for name, tc := range map[string]struct {
		reason  string
		secrets []Secret
		want    string // empty: anonymous
	}{
		"H6": {"the first by name wins, be it a regular expression",
			[]Secret{secret("b", "git", login("https://h.io/a", "exact")), secret("a", "git", regex("h.io/", "regex"))}, "regex"},
		"H7": {"a password alone is anonymous, without a second choice", []Secret{
			secret("a", "git", map[string]string{"repoURL": "https://h.io/a", "password": "pw"}), secret("b", "git", login("https://h.io/a", "b"))}, ""},
	} {
		list := func(context.Context, string) ([]Secret, error) { return tc.secrets, nil }
		got, err := FromSecrets(list, SecretOptions{}).Get(t.Context(), "demo", steps.CredentialsGit, "https://h.io/a")
		if err != nil || (got == nil) != (tc.want == "") || got != nil && got.Username != tc.want {
			t.Errorf("%s: %s: got %+v, %v, want user %q", name, tc.reason, got, err, tc.want)
		}
	}
}
