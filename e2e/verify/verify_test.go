// Package verify_test attacks the verifier: every trap, on every form that real
// cosign writes, each with a control; and worst cases against the process, for
// its memory.
package verify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/registry"
	"github.com/stepd/stepd/e2e/sigstore"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
	"github.com/stepd/stepd/e2e/tools"
	"github.com/stepd/stepd/internal/ociart/ocitest"
	"github.com/stepd/stepd/steps/ociverified"
	"github.com/stepd/stepd/steps/ociverified/hostiletest"
)

// TestEveryAttackOnEveryForm signs two artifacts with real cosign in every
// form, and springs every attack that has a meaning for the form. Each form is
// also verified decades later.
func TestEveryAttackOnEveryForm(t *testing.T) {
	stack, err := sigstore.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stack.Close)
	source := registry.Start(registry.WithReferrers())
	t.Cleanup(source.Close)
	run := workflow.Run{Issuer: stack.Issuer(), Repository: "acme/svc-config", Ref: "refs/tags/v1.2.0"}

	var total atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d attacks, each with its control", total.Load())
		if !t.Failed() && total.Load() < 60 {
			t.Errorf("%d attacks, want at least 60", total.Load())
		}
	})
	for i, form := range sigstore.Forms() {
		t.Run(form.String(), func(t *testing.T) {
			t.Parallel()
			signed := func(name, values string) signedArtifact {
				repository := "acme/" + form.String() + "-" + name
				m, err := artifact.Push(t.Context(), source.Host()+"/"+repository, artifact.Config{
					Service: "svc", Version: "v1.2.0", Region: "prd-us-east-2", Values: []byte(values),
				})
				if err != nil {
					t.Fatal(err)
				}
				ref := source.Host() + "/" + repository + "@" + m.Digest.String()
				if err := stack.Sign(t.Context(), form, run, ref, sigstore.SignOptions{}); err != nil {
					t.Fatal(err)
				}
				return fetch(t, source.Host(), repository, m.Digest.String(), form)
			}
			good, other := signed("good", "region: us-east-2\n"), signed("other", "region: us-east-2\nreplicas: 0\n")
			c := hostiletest.Case{
				Verify: policy(form, run, stack),
				Trust:  ociverified.BesideConfig{},
				Target: func(t *testing.T) *ocitest.Target {
					reg := ocitest.New(t)
					reg.Referrers = i%2 == 0
					target := good.into(reg, "good", form)
					target.Other = other.into(reg, "other", form)
					return target
				},
			}
			hostiletest.LongAfter(t, c, 2070)
			total.Add(int64(hostiletest.Run(t, c)))
			if form.Timestamp && form.Log == sigstore.RekorV1 {
				// With the log's own time there, a bad timestamp is still bad.
				delete(c.Verify, "requireTimestamp")
				c.Only = func(a ocitest.Attack) bool {
					return strings.Contains(a.Name, "timestamp") && !strings.HasPrefix(a.Name, "no ")
				}
				total.Add(int64(hostiletest.Run(t, c)))
			}
		})
	}
}

// policy is the verify block that accepts a form.
func policy(form sigstore.Form, run workflow.Run, stack *sigstore.Stack) map[string]any {
	verify := map[string]any{"trustedRoot": map[string]any{"path": stack.TrustedRoot}}
	if form.Key {
		verify["keys"] = []any{map[string]any{"path": stack.PublicKey}}
	} else {
		verify["identities"] = []any{map[string]any{"issuer": run.Issuer, "subject": run.Subject()}}
	}
	if form.Log == sigstore.NoLog {
		verify["requireTransparencyLog"] = false
	}
	if form.Timestamp {
		verify["requireTimestamp"] = true
	}
	if form.Attest {
		verify["requireSignature"] = false
		verify["attestations"] = []any{map[string]any{"predicateType": sigstore.SLSA}}
	}
	return verify
}

// signedArtifact is everything that a repository holds about one artifact.
type signedArtifact struct {
	digest    string
	manifests map[string][]byte // by tag or digest
	blobs     [][]byte
}

// fetch reads an artifact and its only signature.
func fetch(t *testing.T, host, repository, digest string, form sigstore.Form) signedArtifact {
	t.Helper()
	get := func(path string) []byte {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/v2/"+repository+"/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: %d, %v", path, resp.StatusCode, err)
		}
		return b
	}
	out := signedArtifact{digest: digest, manifests: map[string][]byte{}}
	manifest := func(reference string) {
		raw := get("manifests/" + reference)
		out.manifests[reference] = raw
		var m ocispec.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			out.blobs = append(out.blobs, get("blobs/"+string(l.Digest)))
		}
	}
	manifest(digest)
	if form.Legacy {
		suffix := ".sig"
		if form.Attest {
			suffix = ".att"
		}
		manifest(strings.Replace(digest, ":", "-", 1) + suffix)
		return out
	}
	var index ocispec.Index
	if err := json.Unmarshal(get("referrers/"+digest), &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 {
		t.Fatalf("%d referrers, expected one", len(index.Manifests))
	}
	manifest(string(index.Manifests[0].Digest))
	out.manifests[strings.Replace(digest, ":", "-", 1)] = ocitest.JSON(t, index)
	return out
}

// into stores the artifact in a test registry, as tag v1 of a repository.
func (s signedArtifact) into(reg *ocitest.Registry, repository string, form sigstore.Form) *ocitest.Target {
	for reference, raw := range s.manifests {
		if strings.HasPrefix(reference, "sha256:") {
			reference = ""
		}
		reg.Manifest(repository, reference, raw)
	}
	reg.Manifest(repository, "v1", s.manifests[s.digest])
	for _, b := range s.blobs {
		reg.Blob("", b)
	}
	return &ocitest.Target{
		Registry: reg, Repository: repository, Digest: s.digest,
		Legacy: form.Legacy, Attestation: form.Attest, Keyless: !form.Key, Timestamp: form.Timestamp, Log: string(form.Log),
	}
}

// TestMemoryOfTheProcess runs `stepd verify` against registries that send as
// much as they can.
func TestMemoryOfTheProcess(t *testing.T) {
	stepd, err := tools.Stepd(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const most = 64 << 10 // KiB
	nested := func(n int) []byte {
		return []byte(strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n))
	}
	for name, bundle := range map[string][]byte{
		"sixty-four bundles of nearly 8 MiB":    padded(8<<20 - 1024),
		"sixty-four bundles of nested objects":  nested(100_000),
		"sixty-four bundles of a million zeros": []byte("[" + strings.Repeat("0,", 1<<20) + "0]"),
	} {
		t.Run(name, func(t *testing.T) {
			reg := ocitest.New(t)
			reg.Referrers = true
			layer := reg.Blob(artifact.LayerType, []byte("a: b\n"))
			digest := reg.Manifest("r", "v1", ocitest.JSON(t, ocispec.Manifest{
				MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer},
			}))
			subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: ocispec.DescriptorEmptyJSON.Digest, Size: 1}
			if err := json.Unmarshal(fmt.Appendf(nil, "%q", digest), &subject.Digest); err != nil {
				t.Fatal(err)
			}
			for i := range 64 {
				content := append(bytes.Clone(bundle), fmt.Appendf(nil, "%*d", 64, i)...)
				reg.Manifest("r", "", ocitest.JSON(t, ocispec.Manifest{
					MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifact.BundleType, Config: ocispec.DescriptorEmptyJSON,
					Layers: []ocispec.Descriptor{reg.Blob(artifact.BundleType, content)}, Subject: &subject,
				}))
			}
			key := filepath.Join(t.TempDir(), "key.pub")
			if err := os.WriteFile(key, []byte(publicKey), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), stepd, "verify", reg.Host()+"/r:v1", "--key", key, "--require-transparency-log=false")
			cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
			var text bytes.Buffer
			cmd.Stdout, cmd.Stderr = &text, &text
			peak := runAndWatch(t, cmd)
			if code := cmd.ProcessState.ExitCode(); code != 3 {
				t.Fatalf("exit code %d, want 3: %s", code, &text)
			}
			t.Logf("peak memory %d MiB", peak>>10)
			if peak > most {
				t.Errorf("peak memory is %d KiB, the most is %d", peak, most)
			}
		})
	}
}

// runAndWatch runs cmd and returns its peak resident set in KiB. The kernel's
// own account at the end (rusage) starts from this process's, which is large.
func runAndWatch(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	status := fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	peak := 0
	for {
		select {
		case <-done: // the exit code is the caller's to judge
			if peak == 0 {
				t.Fatal("this platform does not say how much memory a process uses")
			}
			return peak
		case <-tick.C:
		}
		b, err := os.ReadFile(status)
		if err != nil {
			continue // it has just ended
		}
		for line := range strings.Lines(string(b)) {
			if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kib), "kB")))
				if err == nil {
					peak = max(peak, n)
				}
			}
		}
	}
}

// padded is a bundle of a key's signature with a signature of n bytes.
func padded(n int) []byte {
	return []byte(`{"mediaType":"` + artifact.BundleType + `","verificationMaterial":{"publicKey":{"hint":"x"}},"dsseEnvelope":{"payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}],"payload":"` + strings.Repeat("A", (n-400)/4*4) + `"}}`)
}

const publicKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMAvwgXE7imntEkf/oIENmdEMw6PZ
tfkqAkvMoL+K52R/a9RR781o7zl813j7WNdqUq4l1ETyj9z2cDPo3HzFnA==
-----END PUBLIC KEY-----
`
