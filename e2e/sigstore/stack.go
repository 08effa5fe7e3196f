// Package sigstore runs a private Sigstore on loopback and signs with real
// cosign against it.
//
// Real, built from their modules: Fulcio, Rekor v2 (rekor-tiles with files as
// storage), the timestamp authority and both majors of cosign. Stand-ins: the
// OIDC issuer, the certificate log (package ctlog) and Rekor v1 (package
// rekorv1), whose own servers need a database.
//
// For signatures without any child process see package authority.
package sigstore

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	prototrustroot "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/stepd/stepd/e2e/process"
	"github.com/stepd/stepd/e2e/sigstore/ctlog"
	"github.com/stepd/stepd/e2e/sigstore/rekorv1"
	"github.com/stepd/stepd/e2e/sigstore/trust"
	"github.com/stepd/stepd/e2e/sigstore/workflow"
	"github.com/stepd/stepd/e2e/tools"
)

const (
	// clientID is the audience of ID tokens for Fulcio.
	clientID = "sigstore"
	// loopback is the address of every server and the origin of the Rekor v2
	// log.
	loopback = "127.0.0.1"
)

// Stack is a running private Sigstore. Its methods are safe for concurrent use.
type Stack struct {
	// TrustedRoot is the path of its trusted_root.json.
	TrustedRoot string
	// PublicKey and OtherKey are paths of PEM public keys: of the key that
	// Sign uses, and of a key that nobody signs with.
	PublicKey, OtherKey string

	fulcio, rekorV1, rekorV2, tsa string // base URLs
	privateKey                    string
	dir                           string
	cosignV3, cosignV2            string
	env                           []string

	issuer    *issuer
	standIns  []*httptest.Server
	processes []*process.Process
}

// Start builds what the cache lacks (minutes), starts everything (seconds) and
// keeps its files in dir, a folder of its own. Close it.
func Start(ctx context.Context, dir string) (_ *Stack, err error) {
	s := &Stack{dir: dir, TrustedRoot: filepath.Join(dir, "trusted_root.json")}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	bins, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	if s.issuer, err = startIssuer(); err != nil {
		return nil, err
	}
	ct, err := ctlog.New()
	if err != nil {
		return nil, err
	}
	rekor, err := rekorv1.New()
	if err != nil {
		return nil, err
	}
	s.rekorV1 = s.serve(rekor)
	rekor2, err := s.startServers(ctx, bins, s.serve(ct))
	if err != nil {
		return nil, err
	}
	if err := s.writeTrust(ctx, trust.Root{
		CTLogs: []trust.Log{{URL: "https://ct.localhost", ID: ct.ID(), PublicKey: ct.PublicKey()}},
		RekorLogs: []trust.Log{
			{URL: s.rekorV1, ID: rekor.ID(), PublicKey: rekor.PublicKey()},
			rekor2,
		},
	}); err != nil {
		return nil, err
	}
	return s, s.makeKeys(ctx)
}

// Close ends every server.
func (s *Stack) Close() {
	s.stopServers()
	for _, srv := range s.standIns {
		srv.Close()
	}
	if s.issuer != nil {
		s.issuer.srv.Close()
	}
}

// Issuer is the URL of the OIDC issuer, as it stands in certificates.
func (s *Stack) Issuer() string { return s.issuer.srv.URL }

// binaries are the paths of the servers.
type binaries struct{ fulcio, rekor, tsa string }

func (s *Stack) build(ctx context.Context) (b binaries, err error) {
	for _, t := range []struct {
		path  *string
		build func(context.Context) (string, error)
	}{
		{&s.cosignV3, tools.CosignV3.Path},
		{&s.cosignV2, tools.CosignV2.Path},
		{&b.fulcio, tools.Fulcio.Path},
		{&b.rekor, tools.RekorV2.Path},
		{&b.tsa, tools.TimestampAuthority},
	} {
		if *t.path, err = t.build(ctx); err != nil {
			return b, err
		}
	}
	return b, nil
}

// serve serves a stand-in on a loopback port and returns its URL.
func (s *Stack) serve(h http.Handler) string {
	srv := httptest.NewServer(h)
	s.standIns = append(s.standIns, srv)
	return srv.URL
}

// startServers starts Fulcio, Rekor v2 and the timestamp authority, waits for
// them, and returns the Rekor v2 log. They cannot choose ports themselves, and
// another process may take one that was free a moment ago: hence the attempts.
func (s *Stack) startServers(ctx context.Context, b binaries, ctURL string) (log trust.Log, err error) {
	for attempt := range 3 {
		if log, err = s.tryServers(ctx, b, ctURL, filepath.Join(s.dir, fmt.Sprintf("rekor-%d", attempt))); err == nil {
			return log, nil
		}
		s.stopServers()
	}
	return log, err
}

func (s *Stack) stopServers() {
	for _, p := range s.processes {
		p.Kill()
	}
	s.processes = nil
}

func (s *Stack) tryServers(ctx context.Context, b binaries, ctURL, storage string) (trust.Log, error) {
	ports, err := process.FreePorts(7)
	if err != nil {
		return trust.Log{}, err
	}
	base := func(i int) string { return "http://" + loopback + ":" + ports[i] }
	s.fulcio, s.rekorV2, s.tsa = base(0), base(2), base(5)

	config, err := s.writeFulcioConfig()
	if err != nil {
		return trust.Log{}, err
	}
	rekorKey, log, err := s.makeRekorKey()
	if err != nil {
		return trust.Log{}, err
	}
	log.URL = s.rekorV2
	for _, p := range []struct {
		name, bin string
		args      []string
		ready     string
	}{
		{"fulcio", b.fulcio, []string{
			"serve", "--ca", "ephemeralca", "--ct-log-url", ctURL, "--config-path", config,
			"--host", loopback, "--port", ports[0], "--grpc-host", loopback, "--grpc-port", ports[6],
			"--metrics-port", ports[1], "--legacy-unix-domain-socket", storage + ".sock",
		}, s.fulcio + "/healthz"},
		{"rekor-tiles", b.rekor, []string{
			"serve", "--hostname", loopback, "--signer-filepath", rekorKey, "--storage-dir", storage,
			"--batch-max-age", "10ms", "--checkpoint-interval", "100ms",
			"--http-port", ports[2], "--grpc-port", ports[3], "--http-metrics-port", ports[4],
		}, s.rekorV2 + "/healthz"},
		{"timestamp-authority", b.tsa, []string{ports[5]}, s.tsa + "/ping"},
	} {
		proc, err := process.Start(p.name, exec.CommandContext(context.WithoutCancel(ctx), p.bin, p.args...))
		if err != nil {
			return trust.Log{}, err
		}
		s.processes = append(s.processes, proc)
		if err := proc.Ready(ctx, process.OK(nil, p.ready)); err != nil {
			return trust.Log{}, err
		}
	}
	return log, nil
}

// writeFulcioConfig writes a configuration that trusts our issuer to be GitHub.
// The templates are those of Fulcio's own (config/identity/config.yaml).
func (s *Stack) writeFulcioConfig() (string, error) {
	config, err := json.Marshal(map[string]any{
		"OIDCIssuers": map[string]any{s.Issuer(): map[string]any{
			"IssuerURL": s.Issuer(), "ClientID": clientID, "Type": "ci-provider", "CIProvider": "github-workflow",
		}},
		"CIIssuerMetadata": map[string]any{"github-workflow": map[string]any{
			"DefaultTemplateValues":          map[string]string{"url": "https://github.com"},
			"SubjectAlternativeNameTemplate": "{{ .url }}/{{ .job_workflow_ref }}",
			"ExtensionTemplates": map[string]string{
				"GithubWorkflowTrigger":               "event_name",
				"GithubWorkflowSHA":                   "sha",
				"GithubWorkflowName":                  "workflow",
				"GithubWorkflowRepository":            "repository",
				"GithubWorkflowRef":                   "ref",
				"BuildSignerURI":                      "{{ .url }}/{{ .job_workflow_ref }}",
				"BuildSignerDigest":                   "job_workflow_sha",
				"RunnerEnvironment":                   "runner_environment",
				"SourceRepositoryURI":                 "{{ .url }}/{{ .repository }}",
				"SourceRepositoryDigest":              "sha",
				"SourceRepositoryRef":                 "ref",
				"SourceRepositoryIdentifier":          "repository_id",
				"SourceRepositoryOwnerURI":            "{{ .url }}/{{ .repository_owner }}",
				"SourceRepositoryOwnerIdentifier":     "repository_owner_id",
				"BuildConfigURI":                      "{{ .url }}/{{ .workflow_ref }}",
				"BuildConfigDigest":                   "workflow_sha",
				"BuildTrigger":                        "event_name",
				"RunInvocationURI":                    "{{ .url }}/{{ .repository }}/actions/runs/{{ .run_id }}/attempts/{{ .run_attempt }}",
				"SourceRepositoryVisibilityAtSigning": "repository_visibility",
			},
		}},
	})
	if err != nil {
		return "", fmt.Errorf("cannot encode Fulcio's configuration: %w", err)
	}
	return s.write("fulcio.json", config)
}

// makeRekorKey writes the key of the Rekor v2 log and describes the log.
func (s *Stack) makeRekorKey() (string, trust.Log, error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", trust.Log{}, fmt.Errorf("cannot make the log's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return "", trust.Log{}, fmt.Errorf("cannot encode the log's key: %w", err)
	}
	_, id, err := note.KeyHash(loopback, pub)
	if err != nil {
		return "", trust.Log{}, fmt.Errorf("cannot name the log: %w", err)
	}
	path, err := s.write("rekor.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return path, trust.Log{ID: id, PublicKey: pub}, err
}

// writeTrust completes r with what the running servers say of themselves, and
// writes the trusted root and the variables that cosign's older formats read
// instead of it.
func (s *Stack) writeTrust(ctx context.Context, r trust.Root) error {
	bundle, err := get(ctx, s.fulcio+"/api/v2/trustBundle")
	if err != nil {
		return err
	}
	var chains struct {
		Chains []struct {
			Certificates []string `json:"certificates"`
		} `json:"chains"`
	}
	if err := json.Unmarshal(bundle, &chains); err != nil || len(chains.Chains) != 1 {
		return fmt.Errorf("cannot read Fulcio's trust bundle %q: %w", bundle, err)
	}
	var fulcioPEM []byte
	for _, c := range chains.Chains[0].Certificates {
		fulcioPEM = append(fulcioPEM, c...)
	}
	if r.Fulcio, err = cryptoutils.UnmarshalCertificatesFromPEM(fulcioPEM); err != nil {
		return fmt.Errorf("cannot read Fulcio's certificates: %w", err)
	}
	tsaPEM, err := get(ctx, s.tsa+"/api/v1/timestamp/certchain")
	if err != nil {
		return err
	}
	if r.TSA, err = cryptoutils.UnmarshalCertificatesFromPEM(tsaPEM); err != nil {
		return fmt.Errorf("cannot read the timestamp authority's certificates: %w", err)
	}
	trusted, err := r.JSON()
	if err != nil {
		return err
	}
	if _, err := s.write(filepath.Base(s.TrustedRoot), trusted); err != nil {
		return err
	}
	for _, f := range []struct {
		variable, file string
		content        func() ([]byte, error)
	}{
		{"SIGSTORE_ROOT_FILE", "fulcio.pem", func() ([]byte, error) { return fulcioPEM, nil }},
		{"SIGSTORE_TSA_CERTIFICATE_FILE", "tsa.pem", func() ([]byte, error) { return tsaPEM, nil }},
		{"SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "ct.pub", func() ([]byte, error) {
			return cryptoutils.MarshalPublicKeyToPEM(r.CTLogs[0].PublicKey)
		}},
		{"SIGSTORE_REKOR_PUBLIC_KEY", "rekor1.pub", func() ([]byte, error) {
			return cryptoutils.MarshalPublicKeyToPEM(r.RekorLogs[0].PublicKey)
		}},
	} {
		content, err := f.content()
		if err != nil {
			return fmt.Errorf("cannot encode %s: %w", f.file, err)
		}
		path, err := s.write(f.file, content)
		if err != nil {
			return err
		}
		s.env = append(s.env, f.variable+"="+path)
	}
	return nil
}

// signingConfig writes a signing config for cosign that names the services f
// asks for.
func (s *Stack) signingConfig(f Form) (string, error) {
	service := func(url string, version uint32) []root.Service {
		return []root.Service{{URL: url, MajorAPIVersion: version, ValidityPeriodStart: time.Now().Add(-time.Hour), Operator: loopback}}
	}
	any := root.ServiceConfiguration{Selector: prototrustroot.ServiceSelector_ANY}
	var logs, stamps []root.Service
	switch f.Log {
	case RekorV1:
		logs = service(s.rekorV1, 1)
	case RekorV2:
		logs = service(s.rekorV2, 2)
	}
	if f.Timestamp {
		stamps = service(s.tsa+"/api/v1/timestamp", 1)
	}
	config, err := root.NewSigningConfig(root.SigningConfigMediaType02,
		service(s.fulcio, 1), service(s.Issuer(), 1), logs, any, stamps, any)
	if err != nil {
		return "", fmt.Errorf("cannot make a signing config: %w", err)
	}
	b, err := config.MarshalJSON()
	if err != nil {
		return "", fmt.Errorf("cannot encode a signing config: %w", err)
	}
	return s.writeNew("signing-config-*.json", b)
}

// token writes an ID token of a run and returns its path.
func (s *Stack) token(run workflow.Run) (string, error) {
	token, err := s.issuer.token(run)
	if err != nil {
		return "", err
	}
	return s.writeNew("token-*", []byte(token))
}

func (s *Stack) write(name string, content []byte) (string, error) {
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return "", fmt.Errorf("cannot keep %s: %w", name, err)
	}
	return path, nil
}

func (s *Stack) writeNew(pattern string, content []byte) (string, error) {
	f, err := os.CreateTemp(s.dir, pattern)
	if err != nil {
		return "", fmt.Errorf("cannot keep %s: %w", pattern, err)
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	return s.write(filepath.Base(f.Name()), content)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot get %s: %w", url, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("cannot get %s: %s", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}
