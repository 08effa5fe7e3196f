package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/sigstore/authority"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
)

// Attack makes the tag of a release name something that must not be promoted.
type Attack struct {
	// Name says what is tried.
	Name string
	// Env is the environment whose promotion is then tried: "prd-us".
	Env string
	// Prepare changes the registry.
	Prepare func(context.Context) error
}

// Attempt is how the promotion after an Attack ended.
type Attempt struct {
	Result
	// WorkDirUntouched and RepositoryUntouched compare everything in the work
	// dir and in the bare gitops repository before and after.
	WorkDirUntouched, RepositoryUntouched bool
}

// Attacks are what a promotion has to withstand. Each starts from the released
// artifacts, which must have been published.
func (s *Sandbox) Attacks() []Attack {
	evil := Config(RegionUS)
	evil.Values = values(RegionUS, 0, "set-by-promotion")
	return []Attack{
		{"an artifact that nobody signed", "prd-us", func(ctx context.Context) error {
			_, err := artifact.Push(ctx, s.Repository(), evil)
			return err
		}},
		{"a tampered artifact that carries the signature of the real one", "prd-us", func(ctx context.Context) error {
			real, err := artifact.Push(ctx, s.Repository(), Config(RegionUS))
			if err != nil {
				return err
			}
			bundle, err := s.Authority.Sign(ctx, Release(), real.Digest.String())
			if err != nil {
				return err
			}
			tampered := evil
			tampered.Values = values(RegionUS, 1, "set-by-promotion")
			manifest, err := artifact.Push(ctx, s.Repository(), tampered)
			if err != nil {
				return err
			}
			return artifact.AttachBundle(ctx, s.Repository(), manifest, bundle, authority.SignPredicate)
		}},
		{"an artifact signed by a look-alike repository's workflow", "prd-us", func(ctx context.Context) error {
			lookalike := evil
			lookalike.Values = values(RegionUS, 2, "set-by-promotion")
			_, err := s.Publish(ctx, lookalike, workflow.Run{Repository: Source + "-evil", Ref: Release().Ref})
			return err
		}},
		{"the validly signed US artifact under the tag of CA's", "prd-ca", func(ctx context.Context) error {
			us, err := artifact.Push(ctx, s.Repository(), Config(RegionUS))
			if err != nil {
				return err
			}
			return artifact.Tag(ctx, s.Repository(), us, Config(RegionCA).Tag())
		}},
	}
}

// Attempt prepares an attack and promotes for real.
func (s *Sandbox) Attempt(ctx context.Context, a Attack) (Attempt, error) {
	if err := a.Prepare(ctx); err != nil {
		return Attempt{}, fmt.Errorf("cannot prepare the attack: %w", err)
	}
	work, err := os.MkdirTemp(s.Dir, "work-")
	if err != nil {
		return Attempt{}, fmt.Errorf("cannot make a work dir: %w", err)
	}
	if err := os.WriteFile(filepath.Join(work, "already-here"), []byte("stays\n"), 0o600); err != nil {
		return Attempt{}, fmt.Errorf("cannot fill the work dir: %w", err)
	}
	look := func() (w, r []string, err error) {
		if w, err = Snapshot(work); err != nil {
			return nil, nil, err
		}
		r, err = Snapshot(s.Git.Dir(GitOps))
		return w, r, err
	}
	workBefore, repoBefore, err := look()
	if err != nil {
		return Attempt{}, err
	}
	result, err := s.Example(ctx, a.Env, "--live", "--workdir", work)
	if err != nil {
		return Attempt{}, err
	}
	workAfter, repoAfter, err := look()
	if err != nil {
		return Attempt{}, err
	}
	return Attempt{
		Result:              result,
		WorkDirUntouched:    slices.Equal(workBefore, workAfter),
		RepositoryUntouched: slices.Equal(repoBefore, repoAfter),
	}, nil
}
