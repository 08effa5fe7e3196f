package authority_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/sigstore/authority"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
	"github.com/stepd/stepd/e2e/tools"
)

// TestCosignAcceptsTheAuthority holds the in-process authority against the
// tool that it imitates: what it signs must be what `cosign verify` accepts
// from that identity, and from no other.
func TestCosignAcceptsTheAuthority(t *testing.T) {
	ctx := t.Context()
	cosign, err := tools.CosignV3.Path(ctx)
	if err != nil {
		t.Fatal(err)
	}
	auth, err := authority.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	reg := registry.Start(registry.WithReferrers())
	t.Cleanup(reg.Close)

	repository := reg.Host() + "/acme/configs"
	run := workflow.Run{Repository: "acme/svc-config", Ref: "refs/tags/v1.2.0"}
	manifest, err := artifact.Push(ctx, repository, artifact.Config{
		Service: "svc", Version: "v1.2.0", Region: "prd-us-east-2", Values: []byte("region: us-east-2\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := auth.Sign(ctx, run, manifest.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := artifact.AttachBundle(ctx, repository, manifest, bundle, authority.SignPredicate); err != nil {
		t.Fatal(err)
	}
	trusted, err := auth.TrustedRoot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "trusted_root.json")
	if err := os.WriteFile(root, trusted, 0o600); err != nil {
		t.Fatal(err)
	}

	for name, tc := range map[string]struct {
		reason  string
		subject string
		issuer  string
		ok      bool
	}{
		"signer": {
			reason:  "the identity that signed",
			subject: run.Subject(), issuer: workflow.GitHub, ok: true,
		},
		"lookalike": {
			reason:  "another repository's workflow did not sign",
			subject: "https://github.com/acme/svc-config-evil/.github/workflows/publish.yaml@refs/tags/v1.2.0", issuer: workflow.GitHub,
		},
		"issuer": {
			reason:  "another issuer did not vouch",
			subject: run.Subject(), issuer: "https://gitlab.com",
		},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := verify(t.Context(), cosign, root, repository+"@"+manifest.Digest.String(), tc.subject, tc.issuer)
			if (err == nil) != tc.ok {
				t.Errorf("%s: cosign verify: %v\n%s", tc.reason, err, out)
			}
		})
	}
}

func verify(ctx context.Context, cosign, root, ref, subject, issuer string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, cosign, "verify", "--trusted-root", root,
		"--certificate-identity", subject, "--certificate-oidc-issuer", issuer, "--allow-http-registry", ref)
	cmd.Env = append(os.Environ(), "HOME="+filepath.Dir(root))
	return cmd.CombinedOutput()
}
