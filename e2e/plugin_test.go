package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/stepd/stepd/e2e/artifact"
	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/e2e/sigstore/authority"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
	"github.com/stepd/stepd/e2e/tools"
)

// TestPluginFromARegistry installs the example plugin from an artifact as
// docs/plugins.md says, and runs its step; and refuses to install what nobody
// acceptable signed.
func TestPluginFromARegistry(t *testing.T) {
	s := startSandbox(t)
	dir := t.TempDir()
	plugins := filepath.Join(dir, "plugins")
	s.Env = append(s.Env, "STEPD_PLUGIN_DIR="+plugins)
	root, err := tools.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, "./examples/plugin-step")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	good, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(dir, "policy.yaml")
	writePluginPolicy(t, s, policy, sandbox.Release())
	repository := s.Registry.Host() + "/acme/stepd-step-checksum"

	signed := pushPlugin(t, repository, "v1", map[string][]byte{
		"application/vnd.stepd.plugin.v1." + runtime.GOOS + "-" + runtime.GOARCH: good,
		"application/vnd.stepd.plugin.v1.plan9-mips":                             []byte("for another machine"),
	})
	sign(t, s, repository, signed, sandbox.Release())
	r := mustRun(t, s, 0, "plugin", "install", "oci://"+repository+":v1", "--verify", policy)
	if want := digest.FromBytes(good).String(); !strings.Contains(r.Stderr, "pinned stepd-step-checksum to "+want) {
		t.Errorf("it did not say that it pinned %s:\n%s", want, r.Stderr)
	}
	var index struct {
		Plugins []struct {
			Name, Digest string
			Source       struct {
				ImageRef string
				Signer   struct{ Subject string }
			}
		}
	}
	if err := json.Unmarshal([]byte(mustRun(t, s, 0, "plugin", "list", "-o", "json").Stdout), &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Plugins) != 1 || index.Plugins[0].Source.ImageRef != repository+"@"+signed.Digest.String() ||
		index.Plugins[0].Source.Signer.Subject != sandbox.Release().Subject() {
		t.Errorf("the index does not say where it came from and who signed it: %+v", index)
	}
	mustRun(t, s, 0, "plugin", "verify")

	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	task := filepath.Join(dir, "task.yaml")
	for path, content := range map[string]string{
		filepath.Join(work, "values.yaml"): "replicas: 3\n",
		task: `{"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "PromotionTask", "metadata": {"name": "sum"},
			"spec": {"steps": [{"uses": "checksum", "as": "sum", "config": {"path": "values.yaml"}}]}}`,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := mustRun(t, s, 0, "run", "-f", task, "--workdir", work, "-o", "json"); !strings.Contains(r.Stdout, "sha256:9cf3a5f89adc05f90e87b284d40f8e39e1b763d9f9df307327e6f127ed492175") {
		t.Errorf("the step's output is not in the report:\n%s", r.Stdout)
	}

	stranger := sandbox.Release()
	stranger.Repository += "-evil"
	evil := append(bytes.Clone(good), "evil"...)
	mediaType := "application/vnd.stepd.plugin.v1." + runtime.GOOS + "-" + runtime.GOARCH
	for _, tc := range []struct {
		reason, tag string
		layers      map[string][]byte
		signer      *workflow.Run
		code        int
		says        string
	}{
		{"nobody signed it", "unsigned", map[string][]byte{mediaType: evil}, nil, 3, "signature"},
		{"somebody else signed it", "stranger", map[string][]byte{mediaType: evil}, &stranger, 3, "evil"},
		{"the tag was moved after the signature", "v1", map[string][]byte{mediaType: evil}, nil, 3, "signature"},
		{"it is for another machine", "elsewhere", map[string][]byte{"application/vnd.stepd.plugin.v1.plan9-mips": good}, new(sandbox.Release()), 3, mediaType},
		{"it is no program", "script", map[string][]byte{mediaType: []byte("#!/bin/sh\nid\n")}, new(sandbox.Release()), 1, "not an ELF program"},
	} {
		manifest := pushPlugin(t, repository, tc.tag, tc.layers)
		if tc.signer != nil {
			sign(t, s, repository, manifest, *tc.signer)
		}
		r, err := s.Command(t.Context(), "plugin", "install", "oci://"+repository+":"+tc.tag, "--verify", policy)
		if err != nil {
			t.Fatal(err)
		}
		if r.Code != tc.code || !strings.Contains(r.Stderr, tc.says) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s", tc.reason, r.Code, tc.code, tc.says, r.Stderr)
		}
		if now, err := os.ReadFile(filepath.Join(plugins, "stepd-step-checksum")); err != nil || !bytes.Equal(now, good) {
			t.Errorf("%s: the installed program is another one: %v", tc.reason, err)
		}
	}
	mustRun(t, s, 0, "plugin", "verify")
	mustRun(t, s, 2, "plugin", "install", "oci://"+repository+":v1")
	mustRun(t, s, 0, "plugin", "remove", "stepd-step-checksum")
	mustRun(t, s, 2, "plugin", "remove", "stepd-step-checksum")
}

// pushPlugin pushes an artifact with a layer for each media type.
func pushPlugin(t *testing.T, repository, tag string, layers map[string][]byte) ocispec.Descriptor {
	t.Helper()
	repo, err := remote.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	var descriptors []ocispec.Descriptor
	for mediaType, b := range layers {
		d := content.NewDescriptorFromBytes(mediaType, b)
		if err := repo.Push(t.Context(), d, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		descriptors = append(descriptors, d)
	}
	manifest, err := oras.PackManifest(t.Context(), repo, oras.PackManifestVersion1_1, "application/vnd.stepd.plugin.v1", oras.PackManifestOptions{
		Layers: descriptors, ManifestAnnotations: map[string]string{ocispec.AnnotationVersion: tag},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Tag(t.Context(), manifest, tag); err != nil {
		t.Fatal(err)
	}
	return manifest
}

func sign(t *testing.T, s *sandbox.Sandbox, repository string, manifest ocispec.Descriptor, run workflow.Run) {
	t.Helper()
	bundle, err := s.Authority.Sign(t.Context(), run, manifest.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := artifact.AttachBundle(t.Context(), repository, manifest, bundle, authority.SignPredicate); err != nil {
		t.Fatal(err)
	}
}

// writePluginPolicy writes a policy that accepts one signer.
func writePluginPolicy(t *testing.T, s *sandbox.Sandbox, path string, run workflow.Run) {
	t.Helper()
	trusted, err := s.Authority.TrustedRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(filepath.Dir(path), "trusted_root.json")
	text := fmt.Sprintf("verify:\n  trustedRoot: {path: trusted_root.json}\n  identities:\n    - issuer: %s\n      subject: %s\n", run.WithDefaults().Issuer, run.Subject())
	for path, b := range map[string][]byte{root: trusted, path: []byte(text)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func mustRun(t *testing.T, s *sandbox.Sandbox, code int, args ...string) sandbox.Result {
	t.Helper()
	r, err := s.Command(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != code {
		t.Fatalf("%v: exit code %d, want %d\n%s%s", args, r.Code, code, r.Stderr, r.Stdout)
	}
	return r
}
