package sigverify

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

func TestIdentityExpressions(t *testing.T) {
	const issuer = "https://token.actions.githubusercontent.com"
	cert := func(subject string) certificate.Summary {
		s := certificate.Summary{SubjectAlternativeName: subject}
		s.Issuer = issuer
		return s
	}
	tests := map[string]struct {
		reason  string
		expr    string
		bad     bool
		accepts []string
		refuses []string
	}{
		"workflow": {
			reason:  "the usual expression",
			expr:    `https://github\.com/acme/svc-config/\.github/workflows/publish\.yaml@refs/tags/v[0-9.]+`,
			accepts: []string{"https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0"},
			refuses: []string{
				"https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0-evil",
				"x https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0",
				"https://github.com/acme/svc-config/.github/workflows/publish.yaml@refs/tags/v1.2.0\nx",
			},
		},
		"prefix":                           {reason: "is no match", expr: `https://github\.com/acme/svc-config`, refuses: []string{"https://github.com/acme/svc-config-evil"}},
		"own anchors":                      {reason: "do no harm", expr: `^https://github\.com/acme/x$`, accepts: []string{"https://github.com/acme/x"}},
		"multi-line flag":                  {reason: "cannot undo the anchoring", expr: `(?m)^https://github\.com/acme/x$`, accepts: []string{"https://github.com/acme/x"}, refuses: []string{"evil\nhttps://github.com/acme/x", "https://github.com/acme/x\nevil"}},
		"alternatives":                     {reason: "are anchored together", expr: `https://github\.com/acme/x|https://github\.com/acme/y`, accepts: []string{"https://github.com/acme/y"}, refuses: []string{"https://github.com/acme/xevil", "evilhttps://github.com/acme/y"}},
		"anything":                         {reason: "names nobody", expr: `.*`, bad: true},
		"anything, anchored":               {reason: "names nobody", expr: `^.*$`, bad: true},
		"something":                        {reason: "names nobody", expr: `.+`, bad: true},
		"any characters":                   {reason: "names nobody", expr: `[\s\S]{3,}`, bad: true},
		"any word":                         {reason: "names nobody", expr: `\w+@\w+\.\w+`, bad: true},
		"any URL":                          {reason: "names nobody", expr: `https://.*`, bad: true},
		"any repository":                   {reason: "anybody has one", expr: `https://github\.com/.*`, bad: true},
		"any workflow":                     {reason: "anybody has one", expr: `https://github\.com/[^/]+/[^/]+/\.github/workflows/.*@refs/heads/main`, bad: true},
		"any GitLab project":               {reason: "anybody has one", expr: `https://gitlab\.com/.+//\.gitlab-ci\.yml@refs/heads/main`, bad: true},
		"any owner's repository of a name": {reason: "anybody can have one of that name", expr: `https://github\.com/.*/svc-config/\.github/workflows/publish\.yaml@refs/tags/v1`, bad: true},
		"a part of a path":                 {reason: "anybody can have that part", expr: `.*/acme/svc-config/.*`, bad: true},
		"own name after a wildcard host":   {reason: "anybody can have that path", expr: `https://[^/]+/acme/svc-config/.*`, bad: true},
		"one owner, any repository":        {reason: "names the owner", expr: `https://github\.com/acme/.*`, accepts: []string{"https://github.com/acme/x"}, refuses: []string{"https://github.com/acme-evil/x"}},
		"two owners":                       {reason: "names them", expr: `https://github\.com/(acme|emca)/x@refs/tags/v\d+(\.\d+)*`, accepts: []string{"https://github.com/emca/x@refs/tags/v1.2"}},
		"any owner in letters":             {reason: "anybody has one", expr: `https://github\.com/[a-z]+/.+`, bad: true},
		"any owner, any repository's name": {reason: "anybody has one", expr: `https://github\.com/[A-Za-z-]+/svc-config/\.github/workflows/publish\.yaml@refs/tags/v1`, bad: true},
		"any owner in digits":              {reason: "anybody has one", expr: `https://gitlab\.com/\d+/x@refs/tags/v.*`, bad: true},
		"any owner but":                    {reason: "leaves all others", expr: `https://github\.com/[^q]*/svc/.*@refs/heads/main`, bad: true},
		"any owner in capitals":            {reason: "anybody can write a name so", expr: `https://github\.com/[A-Z]+/.+`, bad: true},
		"owner in any case":                {reason: "is one owner", expr: `(?i)https://github\.com/acme-production/.+`, accepts: []string{"https://github.com/Acme-Production/x"}},
		"any mailbox in capitals":          {reason: "anybody has one", expr: `[A-Z.]+@gmail\.com`, bad: true},
		"owner of a length":                {reason: "anybody can have one", expr: `https://github\.com/[a-z]{4}/x@refs/.*`, bad: true},
		"owner's beginning":                {reason: "acme-evil begins like that", expr: `https://github\.com/acme.*`, bad: true},
		"owner's beginning and a dash":     {reason: "anybody can have acme-evil", expr: `https://github\.com/acme-[a-z]+/x@refs/heads/main`, bad: true},
		"owner's end":                      {reason: "anybody can have evil-acme", expr: `https://github\.com/.*acme/x@refs/heads/main`, bad: true},
		"any host in letters":              {reason: "anybody can have that path", expr: `https://[a-z.]+/acme/svc-config/.*`, bad: true},
		"any mailbox in letters":           {reason: "anybody has one", expr: `[a-z.]+@gmail\.com`, bad: true},
		"some owners":                      {reason: "can be counted", expr: `https://github\.com/acme-(us|eu|[a-z]{2})/x@refs/heads/main`, accepts: []string{"https://github.com/acme-ca/x@refs/heads/main"}},
		"owner and its groups":             {reason: "names the owner", expr: `https://gitlab\.com/acme(/[a-z-]+)*//\.gitlab-ci\.yml@refs/tags/v.*`, accepts: []string{"https://gitlab.com/acme/a/b//.gitlab-ci.yml@refs/tags/v1"}, refuses: []string{"https://gitlab.com/acme-evil/a//.gitlab-ci.yml@refs/tags/v1"}},
		"many alternatives":                {reason: "are all written out", expr: `https://github\.com/((a|b|c)(d|e|f))+cme-inc/x@refs/heads/main`, bad: true},
		"any owner's workflow by commit":   {reason: "anybody can have it called by a commit", expr: `https://github\.com/[^/]+/flows/\.github/workflows/sign\.yaml@[0-9a-f]{40}`, bad: true},
		"one owner's workflow by commit":   {reason: "names the owner", expr: `https://github\.com/acme/flows/\.github/workflows/sign\.yaml@[0-9a-f]{40}`, accepts: []string{"https://github.com/acme/flows/.github/workflows/sign.yaml@0123456789abcdef0123456789abcdef01234567"}},
		"too much to count":                {reason: "takes no longer than others", expr: `https://github\.com/[a-z]*a[a-z]{30}z/x@refs/heads/main`, bad: true},
		"any case":                         {reason: "still names the owner", expr: `(?i)https://github\.com/acme/x`, accepts: []string{"https://github.com/ACME/x"}},
		"own forge":                        {reason: "is nobody else's", expr: `https://git\.corp\.example/.*//\.gitlab-ci\.yml@refs/heads/main`, accepts: []string{"https://git.corp.example/a//.gitlab-ci.yml@refs/heads/main"}},
		"mailbox of one domain":            {reason: "names the domain", expr: `[^@]+@acme\.example`, accepts: []string{"a@acme.example"}},
		"word boundaries":                  {reason: "are understood", expr: `\bhttps://github\.com/acme\b/x`, accepts: []string{"https://github.com/acme/x"}},
		"any mailbox":                      {reason: "anybody has one", expr: `.*@gmail\.com`, bad: true},
		"one way out":                      {reason: "an alternative that matches anything", expr: `https://github\.com/acme/x|.*`, bad: true},
		"optional":                         {reason: "fixes nothing", expr: `(https://github\.com/acme/x)?`, bad: true},
		"unbalanced":                       {reason: "cannot close the group that anchors it", expr: `x)|(?:.*`, bad: true},
		"not RE2":                          {reason: "no backreferences", expr: `(acme)\1`, bad: true},
		"empty":                            {reason: "names nobody", expr: ``, bad: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			id, err := NewIdentity(IdentitySpec{Issuer: issuer, SubjectRegExp: tt.expr})
			if (err != nil) != tt.bad {
				t.Fatalf("%s: %v", tt.reason, err)
			}
			for _, s := range tt.accepts {
				if err := id.check(cert(s)); err != nil {
					t.Errorf("%s: %v", tt.reason, err)
				}
			}
			for _, s := range tt.refuses {
				if err := id.check(cert(s)); err == nil {
					t.Errorf("%s: %q is accepted", tt.reason, s)
				}
			}
		})
	}
}

func TestIdentityNeedsBoth(t *testing.T) {
	for name, spec := range map[string]IdentitySpec{
		"nothing":      {},
		"only issuer":  {Issuer: "https://x"},
		"only subject": {Subject: "x"},
		"two issuers":  {Issuer: "https://x", IssuerRegExp: "https://x", Subject: "x"},
		"two subjects": {Issuer: "https://x", Subject: "x", SubjectRegExp: "xxxx"},
	} {
		if _, err := NewIdentity(spec); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := (Identity{}).check(certificate.Summary{}); err == nil {
		t.Error("the zero Identity matches")
	}
}

func TestClaims(t *testing.T) {
	var cert certificate.Summary
	cert.Issuer, cert.SubjectAlternativeName = "iss", "sub"
	cert.SourceRepositoryURI = "https://github.com/acme/svc"
	cert.GithubWorkflowRepository = "acme/svc"
	cert.SourceRepositoryRef = "refs/tags/v1"
	cert.SourceRepositoryDigest = "c0ffee"
	cert.SourceRepositoryOwnerURI = "https://github.com/acme"
	cert.BuildConfigURI = "https://github.com/acme/svc/.github/workflows/a.yaml@refs/tags/v1"
	cert.GithubWorkflowName = "publish"
	cert.BuildSignerURI = "https://github.com/acme/flows/.github/workflows/sign.yaml@refs/heads/main"
	cert.BuildTrigger = "push"
	cert.RunnerEnvironment = "github-hosted"
	tests := map[string]struct {
		claims Claims
		ok     bool
	}{
		"repository by URL":        {Claims{SourceRepository: "https://github.com/acme/svc"}, true},
		"repository by name":       {Claims{SourceRepository: "acme/svc"}, true},
		"another repository":       {Claims{SourceRepository: "acme/svc-evil"}, false},
		"URL's beginning":          {Claims{SourceRepository: "https://github.com/acme"}, false},
		"ref":                      {Claims{SourceRef: "refs/tags/v1"}, true},
		"another ref":              {Claims{SourceRef: "refs/tags/v10"}, false},
		"commit":                   {Claims{SourceCommit: "c0ffee"}, true},
		"owner by URL":             {Claims{SourceRepositoryOwner: "https://github.com/acme"}, true},
		"owner by name":            {Claims{SourceRepositoryOwner: "acme"}, true},
		"another owner":            {Claims{SourceRepositoryOwner: "acm"}, false},
		"workflow by URI":          {Claims{Workflow: "https://github.com/acme/svc/.github/workflows/a.yaml@refs/tags/v1"}, true},
		"workflow by name":         {Claims{Workflow: "publish"}, true},
		"signer":                   {Claims{BuildSignerURI: "https://github.com/acme/flows/.github/workflows/sign.yaml@refs/heads/main"}, true},
		"trigger":                  {Claims{Trigger: "push"}, true},
		"another trigger":          {Claims{Trigger: "pull_request_target"}, false},
		"runner":                   {Claims{RunnerEnvironment: "github-hosted"}, true},
		"another runner":           {Claims{RunnerEnvironment: "self-hosted"}, false},
		"one right and one wrong":  {Claims{Trigger: "push", SourceRef: "refs/heads/x"}, false},
		"all at once, all correct": {Claims{Trigger: "push", SourceRef: "refs/tags/v1", SourceRepository: "acme/svc"}, true},
	}
	for name, tt := range tests {
		id := identity(t, IdentitySpec{Issuer: "iss", Subject: "sub", Claims: tt.claims})
		if err := id.check(cert); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	bare := certificate.Summary{SubjectAlternativeName: "sub"}
	bare.Issuer = "iss"
	id := identity(t, IdentitySpec{Issuer: "iss", Subject: "sub", Claims: Claims{Trigger: "push"}})
	if err := id.check(bare); err == nil {
		t.Error("a certificate without the claim is accepted")
	}
}

func TestOneName(t *testing.T) {
	uri, err := url.Parse("https://github.com/acme/x")
	if err != nil {
		t.Fatal(err)
	}
	otherName, err := cryptoutils.MarshalOtherNameSAN("somebody", true)
	if err != nil {
		t.Fatal(err)
	}
	// One name of a kind that Go knows, and one that it does not.
	mixed := pkix.Extension{Id: cryptoutils.SANOID, Value: otherName.Value}
	mixed.Value = append([]byte{0x30, otherName.Value[1] + 5, 0x86, 3, 'a', ':', 'b'}, otherName.Value[2:]...)
	issuer := func(oid asn1.ObjectIdentifier, value []byte) pkix.Extension {
		return pkix.Extension{Id: oid, Value: value}
	}
	der := func(s string) []byte {
		b, err := asn1.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tests := map[string]struct {
		template x509.Certificate
		ok       bool
	}{
		"a URI":                       {x509.Certificate{URIs: []*url.URL{uri}}, true},
		"a mailbox":                   {x509.Certificate{EmailAddresses: []string{"a@acme.example"}}, true},
		"a user name":                 {x509.Certificate{ExtraExtensions: []pkix.Extension{*otherName}}, true},
		"two URIs":                    {x509.Certificate{URIs: []*url.URL{uri, {Scheme: "https", Host: "evil.example"}}}, false},
		"a URI and a mailbox":         {x509.Certificate{URIs: []*url.URL{uri}, EmailAddresses: []string{"a@acme.example"}}, false},
		"a URI and a host":            {x509.Certificate{URIs: []*url.URL{uri}, DNSNames: []string{"acme.example"}}, false},
		"a URI and a user name":       {x509.Certificate{ExtraExtensions: []pkix.Extension{mixed}}, false},
		"the same issuer, both forms": {x509.Certificate{URIs: []*url.URL{uri}, ExtraExtensions: []pkix.Extension{issuer(certificate.OIDIssuer, []byte("https://i")), issuer(certificate.OIDIssuerV2, der("https://i"))}}, true},  //nolint:staticcheck // still written beside its successor
		"two issuers":                 {x509.Certificate{URIs: []*url.URL{uri}, ExtraExtensions: []pkix.Extension{issuer(certificate.OIDIssuer, []byte("https://i")), issuer(certificate.OIDIssuerV2, der("https://j"))}}, false}, //nolint:staticcheck // still written beside its successor
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range tests {
		tt.template.SerialNumber = big.NewInt(1)
		raw, err := x509.CreateCertificate(rand.Reader, &tt.template, &tt.template, key.Public(), key)
		if err != nil {
			t.Fatal(name, err)
		}
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			t.Fatal(name, err)
		}
		if err := oneName(cert); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBounds: what no honest bundle is, is refused before other parsers see it.
func TestBounds(t *testing.T) {
	const start = `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{`
	const end = `},"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AA=="}]}}`
	much := strings.Repeat("AAAA", maxEvidence/3+1)
	statement := base64.StdEncoding.EncodeToString([]byte("[" + strings.Repeat("0,", 1<<16) + "0]"))
	for name, tt := range map[string]struct{ raw, want string }{
		"an ordinary one":     {start + `"publicKey":{"hint":"x"}` + end, ""},
		"log entries":         {start + `"publicKey":{"hint":"x"},"tlogEntries":[` + strings.Repeat("{},", 1<<16) + `{}]` + end, "values"},
		"a log entry's body":  {start + `"publicKey":{"hint":"x"},"tlogEntries":[{"canonicalizedBody":"` + much + `"}]` + end, "log entry"},
		"a certificate":       {start + `"certificate":{"rawBytes":"` + much + `"}` + end, "certificate"},
		"a certificate chain": {start + `"x509CertificateChain":{"certificates":[{"rawBytes":"` + much + `"}]}` + end, "certificate"},
		"a timestamp":         {start + `"publicKey":{"hint":"x"},"timestampVerificationData":{"rfc3161Timestamps":[{"signedTimestamp":"` + much + `"}]}` + end, "timestamp"},
		"a statement":         {start + `"publicKey":{"hint":"x"}` + strings.Replace(end, "e30=", statement, 1), "statement"},
	} {
		_, err := parseBundle([]byte(tt.raw))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func publicPEM(t *testing.T, pub any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func TestParseKey(t *testing.T) {
	ec := func(c elliptic.Curve) []byte {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return publicPEM(t, k.Public())
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		in []byte
		ok bool
	}{
		"P-256":     {ec(elliptic.P256()), true},
		"P-384":     {ec(elliptic.P384()), true},
		"P-521":     {ec(elliptic.P521()), true},
		"P-224":     {ec(elliptic.P224()), false},
		"Ed25519":   {publicPEM(t, ed), true},
		"RSA":       {publicPEM(t, rsaKey.Public()), true},
		"two keys":  {append(publicPEM(t, ed), publicPEM(t, ed)...), false},
		"a private": {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), false},
		"no PEM":    {[]byte("hello"), false},
		"garbage":   {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")}), false},
		"nothing":   {nil, false},
	}
	for name, tt := range tests {
		if _, err := ParseKey(tt.in); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAttestationConditions(t *testing.T) {
	const slsa1 = "https://slsa.dev/provenance/v1"
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	v1 := &Verified{PredicateType: slsa1, predicate: map[string]any{
		"buildDefinition": map[string]any{
			"buildType":          "https://actions.github.io/buildtypes/workflow/v1",
			"externalParameters": map[string]any{"workflow": map[string]any{"repository": "https://github.com/acme/svc", "ref": "refs/tags/v1"}},
			"resolvedDependencies": []any{
				map[string]any{"uri": "git+https://github.com/acme/svc@refs/tags/v1"},
			},
		},
		"runDetails": map[string]any{"builder": map[string]any{"id": "https://builder"}},
	}}
	v1.SignedAt = now.Add(-time.Hour)
	v02 := &Verified{PredicateType: "https://slsa.dev/provenance/v0.2", predicate: map[string]any{
		"builder":    map[string]any{"id": "https://builder"},
		"invocation": map[string]any{"configSource": map[string]any{"uri": "git+https://github.com/acme/svc.git@refs/tags/v1"}},
	}}
	both := &Verified{PredicateType: slsa1, predicate: map[string]any{
		"builder":    map[string]any{"id": "https://evil"},
		"runDetails": map[string]any{"builder": map[string]any{"id": "https://builder"}},
	}}
	tests := map[string]struct {
		reason string
		spec   AttestationSpec
		v      *Verified
		ok     bool
	}{
		"type":                  {reason: "exact", spec: AttestationSpec{PredicateType: slsa1}, v: v1, ok: true},
		"another type":          {reason: "CVE-2022-35930", spec: AttestationSpec{PredicateType: slsa1 + "x"}, v: v1},
		"builder":               {reason: "v1", spec: AttestationSpec{PredicateType: slsa1, BuilderID: "https://builder"}, v: v1, ok: true},
		"another builder":       {reason: "v1", spec: AttestationSpec{PredicateType: slsa1, BuilderID: "https://builder2"}, v: v1},
		"two builders":          {reason: "all that is stated must agree", spec: AttestationSpec{PredicateType: slsa1, BuilderID: "https://builder"}, v: both},
		"source":                {reason: "v1", spec: AttestationSpec{PredicateType: slsa1, SourceURI: "https://github.com/acme/svc", SourceRef: "refs/tags/v1"}, v: v1, ok: true},
		"source, git prefix":    {reason: "spellings of one repository", spec: AttestationSpec{PredicateType: slsa1, SourceURI: "git+https://github.com/acme/svc.git"}, v: v1, ok: true},
		"another source":        {reason: "exact", spec: AttestationSpec{PredicateType: slsa1, SourceURI: "https://github.com/acme/svc-evil"}, v: v1},
		"another ref":           {reason: "exact", spec: AttestationSpec{PredicateType: slsa1, SourceRef: "refs/heads/main"}, v: v1},
		"v0.2":                  {reason: "older provenance", spec: AttestationSpec{PredicateType: v02.PredicateType, BuilderID: "https://builder", SourceURI: "https://github.com/acme/svc", SourceRef: "refs/tags/v1"}, v: v02, ok: true},
		"no source stated":      {reason: "absent is not equal", spec: AttestationSpec{PredicateType: slsa1, SourceURI: "https://github.com/acme/svc"}, v: both},
		"young enough":          {reason: "by the proven time", spec: AttestationSpec{PredicateType: slsa1, MaxAge: 2 * time.Hour}, v: v1, ok: true},
		"too old":               {reason: "by the proven time", spec: AttestationSpec{PredicateType: slsa1, MaxAge: time.Minute}, v: v1},
		"no proven time":        {reason: "cannot be young", spec: AttestationSpec{PredicateType: v02.PredicateType, MaxAge: time.Hour}, v: v02},
		"CEL":                   {reason: "true", spec: AttestationSpec{PredicateType: slsa1, CEL: `predicate.buildDefinition.buildType.startsWith("https://actions.github.io/")`}, v: v1, ok: true},
		"CEL, false":            {reason: "false", spec: AttestationSpec{PredicateType: slsa1, CEL: `predicate.buildDefinition.buildType == "x"`}, v: v1},
		"CEL, absent field":     {reason: "an error is no acceptance", spec: AttestationSpec{PredicateType: slsa1, CEL: `predicate.nope.nope == "x"`}, v: v1},
		"CEL, not a bool":       {reason: "at run time", spec: AttestationSpec{PredicateType: slsa1, CEL: `predicate.buildDefinition.buildType`}, v: v1},
		"CEL, far too costly":   {reason: "evaluation is bounded", spec: AttestationSpec{PredicateType: slsa1, CEL: `["a","b","c","d","e","f","g","h","i","j"].all(a,["a","b","c","d","e","f","g","h","i","j"].all(b,["a","b","c","d","e","f","g","h","i","j"].all(c,["a","b","c","d","e","f","g","h","i","j"].all(d,["a","b","c","d","e","f","g","h","i","j"].all(e,["a","b","c","d","e","f","g","h","i","j"].all(f, a+b+c+d+e+f != predicate.buildDefinition.buildType))))))`}, v: v1},
		"CEL and builder, both": {reason: "all conditions", spec: AttestationSpec{PredicateType: slsa1, BuilderID: "https://builder", CEL: `true`}, v: v1, ok: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, err := NewAttestation(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.check(t.Context(), tt.v, now, Limits{}.withDefaults()); (err == nil) != tt.ok {
				t.Errorf("%s: %v", tt.reason, err)
			}
		})
	}
	for name, spec := range map[string]AttestationSpec{
		"no type":      {},
		"sign type":    {PredicateType: signPredicateType},
		"CEL, no bool": {PredicateType: slsa1, CEL: `"x"`},
		"CEL, syntax":  {PredicateType: slsa1, CEL: `predicate.`},
		"CEL, unknown": {PredicateType: slsa1, CEL: `statement.x == 1`},
		"negative age": {PredicateType: slsa1, MaxAge: -1},
	} {
		if _, err := NewAttestation(spec); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPolicyValidate(t *testing.T) {
	id := identity(t, IdentitySpec{Issuer: "https://iss", Subject: "sub"})
	att, err := NewAttestation(AttestationSpec{PredicateType: "https://slsa.dev/provenance/v1"})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*Policy)
		ok     bool
	}{
		"somebody":          {func(p *Policy) { p.Identities = []Identity{id} }, true},
		"nobody":            {func(*Policy) {}, false},
		"the zero identity": {func(p *Policy) { p.Identities = []Identity{{}} }, false},
		"neither signature": {func(p *Policy) { p.Identities = []Identity{id}; p.RequireSignature = false }, false},
		"an attestation instead": {func(p *Policy) {
			p.Identities = []Identity{id}
			p.RequireSignature = false
			p.Attestations = []Attestation{att}
		}, true},
		"annotations of a signature that is not required": {func(p *Policy) {
			p.Identities = []Identity{id}
			p.RequireSignature = false
			p.Attestations = []Attestation{att}
			p.SignedAnnotations = map[string]string{"env": "prd"}
		}, false},
		"repository of a signature that is not required": {func(p *Policy) {
			p.Identities = []Identity{id}
			p.RequireSignature = false
			p.Attestations = []Attestation{att}
			p.DockerReference = "x/y"
		}, false},
		"no formats":     {func(p *Policy) { p.Identities = []Identity{id}; p.Formats = nil }, false},
		"unknown format": {func(p *Policy) { p.Identities = []Identity{id}; p.Formats = []Format{"x"} }, false},
		"repository from a bundle": {func(p *Policy) {
			p.Identities = []Identity{id}
			p.Formats = []Format{Bundle}
			p.DockerReference = "x/y"
		}, false},
		"repository from a legacy form": {func(p *Policy) { p.Identities = []Identity{id}; p.DockerReference = "x/y" }, true},
	}
	for name, tt := range tests {
		p := NewPolicy()
		tt.change(&p)
		if err := p.Validate(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&Policy{}).Validate(); err == nil {
		t.Error("the zero Policy is valid")
	}
}

func TestRefusedError(t *testing.T) {
	e := &RefusedError{Artifact: "r/x:v1@sha256:00", Missing: []string{"signature"}, Expected: "somebody", Remedy: "Do this"}
	for range 9 {
		e.Rejected = append(e.Rejected, Rejection{Candidate: "c", Format: Bundle, Reason: bounded("line\nbreak \x1b[31m red " + strings.Repeat("x", 1000))})
	}
	text := e.Error()
	if strings.ContainsAny(text, "\n\x1b") {
		t.Errorf("control characters reach the terminal: %q", text)
	}
	if len(text) > 5000 {
		t.Errorf("the message has %d bytes", len(text))
	}
	for _, want := range []string{"r/x:v1@sha256:00", "somebody", "9 candidates", "and 4 more", "Do this"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %q", want, text)
		}
	}
	if diff := cmp.Diff(9, len(e.Detail()["rejected"].([]any))); diff != "" {
		t.Errorf("the detail has them all: %s", diff)
	}
	var target *RefusedError
	if !errors.As(error(e), &target) {
		t.Error("not a RefusedError")
	}
}
