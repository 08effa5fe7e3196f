package ociverified

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/sigverify"
	"github.com/stepd/stepd/steps"
)

// config mirrors schemas/oci-download-verified.json.
type config struct {
	ImageRef              string       `json:"imageRef"`
	OutPath               string       `json:"outPath"`
	MediaType             string       `json:"mediaType"`
	ArtifactType          string       `json:"artifactType"`
	AllowOverwrite        bool         `json:"allowOverwrite"`
	MaxSize               int64        `json:"maxSize"`
	InsecureSkipTLSVerify bool         `json:"insecureSkipTLSVerify"`
	InsecurePlainHTTP     bool         `json:"insecurePlainHTTP"`
	CABundle              string       `json:"caBundle"`
	Verify                verifyConfig `json:"verify"`
}

type verifyConfig struct {
	Identities             []identityConfig    `json:"identities"`
	Keys                   []keyConfig         `json:"keys"`
	TrustedRoot            *trustedRootConfig  `json:"trustedRoot"`
	RequireTransparencyLog *bool               `json:"requireTransparencyLog"`
	RequireTimestamp       bool                `json:"requireTimestamp"`
	RequireSCT             *bool               `json:"requireSCT"`
	RequireSignature       *bool               `json:"requireSignature"`
	Formats                []sigverify.Format  `json:"formats"`
	SignatureRepository    string              `json:"signatureRepository"`
	Annotations            map[string]string   `json:"annotations"`
	SignedAnnotations      map[string]string   `json:"signedAnnotations"`
	DockerReference        string              `json:"dockerReference"`
	Attestations           []attestationConfig `json:"attestations"`
}

type identityConfig struct {
	Issuer        string       `json:"issuer"`
	IssuerRegExp  string       `json:"issuerRegExp"`
	Subject       string       `json:"subject"`
	SubjectRegExp string       `json:"subjectRegExp"`
	Claims        claimsConfig `json:"claims"`
}

type claimsConfig struct {
	SourceRepository      string `json:"sourceRepository"`
	SourceRef             string `json:"sourceRef"`
	SourceCommit          string `json:"sourceCommit"`
	SourceRepositoryOwner string `json:"sourceRepositoryOwner"`
	Workflow              string `json:"workflow"`
	BuildSignerURI        string `json:"buildSignerURI"`
	Trigger               string `json:"trigger"`
	RunnerEnvironment     string `json:"runnerEnvironment"`
}

type keyConfig struct {
	PEM       string        `json:"pem"`
	Path      string        `json:"path"`
	SecretRef *secretConfig `json:"secretRef"`
}

type secretConfig struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

type trustedRootConfig struct {
	Path       string          `json:"path"`
	Inline     json.RawMessage `json:"inline"`
	PublicGood bool            `json:"publicGood"`
	TUFMirror  *mirrorConfig   `json:"tufMirror"`
}

type mirrorConfig struct {
	URL  string `json:"url"`
	Root string `json:"root"`
	// rootJSON is the content of Root where it was read already.
	rootJSON []byte
}

type attestationConfig struct {
	PredicateType string `json:"predicateType"`
	BuilderID     string `json:"builderID"`
	SourceURI     string `json:"sourceURI"`
	SourceRef     string `json:"sourceRef"`
	MaxAge        string `json:"maxAge"`
	CEL           string `json:"cel"`
}

// defaultMaxSize is Kargo's limit for oci-download; 100 MiB.
const defaultMaxSize = 100 << 20

// decode reads a config that has passed the schema.
func decode(raw map[string]any) (config, error) {
	var cfg config
	b, err := json.Marshal(raw)
	if err != nil {
		return cfg, fmt.Errorf("cannot encode the config: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&cfg); err != nil {
		return cfg, fmt.Errorf("cannot decode the config: %w", err)
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = defaultMaxSize
	}
	return cfg, nil
}

// outFile is outPath as a clean path below the work dir.
func outFile(outPath string) (string, error) {
	clean := filepath.ToSlash(filepath.Clean(outPath))
	if clean == "." || path.IsAbs(clean) || !filepath.IsLocal(clean) {
		return "", fmt.Errorf("outPath %q is not a file within the work dir", outPath)
	}
	for part := range strings.SplitSeq(clean, "/") {
		if strings.EqualFold(part, ".git") {
			return "", fmt.Errorf("outPath %q is inside a .git directory", outPath)
		}
	}
	return clean, nil
}

// policy makes the verifier's policy of the config.
func (o *Options) policy(ctx context.Context, sc *steps.Context, v *verifyConfig) (*sigverify.Policy, error) {
	p := sigverify.NewPolicy()
	for i, c := range v.Identities {
		id, err := newIdentity(c)
		if err != nil {
			return nil, fmt.Errorf("verify.identities[%d]: %w", i, err)
		}
		p.Identities = append(p.Identities, id)
	}
	for i, c := range v.Keys {
		data, err := o.readKey(ctx, sc, c)
		if err != nil {
			return nil, fmt.Errorf("verify.keys[%d]: %w", i, err)
		}
		k, err := sigverify.ParseKey(data)
		if err != nil {
			return nil, fmt.Errorf("verify.keys[%d]: %w", i, err)
		}
		p.Keys = append(p.Keys, k)
	}
	for i, c := range v.Attestations {
		a, err := newAttestation(c)
		if err != nil {
			return nil, fmt.Errorf("verify.attestations[%d]: %w", i, err)
		}
		p.Attestations = append(p.Attestations, a)
	}
	setUnlessNil(&p.RequireTransparencyLog, v.RequireTransparencyLog)
	setUnlessNil(&p.RequireSCT, v.RequireSCT)
	setUnlessNil(&p.RequireSignature, v.RequireSignature)
	p.RequireTimestamp = v.RequireTimestamp
	if v.Formats != nil {
		p.Formats = v.Formats
	}
	p.SignedAnnotations = v.SignedAnnotations
	p.DockerReference = v.DockerReference
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &p, nil
}

func setUnlessNil(dst *bool, v *bool) {
	if v != nil {
		*dst = *v
	}
}

func newIdentity(c identityConfig) (sigverify.Identity, error) {
	return sigverify.NewIdentity(sigverify.IdentitySpec{
		Issuer: c.Issuer, IssuerRegExp: c.IssuerRegExp,
		Subject: c.Subject, SubjectRegExp: c.SubjectRegExp,
		Claims: sigverify.Claims(c.Claims),
	})
}

func newAttestation(c attestationConfig) (sigverify.Attestation, error) {
	spec := sigverify.AttestationSpec{
		PredicateType: c.PredicateType, BuilderID: c.BuilderID,
		SourceURI: c.SourceURI, SourceRef: c.SourceRef, CEL: c.CEL,
	}
	if c.MaxAge != "" {
		d, err := time.ParseDuration(c.MaxAge)
		if err != nil || d <= 0 {
			return sigverify.Attestation{}, fmt.Errorf("maxAge %q is not a duration such as 720h", c.MaxAge)
		}
		spec.MaxAge = d
	}
	return sigverify.NewAttestation(spec)
}

func (o *Options) readKey(ctx context.Context, sc *steps.Context, c keyConfig) ([]byte, error) {
	switch {
	case c.PEM != "":
		return []byte(c.PEM), nil
	case c.Path != "":
		return o.readTrust(sc, c.Path)
	case c.SecretRef != nil:
		if o.Secrets == nil {
			return nil, errors.New("secretRef cannot be used here: no Secrets are available")
		}
		data, err := o.Secrets.Secret(ctx, sc.Project, c.SecretRef.Name)
		if err != nil {
			return nil, fmt.Errorf("cannot read the Secret %q: %w", c.SecretRef.Name, err)
		}
		key, ok := data[c.SecretRef.Key]
		if !ok {
			return nil, fmt.Errorf("the Secret %q has no key %q", c.SecretRef.Name, c.SecretRef.Key)
		}
		return key, nil
	default:
		return nil, errors.New("a key needs pem, path or secretRef")
	}
}

// trustedRoot gets the trusted material; nil if the policy needs none. An
// error of the second kind (retry true) is a repository that cannot be
// reached.
func (o *Options) trustedRoot(ctx context.Context, sc *steps.Context, c *trustedRootConfig, p *sigverify.Policy) (trust root.TrustedMaterial, retry bool, err error) {
	if c == nil {
		if !p.NeedsTrustedRoot() {
			return nil, false, nil
		}
		c = &trustedRootConfig{PublicGood: true}
	}
	switch {
	case c.Path != "":
		data, err := o.readTrust(sc, c.Path)
		if err != nil {
			return nil, false, fmt.Errorf("verify.trustedRoot: %w", err)
		}
		trust, err = o.roots.parse(data)
		if err != nil {
			return nil, false, fmt.Errorf("verify.trustedRoot: %q: %w", c.Path, err)
		}
		return trust, false, nil
	case c.Inline != nil:
		data := []byte(c.Inline)
		var text string
		if json.Unmarshal(data, &text) == nil {
			data = []byte(text)
		}
		trust, err = o.roots.parse(data)
		if err != nil {
			return nil, false, fmt.Errorf("verify.trustedRoot.inline: %w", err)
		}
		return trust, false, nil
	case c.PublicGood || c.TUFMirror != nil:
		if o.TUF == nil {
			return nil, false, errors.New("verify.trustedRoot: TUF is not available here, use path or inline")
		}
		if c.PublicGood {
			trust, err = o.TUF.PublicGood(ctx)
			return trust, true, err
		}
		rootJSON := c.TUFMirror.rootJSON
		if rootJSON == nil {
			if rootJSON, err = o.readTrust(sc, c.TUFMirror.Root); err != nil {
				return nil, false, fmt.Errorf("verify.trustedRoot.tufMirror.root: %w", err)
			}
		}
		trust, err = o.TUF.Mirror(ctx, c.TUFMirror.URL, rootJSON)
		return trust, true, err
	default:
		return nil, false, errors.New("verify.trustedRoot needs path, inline, publicGood or tufMirror")
	}
}

func (o *Options) readTrust(sc *steps.Context, path string) ([]byte, error) {
	if o.Trust == nil {
		return nil, fmt.Errorf("cannot read %q: files cannot be named here", path)
	}
	return o.Trust.Read(sc, path)
}

// weakened lists what the config gave up, the registry's settings included.
func (c *config) weakened(p *sigverify.Policy) []string {
	out := p.Weakened()
	if c.InsecureSkipTLSVerify {
		out = append(out, "insecureSkipTLSVerify: true")
	}
	if c.InsecurePlainHTTP {
		out = append(out, "insecurePlainHTTP: true")
	}
	return out
}

// client opens the artifact's repository and that of its signatures.
func (o *Options) repositories(sc *steps.Context, c *config, creds steps.CredentialSource) (artifact, signatures *ociart.Repository, err error) {
	ref, err := ociart.ParseReference(c.ImageRef)
	if err != nil {
		return nil, nil, err
	}
	client, err := ociart.New(ociart.Options{
		Transports: o.Transports, Credentials: creds, Project: sc.Project,
		InsecureSkipTLSVerify: c.InsecureSkipTLSVerify, CABundle: []byte(c.CABundle), PlainHTTP: c.InsecurePlainHTTP,
		Limits: o.RegistryLimits, Wait: o.Wait, UserAgent: o.UserAgent,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("caBundle: %w", err)
	}
	artifact = client.Repository(ref)
	if c.Verify.SignatureRepository == "" {
		return artifact, artifact, nil
	}
	sigRef, err := ociart.ParseRepository(c.Verify.SignatureRepository)
	if err != nil {
		return nil, nil, fmt.Errorf("verify.signatureRepository: %w", err)
	}
	return artifact, client.Repository(sigRef), nil
}
