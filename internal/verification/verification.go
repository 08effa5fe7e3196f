// Package verification is the ledger of what oci-download-verified verified,
// kept by stepd itself so that later steps can rely on it.
//
// A step's output in the shared state is not evidence: any step can write any
// output under any alias. config-apply and atomic-commit therefore read the
// facts named by their `verified` setting from this ledger, which only
// oci-download-verified writes.
package verification

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"
)

// Key names the verification made by one step of one promotion.
type Key struct {
	Project   string
	Promotion string
	// Alias is the step's full alias, "task::step" inside a task.
	Alias string
}

// Record is what was verified. Every field is covered by a signature that was
// accepted, or was computed by stepd from bytes it hashed itself.
type Record struct {
	// Repository is the artifact's repository, host included, no tag.
	Repository string `json:"repository"`
	// Tag is the tag that was resolved; informational, since tags are not
	// signed. Empty for a reference by digest.
	Tag string `json:"tag,omitempty"`
	// Digest is the digest of the verified manifest, "sha256:…".
	Digest string `json:"digest"`
	// LayerDigest is the digest of the layer that was written, "sha256:…".
	LayerDigest string `json:"layerDigest"`
	// Path is the written file, relative to the work dir.
	Path        string            `json:"path"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Signer      Signer            `json:"signer"`
}

// Signer says who signed. Fields that no accepted signature covers are empty.
type Signer struct {
	Subject          string    `json:"subject,omitempty"`
	Issuer           string    `json:"issuer,omitempty"`
	SourceRepository string    `json:"sourceRepository,omitempty"`
	SourceRef        string    `json:"sourceRef,omitempty"`
	SourceCommit     string    `json:"sourceCommit,omitempty"`
	Workflow         string    `json:"workflow,omitempty"`
	RunURL           string    `json:"runURL,omitempty"`
	LogIndex         *int64    `json:"logIndex,omitempty"`
	SignedAt         time.Time `json:"signedAt,omitzero"`
	// TimeSource is "rekor-set", "tsa" or empty.
	TimeSource string `json:"timeSource,omitempty"`
	LogEntry   string `json:"logEntry,omitempty"`
	// Format is "bundle" or "legacy".
	Format string `json:"format,omitempty"`
	// KeyID is base64(sha256(DER SPKI)) of the public key; empty for keyless.
	KeyID string `json:"keyID,omitempty"`
}

// Ledger stores and finds records.
type Ledger interface {
	// Put stores r under k, replacing what was there.
	Put(ctx context.Context, k Key, r Record) error
	// Get returns the record under k, or a *NotFoundError.
	Get(ctx context.Context, k Key) (Record, error)
	// Remove forgets the record under k; it is no error if there is none.
	Remove(k Key) error
}

// NotFoundError says that no verification is recorded under a key.
type NotFoundError struct{ Key Key }

// Error names the alias and the remedy.
func (e *NotFoundError) Error() string {
	return fmt.Sprintf("no verification is recorded for step %q of promotion %q: "+
		"`verified` must name an oci-download-verified step that ran earlier in this promotion", e.Key.Alias, e.Key.Promotion)
}

// Find resolves the value of a `verified` setting as seen from the step
// fromAlias: first within the same task namespace, then as a full alias.
func Find(ctx context.Context, l Ledger, project, promotion, fromAlias, verified string) (Record, error) {
	if ns, _, ok := strings.Cut(fromAlias, "::"); ok {
		r, err := l.Get(ctx, Key{project, promotion, ns + "::" + verified})
		var absent *NotFoundError
		if !errors.As(err, &absent) {
			return r, err
		}
	}
	return l.Get(ctx, Key{project, promotion, verified})
}

// Memory is a Ledger for the lifetime of a process. The zero value is ready.
type Memory struct {
	mu sync.Mutex
	m  map[Key]Record
}

// Put implements Ledger.
func (m *Memory) Put(_ context.Context, k Key, r Record) error {
	r.Annotations = maps.Clone(r.Annotations)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[Key]Record{}
	}
	m.m[k] = r
	return nil
}

// Get implements Ledger.
func (m *Memory) Get(_ context.Context, k Key) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.m[k]
	if !ok {
		return Record{}, &NotFoundError{Key: k}
	}
	r.Annotations = maps.Clone(r.Annotations)
	return r, nil
}

// Remove implements Ledger.
func (m *Memory) Remove(k Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.m, k)
	return nil
}
