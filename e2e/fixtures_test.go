package e2e_test

import (
	"os"
	"path/filepath"
	"testing"

	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/registry/distribution"
	"github.com/stepd/stepd/internal/sharedata"
)

// TestFixtures verifies artifacts that real cosign signed some time ago, whose
// certificates have expired since, with `stepd verify`. What must be accepted
// and refused is what the README beside them says.
func TestFixtures(t *testing.T) {
	s := startSandbox(t)
	dir := sharedata.Path(t, "fixtures", "signatures")
	without := registry.Start(distribution.New(t.Context()))
	t.Cleanup(without.Close)

	const (
		accepted = 0
		refused  = 3
	)
	root := []string{"--trusted-root", filepath.Join(dir, "trusted_root.json")}
	keyless := append([]string{
		"--issuer", "http://127.0.0.1:5556",
		"--subject", "https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0",
	}, root...)
	key := func(name string, more ...string) []string {
		return append([]string{"--key", filepath.Join(dir, name)}, more...)
	}
	const noLog = "--require-transparency-log=false"
	slsa := []string{"--attestation", "https://slsa.dev/provenance/v1", "--require-signature=false"}

	for name, tc := range map[string]struct {
		reason  string
		fixture string
		args    []string
		code    int
	}{
		"keyless, v2":                     {"the signing time is proven by the log", "kl-v2", keyless, accepted},
		"keyless, v3, Rekor v2":           {"the signing time is proven by a timestamp", "kl-v3-rekor2tsa", keyless, accepted},
		"keyless, bundles only":           {"a v2 signature is no bundle", "kl-v2", append([]string{"--formats", "bundle"}, keyless...), refused},
		"look-alike":                      {"another repository's workflow", "kl-lookalike", keyless, refused},
		"no SCT":                          {"a certificate that was issued in secret", "kl-v3-nosct", keyless, refused},
		"no SCT, waived":                  {"the control: that was all", "kl-v3-nosct", append([]string{"--require-sct=false"}, keyless...), accepted},
		"key, v2, no log":                 {"a log entry is required by default", "key-v2", key("cosign.pub", root...), refused},
		"key, v2, no log, waived":         {"the control: that was all", "key-v2", key("cosign.pub", noLog), accepted},
		"key, v2":                         {"logged", "key-v2-rekor", key("cosign.pub", root...), accepted},
		"key, v2, wrong key":              {"another key", "key-v2-rekor", key("other.pub", root...), refused},
		"key, v3":                         {"logged", "key-v3-rekor1", key("cosign.pub", root...), accepted},
		"key, v3, wrong key":              {"another key", "key-v3-rekor1", key("other.pub", root...), refused},
		"attestation for a signature":     {"an attestation is none, though cosign verify takes it for one", "key-v3-att", key("cosign.pub", noLog), refused},
		"attestation":                     {"where an attestation is asked for", "key-v3-att", key("cosign.pub", append([]string{noLog}, slsa...)...), accepted},
		"attestation, wrong key":          {"another key", "key-v3-att", key("other.pub", append([]string{noLog}, slsa...)...), refused},
		"keyless policy, key signature":   {"a key is nobody's identity", "key-v3-rekor1", keyless, refused},
		"key policy, keyless signature":   {"an identity is not that key", "kl-v2", key("cosign.pub", root...), refused},
		"signature where it was attested": {"a signature is no attestation", "key-v3-rekor1", key("cosign.pub", append(slsa, root...)...), refused},
	} {
		for api, reg := range map[string]*registry.Server{"referrers API": s.Registry, "fallback tag": without} {
			t.Run(name+", "+api, func(t *testing.T) {
				repository := reg.Host() + "/fixtures/" + tc.fixture
				pushLayout(t, filepath.Join(dir, tc.fixture), repository)
				r, err := s.Command(t.Context(), append([]string{"verify", repository + ":v1"}, tc.args...)...)
				if err != nil {
					t.Fatal(err)
				}
				if r.Code != tc.code {
					t.Errorf("%s: exit code %d, want %d\n%s%s", tc.reason, r.Code, tc.code, r.Stderr, r.Stdout)
				}
			})
		}
	}
}

// pushLayout pushes everything that an OCI layout holds, under its tags.
func pushLayout(t *testing.T, layout, repository string) {
	t.Helper()
	src, err := oci.NewFromFS(t.Context(), os.DirFS(layout))
	if err != nil {
		t.Fatal(err)
	}
	dst, err := remote.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	dst.PlainHTTP = true
	if err := src.Tags(t.Context(), "", func(tags []string) error {
		for _, tag := range tags {
			if _, err := oras.Copy(t.Context(), src, tag, dst, tag, oras.DefaultCopyOptions); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
