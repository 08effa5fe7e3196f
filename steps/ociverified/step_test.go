package ociverified

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/steps"
)

const fixtureSubject = "https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0"

// harness is one promotion with a registry that holds one fixture.
type harness struct {
	registry *ocitest.Registry
	ledger   *verification.Memory
	options  Options
	sc       *steps.Context
	trustDir string
	digest   string
}

func newHarness(t *testing.T, fixture string) *harness {
	t.Helper()
	h := &harness{registry: ocitest.New(t), ledger: &verification.Memory{}}
	h.registry.Referrers = true
	h.trustDir = sharedata.Path(t, "fixtures", "signatures")
	h.digest = h.registry.Layout(t, "devex/configs", filepath.Join(h.trustDir, fixture))
	h.options = Options{
		Ledger: h.ledger, Trust: Below{Dir: h.trustDir},
		Clock:          func() time.Time { return time.Date(2036, 1, 1, 0, 0, 0, 0, time.UTC) },
		RegistryLimits: ociart.Limits{Attempts: 1, Request: 5 * time.Second},
	}
	h.sc = &steps.Context{
		WorkDir: t.TempDir(), Alias: "config", Project: "p", Promotion: "prd-us.01.abc", Log: slog.New(slog.DiscardHandler),
		Config: map[string]any{
			"imageRef": h.registry.Host() + "/devex/configs:v1",
			"outPath":  "config/values.yaml",
			"verify": map[string]any{
				"identities":  []any{map[string]any{"issuer": "http://127.0.0.1:5556", "subject": fixtureSubject}},
				"trustedRoot": map[string]any{"path": "trusted_root.json"},
			},
		},
	}
	return h
}

func (h *harness) verify() map[string]any { return h.sc.Config["verify"].(map[string]any) }

func (h *harness) run(t *testing.T) (steps.Result, error) {
	t.Helper()
	reg := New(h.options)
	s, err := configschema.Compile(reg.ConfigSchema)
	if err != nil {
		t.Fatal(err)
	}
	if v := s.Validate(h.sc.Config); len(v) > 0 {
		t.Fatalf("the config does not pass the schema: %s", configschema.Messages(v))
	}
	return reg.New(steps.Capabilities{}).Run(t.Context(), h.sc)
}

// files lists everything in the work dir.
func (h *harness) files(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(h.sc.WorkDir, func(p string, _ fs.DirEntry, err error) error {
		if err == nil && p != h.sc.WorkDir {
			rel, _ := filepath.Rel(h.sc.WorkDir, p)
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAccepted(t *testing.T) {
	h := newHarness(t, "kl-v3-rekor2tsa")
	res, err := h.run(t)
	if err != nil || res.Status != steps.Succeeded {
		t.Fatalf("%v, %v", res, err)
	}
	if n := len(h.registry.Requests()); n > 6 {
		t.Errorf("%d requests, want at most 6: %v", n, h.registry.Requests())
	}
	content, err := os.ReadFile(filepath.Join(h.sc.WorkDir, "config", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if got := ocitest.Digest(content); got != res.Output["layerDigest"] {
		t.Errorf("wrote %s, reported %v", got, res.Output["layerDigest"])
	}
	schema, err := configschema.Compile(New(h.options).OutputSchema)
	if err != nil {
		t.Fatal(err)
	}
	if v := schema.Validate(res.Output); len(v) > 0 {
		t.Errorf("the output does not match its schema: %s", configschema.Messages(v))
	}
	signer := res.Output["signer"].(map[string]any)
	if diff := cmp.Diff([]any{fixtureSubject, nil, "tsa"}, []any{signer["subject"], signer["logIndex"], signer["timeSource"]}); diff != "" {
		t.Errorf("signer: %s", diff)
	}
	key := verification.Key{Project: "p", Promotion: "prd-us.01.abc", Alias: "config"}
	record, err := h.ledger.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if record.Digest != h.digest || record.Path != "config/values.yaml" || record.Signer.Subject != fixtureSubject {
		t.Errorf("recorded %+v", record)
	}

	t.Run("again", func(t *testing.T) {
		if res, err := h.run(t); err != nil || res.Status != steps.Succeeded {
			t.Errorf("a step that runs again finds its own file: %v, %v", res, err)
		}
	})
	t.Run("again, after an attempt was killed", func(t *testing.T) {
		left := filepath.Join(h.sc.WorkDir, "config", tempPrefix("config/values.yaml")+"X")
		theirs := filepath.Join(h.sc.WorkDir, "config", ".stepd-other")
		for _, name := range []string{left, theirs} {
			if err := os.WriteFile(name, []byte("half of a la"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.run(t); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"config", "config/.stepd-other", "config/values.yaml"}, h.files(t)); diff != "" {
			t.Errorf("what is left in the work dir: %s", diff)
		}
	})
	t.Run("somebody else's file", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(h.sc.WorkDir, "config", "values.yaml"), []byte("other"), 0o600); err != nil {
			t.Fatal(err)
		}
		if res, err := h.run(t); err == nil || !steps.IsTerminal(err) || res.Status != steps.Errored {
			t.Errorf("another file is not replaced: %v, %v", res, err)
		}
		h.sc.Config["allowOverwrite"] = true
		if res, err := h.run(t); err != nil || res.Status != steps.Succeeded {
			t.Errorf("unless asked to: %v, %v", res, err)
		}
	})
	t.Run("refused after a restart", func(t *testing.T) {
		h.verify()["annotations"] = map[string]any{"com.devex.config.region": "ca-central-1"}
		if res, err := h.run(t); !errors.Is(err, steps.ErrRefused) {
			t.Fatalf("%v, %v", res, err)
		}
		if record, err := h.ledger.Get(t.Context(), key); err == nil {
			t.Errorf("what was verified earlier is still evidence: %+v", record)
		}
	})
}

func TestOutcomes(t *testing.T) {
	tests := map[string]struct {
		reason   string
		fixture  string
		change   func(t *testing.T, h *harness)
		status   steps.Status
		is       error
		terminal bool
		message  string
	}{
		"look-alike identity": {
			reason: "refusals are Failed and terminal", fixture: "kl-lookalike",
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "svc-config-evil",
		},
		"absent tag": {
			reason: "says what is absent", change: func(_ *testing.T, h *harness) { h.sc.Config["imageRef"] = h.registry.Host() + "/devex/configs:v2" },
			status: steps.Failed, terminal: true, message: "404",
		},
		"registry fails": {
			reason: "a failing registry may be tried again",
			change: func(_ *testing.T, h *harness) {
				h.registry.Hijack = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
					w.WriteHeader(http.StatusInternalServerError)
					return true
				}
			},
			status: steps.Errored,
		},
		"listing fails": {
			reason: "is never taken for unsigned",
			change: func(_ *testing.T, h *harness) {
				h.registry.Hijack = func(_ int, w http.ResponseWriter, r *http.Request) bool {
					if !strings.Contains(r.URL.Path, "/referrers/") {
						return false
					}
					w.WriteHeader(http.StatusServiceUnavailable)
					return true
				}
			},
			status: steps.Errored, message: "cannot list the signatures",
		},
		"matches anything": {
			reason: "a config error",
			change: func(_ *testing.T, h *harness) {
				h.verify()["identities"] = []any{map[string]any{"issuer": "http://127.0.0.1:5556", "subjectRegExp": ".*"}}
			},
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: "arbitrary text",
		},
		"no signature wanted, no attestation": {
			reason: "nobody would have signed", change: func(_ *testing.T, h *harness) { h.verify()["requireSignature"] = false },
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: "requireSignature",
		},
		"trust from the work dir": {
			reason: "earlier steps write it",
			change: func(t *testing.T, h *harness) {
				b, err := os.ReadFile(filepath.Join(h.trustDir, "trusted_root.json"))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(h.sc.WorkDir, "trusted_root.json"), b, 0o600); err != nil {
					t.Fatal(err)
				}
				h.options.Trust = BesideConfig{}
				h.sc.ConfigFile = filepath.Join(h.sc.WorkDir, "task.yaml")
			},
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: "never a source of trust",
		},
		"trust outside the trust dir": {
			reason: "the sidecar reads below it only",
			change: func(_ *testing.T, h *harness) {
				h.verify()["trustedRoot"] = map[string]any{"path": "../../inputs/article-promotiontask.yaml"}
			},
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: "trust directory",
		},
		"another region": {
			reason: "a tag is not signed, annotations are",
			change: func(_ *testing.T, h *harness) {
				h.verify()["annotations"] = map[string]any{"com.devex.config.region": "ca-central-1"}
			},
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "com.devex.config.region\", expected \"ca-central-1\"; its signature is acceptable",
		},
		"another artifact type": {
			reason: "it is inside what is signed", change: func(_ *testing.T, h *harness) { h.sc.Config["artifactType"] = "application/x" },
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "artifact type",
		},
		"no such layer": {
			reason: "says which", change: func(_ *testing.T, h *harness) { h.sc.Config["mediaType"] = "application/x" },
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "media type",
		},
		"too large": {
			reason: "before it is fetched", change: func(_ *testing.T, h *harness) { h.sc.Config["maxSize"] = 10 },
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "maxSize",
		},
		"other bytes under the layer's digest": {
			reason: "hashed before a byte is written",
			change: func(_ *testing.T, h *harness) {
				h.registry.Hijack = func(_ int, w http.ResponseWriter, r *http.Request) bool {
					if !strings.Contains(r.URL.Path, "/blobs/sha256:11ba2bc1") {
						return false
					}
					_, _ = w.Write([]byte(strings.Repeat("x", 183)))
					return true
				}
			},
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "hash to",
		},
		"an index": {
			reason: "is not an artifact",
			change: func(t *testing.T, h *harness) {
				h.registry.Manifest("devex/configs", "v1", ocitest.JSON(t, map[string]any{
					"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []any{},
				}))
			},
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "an index of several manifests. Name the manifest",
		},
		"out of the work dir": {
			reason: "stays inside", change: func(_ *testing.T, h *harness) { h.sc.Config["outPath"] = "../x" },
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: "outPath",
		},
		"into .git": {
			reason: "a hook would be code", change: func(_ *testing.T, h *harness) { h.sc.Config["outPath"] = "repo/.git/hooks/x" },
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: ".git",
		},
		"operator forbids": {
			reason: "the operator's policy narrows",
			change: func(t *testing.T, h *harness) {
				h.verify()["requireSCT"] = false
				h.options.Operator = operator(t, h, `forbid: [requireSCT]`)
			},
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: "operator",
		},
		"operator pins another signer": {
			reason: "the operator's policy narrows",
			change: func(t *testing.T, h *harness) {
				h.options.Operator = operator(t, h, fmt.Sprintf(`
repositories:
  - prefix: %s/devex/
    identities: [{issuer: "http://127.0.0.1:5556", subject: somebody-else}]
    trustedRoot: {path: trusted_root.json}
`, h.registry.Host()))
			},
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "operator",
		},
		"operator pins this signer": {
			reason: "the control",
			change: func(t *testing.T, h *harness) {
				h.options.Operator = operator(t, h, fmt.Sprintf(`
otherRepositories: deny
repositories:
  - prefix: %s/devex/
    identities: [{issuer: "http://127.0.0.1:5556", subject: %q}]
    trustedRoot: {path: trusted_root.json}
`, h.registry.Host(), fixtureSubject))
			},
			status: steps.Succeeded,
		},
		"operator pins another signer, registry written differently": {
			reason: "one registry has one policy, however its name is written",
			change: func(t *testing.T, h *harness) {
				host := strings.Replace(h.registry.Host(), "127.0.0.1", "localhost", 1)
				h.sc.Config["imageRef"] = strings.ToUpper(host) + "/devex/configs:v1"
				h.sc.Config["insecurePlainHTTP"] = true // LOCALHOST is not known for loopback
				h.options.Operator = operator(t, h, fmt.Sprintf(`
repositories:
  - prefix: %s/devex/
    identities: [{issuer: "http://127.0.0.1:5556", subject: somebody-else}]
    trustedRoot: {path: trusted_root.json}
`, host))
			},
			status: steps.Failed, is: steps.ErrRefused, terminal: true, message: "operator",
		},
		"operator pins a key, and names no root": {
			reason: "a key without a log needs none", fixture: "key-v2",
			change: func(t *testing.T, h *harness) {
				h.sc.Config["verify"] = map[string]any{
					"keys": []any{map[string]any{"path": "cosign.pub"}}, "requireTransparencyLog": false,
				}
				h.options.Operator = operator(t, h, fmt.Sprintf("repositories: [{prefix: %s, keys: [{path: cosign.pub}]}]", h.registry.Host()))
			},
			status: steps.Succeeded,
		},
		"operator denies others": {
			reason: "repositories nobody listed",
			change: func(t *testing.T, h *harness) { h.options.Operator = operator(t, h, `otherRepositories: deny`) },
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: "denies",
		},
		"secret": {
			reason: "keys come from the promotion's own project", fixture: "key-v3-rekor1",
			change: func(t *testing.T, h *harness) {
				b, err := os.ReadFile(filepath.Join(h.trustDir, "cosign.pub"))
				if err != nil {
					t.Fatal(err)
				}
				h.options.Secrets = secrets{"p/keys": {"cosign.pub": b}}
				delete(h.verify(), "identities")
				h.verify()["keys"] = []any{map[string]any{"secretRef": map[string]any{"name": "keys", "key": "cosign.pub"}}}
			},
			status: steps.Succeeded,
		},
		"secret of another project": {
			reason: "is not there", fixture: "key-v3-rekor1",
			change: func(_ *testing.T, h *harness) {
				h.options.Secrets = secrets{"q/keys": {"cosign.pub": nil}}
				delete(h.verify(), "identities")
				h.verify()["keys"] = []any{map[string]any{"secretRef": map[string]any{"name": "keys", "key": "cosign.pub"}}}
			},
			status: steps.Failed, is: steps.ErrConfig, terminal: true, message: "keys",
		},
		"inline trusted root, as text": {
			reason: "offline without a file",
			change: func(t *testing.T, h *harness) {
				b, err := os.ReadFile(filepath.Join(h.trustDir, "trusted_root.json"))
				if err != nil {
					t.Fatal(err)
				}
				h.verify()["trustedRoot"] = map[string]any{"inline": string(b)}
			},
			status: steps.Succeeded,
		},
		"inline trusted root, as an object": {
			reason: "offline without a file",
			change: func(t *testing.T, h *harness) {
				b, err := os.ReadFile(filepath.Join(h.trustDir, "trusted_root.json"))
				if err != nil {
					t.Fatal(err)
				}
				var v map[string]any
				if err := json.Unmarshal(b, &v); err != nil {
					t.Fatal(err)
				}
				h.verify()["trustedRoot"] = map[string]any{"inline": v}
			},
			status: steps.Succeeded,
		},
		"signatures elsewhere": {
			reason: "a repository of their own", fixture: "kl-v2",
			change: func(t *testing.T, h *harness) {
				h.registry.Layout(t, "signatures", filepath.Join(h.trustDir, "kl-v2"))
				h.registry.Delete("devex/configs", ociart.ReferrersTag(h.digest)+".sig")
				h.verify()["signatureRepository"] = h.registry.Host() + "/signatures"
			},
			status: steps.Succeeded,
		},
		"by digest, moved tag": {
			reason: "beside a digest the tag is informational",
			change: func(_ *testing.T, h *harness) {
				h.sc.Config["imageRef"] = h.registry.Host() + "/devex/configs:gone@" + h.digest
			},
			status: steps.Succeeded,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fixture := tt.fixture
			if fixture == "" {
				fixture = "kl-v3-rekor2tsa"
			}
			h := newHarness(t, fixture)
			if tt.change != nil {
				tt.change(t, h)
			}
			before := h.files(t)
			res, err := h.run(t)
			if res.Status != tt.status || (err == nil) != (tt.status == steps.Succeeded) {
				t.Fatalf("%s: status %s, %v; want %s", tt.reason, res.Status, err, tt.status)
			}
			if err == nil {
				return
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%s: %v is not %v", tt.reason, err, tt.is)
			}
			if steps.IsTerminal(err) != tt.terminal {
				t.Errorf("%s: terminal is %t", tt.reason, !tt.terminal)
			}
			if !strings.Contains(err.Error(), tt.message) {
				t.Errorf("%s: %q does not mention %q", tt.reason, err, tt.message)
			}
			if diff := cmp.Diff(before, h.files(t)); diff != "" {
				t.Errorf("%s: something was written: %s", tt.reason, diff)
			}
			key := verification.Key{Project: "p", Promotion: "prd-us.01.abc", Alias: "config"}
			if _, err := h.ledger.Get(t.Context(), key); err == nil {
				t.Errorf("%s: it is in the ledger", tt.reason)
			}
		})
	}
}

func operator(t *testing.T, h *harness, text string) *OperatorPolicy {
	t.Helper()
	p, err := ParseOperatorPolicy([]byte(text), Below{Dir: h.trustDir})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type secrets map[string]map[string][]byte

func (s secrets) Secret(_ context.Context, project, name string) (map[string][]byte, error) {
	data, ok := s[project+"/"+name]
	if !ok {
		return nil, fmt.Errorf("no Secret %s in project %s", name, project)
	}
	return data, nil
}

func TestOperatorPrefixes(t *testing.T) {
	for _, tt := range []struct {
		prefix, name string
		want         bool
	}{
		{"ghcr.io/acme", "ghcr.io/acme", true},
		{"ghcr.io/acme", "ghcr.io/acme/x", true},
		{"ghcr.io/acme", "ghcr.io/acme-evil/x", false},
		{"ghcr.io/acme", "GHCR.io/acme/x", true},
		{"GHCR.io/acme", "ghcr.io/acme/x", true},
		{"ghcr.io/acme", "ghcr.io:443/acme/x", true},
		{"ghcr.io:443", "ghcr.io/acme/x", true},
		{"registry.corp", "registry.corp:80/x", true},
		{"registry.corp:5000", "registry.corp/x", false},
		{"registry.corp:5000", "registry.corp:5000/x", true},
		{"docker.io/acme", "registry-1.docker.io/acme/x", true},
		{"ghcr.io", "ghcr.io.evil.example/x", false},
		{"oci://ghcr.io/acme/", "ghcr.io/acme/x", true},
		{"acme/configs", "docker.io/acme/configs", true},
		{"docker.io", "docker.io/acme/configs", true},
	} {
		prefix, err := parsePrefix(tt.prefix)
		if err != nil {
			t.Errorf("%s: %v", tt.prefix, err)
		}
		if got := (pinned{prefix: prefix}).matches(tt.name); got != tt.want {
			t.Errorf("%s for %s: %t, want %t", tt.prefix, tt.name, got, tt.want)
		}
	}
	for _, prefix := range []string{"https://ghcr.io/acme", "ghcr.io/acme/*", "ghcr.io/Acme", "/", "ghcr.io//acme", "ghcr.io/acme:v1"} {
		if got, err := parsePrefix(prefix); err == nil {
			t.Errorf("%s can never match, and is read as %s", prefix, got)
		}
	}
}

func TestRefusalDetail(t *testing.T) {
	h := newHarness(t, "kl-lookalike")
	_, err := h.run(t)
	var d steps.Detailer
	if !errors.As(err, &d) {
		t.Fatalf("%T has no detail", err)
	}
	b, err := json.Marshal(d.Detail())
	if err != nil {
		t.Fatal(err)
	}
	var detail struct {
		Rejected []struct{ Candidate, Format, Reason string }
	}
	if err := json.Unmarshal(b, &detail); err != nil {
		t.Fatal(err)
	}
	if len(detail.Rejected) != 1 || !strings.Contains(detail.Rejected[0].Reason, "svc-config-evil") {
		t.Errorf("rejected: %s", b)
	}
	if c := detail.Rejected[0].Candidate; !ociart.IsDigest(c) {
		t.Errorf("the candidate is %s, not a digest that other output can be compared with", c)
	}
}

func TestSymlinksDoNotLeadOut(t *testing.T) {
	h := newHarness(t, "kl-v3-rekor2tsa")
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(h.sc.WorkDir, "config")); err != nil {
		t.Fatal(err)
	}
	if res, err := h.run(t); err == nil {
		t.Errorf("wrote through a symlink: %v", res)
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) > 0 {
		t.Errorf("outside the work dir: %v, %v", entries, err)
	}
}

// TestConcurrently shares one registration between promotions, as a server
// does.
func TestConcurrently(t *testing.T) {
	h := newHarness(t, "kl-v3-rekor2tsa")
	reg := New(h.options)
	var wg sync.WaitGroup
	for i := range 16 {
		sc := *h.sc
		sc.WorkDir, sc.Promotion = t.TempDir(), fmt.Sprintf("p%d", i)
		wg.Go(func() {
			res, err := reg.New(steps.Capabilities{}).Run(t.Context(), &sc)
			if err != nil || res.Status != steps.Succeeded {
				t.Errorf("promotion %d: %v, %v", i, res, err)
			}
		})
	}
	wg.Wait()
	for i := range 16 {
		if _, err := h.ledger.Get(t.Context(), verification.Key{Project: "p", Promotion: fmt.Sprintf("p%d", i), Alias: "config"}); err != nil {
			t.Error(err)
		}
	}
}

// project hands out credentials to one project for one repository.
type project struct{ name, repository string }

func (p project) Get(_ context.Context, name string, typ steps.CredentialType, repository string) (*steps.Credentials, error) {
	if name != p.name || repository != p.repository || typ != steps.CredentialsImage {
		return nil, nil
	}
	return &steps.Credentials{Username: "u", Password: "p"}, nil
}

func TestPrivateRegistry(t *testing.T) {
	h := newHarness(t, "kl-v3-rekor2tsa")
	h.registry.Hijack = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if user, password, ok := r.BasicAuth(); ok && user == "u" && password == "p" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	if res, err := h.run(t); err == nil || res.Status != steps.Errored || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("without credentials: %s, %v", res.Status, err)
	}
	granted := New(h.options)
	caps := steps.Capabilities{Credentials: project{"p", h.registry.Host() + "/devex/configs"}}
	if res, err := granted.New(caps).Run(t.Context(), h.sc); err != nil {
		t.Errorf("with the project's credentials: %s, %v", res.Status, err)
	}
	h.sc.Project = "q"
	h.sc.Config["allowOverwrite"] = true
	if _, err := granted.New(caps).Run(t.Context(), h.sc); err == nil {
		t.Error("another project has the credentials, too")
	}
}
