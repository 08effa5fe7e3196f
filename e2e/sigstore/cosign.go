package sigstore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/stepd/stepd/e2e/sigstore/workflow"
)

// Log says which transparency log a signature is entered in.
type Log string

// The logs.
const (
	NoLog   Log = ""
	RekorV1 Log = "rekor1"
	RekorV2 Log = "rekor2"
)

// SLSA is the predicate type of Attest forms.
const SLSA = "https://slsa.dev/provenance/v1"

// Form is one way in which cosign writes a signature.
type Form struct {
	// Cosign is the major version, 2 or 3.
	Cosign int
	// Attest makes an SLSA provenance attestation instead of a signature.
	Attest bool
	// Key signs with the stack's key pair; without it, keyless.
	Key bool
	// Log and Timestamp say what proves the time and the publication.
	Log       Log
	Timestamp bool
	// Legacy is the format before bundles: tags that end in .sig and .att.
	Legacy bool
}

// String names the form for a test, "v3-bundle-attest-keyless-rekor2-tsa".
func (f Form) String() string {
	parts := []string{fmt.Sprintf("v%d", f.Cosign), "bundle", "sign", "keyless"}
	if f.Legacy {
		parts[1] = "legacy"
	}
	if f.Attest {
		parts[2] = "attest"
	}
	if f.Key {
		parts[3] = "key"
	}
	if f.Log != NoLog {
		parts = append(parts, string(f.Log))
	}
	if f.Timestamp {
		parts = append(parts, "tsa")
	}
	return strings.Join(parts, "-")
}

// Forms lists every form that both majors of cosign can write and that some
// verifier can accept: keyless needs a proof of time, and Rekor v2, which
// attests no time, comes with a timestamp.
func Forms() []Form {
	var forms []Form
	for _, cosign := range []int{2, 3} {
		for _, legacy := range []bool{true, false} {
			for _, attest := range []bool{false, true} {
				for _, key := range []bool{false, true} {
					for _, log := range []Log{NoLog, RekorV1, RekorV2} {
						for _, timestamp := range []bool{false, true} {
							f := Form{cosign, attest, key, log, timestamp, legacy}
							if f.possible() {
								forms = append(forms, f)
							}
						}
					}
				}
			}
		}
	}
	return forms
}

func (f Form) possible() bool {
	switch {
	case !f.Key && f.Log == NoLog && !f.Timestamp:
		return false // nothing proves that the certificate was valid
	case f.Log == RekorV2 && !f.Timestamp:
		return false // likewise, and cosign refuses
	case f.Log == RekorV2 && f.Legacy:
		return false // the legacy annotations have no place for its entry
	case f.Log == RekorV2 && f.Cosign == 2:
		return false // v2.6.5 proposes dsse entries, and rekor-tiles v2.3.0 takes only hashedrekord
	case f.Cosign == 3 && f.Legacy && f.Attest && f.Timestamp:
		return false // v3.1.3 timestamps other bytes than its own verifier checks
	}
	return true
}

// SignOptions are optional.
type SignOptions struct {
	// Annotations are what `cosign sign -a` adds.
	Annotations map[string]string
	// Predicate replaces the provenance of an Attest form: JSON.
	Predicate []byte
	// PredicateType replaces SLSA.
	PredicateType string
}

// Sign signs ref ("host/repo@sha256:…") in the given form, as the given run
// unless the form has a key. The registry must be on loopback.
func (s *Stack) Sign(ctx context.Context, f Form, run workflow.Run, ref string, o SignOptions) error {
	args := []string{"sign"}
	if f.Attest {
		args[0] = "attest"
		predicate := o.Predicate
		if predicate == nil {
			predicate = []byte(Provenance(run))
		}
		path, err := s.writeNew("predicate-*.json", predicate)
		if err != nil {
			return err
		}
		typ := o.PredicateType
		if typ == "" {
			typ = SLSA
		}
		args = append(args, "--predicate", path, "--type", typ)
	}
	args = append(args, "--yes", "--allow-http-registry")
	keys := make([]string, 0, len(o.Annotations))
	for k := range o.Annotations {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		args = append(args, "-a", k+"="+o.Annotations[k])
	}
	if f.Key {
		args = append(args, "--key", s.privateKey)
	} else {
		token, err := s.token(run)
		if err != nil {
			return err
		}
		args = append(args, "--identity-token", token)
	}
	services, err := s.services(f)
	if err != nil {
		return err
	}
	_, err = s.Cosign(ctx, f.Cosign, append(append(args, services...), ref)...)
	return err
}

// VerifyArgs are the arguments with which cosign v3 verifies ref in the given
// form, signed as run or with the stack's key.
func (s *Stack) VerifyArgs(f Form, run workflow.Run, ref string) []string {
	args := []string{"verify", "--allow-http-registry"}
	if f.Attest {
		args = []string{"verify-attestation", "--allow-http-registry", "--type", SLSA}
	}
	if f.Key {
		args = append(args, "--key", s.PublicKey)
	} else {
		args = append(args, "--certificate-identity", run.Subject(), "--certificate-oidc-issuer", s.Issuer())
	}
	if f.Log == NoLog {
		args = append(args, "--insecure-ignore-tlog=true")
	}
	if f.Timestamp {
		args = append(args, "--use-signed-timestamps")
	}
	if f.Legacy {
		args = append(args, "--new-bundle-format=false")
	} else {
		args = append(args, "--trusted-root", s.TrustedRoot)
	}
	return append(args, ref)
}

// services are the flags that choose format and services.
func (s *Stack) services(f Form) ([]string, error) {
	if !f.Legacy {
		config, err := s.signingConfig(f)
		if err != nil {
			return nil, err
		}
		args := []string{"--signing-config", config, "--trusted-root", s.TrustedRoot}
		if f.Cosign == 2 {
			args = append(args, "--new-bundle-format")
		}
		return args, nil
	}
	args := []string{"--fulcio-url", s.fulcio, "--rekor-url", s.rekorV1}
	if f.Cosign == 3 {
		args = append(args, "--new-bundle-format=false", "--use-signing-config=false")
	}
	if f.Log == NoLog {
		args = append(args, "--tlog-upload=false")
	}
	if f.Timestamp {
		args = append(args, "--timestamp-server-url", s.tsa+"/api/v1/timestamp")
	}
	return args, nil
}

// Cosign runs cosign of the given major version and returns its standard
// output.
func (s *Stack) Cosign(ctx context.Context, major int, args ...string) ([]byte, error) {
	cmd := s.CosignCommand(ctx, major, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("cosign %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

// CosignCommand is cosign of the given major version pointed at the stack, with
// none of the user's configuration.
func (s *Stack) CosignCommand(ctx context.Context, major int, args ...string) *exec.Cmd {
	bin := s.cosignV3
	if major == 2 {
		bin = s.cosignV2
	}
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "COSIGN_PASSWORD="}, s.env...)
	return cmd
}

// makeKeys makes two key pairs, the second to be a wrong one.
func (s *Stack) makeKeys(ctx context.Context) error {
	for _, name := range []string{"cosign", "other"} {
		if _, err := s.Cosign(ctx, 3, "generate-key-pair", "--output-key-prefix", filepath.Join(s.dir, name)); err != nil {
			return err
		}
	}
	s.privateKey = filepath.Join(s.dir, "cosign.key")
	s.PublicKey, s.OtherKey = filepath.Join(s.dir, "cosign.pub"), filepath.Join(s.dir, "other.pub")
	return nil
}

// Provenance is an SLSA v1 predicate that says run built the artifact.
func Provenance(run workflow.Run) string {
	run = run.WithDefaults()
	return fmt.Sprintf(`{
  "buildDefinition": {
    "buildType": "https://actions.github.io/buildtypes/workflow/v1",
    "externalParameters": {"workflow": {"ref": %[2]q, "repository": "https://github.com/%[1]s", "path": ".github/workflows/publish.yaml"}},
    "resolvedDependencies": [{"uri": "git+https://github.com/%[1]s@%[2]s", "digest": {"gitCommit": %[3]q}}]
  },
  "runDetails": {
    "builder": {"id": %[4]q},
    "metadata": {"invocationId": "https://github.com/%[1]s/actions/runs/1001/attempts/1"}
  }
}`, run.Repository, run.Ref, run.Commit, run.Subject())
}
