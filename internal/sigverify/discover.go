package sigverify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/stepd/stepd/internal/ociart"
)

// lead is a place where a candidate may be; fetching it is another request or
// two.
type lead struct {
	name   string
	format Format
	// hint is the predicate type that a listing gives, which sorts leads and
	// decides nothing.
	hint  string
	fetch func(ctx context.Context) (candidate, error)
}

// source lists leads of one form.
type source struct {
	format Format
	list   func(ctx context.Context) ([]lead, error)
}

// sources are where the policy's formats are kept, in the order in which they
// are asked. A later one is asked only when the earlier ones did not suffice.
func (d *discovery) sources(p *Policy) []source {
	var out []source
	if p.wants(Bundle) {
		out = append(out, source{Bundle, d.bundles})
	}
	if p.wants(Legacy) {
		if p.RequireSignature {
			out = append(out, source{Legacy, func(ctx context.Context) ([]lead, error) { return d.legacy(ctx, ".sig") }})
		}
		if len(p.Attestations) > 0 {
			out = append(out, source{Legacy, func(ctx context.Context) ([]lead, error) { return d.legacy(ctx, ".att") }})
		}
	}
	return out
}

// discovery finds candidates for a digest in a repository.
type discovery struct {
	repo   *ociart.Repository
	digest string
	limits Limits
	// bundleManifest is the size limit of a bundle's manifest.
	bundleManifest int64
}

// bundles lists the referrers that may be Sigstore bundles. Registries report
// the artifact type of Cosign's manifests in several ways, so the filter is
// loose and the manifest decides.
func (d *discovery) bundles(ctx context.Context) ([]lead, error) {
	list, err := d.repo.Referrers(ctx, d.digest)
	if err != nil {
		return nil, err
	}
	var out []lead
	for _, desc := range list {
		t := desc.ArtifactType
		if t != "" && t != ocispec.MediaTypeEmptyJSON && !strings.HasPrefix(t, bundleMediaTypePrefix) {
			continue
		}
		out = append(out, lead{
			name:   candidateName(string(desc.Digest)),
			format: Bundle,
			hint:   desc.Annotations[bundlePredicateTypeHint],
			fetch:  func(ctx context.Context) (candidate, error) { return d.bundle(ctx, desc) },
		})
	}
	return out, nil
}

// candidateName is a digest as a listing gives it, which may be anything.
func candidateName(digest string) string {
	if ociart.IsDigest(digest) {
		return digest
	}
	return ociart.Quote(digest)
}

func (d *discovery) bundle(ctx context.Context, desc ocispec.Descriptor) (candidate, error) {
	if desc.Size > d.bundleManifest {
		return candidate{}, fmt.Errorf("its manifest is given as %d bytes, the limit is %d", desc.Size, d.bundleManifest)
	}
	m, err := d.repo.Manifest(ctx, string(desc.Digest), d.bundleManifest)
	if err != nil {
		return candidate{}, fetchError(err)
	}
	img, err := m.Image()
	if err != nil {
		return candidate{}, err
	}
	layer, err := bundleLayer(img, d.digest)
	if err != nil {
		return candidate{}, err
	}
	return sequenced(ctx, layer, func(ctx context.Context) (candidate, error) {
		raw, err := d.repo.Blob(ctx, layer, d.limits.Bundle)
		if err != nil {
			return candidate{}, fetchError(err)
		}
		b, err := parseBundle(raw)
		if err != nil {
			return candidate{}, err
		}
		return candidate{name: m.Digest, format: Bundle, bundle: b}, nil
	})
}

// largeCandidate is the size from which candidates are not fetched side by
// side.
const largeCandidate = 256 << 10

// sequenced loads a small candidate at once and leaves a large one for later.
func sequenced(ctx context.Context, blob ocispec.Descriptor, load func(context.Context) (candidate, error)) (candidate, error) {
	if blob.Size > largeCandidate {
		return candidate{load: load}, nil
	}
	return load(ctx)
}

// maxLayers is how many signatures one legacy tag may hold; few of them are
// looked at.
const maxLayers = 4096

// legacy lists the layers under one of Cosign v2's tags: sha256-<hex>.sig or
// .att. No such tag is no leads; any other failure is an error.
func (d *discovery) legacy(ctx context.Context, suffix string) ([]lead, error) {
	m, err := d.repo.SignatureManifest(ctx, ociart.ReferrersTag(d.digest)+suffix)
	if ociart.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	img, err := m.Image()
	if err != nil {
		return nil, fmt.Errorf("%w: under the %s tag: %w", ociart.ErrIntegrity, suffix, err)
	}
	if len(img.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: under the %s tag are %d layers, the limit is %d", ociart.ErrIntegrity, suffix, len(img.Layers), maxLayers)
	}
	var out []lead
	for i, layer := range img.Layers {
		name := fmt.Sprintf("%s layer %d", m.Digest, i)
		l := lead{name: name, format: Legacy, hint: layer.Annotations[predicateTypeAnnotation]}
		if suffix == ".sig" {
			l.hint = signPredicateType
			l.fetch = func(ctx context.Context) (candidate, error) {
				return d.legacySignature(ctx, name, layer)
			}
		} else {
			l.fetch = func(ctx context.Context) (candidate, error) {
				return d.legacyAttestation(ctx, name, layer)
			}
		}
		out = append(out, l)
	}
	return out, nil
}

func (d *discovery) legacySignature(ctx context.Context, name string, layer ocispec.Descriptor) (candidate, error) {
	if layer.MediaType != simpleSigningMediaType {
		return candidate{}, fmt.Errorf("its layer is %s, not a signature", ociart.Quote(layer.MediaType))
	}
	return sequenced(ctx, layer, func(ctx context.Context) (candidate, error) {
		payload, err := d.repo.Blob(ctx, layer, d.limits.Payload)
		if err != nil {
			return candidate{}, fetchError(err)
		}
		b, err := parseLegacySignature(layer, payload)
		if err != nil {
			return candidate{}, err
		}
		return candidate{name: name, format: Legacy, bundle: b, payload: payload}, nil
	})
}

func (d *discovery) legacyAttestation(ctx context.Context, name string, layer ocispec.Descriptor) (candidate, error) {
	if layer.MediaType != dsseEnvelopeMediaType {
		return candidate{}, fmt.Errorf("its layer is %s, not an attestation", ociart.Quote(layer.MediaType))
	}
	return sequenced(ctx, layer, func(ctx context.Context) (candidate, error) {
		envelope, err := d.repo.Blob(ctx, layer, d.limits.Bundle)
		if err != nil {
			return candidate{}, fetchError(err)
		}
		b, err := parseLegacyAttestation(layer, envelope)
		if err != nil {
			return candidate{}, err
		}
		return candidate{name: name, format: Legacy, bundle: b, envelope: envelope}, nil
	})
}

// unavailableError is a candidate that could not be looked at, which is
// neither an acceptance nor a refusal.
type unavailableError struct{ err error }

func (e *unavailableError) Error() string { return e.err.Error() }
func (e *unavailableError) Unwrap() error { return e.err }

// fetchError tells candidates that are bad (dangling, or not what they claim
// to be) from those that are unavailable.
func fetchError(err error) error {
	if ociart.IsNotFound(err) || errors.Is(err, ociart.ErrIntegrity) {
		return err
	}
	return &unavailableError{err}
}

// rank sorts leads: those whose hint is wanted first, those without a hint
// next. The order within is the registry's.
func rank(leads []lead, p *Policy) {
	key := func(l lead) int {
		switch {
		case p.RequireSignature && l.hint == signPredicateType:
			return 0
		case slices.ContainsFunc(p.Attestations, func(a Attestation) bool { return a.spec.PredicateType == l.hint }):
			return 1
		case l.hint == "":
			return 2
		default:
			return 3
		}
	}
	slices.SortStableFunc(leads, func(a, b lead) int { return key(a) - key(b) })
}

// fetched is what became of a lead.
type fetched struct {
	lead      lead
	candidate candidate
	err       error
}

// fetchAll fetches a batch of leads, at most concurrent at a time, and keeps
// their order.
func fetchAll(ctx context.Context, leads []lead) []fetched {
	out := make([]fetched, len(leads))
	var wg sync.WaitGroup
	for i, l := range leads {
		wg.Go(func() { out[i] = fetchOne(ctx, l, l.fetch) })
	}
	wg.Wait()
	return out
}

// fetchOne runs fetch and outlives its panics: parsers of hostile input are
// below it.
func fetchOne(ctx context.Context, l lead, fetch func(context.Context) (candidate, error)) (out fetched) {
	defer func() {
		if r := recover(); r != nil {
			out = fetched{lead: l, err: errors.New("it is malformed: a parser gave up on it")}
		}
	}()
	c, err := fetch(ctx)
	return fetched{l, c, err}
}
