// Package sidecar is the endpoint that steps call which the admission webhook
// has rewritten: stepd beside Kargo's controller, in the same pod.
//
// A request says little that is believed. Its token says which step of which
// Promotion it is, and must be the one that the API object holds (authority.go);
// the config is what Kargo evaluated; everything else comes from the API
// server. A step runs as an operation, which several requests may wait for and
// which ends when Kargo has given up (operation.go, execute.go). Its answer is
// kept on disk, for the request that did not hear it (results.go).
//
// What goes over the wire is in kargo/wire, how the API server is asked in
// kargo/cluster, and what the steps are is for main to say.
package sidecar

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Cluster is what the sidecar asks of the API server. *cluster.Client is one.
// What does not exist is cluster.ErrNotFound.
type Cluster interface {
	Promotion(ctx context.Context, namespace, name string) (*kargoapi.Promotion, error)
	Stage(ctx context.Context, namespace, name string) (*kargoapi.Stage, error)
	Freight(ctx context.Context, namespace, name string) (*kargoapi.Freight, error)
	Secret(ctx context.Context, namespace, name string) (*kargoapi.Secret, error)
	RecordEvent(ctx context.Context, e cluster.Event) error
}

// Options make a Server. What is not marked as optional is required.
type Options struct {
	Cluster Cluster
	// Keys are the public keys that tokens may be signed with, as they are now.
	Keys func() ([]ed25519.PublicKey, error)
	// Steps makes the steps on the edges that the server gives them.
	Steps func(Edges) ([]steps.Registration, error)
	// Capabilities are what steps that declare them are granted. What
	// credentials hand out is masked in everything that the operation says.
	Capabilities steps.Capabilities
	// WorkRoot holds Kargo's work dirs: its TMPDIR.
	WorkRoot string
	// StateDir is a directory of the server's own, outside the work dirs, that
	// outlives the process.
	StateDir string
	// Ledger forgets what was verified in a Promotion that is over, or long ago.
	// Optional.
	Ledger interface {
		Remove(k verification.Key) error
		Prune(before time.Time) error
	}
	// UIBaseURL is for the steps; may be empty.
	UIBaseURL string
	// MaxRunning bounds the attempts that run at a time: 16. MaxOperations
	// bounds the operations that run or wait: 512. A request for one more is
	// answered that it has to wait.
	MaxRunning, MaxOperations int
	// Log is where records go; optional.
	Log *slog.Logger
	// Version is shown in the metrics.
	Version string
}

// Edges are the ways out of a step that the server has a say in.
type Edges struct {
	// CheckPush has to be asked right before anything is pushed: see
	// gitrepo.Guarded. It reads the Promotion once more.
	CheckPush gitrepo.PushCheck
	// Secrets reads Secrets of the promotion's own project, for secretRef.
	Secrets steps.SecretSource
}

// How long things take.
const (
	// answerWithin is when a request is answered Running at the latest. Kargo's
	// own limit is wire.RequestTimeout.
	answerWithin = 60 * time.Second
	// pendingWait is how long a Promotion may take to become Running while a
	// request waits for it; pendingPoll is how often it is looked at.
	pendingWait = 5 * time.Second
	pendingPoll = 250 * time.Millisecond
	// watchInterval is how often the Promotion of a running operation is read.
	watchInterval = 2 * time.Second
	// checkFor is how long an API server that does not answer is asked before a
	// push, so that its restart is not the step's failure.
	checkFor = 30 * time.Second
	// keptFor is how long answers and verifications are kept at most. No
	// promotion runs that long.
	keptFor = 30 * 24 * time.Hour
	// abandonAfter is how long an operation goes on although nobody asks for
	// it. Kargo asks every 10 s; after an error, at most 17 minutes later, by
	// which time most operations have ended and kept their answer.
	abandonAfter = 10 * time.Minute
	// maxClockSkew is how far in the future an attempt may have started, which
	// Kargo says in whole seconds on the same machine.
	maxClockSkew = time.Minute
)

// Server answers the requests of rewritten steps. It is an http.Handler.
type Server struct {
	Options
	kinds   map[string]*kind
	results *results
	metrics *metrics
	turns   chan struct{}
	flights chan struct{}

	// attaching keeps two requests of one Promotion from being judged at a time.
	attaching stripes

	mu       sync.Mutex
	ops      map[stepKey]*operation
	running  sync.WaitGroup
	draining chan struct{}
	drained  bool
}

type kind struct {
	steps.Registration
	schema *configschema.Schema
}

// stepKey names a step of a Promotion that exists.
type stepKey struct{ uid, alias string }

// New makes a Server. It does not listen; see Serve.
func New(o Options) (*Server, error) {
	switch {
	case o.Cluster == nil || o.Keys == nil || o.Steps == nil:
		return nil, errors.New("cannot make a sidecar without a cluster, keys and steps")
	case !filepath.IsAbs(o.WorkRoot) || !filepath.IsAbs(o.StateDir):
		return nil, fmt.Errorf("cannot make a sidecar: the work root %q and the state directory %q have to be absolute", o.WorkRoot, o.StateDir)
	}
	if o.MaxRunning <= 0 {
		o.MaxRunning = 16
	}
	if o.MaxOperations <= 0 {
		o.MaxOperations = 512
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		Options: o, kinds: map[string]*kind{}, ops: map[stepKey]*operation{},
		turns: make(chan struct{}, o.MaxRunning), flights: make(chan struct{}, 2*o.MaxOperations),
		draining: make(chan struct{}),
	}
	var err error
	if s.results, err = openResults(filepath.Join(o.StateDir, "operations")); err != nil {
		return nil, err
	}
	regs, err := o.Steps(Edges{CheckPush: s.checkPush, Secrets: projectSecrets{o.Cluster}})
	if err != nil {
		return nil, err
	}
	for _, reg := range regs {
		k := &kind{Registration: reg}
		if reg.DefaultErrorThreshold == 0 {
			k.DefaultErrorThreshold = 1
		}
		if reg.ConfigSchema != nil {
			if k.schema, err = configschema.Compile(reg.ConfigSchema); err != nil {
				return nil, fmt.Errorf("cannot use the config schema of step %q: %w", reg.Name, err)
			}
		}
		s.kinds[reg.Name] = k
	}
	s.metrics = newMetrics(s, o.Version)
	return s, nil
}

// stripes are locks by name.
type stripes [64]sync.Mutex

func (l *stripes) of(name string) *sync.Mutex {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // a hash takes anything
	return &l[h.Sum32()%uint32(len(l))]
}
