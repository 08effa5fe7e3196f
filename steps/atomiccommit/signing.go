package atomiccommit

import (
	"context"
	"fmt"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/gitrepo/gitsign"
	"github.com/stepd/stepd/steps"
)

// projectSigner makes a signer from a key in a Secret of the project.
func (s *step) projectSigner(ctx context.Context, sc *steps.Context, cfg *signing) (gitrepo.Signer, error) {
	if s.Secrets == nil {
		return nil, configErrorf("signing.secretRef: there are no Secrets here")
	}
	data, err := s.Secrets.Secret(ctx, sc.Project, cfg.SecretRef.Name)
	if err != nil {
		return nil, fmt.Errorf("cannot read the signing key: %w", err)
	}
	key, ok := data[cfg.SecretRef.Key]
	if !ok {
		return nil, configErrorf("signing.secretRef: Secret %q has no key %q", cfg.SecretRef.Name, cfg.SecretRef.Key)
	}
	return newSigner(cfg.Format, key)
}

// newSigner makes a signer; "gpg" is the Git identity's name for openpgp.
func newSigner(format string, key []byte) (gitrepo.Signer, error) {
	var signer gitrepo.Signer
	var err error
	if format == "ssh" {
		signer, err = gitsign.SSH(key)
	} else {
		signer, err = gitsign.OpenPGP(key)
	}
	if err != nil {
		return nil, configErrorf("cannot use the signing key: %w", err)
	}
	return signer, nil
}
