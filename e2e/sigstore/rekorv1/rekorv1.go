// Package rekorv1 is a stand-in for a Rekor v1 server, whose own needs a
// database. It validates and canonicalises entries with Rekor's entry types,
// keeps them in a real Merkle tree in memory, and answers with real inclusion
// proofs, checkpoints and signed entry timestamps. It has no search index.
package rekorv1

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/go-openapi/runtime"
	"github.com/go-openapi/strfmt"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	_ "github.com/sigstore/rekor/pkg/types/dsse/v0.0.1"         // the entry types that cosign writes
	_ "github.com/sigstore/rekor/pkg/types/hashedrekord/v0.0.1" //
	_ "github.com/sigstore/rekor/pkg/types/intoto/v0.0.2"       //
	"github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

const (
	// treeID is the id of the log's only shard.
	treeID = 1
	// origin is the host name in the log's checkpoints.
	origin = "rekor.localhost"
	// entries is the path of the log's only collection.
	entries = "/api/v1/log/entries"
)

// Log is an append-only log in memory, and its HTTP API.
type Log struct {
	key    *ecdsa.PrivateKey
	signer signature.Signer
	id     [sha256.Size]byte

	mu     sync.Mutex
	tree   *testonly.Tree
	byUUID map[string]models.LogEntryAnon
}

// New makes an empty log with a fresh P-256 key.
func New() (*Log, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make the log's key: %w", err)
	}
	signer, err := signature.LoadECDSASigner(key, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("cannot load the log's key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("cannot encode the log's key: %w", err)
	}
	return &Log{
		key:    key,
		signer: signer,
		id:     sha256.Sum256(der),
		tree:   testonly.New(rfc6962.DefaultHasher),
		byUUID: map[string]models.LogEntryAnon{},
	}, nil
}

// PublicKey is the key that timestamps and checkpoints verify with.
func (l *Log) PublicKey() crypto.PublicKey { return l.key.Public() }

// ID is the log's id: the SHA-256 of its public key.
func (l *Log) ID() []byte { return l.id[:] }

// errExists says that the log holds the same entry already.
var errExists = errors.New("an equivalent entry already exists in the transparency log")

// Add validates a proposed entry and appends it. It returns the entry's UUID,
// also together with errExists.
func (l *Log) Add(ctx context.Context, proposed models.ProposedEntry) (string, models.LogEntryAnon, error) {
	entry, err := types.CreateVersionedEntry(proposed)
	if err != nil {
		return "", models.LogEntryAnon{}, fmt.Errorf("cannot accept the entry: %w", err)
	}
	body, err := types.CanonicalizeEntry(ctx, entry)
	if err != nil {
		return "", models.LogEntryAnon{}, fmt.Errorf("cannot canonicalise the entry: %w", err)
	}
	uuid := fmt.Sprintf("%016x", treeID) + hex.EncodeToString(rfc6962.DefaultHasher.HashLeaf(body))

	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.byUUID[uuid]; ok {
		return uuid, old, errExists
	}
	index := int64(l.tree.Size())
	l.tree.AppendData(body)
	logged, err := l.sign(ctx, body, index)
	if err != nil {
		return "", models.LogEntryAnon{}, err
	}
	l.byUUID[uuid] = logged
	return uuid, logged, nil
}

func (l *Log) sign(ctx context.Context, body []byte, index int64) (models.LogEntryAnon, error) {
	id, now := hex.EncodeToString(l.id[:]), time.Now().Unix()
	entry := models.LogEntryAnon{Body: body, IntegratedTime: &now, LogID: &id, LogIndex: &index}
	plain, err := entry.MarshalBinary()
	if err != nil {
		return entry, fmt.Errorf("cannot encode the entry: %w", err)
	}
	canonical, err := jsoncanonicalizer.Transform(plain)
	if err != nil {
		return entry, fmt.Errorf("cannot canonicalise the signed part of the entry: %w", err)
	}
	set, err := l.signer.SignMessage(bytes.NewReader(canonical))
	if err != nil {
		return entry, fmt.Errorf("cannot sign the entry: %w", err)
	}
	size, root := l.tree.Size(), l.tree.Hash()
	path, err := l.tree.InclusionProof(uint64(index), size)
	if err != nil {
		return entry, fmt.Errorf("cannot prove inclusion: %w", err)
	}
	hashes := make([]string, len(path))
	for i, h := range path {
		hashes[i] = hex.EncodeToString(h)
	}
	note, err := util.CreateAndSignCheckpoint(ctx, origin, treeID, size, root, l.signer)
	if err != nil {
		return entry, fmt.Errorf("cannot sign the checkpoint: %w", err)
	}
	rootHash, checkpoint, treeSize := hex.EncodeToString(root), string(note), int64(size)
	entry.Verification = &models.LogEntryAnonVerification{
		SignedEntryTimestamp: strfmt.Base64(set),
		InclusionProof: &models.InclusionProof{
			Checkpoint: &checkpoint,
			Hashes:     hashes,
			LogIndex:   &index,
			RootHash:   &rootHash,
			TreeSize:   &treeSize,
		},
	}
	return entry, nil
}

// ServeHTTP answers the part of Rekor's API that signing uses: adding an
// entry, reading it by UUID, and the public key.
func (l *Log) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	uuid, isEntry := strings.CutPrefix(r.URL.Path, entries+"/")
	switch {
	case r.Method == http.MethodPost && r.URL.Path == entries:
		l.add(w, r)
	case r.Method == http.MethodGet && isEntry:
		l.mu.Lock()
		entry, ok := l.byUUID[uuid]
		l.mu.Unlock()
		if !ok {
			answerError(w, http.StatusNotFound, errors.New("no such entry"))
			return
		}
		answer(w, http.StatusOK, models.LogEntry{uuid: entry})
	case r.Method == http.MethodGet && r.URL.Path == "/api/v1/log/publicKey":
		der, err := x509.MarshalPKIXPublicKey(l.key.Public())
		if err != nil {
			answerError(w, http.StatusInternalServerError, err)
			return
		}
		w.Header().Set("Content-Type", "application/x-pem-file")
		_ = pem.Encode(w, &pem.Block{Type: "PUBLIC KEY", Bytes: der}) // a client that hung up is its own problem
	default:
		answerError(w, http.StatusNotFound, errors.New("this stand-in does not serve "+r.URL.Path))
	}
}

func (l *Log) add(w http.ResponseWriter, r *http.Request) {
	proposed, err := models.UnmarshalProposedEntry(http.MaxBytesReader(w, r.Body, 8<<20), runtime.JSONConsumer())
	if err != nil {
		answerError(w, http.StatusBadRequest, err)
		return
	}
	uuid, entry, err := l.Add(r.Context(), proposed)
	location := entries + "/" + uuid
	switch {
	case errors.Is(err, errExists):
		w.Header().Set("Location", location)
		answerError(w, http.StatusConflict, err)
	case err != nil:
		answerError(w, http.StatusBadRequest, err)
	default:
		w.Header().Set("Location", location)
		w.Header().Set("ETag", uuid)
		answer(w, http.StatusCreated, models.LogEntry{uuid: entry})
	}
}

func answerError(w http.ResponseWriter, code int, err error) {
	answer(w, code, models.Error{Code: int64(code), Message: err.Error()})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // a client that hung up is its own problem
}
