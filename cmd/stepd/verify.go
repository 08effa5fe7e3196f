package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/credentials"
	"github.com/stepd/stepd/internal/sigverify"
	"github.com/stepd/stepd/internal/startup"
	"github.com/stepd/stepd/internal/strictyaml"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/schemas"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/ociverified"
)

const verifyHelp = `verify decides whether an OCI artifact was signed by somebody you name, with the same
verifier as the step oci-download-verified. It resolves REF once and answers for that digest.

The policy comes from flags, or all of it from --config: the step's config block as YAML or
JSON, with paths absolute or relative to that file. outPath is ignored; REF, if given, takes
the place of imageRef.

  stepd verify ghcr.io/acme/configs:svc-v1.2.0-prd-us \
    --issuer https://token.actions.githubusercontent.com \
    --subject https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0

  stepd verify ghcr.io/acme/configs:v1 --key cosign.pub --explain
  stepd verify --config policy.yaml -o json

It exits with 0 if the artifact is acceptable, 3 if it is refused, 2 if the policy cannot be
used, and 1 if no decision could be made, for example because the registry fails.`

// verifyMemory is what Go may manage while one artifact is verified. With the
// program itself it stays below 64 MiB, however large the candidates are.
const verifyMemory = 24 << 20

// verifyFlags are the policy as flags.
type verifyFlags struct {
	config, download string
	explain          bool

	issuer, issuerRegExp, subject, subjectRegExp string
	claims, annotations, signedAnnotations       map[string]string
	keys, attestations, formats                  []string
	trustedRoot, signatureRepository             string
	dockerReference, artifactType, mediaType     string
	caBundle                                     string
	transparencyLog, timestamp, sct, signature   bool
	insecureSkipTLSVerify, insecurePlainHTTP     bool
}

func (f *verifyFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.config, "config", "", "file with the step's config block, - for stdin; instead of the policy flags")
	fs.StringVar(&f.download, "download", "", "write the verified layer to this file")
	fs.BoolVar(&f.explain, "explain", false, "print every check in order with its evidence")

	fs.StringVar(&f.issuer, "issuer", "", "OIDC issuer of the keyless signer, exactly")
	fs.StringVar(&f.issuerRegExp, "issuer-regexp", "", "RE2 expression that the whole issuer must match")
	fs.StringVar(&f.subject, "subject", "", "subject of the keyless signer, exactly")
	fs.StringVar(&f.subjectRegExp, "subject-regexp", "", "RE2 expression that the whole subject must match")
	fs.StringToStringVar(&f.claims, "claim", nil, "claim of the certificate, NAME=VALUE (sourceRepository, sourceRef, …)")
	fs.StringArrayVar(&f.keys, "key", nil, "file with a PEM public key that may sign (repeatable)")
	fs.StringVar(&f.trustedRoot, "trusted-root", "", "trusted_root.json; Sigstore's public-good instance by default")
	fs.StringToStringVar(&f.annotations, "annotation", nil, "annotation the signed manifest must have, NAME=VALUE")
	fs.StringToStringVar(&f.signedAnnotations, "signed-annotation", nil, "annotation the signature must carry, NAME=VALUE")
	fs.StringArrayVar(&f.attestations, "attestation", nil, "predicate type of an attestation that must exist (repeatable)")
	fs.StringSliceVar(&f.formats, "formats", nil, "forms to look for: bundle, legacy")
	fs.StringVar(&f.signatureRepository, "signature-repository", "", "repository that holds the signatures")
	fs.StringVar(&f.dockerReference, "docker-reference", "", "repository that a legacy payload must name")
	fs.StringVar(&f.artifactType, "artifact-type", "", "artifact type the manifest must have")
	fs.StringVar(&f.mediaType, "media-type", "", "media type of the layer")
	fs.BoolVar(&f.transparencyLog, "require-transparency-log", true, "require a transparency log entry")
	fs.BoolVar(&f.timestamp, "require-timestamp", false, "require an RFC 3161 timestamp")
	fs.BoolVar(&f.sct, "require-sct", true, "require that the certificate was logged")
	fs.BoolVar(&f.signature, "require-signature", true, "require a plain signature besides the attestations")
	fs.BoolVar(&f.insecureSkipTLSVerify, "insecure-skip-tls-verify", false, "accept any TLS certificate of the registry")
	fs.BoolVar(&f.insecurePlainHTTP, "insecure-plain-http", false, "allow HTTP without TLS beyond loopback")
	fs.StringVar(&f.caBundle, "ca-bundle", "", "file with PEM certificates to trust for the registry's TLS")
}

// policyFlags names the flags that --config takes the place of.
func policyFlags(fs *pflag.FlagSet) (changed []string) {
	fs.Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "config", "download", "explain", "output", "log-level":
		default:
			changed = append(changed, "--"+f.Name)
		}
	})
	return changed
}

// emptyFlag finds a flag that was given without a value. That is mostly a shell
// variable that is not set, and passing it over would ask for less than meant.
func (f *verifyFlags) emptyFlag(fs *pflag.FlagSet) error {
	var empty error
	fs.Visit(func(flag *pflag.Flag) {
		switch flag.Value.Type() {
		case "string", "stringSlice":
			if s := flag.Value.String(); s == "" || s == "[]" {
				empty = fmt.Errorf("--%s is empty: give it a value or leave it out", flag.Name)
			}
		}
	})
	for _, name := range slices.Sorted(maps.Keys(f.claims)) {
		if f.claims[name] == "" {
			return fmt.Errorf("--claim %s= is empty: give it a value or leave it out", name)
		}
	}
	return empty
}

func newVerifyCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [REF]",
		Short: "Verify who signed an OCI artifact",
		Long:  verifyHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return cli.UsageErrorf("name one artifact: %q is one too many (a switch takes its value after =, as in --require-sct=false)", args[1])
			}
			return nil
		},
	}
	var f verifyFlags
	f.add(cmd.Flags())
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		startup.LimitMemory(verifyMemory)
		sc, err := f.context(cmd.Context(), cmd.Flags(), args, a.In)
		if err != nil {
			return inputError(err)
		}
		sc.Log = a.Log()
		r := &verifyReport{}
		verifyErr := r.run(cmd, a, sc, f.download)
		if err := r.print(a, output.value, f.explain); err != nil {
			return &cli.ExitError{Code: cli.ExitFailed, Err: fmt.Errorf("cannot write the report: %w", err)}
		}
		switch {
		case verifyErr == nil:
			return nil
		case errors.Is(verifyErr, steps.ErrConfig):
			return cli.UsageErrorf("%w", verifyErr)
		default:
			return &cli.ExitError{Code: exitCode(verifyErr), Err: verifyErr}
		}
	}
	return cmd
}

// context makes the config of the flags or of the file, checked against the
// step's schema.
func (f *verifyFlags) context(ctx context.Context, fs *pflag.FlagSet, args []string, stdin io.Reader) (*steps.Context, error) {
	if err := f.emptyFlag(fs); err != nil {
		return nil, err
	}
	sc := &steps.Context{}
	switch changed := policyFlags(fs); {
	case f.config != "" && len(changed) > 0:
		return nil, fmt.Errorf("--config holds the whole policy and cannot be combined with %s", strings.Join(changed, ", "))
	case f.config != "":
		if err := readVerifyConfig(ctx, sc, f.config, stdin); err != nil {
			return nil, err
		}
	case len(args) == 0:
		return nil, errors.New("name the artifact, or a file with --config that does")
	default:
		dir, err := os.Getwd()
		if err != nil {
			return nil, fmt.Errorf("cannot find the working directory: %w", err)
		}
		sc.ConfigFile = filepath.Join(dir, "flags")
		if sc.Config, err = f.asConfig(); err != nil {
			return nil, err
		}
	}
	if len(args) == 1 {
		sc.Config["imageRef"] = args[0]
	}
	sc.Config["outPath"] = "ignored"
	if f.config == "" {
		// Flags make no config that the schema would refuse and the verifier
		// would not, and compiling the schema takes longer than verifying.
		return sc, nil
	}
	if at := findCode(sc.Config, ""); at != "" {
		return nil, fmt.Errorf("the policy holds an expression in %s, which only a promotion evaluates: write its value there", at)
	}
	text, _ := schemas.Config(ociverified.Kind)
	schema, err := configschema.Compile(text)
	if err != nil {
		return nil, err
	}
	if v := schema.Validate(sc.Config); len(v) > 0 {
		return nil, fmt.Errorf("the policy is not valid: %s", configschema.Messages(v))
	}
	return sc, nil
}

// findCode tells where a config holds an expression; "" is nowhere.
func findCode(v any, at string) string {
	switch v := v.(type) {
	case string:
		if expr.HasCode(v) {
			return at
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if found := findCode(v[k], strings.TrimPrefix(at+"."+k, ".")); found != "" {
				return found
			}
		}
	case []any:
		for i, item := range v {
			if found := findCode(item, fmt.Sprintf("%s[%d]", at, i)); found != "" {
				return found
			}
		}
	}
	return ""
}

// maxVerifyConfig bounds a policy file; 4 MiB.
const maxVerifyConfig = 4 << 20

func readVerifyConfig(ctx context.Context, sc *steps.Context, name string, stdin io.Reader) error {
	data, path, err := readInput(ctx, name, stdin, maxVerifyConfig)
	if err != nil {
		return fmt.Errorf("cannot read the policy: %w", err)
	}
	sc.ConfigFile = path
	if err := strictyaml.Unmarshal(data, &sc.Config); err != nil {
		return fmt.Errorf("cannot parse the policy %s: %w", name, err)
	}
	if sc.Config == nil {
		return fmt.Errorf("the policy %s is empty", name)
	}
	return nil
}

// asConfig writes the flags as the step's config.
func (f *verifyFlags) asConfig() (map[string]any, error) {
	verify := map[string]any{}
	identity := map[string]any{}
	set := func(m map[string]any, key, value string) {
		if value != "" {
			m[key] = value
		}
	}
	setMap := func(m map[string]any, key string, value map[string]string) {
		if len(value) == 0 {
			return
		}
		out := map[string]any{}
		for k, v := range value {
			out[k] = v
		}
		m[key] = out
	}
	set(identity, "issuer", f.issuer)
	set(identity, "issuerRegExp", f.issuerRegExp)
	set(identity, "subject", f.subject)
	set(identity, "subjectRegExp", f.subjectRegExp)
	setMap(identity, "claims", f.claims)
	if len(identity) > 0 {
		verify["identities"] = []any{identity}
	}
	var keys, attestations, formats []any
	for _, k := range f.keys {
		keys = append(keys, map[string]any{"path": k})
	}
	for _, t := range f.attestations {
		attestations = append(attestations, map[string]any{"predicateType": t})
	}
	for _, s := range f.formats {
		formats = append(formats, s)
	}
	for key, list := range map[string][]any{"keys": keys, "attestations": attestations, "formats": formats} {
		if list != nil {
			verify[key] = list
		}
	}
	if f.trustedRoot != "" {
		verify["trustedRoot"] = map[string]any{"path": f.trustedRoot}
	}
	setMap(verify, "annotations", f.annotations)
	setMap(verify, "signedAnnotations", f.signedAnnotations)
	set(verify, "signatureRepository", f.signatureRepository)
	set(verify, "dockerReference", f.dockerReference)
	verify["requireTransparencyLog"] = f.transparencyLog
	verify["requireTimestamp"] = f.timestamp
	verify["requireSCT"] = f.sct
	verify["requireSignature"] = f.signature

	cfg := map[string]any{
		"verify":                verify,
		"insecureSkipTLSVerify": f.insecureSkipTLSVerify,
		"insecurePlainHTTP":     f.insecurePlainHTTP,
	}
	set(cfg, "artifactType", f.artifactType)
	set(cfg, "mediaType", f.mediaType)
	if f.caBundle != "" {
		pem, err := os.ReadFile(f.caBundle)
		if err != nil {
			return nil, fmt.Errorf("cannot read the CA bundle: %w", err)
		}
		cfg["caBundle"] = string(pem)
	}
	return cfg, nil
}

// verifyReport is what verify says, in both formats.
type verifyReport struct {
	accepted *ociverified.Accepted
	checks   []sigverify.Check
	err      error
}

// memoryGoal makes the collector eager when a registry makes a verification
// read much. One artifact of the ordinary kind needs no collection at all.
const memoryGoal = 32 << 20

func (r *verifyReport) run(cmd *cobra.Command, a *cli.App, sc *steps.Context, download string) error {
	debug.SetMemoryLimit(memoryGoal)
	o := ociverified.Options{
		Credentials: a.Redactor.Credentials(credentials.Local(credentials.LocalOptions{})),
		Trust:       ociverified.BesideConfig{},
		TUF:         tufCache(),
		UserAgent:   "stepd/" + cli.ReadVersion().Version,
	}
	r.accepted, r.err = ociverified.Verify(cmd.Context(), o, sc, func(c sigverify.Check) { r.checks = append(r.checks, c) })
	if r.err == nil && download != "" {
		if err := r.accepted.Download(cmd.Context(), download); err != nil {
			r.accepted, r.err = nil, fmt.Errorf("cannot download the layer: %w", err)
		}
	}
	return r.err
}

// tufCache keeps TUF metadata in the user's cache directory. Without one, TUF
// refuses and says so.
func tufCache() *sigverify.TUF {
	dir, err := os.UserCacheDir()
	if err != nil {
		return &sigverify.TUF{}
	}
	return &sigverify.TUF{CacheDir: filepath.Join(dir, "stepd", "tuf")}
}

func (r *verifyReport) print(a *cli.App, format string, explain bool) error {
	if format == "json" {
		return r.printJSON(a, explain)
	}
	var b strings.Builder
	if explain {
		for _, c := range r.checks {
			word := "ok"
			if !c.OK {
				word = "refused"
			}
			fmt.Fprintf(&b, "%-8s %-17s %s\n", word, c.Name, oneLine(c.Evidence))
			if c.Candidate != "" && !c.OK {
				fmt.Fprintf(&b, "%-8s %-17s %s\n", "", "candidate", c.Candidate)
			}
		}
	}
	if acc := r.accepted; acc != nil {
		if explain {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "verified %s@%s\n", acc.Repository, acc.Digest)
		lines := signedBy(acc.Signer)
		if len(acc.Weakened) > 0 {
			lines = append(lines, [2]string{"weakened", oneLine(strings.Join(acc.Weakened, ", "))})
		}
		for _, line := range lines {
			fmt.Fprintf(&b, "  %-10s %s\n", line[0], line[1])
		}
	}
	_, err := io.WriteString(a.Out, cli.Printable(b.String()))
	return err
}

func (r *verifyReport) printJSON(a *cli.App, explain bool) error {
	out := map[string]any{"verified": r.accepted != nil, "rejected": []any{}}
	var detail steps.Detailer
	switch {
	case r.accepted != nil:
		for k, v := range r.accepted.Output() {
			out[k] = v
		}
		if len(r.accepted.Rejected) > 0 {
			out["rejected"] = r.accepted.Rejected
		}
	case errors.As(r.err, &detail):
		for k, v := range detail.Detail() {
			out[k] = v
		}
		out["error"] = r.err.Error()
	case r.err != nil:
		out["error"] = r.err.Error()
	}
	if explain {
		out["checks"] = append([]sigverify.Check{}, r.checks...)
	}
	return writeJSON(a.Out, a.Redactor.Value(out))
}
