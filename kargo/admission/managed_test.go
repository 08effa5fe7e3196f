package admission

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/kargo/wire"
)

const host = "stepd-webhook.kargo.svc"

// clock is a time that several replicas see and a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

var testPolicy = SigningPolicy{Rotation: 90 * 24 * time.Hour, Propagation: 10 * time.Minute, Retention: 60 * 24 * time.Hour}

func replica(t *testing.T, s *apiServer, c *clock) *Managed {
	t.Helper()
	return NewManaged(ManagedOptions{
		Client: s.client(t), Namespace: "kargo", Secret: "stepd-webhook",
		Serving: &ManagedServing{Names: []string{host}, Configuration: "stepd"},
		Signing: &ManagedSigning{SigningPolicy: testPolicy, Namespace: "kargo", ConfigMap: "stepd-public-keys"},
		Now:     c.now, Log: slog.New(slog.DiscardHandler),
	})
}

func mustSync(t *testing.T, m *Managed) {
	t.Helper()
	if err := m.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// bundles returns the caBundle of every webhook.
func (s *apiServer) bundles(t *testing.T) [][]byte {
	t.Helper()
	var out [][]byte
	for _, path := range []string{mutatingPath, validatingPath} {
		for _, w := range s.get(path)["webhooks"].([]any) {
			text, _ := w.(map[string]any)["clientConfig"].(map[string]any)["caBundle"].(string)
			b, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b)
		}
	}
	return out
}

// publicKeys returns the published keys by kid.
func (s *apiServer) publicKeys(t *testing.T) map[string]ed25519.PublicKey {
	t.Helper()
	out := map[string]ed25519.PublicKey{}
	data, _ := s.get(configMapPath)["data"].(map[string]any)
	for name, text := range data {
		block, _ := pem.Decode([]byte(text.(string)))
		if block == nil || !strings.HasSuffix(name, ".pem") {
			t.Fatalf("%s is no PEM file", name)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out[wire.KeyID(key.(ed25519.PublicKey))] = key.(ed25519.PublicKey)
	}
	return out
}

func kid(t *testing.T, k KeySource) string {
	t.Helper()
	key, err := k.SigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return wire.KeyID(key.Public().(ed25519.PublicKey))
}

// trusted checks that an API server that has just read any of the
// configurations would accept a replica's certificate.
func trusted(t *testing.T, s *apiServer, m *Managed, now time.Time) {
	t.Helper()
	cert, err := m.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	for _, bundle := range s.bundles(t) {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(bundle)
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host, CurrentTime: now}); err != nil {
			t.Fatalf("%s: a webhook's caBundle does not lead to the serving certificate: %v", now, err)
		}
	}
}

func TestReplicasAgree(t *testing.T) {
	s, c := newAPIServer(t), newClock()
	// Both read the empty Secret before either writes it.
	var reads sync.WaitGroup
	reads.Add(2)
	var once [2]sync.Once
	var mu sync.Mutex
	seen := 0
	s.before = func(method, path string) {
		if path != secretPath {
			return
		}
		if method == http.MethodGet {
			mu.Lock()
			i := seen
			seen++
			mu.Unlock()
			if i < 2 {
				once[i].Do(reads.Done)
			}
			return
		}
		reads.Wait()
	}
	replicas := []*Managed{replica(t, s, c), replica(t, s, c)}
	var wg sync.WaitGroup
	for _, m := range replicas {
		wg.Go(func() {
			if err := m.sync(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s.conflicts == 0 {
		t.Error("there was no conflict: nothing was tested")
	}
	a, errA := replicas[0].Certificate()
	b, errB := replicas[1].Certificate()
	if errA != nil || errB != nil || !a.Leaf.Equal(b.Leaf) {
		t.Errorf("the replicas serve different certificates: %v, %v", errA, errB)
	}
	if k0, k1 := kid(t, replicas[0]), kid(t, replicas[1]); k0 != k1 || s.publicKeys(t)[k0] == nil {
		t.Errorf("the replicas sign with %s and %s; published are %v", k0, k1, s.publicKeys(t))
	}
	for _, m := range replicas {
		mustSync(t, m)
		trusted(t, s, m, c.now())
		if err := m.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
	}
	if len(s.forbidden) > 0 {
		t.Errorf("the webhook asked for more than it may: %v", s.forbidden)
	}
	version := s.version
	for _, m := range replicas {
		mustSync(t, m)
	}
	if s.version != version {
		t.Errorf("%d writes with nothing to change", s.version-version)
	}
}

// TestYears has two replicas for three years, of which each looks at the cluster
// at odd times and restarts now and then.
func TestYears(t *testing.T) {
	s, c := newAPIServer(t), newClock()
	random := rand.New(rand.NewPCG(1, 2))
	replicas := []*Managed{replica(t, s, c), replica(t, s, c)}
	for _, m := range replicas {
		mustSync(t, m)
	}
	firstKid := kid(t, replicas[0])
	published := map[string]time.Time{firstKid: {}} // since when
	lastUse := map[string]time.Time{}               // of a key
	authorities := map[string]bool{}
	end := c.now().Add(3 * 365 * 24 * time.Hour)
	for c.now().Before(end) {
		// Whatever happens, a replica looks within half an hour of another.
		c.pass(time.Duration(random.Int64N(int64(200 * time.Hour))))
		order := random.Perm(2)
		for _, i := range order {
			if random.IntN(20) == 0 {
				replicas[i] = replica(t, s, c)
			}
			mustSync(t, replicas[i])
			keys := s.publicKeys(t)
			for k := range keys {
				if _, known := published[k]; !known {
					published[k] = c.now()
				}
			}
			c.pass(time.Duration(random.Int64N(int64(30 * time.Minute))))
			for _, m := range replicas {
				if m.Ready() != nil {
					continue // restarted, and has not looked yet
				}
				trusted(t, s, m, c.now())
				k := kid(t, m)
				if keys[k] == nil {
					t.Fatalf("%s: a replica signs with a key that is not published", c.now())
				}
				if since := published[k]; k != firstKid && c.now().Sub(since) < testPolicy.Propagation-time.Second {
					t.Fatalf("%s: a replica signs with a key published at %s", c.now(), since)
				}
				lastUse[k] = c.now()
			}
			for k, at := range lastUse {
				if c.now().Sub(at) < testPolicy.Retention-time.Hour && keys[k] == nil {
					t.Fatalf("%s: key %s signed at %s and is published no longer", c.now(), k, at)
				}
			}
			authorities[string(s.bundles(t)[0])] = true
		}
	}
	if len(lastUse) < 11 {
		t.Errorf("only %d keys signed in three years", len(lastUse))
	}
	if len(s.publicKeys(t)) > 3 {
		t.Errorf("%d keys are still published", len(s.publicKeys(t)))
	}
	// One, one and its successor, the successor alone.
	if len(authorities) < 3 {
		t.Errorf("the CA was never replaced: %d bundles", len(authorities))
	}
	st, err := decodeState(mustSecret(t, s))
	if err != nil || len(st.authorities) != 1 {
		t.Errorf("the Secret has %d CAs in the end: %v", len(st.authorities), err)
	}
	withPrivate := 0
	for _, k := range st.signing {
		if k.Private != "" {
			withPrivate++
		}
	}
	if withPrivate > 2 {
		t.Errorf("%d private keys are kept", withPrivate)
	}
}

func mustSecret(t *testing.T, s *apiServer) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	data, _ := s.get(secretPath)["data"].(map[string]any)
	for k, v := range data {
		b, err := base64.StdEncoding.DecodeString(v.(string))
		if err != nil {
			t.Fatal(err)
		}
		out[k] = b
	}
	return out
}

func TestSigningKeyRotation(t *testing.T) {
	s, c := newAPIServer(t), newClock()
	m := replica(t, s, c)
	mustSync(t, m)
	first := kid(t, m)

	c.pass(testPolicy.Rotation)
	s.refuse = func(method, path string) bool { return method == http.MethodPut && path == configMapPath }
	if err := m.sync(t.Context()); err == nil {
		t.Fatal("publishing failed, and nobody said so")
	}
	c.pass(24 * time.Hour)
	if err := m.sync(t.Context()); err == nil {
		t.Fatal("publishing failed, and nobody said so")
	}
	if got := kid(t, m); got != first {
		t.Error("a key that nobody knows signs")
	}
	if err := m.Ready(); err != nil {
		t.Errorf("the old key still signs, but: %v", err)
	}
	s.mu.Lock()
	s.refuse = nil
	s.mu.Unlock()
	mustSync(t, m)
	if got := kid(t, m); got != first || len(s.publicKeys(t)) != 2 {
		t.Errorf("right after publishing, %s signs and %d keys are published", got, len(s.publicKeys(t)))
	}
	c.pass(testPolicy.Propagation - time.Second)
	if got := kid(t, m); got != first {
		t.Error("the next key signs before it can be known")
	}
	c.pass(2 * time.Second)
	second := kid(t, m) // time alone decides, also while the API server is away
	if second == first {
		t.Error("the next key does not sign")
	}
	mustSync(t, m)
	if strings.Count(string(mustSecret(t, s)[dataSigningKeys]), "BEGIN PRIVATE KEY") != 1 {
		t.Error("the private key that does not sign any more is kept")
	}
	c.pass(testPolicy.Retention - time.Minute)
	mustSync(t, m)
	if s.publicKeys(t)[first] == nil {
		t.Error("the first key went before its time")
	}
	c.pass(2 * time.Minute)
	mustSync(t, m)
	if s.publicKeys(t)[first] != nil || s.publicKeys(t)[second] == nil {
		t.Error("the first key stays, or the second does not")
	}
}

func TestWhatOthersChange(t *testing.T) {
	for name, tc := range map[string]struct {
		reason string
		path   string
		change func(o map[string]any)
	}{
		"caBundle removed": {
			reason: "somebody applied the configuration again",
			path:   validatingPath,
			change: func(o map[string]any) {
				delete(o["webhooks"].([]any)[1].(map[string]any)["clientConfig"].(map[string]any), "caBundle")
			},
		},
		"caBundle of others": {
			reason: "another tool injected its own",
			path:   mutatingPath,
			change: func(o map[string]any) {
				o["webhooks"].([]any)[0].(map[string]any)["clientConfig"].(map[string]any)["caBundle"] = "bm9uZQ=="
			},
		},
		"public keys removed": {
			reason: "somebody applied the empty ConfigMap again",
			path:   configMapPath,
			change: func(o map[string]any) { delete(o, "data") },
		},
		"public key added": {
			reason: "who adds a key to the ConfigMap could sign",
			path:   configMapPath,
			change: func(o map[string]any) { o["data"].(map[string]any)["theirs.pem"] = "-----BEGIN PUBLIC KEY-----" },
		},
		"binary key added": {
			reason: "a mounted ConfigMap has these as files, too",
			path:   configMapPath,
			change: func(o map[string]any) { o["binaryData"] = map[string]any{"theirs.pem": "eA=="} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := newAPIServer(t), newClock()
			m := replica(t, s, c)
			mustSync(t, m)
			withoutVersion := func(o map[string]any) map[string]any {
				delete(o["metadata"].(map[string]any), "resourceVersion")
				return o
			}
			want := withoutVersion(s.get(tc.path))
			changed := s.get(tc.path)
			tc.change(changed)
			s.put(tc.path, changed)
			mustSync(t, m)
			if diff := cmp.Diff(want, withoutVersion(s.get(tc.path))); diff != "" {
				t.Errorf("%s; it was not put right:\n%s", tc.reason, diff)
			}
		})
	}
}

func TestNotReady(t *testing.T) {
	s, c := newAPIServer(t), newClock()
	m := replica(t, s, c)
	if err := m.Ready(); err == nil {
		t.Error("ready before anything was there")
	}
	if _, err := m.Certificate(); err == nil {
		t.Error("a certificate before anything was there")
	}
	s.refuse = func(method, path string) bool { return method == http.MethodPut && path == validatingPath }
	if err := m.sync(t.Context()); err == nil || !strings.Contains(err.Error(), "validatingwebhookconfigurations") {
		t.Errorf("injecting failed with %v", err)
	}
	if err := m.sync(t.Context()); err == nil { // what can go on goes on
		t.Error("injecting succeeded")
	}
	if err := m.Ready(); err == nil || !strings.Contains(err.Error(), "caBundle") {
		t.Errorf("without a caBundle, Ready says %v", err)
	}
	if _, err := m.Certificate(); err != nil {
		t.Errorf("it could serve already: %v", err)
	}
	s.mu.Lock()
	s.refuse = nil
	s.mu.Unlock()
	mustSync(t, m)
	if err := m.Ready(); err != nil {
		t.Error(err)
	}
	c.pass(certificateLife)
	if err := m.Ready(); err == nil {
		t.Error("ready with an expired certificate")
	}
}

func TestUnusableSecret(t *testing.T) {
	for name, tc := range map[string]struct {
		reason, key, value, want string
	}{
		"signing keys": {"starting anew would cut off Promotions in flight", dataSigningKeys, "[", "cannot use its signing-keys.json"},
		"other's key":  {"a key under another's name would be published", dataSigningKeys, `[{"created":"2030-01-01T00:00:00Z","public":"x"}]`, "no PEM"},
		"CA":           {"a CA that cannot be read may be in use", dataAuthorities, "-----BEGIN CERTIFICATE-----\neA==\n-----END CERTIFICATE-----\n", "cannot use its ca.crt"},
		"certificate":  {"half a certificate", dataCertificate, "x", "cannot use its tls.crt and tls.key"},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := newAPIServer(t), newClock()
			m := replica(t, s, c)
			mustSync(t, m)
			before := kid(t, m)
			o := s.get(secretPath)
			o["data"].(map[string]any)[tc.key] = base64.StdEncoding.EncodeToString([]byte(tc.value))
			s.put(secretPath, o)
			version := s.version
			if err := m.sync(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "kargo/stepd-webhook") {
				t.Errorf("%s: the error is %v", tc.reason, err)
			}
			if s.version != version {
				t.Errorf("%s: something was written", tc.reason)
			}
			if kid(t, m) != before {
				t.Error("what was in use is not any more")
			}
		})
	}
}

func TestSecretKeepsWhatIsNotOurs(t *testing.T) {
	s, c := newAPIServer(t), newClock()
	o := s.get(secretPath)
	o["data"] = map[string]any{"note": "aGk="}
	s.put(secretPath, o)
	mustSync(t, replica(t, s, c))
	if got := string(mustSecret(t, s)["note"]); got != "hi" {
		t.Errorf("somebody's note is %q", got)
	}
}

func TestAbsentObjects(t *testing.T) {
	for _, path := range []string{secretPath, configMapPath, mutatingPath, validatingPath} {
		s, c := newAPIServer(t), newClock()
		s.mu.Lock()
		delete(s.objects, path)
		s.mu.Unlock()
		m := replica(t, s, c)
		if err := m.sync(t.Context()); err == nil || !strings.Contains(err.Error(), "create it") {
			t.Errorf("without %s: %v", path, err)
		}
		if m.Ready() == nil {
			t.Errorf("ready without %s", path)
		}
		if len(s.forbidden) > 0 {
			t.Errorf("it tried to create: %v", s.forbidden)
		}
	}
}

func TestNamesOfTheCertificate(t *testing.T) {
	s, c := newAPIServer(t), newClock()
	old, next := replica(t, s, c), replica(t, s, c)
	next.Serving.Names = []string{"other.kargo.svc", "127.0.0.1"}
	mustSync(t, old)
	mustSync(t, next)
	version := s.version
	for range 3 {
		mustSync(t, old)
		mustSync(t, next)
	}
	if s.version != version {
		t.Error("replicas that want different names take turns")
	}
	cert, err := old.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{host, "other.kargo.svc", "127.0.0.1"} {
		if err := cert.Leaf.VerifyHostname(n); err != nil {
			t.Error(err)
		}
	}
}
