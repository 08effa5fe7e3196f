// Package authority is a private Sigstore in one process, light enough for a
// demo: Fulcio's own certificate authority code over an ephemeral key, a
// certificate log and a Rekor v1 stand-in. Its signatures are what
// `cosign sign` (v3) writes and its trust is a trusted_root.json. The servers
// that real cosign talks to are in package sigstore.
package authority

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"

	"github.com/sigstore/fulcio/pkg/ca/ephemeralca"
	"github.com/sigstore/fulcio/pkg/certificate"
	"github.com/sigstore/fulcio/pkg/ctl"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/stepd/stepd/e2e/sigstore/ctlog"
	"github.com/stepd/stepd/e2e/sigstore/rekorv1"
	"github.com/stepd/stepd/e2e/sigstore/trust"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
)

// SignPredicate is the predicate type of a signature by `cosign sign`.
const SignPredicate = "https://sigstore.dev/cosign/sign/v1"

// Authority certifies workflows and logs their signatures.
type Authority struct {
	ca    *ephemeralca.EphemeralCA
	ct    *ctlog.Log
	rekor *rekorv1.Log
	log   *httptest.Server
}

// Start makes an authority with fresh keys, its log on loopback. Close it.
func Start() (*Authority, error) {
	ca, err := ephemeralca.NewEphemeralCA()
	if err != nil {
		return nil, fmt.Errorf("cannot make the certificate authority: %w", err)
	}
	ctLog, err := ctlog.New()
	if err != nil {
		return nil, err
	}
	rekor, err := rekorv1.New()
	if err != nil {
		return nil, err
	}
	return &Authority{ca: ca, ct: ctLog, rekor: rekor, log: httptest.NewServer(rekor)}, nil
}

// Close stops the log.
func (a *Authority) Close() { a.log.Close() }

// TrustedRoot returns the authority's trusted_root.json.
func (a *Authority) TrustedRoot(ctx context.Context) ([]byte, error) {
	chains, err := a.ca.TrustBundle(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot read the trust bundle: %w", err)
	}
	return trust.Root{
		Fulcio:    chains[0],
		CTLogs:    []trust.Log{{URL: "https://ct.localhost", ID: a.ct.ID(), PublicKey: a.ct.PublicKey()}},
		RekorLogs: []trust.Log{{URL: a.log.URL, ID: a.rekor.ID(), PublicKey: a.rekor.PublicKey()}},
	}.JSON()
}

// Defect spoils a signature in one way, for tests of refusals.
type Defect int

// The defects.
const (
	// None is a signature as it should be.
	None Defect = iota
	// NoSCT is a certificate without a signed certificate timestamp.
	NoSCT
	// NoLog is a signature that no transparency log holds.
	NoLog
)

// Sign returns the bundle (media type …bundle.v0.3+json) that `cosign sign`
// writes when run as w over the manifest with the given digest,
// "sha256:<hex>".
func (a *Authority) Sign(ctx context.Context, w workflow.Run, digest string) ([]byte, error) {
	statement, err := SignStatement(digest)
	if err != nil {
		return nil, err
	}
	return a.SignStatement(ctx, w, statement, None)
}

// SignStatement returns a bundle over any in-toto statement, signed as w.
func (a *Authority) SignStatement(ctx context.Context, w workflow.Run, statement []byte, d Defect) ([]byte, error) {
	key, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		return nil, fmt.Errorf("cannot make a signing key: %w", err)
	}
	options := sign.BundleOptions{Context: ctx, CertificateProvider: certifier{a, w, d}}
	if d != NoLog {
		options.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{BaseURL: a.log.URL, Version: 1})}
	}
	b, err := sign.Bundle(&sign.DSSEData{Data: statement, PayloadType: "application/vnd.in-toto+json"}, key, options)
	if err != nil {
		return nil, fmt.Errorf("cannot sign as %s: %w", w.Subject(), err)
	}
	return protojson.Marshal(b)
}

// SignStatement is the statement that `cosign sign` signs for a digest,
// "sha256:<hex>".
func SignStatement(digest string) ([]byte, error) {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok {
		return nil, fmt.Errorf("cannot sign %q: not a sha256 digest", digest)
	}
	return json.Marshal(map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       []any{map[string]any{"digest": map[string]string{"sha256": hex}}},
		"predicateType": SignPredicate,
		"predicate":     map[string]any{},
	})
}

// certifier is a sign.CertificateProvider that skips the token: it is the
// authority, and knows who asks.
type certifier struct {
	a *Authority
	w workflow.Run
	d Defect
}

// GetCertificate implements sign.CertificateProvider.
func (c certifier) GetCertificate(ctx context.Context, key sign.Keypair, _ *sign.CertificateProviderOptions) ([]byte, error) {
	if c.d == NoSCT {
		cert, err := c.a.ca.CreateCertificate(ctx, principal{c.w}, key.GetPublicKey())
		if err != nil {
			return nil, fmt.Errorf("cannot issue a certificate: %w", err)
		}
		return cert.FinalCertificate.Raw, nil
	}
	return c.a.certify(ctx, c.w, key.GetPublicKey())
}

// certify issues a leaf as Fulcio does (pkg/server/grpc_server.go): a
// precertificate, its timestamp, and the certificate that embeds it.
func (a *Authority) certify(ctx context.Context, w workflow.Run, key crypto.PublicKey) ([]byte, error) {
	pre, err := a.ca.CreatePrecertificate(ctx, principal{w}, key)
	if err != nil {
		return nil, fmt.Errorf("cannot make a precertificate: %w", err)
	}
	sct, err := a.ct.AddPreChain(ctx, ctl.BuildCTChain(pre.PreCert, pre.CertChain))
	if err != nil {
		return nil, err
	}
	final, err := a.ca.IssueFinalCertificate(ctx, pre, sct)
	if err != nil {
		return nil, fmt.Errorf("cannot issue a certificate: %w", err)
	}
	return final.FinalCertificate.Raw, nil
}

// principal is a workflow as Fulcio's certificate authority sees it.
type principal struct{ workflow.Run }

// Name implements identity.Principal.
func (p principal) Name(context.Context) string { return p.Claims()["sub"] }

// Embed implements identity.Principal with the extensions that Fulcio's
// configuration has for GitHub (config/identity/config.yaml).
func (p principal) Embed(_ context.Context, cert *x509.Certificate) error {
	const host = "https://github.com/"
	subject, err := url.Parse(p.Subject())
	if err != nil {
		return fmt.Errorf("cannot use the workflow as a subject: %w", err)
	}
	cert.URIs = []*url.URL{subject}
	c := p.Claims()
	cert.ExtraExtensions, err = certificate.Extensions{
		Issuer:                              p.WithDefaults().Issuer,
		Subject:                             c["sub"],
		GithubWorkflowTrigger:               c["event_name"],
		GithubWorkflowSHA:                   c["sha"],
		GithubWorkflowName:                  c["workflow"],
		GithubWorkflowRepository:            c["repository"],
		GithubWorkflowRef:                   c["ref"],
		BuildSignerURI:                      host + c["job_workflow_ref"],
		BuildSignerDigest:                   c["job_workflow_sha"],
		RunnerEnvironment:                   c["runner_environment"],
		SourceRepositoryURI:                 host + c["repository"],
		SourceRepositoryDigest:              c["sha"],
		SourceRepositoryRef:                 c["ref"],
		SourceRepositoryIdentifier:          c["repository_id"],
		SourceRepositoryOwnerURI:            host + c["repository_owner"],
		SourceRepositoryOwnerIdentifier:     c["repository_owner_id"],
		BuildConfigURI:                      host + c["workflow_ref"],
		BuildConfigDigest:                   c["workflow_sha"],
		BuildTrigger:                        c["event_name"],
		RunInvocationURI:                    host + c["repository"] + "/actions/runs/" + c["run_id"] + "/attempts/" + c["run_attempt"],
		SourceRepositoryVisibilityAtSigning: c["repository_visibility"],
	}.Render()
	return err
}
