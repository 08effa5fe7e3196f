package sidecar_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/kargo/sidecar"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

const kindProbe = "probe"

// memoryCluster is a cluster in memory. What it hands out are copies, as from
// an API server.
type memoryCluster struct {
	mu         sync.Mutex
	promotions map[string]kargoapi.Promotion // by namespace/name
	secrets    map[string]kargoapi.Secret
	stages     map[string]kargoapi.Stage
	freight    map[string]kargoapi.Freight
	events     map[string]cluster.Event // by what makes them one
	reads      int                      // of Promotions
	down       error                    // what every call answers, if not nil
	noSecrets  error                    // what every call for a Secret answers, if not nil
}

func read[T any](c *memoryCluster, from map[string]T, namespace, name string) (*T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return nil, c.down
	}
	v, ok := from[namespace+"/"+name]
	if !ok {
		return nil, fmt.Errorf("cannot read %s: %w", name, cluster.ErrNotFound)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out T
	return &out, json.Unmarshal(text, &out)
}

func (c *memoryCluster) Promotion(_ context.Context, namespace, name string) (*kargoapi.Promotion, error) {
	c.mu.Lock()
	c.reads++
	c.mu.Unlock()
	return read(c, c.promotions, namespace, name)
}

func (c *memoryCluster) Stage(_ context.Context, namespace, name string) (*kargoapi.Stage, error) {
	return read(c, c.stages, namespace, name)
}

func (c *memoryCluster) Freight(_ context.Context, namespace, name string) (*kargoapi.Freight, error) {
	return read(c, c.freight, namespace, name)
}

func (c *memoryCluster) Secret(_ context.Context, namespace, name string) (*kargoapi.Secret, error) {
	if c.noSecrets != nil {
		return nil, c.noSecrets
	}
	return read(c, c.secrets, namespace, name)
}

func (c *memoryCluster) RecordEvent(_ context.Context, e cluster.Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		return c.down
	}
	e.Time = time.Time{}
	c.events[e.UID+e.Reason+e.Key] = e
	return nil
}

func (c *memoryCluster) recorded() []cluster.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.events))
}

// change edits a Promotion in the cluster.
func (c *memoryCluster) change(namespace, name string, edit func(p *kargoapi.Promotion)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.promotions[namespace+"/"+name]
	edit(&p)
	c.promotions[namespace+"/"+name] = p
}

// bench is a sidecar beside a cluster in memory, with a step that does what the
// test says.
type bench struct {
	t       testing.TB
	server  *sidecar.Server
	opts    sidecar.Options
	cluster *memoryCluster
	log     *lockedBuffer
	ledger  verification.Dir
	edges   sidecar.Edges
	key     ed25519.PrivateKey
	keys    []ed25519.PublicKey
	noKeys  error

	mu   sync.Mutex
	step func(ctx context.Context, sc *steps.Context) (steps.Result, error)
	meta steps.Metadata
	runs []string // promotion/alias of every attempt
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// projectKeyOf is a project's key.
func projectKeyOf(namespace string) string { return strings.Repeat(namespace+"-", 40)[:40] }

func newBench(t testing.TB, change ...func(*sidecar.Options)) *bench {
	t.Helper()
	b := &bench{t: t, log: &lockedBuffer{}, cluster: &memoryCluster{
		promotions: map[string]kargoapi.Promotion{}, secrets: map[string]kargoapi.Secret{},
		stages: map[string]kargoapi.Stage{}, freight: map[string]kargoapi.Freight{}, events: map[string]cluster.Event{},
	}}
	var err error
	var public ed25519.PublicKey
	if public, b.key, err = ed25519.GenerateKey(nil); err != nil {
		t.Fatal(err)
	}
	b.keys = []ed25519.PublicKey{public}
	root := t.TempDir()
	b.ledger = verification.Dir{Path: filepath.Join(root, "stepd", "verifications")}
	b.step = func(context.Context, *steps.Context) (steps.Result, error) {
		return steps.Result{Status: steps.Succeeded, Message: "ran"}, nil
	}
	b.opts = sidecar.Options{
		Cluster: b.cluster, Keys: func() ([]ed25519.PublicKey, error) { return b.keys, b.noKeys },
		WorkRoot: root, StateDir: filepath.Join(root, "stepd"), Ledger: b.ledger,
		Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Version: "test",
		Steps: func(e sidecar.Edges) ([]steps.Registration, error) {
			b.edges = e
			return []steps.Registration{{Name: kindProbe, New: b.runner, Metadata: b.meta}, {Name: "other", New: b.runner}}, nil
		},
	}
	for _, c := range change {
		c(&b.opts)
	}
	b.restart()
	for _, namespace := range []string{"acme", "evil"} {
		b.cluster.secrets[namespace+"/"+wire.ProjectKeySecret] = kargoapi.Secret{
			Data: map[string][]byte{wire.ProjectKeyField: []byte(projectKeyOf(namespace))},
		}
	}
	return b
}

// restart is a new process on the same volume.
func (b *bench) restart() {
	b.t.Helper()
	server, err := sidecar.New(b.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	b.server = server
}

func (b *bench) runner(caps steps.Capabilities) steps.Runner {
	return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		b.mu.Lock()
		b.runs = append(b.runs, sc.Promotion+"/"+sc.Alias)
		step := b.step
		b.mu.Unlock()
		return step(context.WithValue(ctx, capsKey{}, caps), sc)
	})
}

// capsKey is how a test's step gets at what it was granted.
type capsKey struct{}

func (b *bench) does(step func(ctx context.Context, sc *steps.Context) (steps.Result, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.step = step
}

func (b *bench) attempts() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.runs)
}

// promotion is a Promotion with one rewritten step, as Kargo asks for it.
type promotion struct {
	b      *bench
	claims wire.Claims
	token  string
	uid    string
	config json.RawMessage
	at     wire.Attempt
}

// promote makes a Promotion that runs, and its work dir.
func (b *bench) promote(namespace, name string, change ...func(*wire.Claims)) *promotion {
	b.t.Helper()
	p := &promotion{b: b, uid: "uid-" + namespace + "-" + name, config: json.RawMessage(`{"x":"y"}`)}
	p.at.StartedAt = time.Now().UTC().Truncate(time.Second)
	_, skeleton, err := wire.DecodeConfig(p.config)
	if err != nil {
		b.t.Fatal(err)
	}
	p.claims = wire.Claims{
		Namespace: namespace, Promotion: name, Alias: "task::step", Kind: kindProbe, Skeleton: skeleton, IssuedAt: time.Now(),
	}
	for _, c := range change {
		c(&p.claims)
	}
	if p.token, err = wire.Sign(b.key, p.claims); err != nil {
		b.t.Fatal(err)
	}
	created := time.Now().Add(-time.Second)
	object := kargoapi.Promotion{}
	object.Namespace, object.Name, object.UID, object.CreationTimestamp = namespace, name, p.uid, &created
	object.Annotations = map[string]string{kargoapi.AnnotationCreateActor: "email:ada@example.com", kargoapi.AnnotationRollback: "true"}
	object.Spec.Stage, object.Spec.Freight = "prd", "f1"
	object.Spec.Steps = []kargoapi.PromotionStep{
		{Uses: "copy", As: "before"},
		{Uses: "http", As: p.claims.Alias, Config: stepConfig(p.token)},
	}
	object.Status.Phase = kargoapi.PromotionRunning
	object.Status.State = json.RawMessage(`{"before":{"n":1}}`)
	b.cluster.mu.Lock()
	b.cluster.promotions[namespace+"/"+name] = object
	b.cluster.mu.Unlock()
	p.makeWorkDir()
	return p
}

func stepConfig(token string) json.RawMessage {
	text, err := json.Marshal(map[string]any{"headers": []any{
		map[string]any{"name": "Content-Type", "value": wire.ContentType},
		map[string]any{"name": wire.HeaderToken, "value": wire.Bearer(token)},
		map[string]any{"name": wire.HeaderProjectKey, "value": wire.ProjectKeyTemplate},
	}})
	if err != nil {
		panic(err)
	}
	return text
}

func (p *promotion) workDir() string { return filepath.Join(p.b.opts.WorkRoot, "promotion-"+p.uid) }

func (p *promotion) makeWorkDir() {
	p.b.t.Helper()
	if err := os.Mkdir(p.workDir(), 0o700); err != nil {
		p.b.t.Fatal(err)
	}
}

func (p *promotion) loseWorkDir() {
	p.b.t.Helper()
	if err := os.RemoveAll(p.workDir()); err != nil {
		p.b.t.Fatal(err)
	}
}

func (p *promotion) change(edit func(o *kargoapi.Promotion)) {
	p.b.cluster.change(p.claims.Namespace, p.claims.Promotion, edit)
}

// finishStep is Kargo ending the step, and going on with the next.
func (p *promotion) finishStep(at time.Time) {
	started := p.at.StartedAt
	at = at.Truncate(time.Second) // as the API server keeps it
	p.change(func(o *kargoapi.Promotion) {
		o.Status.StepExecutionMetadata = []kargoapi.StepExecutionMetadata{
			{Alias: p.claims.Alias, StartedAt: &started, FinishedAt: &at, Status: steps.Failed},
		}
	})
}

// request is what Kargo sends.
func (p *promotion) request() *http.Request {
	body, err := json.Marshal(wire.Request{Attempt: p.at, Config: p.config})
	if err != nil {
		p.b.t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, wire.PathPrefix+p.claims.Kind, bytes.NewReader(body))
	r.Header.Set("Content-Type", wire.ContentType)
	r.Header.Set(wire.HeaderToken, wire.Bearer(p.token))
	r.Header.Set(wire.HeaderProjectKey, projectKeyOf(p.claims.Namespace))
	return r
}

// post sends what Kargo sends and returns the answer.
func (p *promotion) post() wire.Answer {
	p.b.t.Helper()
	code, answer := p.b.send(p.request())
	if code != http.StatusOK {
		p.b.t.Fatalf("answered %d: %s", code, answer.Message)
	}
	return answer
}

// send serves a request. Every answer must be what Kargo's criteria can judge.
func (b *bench) send(r *http.Request) (int, wire.Answer) {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.server.ServeHTTP(w, r)
	return w.Code, b.parse(w.Code, w.Body.Bytes())
}

func (b *bench) parse(code int, body []byte) wire.Answer {
	b.t.Helper()
	var a wire.Answer
	if err := json.Unmarshal(body, &a); err != nil {
		b.t.Errorf("answer %d is no JSON: %q", code, body)
	}
	switch {
	case !bytes.HasPrefix(body, []byte(`{"status":"`+string(a.Status)+`",`)):
		b.t.Errorf("the answer does not begin with its status: %.100q", body)
	case code != http.StatusOK && a.Status != steps.Failed:
		b.t.Errorf("answer %d has status %s", code, a.Status)
	case a.Status != steps.Succeeded && a.Message == "":
		b.t.Errorf("answer %d, %s, does not say why", code, a.Status)
	}
	return a
}
