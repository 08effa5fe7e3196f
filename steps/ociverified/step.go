package ociverified

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/sigverify"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
)

// Kind is the step's name.
const Kind = "oci-download-verified"

// Deadline is how long one attempt may take in all.
const Deadline = 2 * time.Minute

// Options are the step's edges.
type Options struct {
	// Transports is the connection pool and the edge at which requests are
	// seen; nil is a pool of its own.
	Transports *ociart.Transports
	// Credentials is used when the engine grants none.
	Credentials steps.CredentialSource
	// Secrets serves secretRef; nil refuses it.
	Secrets steps.SecretSource
	// Trust reads the files that configs name; nil refuses them.
	Trust TrustFiles
	// TUF serves publicGood and tufMirror; nil refuses them.
	TUF *sigverify.TUF
	// Ledger is where acceptances are recorded. Required for the step.
	Ledger verification.Ledger
	// Operator is the operator's own policy; nil is none.
	Operator *OperatorPolicy
	// Clock is what maxAge is measured by; nil is time.Now.
	Clock func() time.Time
	// Deadline bounds one attempt; zero is the constant Deadline.
	Deadline       time.Duration
	RegistryLimits ociart.Limits
	Limits         sigverify.Limits
	// Wait pauses between attempts at a registry; nil waits for real.
	Wait func(ctx context.Context, d time.Duration) error
	// UserAgent is what registries are told.
	UserAgent string

	roots *roots
}

// New makes the step's registration. Edges live as long as the registration.
func New(o Options) steps.Registration {
	o = o.withDefaults()
	configSchema, _ := schemas.Config(Kind)
	outputSchema, _ := schemas.Output(Kind)
	return steps.Registration{
		Name: Kind,
		New: func(caps steps.Capabilities) steps.Runner {
			creds := caps.Credentials
			if creds == nil {
				creds = o.Credentials
			}
			return &runner{o, creds}
		},
		Metadata:     steps.Metadata{RequiredCapabilities: []steps.Capability{steps.AccessCredentials}},
		ConfigSchema: configSchema,
		OutputSchema: outputSchema,
	}
}

func (o Options) withDefaults() Options {
	if o.Transports == nil {
		o.Transports = &ociart.Transports{}
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Deadline == 0 {
		o.Deadline = Deadline
	}
	o.roots = &roots{}
	return o
}

type runner struct {
	Options
	creds steps.CredentialSource
}

// Run implements steps.Runner. A refusal and a config that cannot be accepted
// are Failed and terminal; a registry that fails is Errored and may be tried
// again. Nothing is written unless the artifact was accepted.
func (r *runner) Run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Deadline)
	defer cancel()
	cfg, err := decode(sc.Config)
	if err != nil {
		return result(fmt.Errorf("%w: %w", steps.ErrConfig, err))
	}
	out, err := outFile(cfg.OutPath)
	if err != nil {
		return result(fmt.Errorf("%w: %w", steps.ErrConfig, err))
	}
	// What an earlier run of this step verified, before a restart, is no evidence
	// for what this one refuses.
	key := verification.Key{Project: sc.Project, Promotion: sc.Promotion, Alias: sc.Alias}
	if err := r.Ledger.Remove(key); err != nil {
		return result(err)
	}
	a, err := r.accept(ctx, sc, &cfg, r.creds, nil)
	if err != nil {
		return result(err)
	}
	if err := r.download(ctx, sc.WorkDir, out, &cfg, a); err != nil {
		return result(err)
	}
	record := a.Record
	record.Path = out
	if err := r.Ledger.Put(ctx, key, record); err != nil {
		return result(fmt.Errorf("cannot record the verification: %w", err))
	}
	for _, rej := range a.Rejected {
		sc.Log.Info("candidate refused on the way", "candidate", rej.Candidate, "format", string(rej.Format), "reason", rej.Reason)
	}
	return steps.Result{
		Status:  steps.Succeeded,
		Message: fmt.Sprintf("verified %s@%s, signed by %s; wrote %s", record.Repository, record.Digest, a.signedBy(), out),
		Output:  a.output(out),
	}, nil
}

// Accepted is an artifact that was verified, and the layer that will do.
type Accepted struct {
	// Record has everything but the path.
	verification.Record
	// Layer is the layer to write, out of the signed manifest.
	Layer        ocispec.Descriptor
	ArtifactType string
	Attestations []*sigverify.Verified
	// Rejected are candidates that were refused before the accepted one.
	Rejected []sigverify.Rejection
	// Weakened are the settings that gave up a check.
	Weakened []string

	repository *ociart.Repository
}

// accept resolves and verifies; it writes nothing.
func (o *Options) accept(ctx context.Context, sc *steps.Context, cfg *config, creds steps.CredentialSource, explain func(sigverify.Check)) (*Accepted, error) {
	policy, err := o.policy(ctx, sc, &cfg.Verify)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", steps.ErrConfig, err)
	}
	repo, signatures, err := o.repositories(sc, cfg, creds)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", steps.ErrConfig, err)
	}
	trustConfig, err := o.Operator.restrict(repo.Reference(), cfg, policy)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", steps.ErrConfig, err)
	}
	trust, retry, err := o.trustedRoot(ctx, sc, trustConfig, policy)
	if err != nil {
		if retry {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", steps.ErrConfig, err)
	}

	manifest, err := repo.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	ref := repo.Reference()
	name := ref.Name() + "@" + manifest.Digest
	if ref.Tag != "" {
		name = ref.Name() + ":" + ref.Tag + "@" + manifest.Digest
	}
	if explain == nil {
		explain = func(sigverify.Check) {}
	}
	explain(sigverify.Check{Name: "resolve", OK: true, Evidence: name})
	if manifest.IsIndex() {
		explain(sigverify.Check{Name: "artifact", Evidence: "it is an index of several manifests"})
		return nil, &sigverify.RefusedError{Artifact: name, Missing: []string{"artifact: it is an index of several manifests"},
			Remedy: "Name the manifest itself, by tag or digest"}
	}
	verdict, err := sigverify.Verify(ctx, sigverify.Request{
		Manifest: manifest, Artifact: name, Signatures: signatures, Policy: policy, Trust: trust,
		Now: o.Clock(), Limits: o.Limits, Explain: explain,
	})
	if err != nil {
		return nil, err
	}
	image, err := manifest.Image()
	if err != nil {
		explain(sigverify.Check{Name: "artifact", Evidence: err.Error()})
		return nil, &sigverify.RefusedError{Artifact: name, Missing: []string{"artifact: " + err.Error()}, Signed: true, Rejected: verdict.Rejected, Remedy: "Push it as an OCI image manifest"}
	}
	layer, err := checkManifest(name, image, cfg, verdict, explain)
	if err != nil {
		return nil, err
	}
	return &Accepted{
		Record: verification.Record{
			Repository: ref.Name(), Tag: ref.Tag, Digest: manifest.Digest, LayerDigest: string(layer.Digest),
			Annotations: image.Annotations, Signer: verdict.Signer().Signer,
		},
		Layer: layer, ArtifactType: artifactType(image), Attestations: verdict.Attestations,
		Rejected: verdict.Rejected, Weakened: cfg.weakened(policy), repository: repo,
	}, nil
}

// checkManifest compares the signed manifest with what was asked for, and
// finds the layer.
func checkManifest(name string, m *ocispec.Manifest, cfg *config, verdict *sigverify.Verdict, explain func(sigverify.Check)) (ocispec.Descriptor, error) {
	refuse := func(what, why, remedy string) (ocispec.Descriptor, error) {
		explain(sigverify.Check{Name: what, Evidence: why})
		return ocispec.Descriptor{}, &sigverify.RefusedError{Artifact: name, Missing: []string{what + ": " + why}, Signed: true, Rejected: verdict.Rejected, Remedy: remedy}
	}
	for _, k := range slices.Sorted(maps.Keys(cfg.Verify.Annotations)) {
		want := cfg.Verify.Annotations[k]
		have, ok := m.Annotations[k]
		switch {
		case !ok:
			return refuse("manifest", fmt.Sprintf("the signed manifest has no annotation %s, expected %s", ociart.Quote(k), ociart.Quote(want)),
				"Push the artifact with this annotation, or correct verify.annotations")
		case have != want:
			return refuse("manifest", fmt.Sprintf("the signed manifest's annotation %s is %s, expected %s", ociart.Quote(k), ociart.Quote(have), ociart.Quote(want)),
				"The tag points at another artifact than its name says: have the right one pushed under it, or correct verify.annotations")
		}
		explain(sigverify.Check{Name: "annotation", OK: true, Evidence: k + " is " + ociart.Quote(have)})
	}
	switch want := cfg.ArtifactType; want {
	case "":
	case artifactType(m):
		explain(sigverify.Check{Name: "artifact type", OK: true, Evidence: ociart.Quote(want)})
	default:
		return refuse("manifest", fmt.Sprintf("its artifact type is %s, expected %s", ociart.Quote(artifactType(m)), ociart.Quote(want)), "Correct artifactType, or name another artifact")
	}
	for _, l := range m.Layers {
		if cfg.MediaType != "" && l.MediaType != cfg.MediaType {
			continue
		}
		if l.Size > cfg.MaxSize {
			return refuse("layer", fmt.Sprintf("it is %d bytes, and maxSize is %d", l.Size, cfg.MaxSize), "Raise maxSize if this is meant to be so large")
		}
		explain(sigverify.Check{Name: "layer", OK: true, Evidence: fmt.Sprintf("%s, %d bytes, %s", l.Digest, l.Size, ociart.Quote(l.MediaType))})
		return l, nil
	}
	if cfg.MediaType == "" {
		return refuse("layer", "the signed manifest has no layers", "Name another artifact")
	}
	return refuse("layer", fmt.Sprintf("the signed manifest has no layer of media type %s", ociart.Quote(cfg.MediaType)), "Correct mediaType, or name another artifact")
}

// artifactType is the manifest's own, or its config's media type (OCI image
// specification v1.1, "Guidelines for Artifact Usage").
func artifactType(m *ocispec.Manifest) string {
	if m.ArtifactType != "" {
		return m.ArtifactType
	}
	return m.Config.MediaType
}

// download writes the accepted layer to a file in the work dir: into a
// temporary file beside it, hashed on the way, and then by rename. A file
// that has these very bytes already is left alone, so that a step that runs
// again finds its own work.
func (r *runner) download(ctx context.Context, workDir, out string, cfg *config, a *Accepted) error {
	root, err := os.OpenRoot(workDir)
	if err != nil {
		return fmt.Errorf("cannot open the work dir: %w", err)
	}
	defer func() { _ = root.Close() }()
	if err := removeLeftovers(root, out); err != nil {
		return err
	}
	if !cfg.AllowOverwrite {
		same, exists, err := holds(root, out, a.Layer)
		switch {
		case err != nil:
			return err
		case same:
			return nil
		case exists:
			return steps.Terminal(fmt.Errorf("file already exists at %s and overwrite is not allowed", cfg.OutPath))
		}
	}
	return a.write(ctx, root, out, cfg.AllowOverwrite)
}

// write fetches the layer and puts it in place.
func (a *Accepted) write(ctx context.Context, root *os.Root, out string, overwrite bool) error {
	if a.Layer.Size <= inMemory {
		content, err := a.repository.Blob(ctx, a.Layer, a.Layer.Size)
		if err != nil {
			return err
		}
		return writeFile(root, out, overwrite, func(f *os.File) error {
			_, err := f.Write(content)
			return err
		})
	}
	return writeFile(root, out, overwrite, func(f *os.File) error {
		return a.repository.FetchBlob(ctx, a.Layer, a.Layer.Size, func() (io.Writer, error) {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return nil, err
			}
			return f, f.Truncate(0)
		})
	})
}

// inMemory is the size up to which a layer is hashed before any of it touches
// the disk; 1 MiB. Larger ones are hashed on the way into a temporary file.
const inMemory = 1 << 20

// result maps an error to the status it has and whether a retry may mend it.
func result(err error) (steps.Result, error) {
	if errors.Is(err, ociart.ErrIntegrity) && !errors.Is(err, steps.ErrRefused) {
		err = fmt.Errorf("%w: %w", steps.ErrRefused, err)
	}
	switch {
	case errors.Is(err, steps.ErrRefused), errors.Is(err, steps.ErrConfig), ociart.IsNotFound(err):
		return steps.Result{Status: steps.Failed, Message: err.Error()}, steps.Terminal(err)
	default:
		return steps.Result{Status: steps.Errored, Message: err.Error()}, err
	}
}

// Verify runs the same verification without a promotion: sc.Config is the
// step's config, whose outPath is ignored. explain may be nil.
func Verify(ctx context.Context, o Options, sc *steps.Context, explain func(sigverify.Check)) (*Accepted, error) {
	o = o.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, o.Deadline)
	defer cancel()
	cfg, err := decode(sc.Config)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", steps.ErrConfig, err)
	}
	a, err := o.accept(ctx, sc, &cfg, o.Credentials, explain)
	if err != nil {
		_, err = result(err)
		return nil, err
	}
	return a, nil
}

// Download writes the accepted layer to a file, whole or not at all, replacing
// what is there.
func (a *Accepted) Download(ctx context.Context, file string) error {
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return fmt.Errorf("cannot open the directory of %s: %w", file, err)
	}
	defer func() { _ = root.Close() }()
	return a.write(ctx, root, filepath.Base(file), true)
}

// Output is the step's output, without a path.
func (a *Accepted) Output() map[string]any {
	out := a.output("")
	delete(out, "path")
	return out
}
