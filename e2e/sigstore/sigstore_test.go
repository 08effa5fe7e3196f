package sigstore_test

import (
	"testing"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/registry/distribution"
	"github.com/stepd/stepd/e2e/sigstore"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
)

// TestEveryFormSignsAndVerifies holds the stack against real cosign: what one
// major writes, cosign v3 accepts from the identity or key that signed, for
// every form, with and without the referrers API.
func TestEveryFormSignsAndVerifies(t *testing.T) {
	ctx := t.Context()
	stack, err := sigstore.Start(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stack.Close)
	with := registry.Start(registry.WithReferrers())
	t.Cleanup(with.Close)
	without := registry.Start(distribution.New(ctx))
	t.Cleanup(without.Close)
	run := workflow.Run{Repository: "acme/svc-config", Ref: "refs/tags/v1.2.0"}

	for i, form := range sigstore.Forms() {
		reg := []*registry.Server{with, without}[i%2]
		t.Run(form.String(), func(t *testing.T) {
			repository := reg.Host() + "/acme/" + form.String()
			manifest, err := artifact.Push(ctx, repository, artifact.Config{
				Service: "svc", Version: "v1.2.0", Region: "prd-us-east-2", Values: []byte("region: us-east-2\n"),
			})
			if err != nil {
				t.Fatal(err)
			}
			ref := repository + "@" + manifest.Digest.String()
			if err := stack.Sign(ctx, form, run, ref, sigstore.SignOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stack.Cosign(ctx, 3, stack.VerifyArgs(form, run, ref)...); err != nil {
				t.Error(err)
			}
		})
	}
}
