package sigverify

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/stepd/stepd/internal/ociart"
)

// IdentitySpec is an identity as written in a config: exactly one of Issuer
// and IssuerRegExp, and exactly one of Subject and SubjectRegExp.
type IdentitySpec struct {
	Issuer, IssuerRegExp   string
	Subject, SubjectRegExp string
	Claims                 Claims
}

// Claims are exact values of a certificate's CI extensions (Fulcio's OID
// 1.3.6.1.4.1.57264.1). Empty ones are not looked at.
type Claims struct {
	// SourceRepository is a URL, or GitHub's owner/name.
	SourceRepository string
	SourceRef        string
	SourceCommit     string
	// SourceRepositoryOwner is a URL, or the owner's name.
	SourceRepositoryOwner string
	// Workflow is the URI of the file that started the run, or the workflow's
	// name.
	Workflow string
	// BuildSignerURI is the workflow file that signed.
	BuildSignerURI    string
	Trigger           string
	RunnerEnvironment string
}

// Identity is a compiled IdentitySpec. The zero value matches nobody.
type Identity struct {
	spec  IdentitySpec
	match *matchers
}

type matchers struct{ issuer, subject func(string) bool }

// NewIdentity compiles spec. It refuses specs without issuer or subject, and
// expressions that would match arbitrary text.
func NewIdentity(spec IdentitySpec) (Identity, error) {
	issuer, err := newMatcher("issuer", spec.Issuer, spec.IssuerRegExp)
	if err != nil {
		return Identity{}, err
	}
	subject, err := newMatcher("subject", spec.Subject, spec.SubjectRegExp)
	if err != nil {
		return Identity{}, err
	}
	return Identity{spec: spec, match: &matchers{issuer, subject}}, nil
}

func newMatcher(field, exact, expr string) (func(string) bool, error) {
	switch {
	case exact == "" && expr == "":
		return nil, fmt.Errorf("an identity needs %s or %sRegExp", field, field)
	case exact != "" && expr != "":
		return nil, fmt.Errorf("an identity has either %s or %sRegExp", field, field)
	case exact != "":
		return func(s string) bool { return s == exact }, nil
	}
	// Compiled by itself first: an unbalanced expression could otherwise close
	// the group that anchors it.
	parsed, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("%sRegExp is not an RE2 expression: %w", field, err)
	}
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("%sRegExp is not an RE2 expression: %w", field, err)
	}
	if literals(parsed) < minLiterals {
		return nil, fmt.Errorf("%sRegExp %s matches arbitrary text: write out who the signer is", field, ociart.Quote(expr))
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, fmt.Errorf("%sRegExp is not an RE2 expression: %w", field, err)
	}
	for _, infix := range strangersInfixes[field] {
		for _, prefix := range strangersPrefixes {
			if canContinue(prog, prefix, infix) {
				return nil, fmt.Errorf("%sRegExp %s can match strangers, whose names begin with, for example, %s: write out who the signer is", field, ociart.Quote(expr), prefix)
			}
		}
		for _, forge := range forges {
			if manyOwners(prog, forge, infix) {
				return nil, fmt.Errorf("%sRegExp %s leaves open who owns the repository, and anybody can have a name below %s that it matches: write out the owner, up to the slash", field, ociart.Quote(expr), forge)
			}
		}
	}
	for _, s := range strangers {
		if re.MatchString(s) {
			return nil, fmt.Errorf("%sRegExp %s matches strangers, for example %s: write out who the signer is", field, ociart.Quote(expr), s)
		}
	}
	return re.MatchString, nil
}

// minLiterals is how many characters an expression must fix at least.
const minLiterals = 4

// literals counts the characters that every match of an expression has in the
// same way: what an expression pins down.
func literals(re *syntax.Regexp) int {
	switch re.Op {
	case syntax.OpLiteral:
		return len(re.Rune)
	case syntax.OpCapture, syntax.OpPlus:
		return literals(re.Sub[0])
	case syntax.OpRepeat:
		return min(re.Min, 64) * literals(re.Sub[0])
	case syntax.OpConcat:
		n := 0
		for _, s := range re.Sub {
			n += literals(s)
		}
		return n
	case syntax.OpAlternate:
		n := literals(re.Sub[0])
		for _, s := range re.Sub[1:] {
			n = min(n, literals(s))
		}
		return n
	default:
		return 0
	}
}

// strangers are issuers and subjects that nobody means to trust: an expression
// that matches one of them matches anybody who can sign up somewhere.
var strangers = func() []string {
	var out []string
	for _, s := range strangersNames {
		for _, host := range []string{s + ".example", s + ".com", "github.com/" + s, "gitlab.com/" + s, "bitbucket.org/" + s, "token." + s + ".io"} {
			out = append(out, host, "https://"+host, "http://"+host, "https://"+host+"/"+s,
				"https://"+host+"/"+s+"/.github/workflows/"+s+".yaml@refs/heads/main",
				"https://"+host+"/"+s+"/.github/workflows/"+s+".yml@refs/tags/v1.2.0",
				"https://"+host+"/"+s+"/.github/workflows/release.yml@refs/heads/main",
				"https://"+host+"/"+s+"/.github/workflows/publish.yaml@refs/tags/v1.2.0",
				"https://"+host+"/"+s+"//.gitlab-ci.yml@refs/heads/main")
		}
		for _, domain := range []string{"gmail.com", "example.com", s + ".com", "users.noreply.github.com"} {
			out = append(out, s+"@"+domain)
		}
		out = append(out, s, "\n"+s)
	}
	return out
}()

// strangersNames are of letters and digits, of letters, and of digits, for
// expressions such as [a-z]+, [A-Z]+ and \d+.
var strangersNames = []string{"q7x2zk9v4jw", "qxzkvjwfpy", "QXZKVJWFPY", "90417365"}

// strangersPrefixes begin the names of anybody's hosts: an expression that a
// name can match after one of them leaves open whose it is, whatever it fixes
// later (https://.*/svc-config/…).
var strangersPrefixes = func() []string {
	var out []string
	for _, s := range strangersNames {
		out = append(out, "https://"+s+".example/", "https://"+s+".com/", "http://"+s+".example/")
	}
	return out
}()

// strangersInfixes are in the names of anybody's signers after the prefix: a
// workflow's subject has a ref or, where it is called by commit, that commit (all
// but its end, since more has to follow); a mailbox that may hold slashes has
// neither. An issuer is a URL.
var strangersInfixes = map[string][]string{
	"issuer":  {""},
	"subject": {"@refs/", "@0123456789abcdef0123456789abcdef0123456"},
}

// forges are where anybody can have repositories. The owner comes next.
var forges = []string{"https://github.com/", "https://gitlab.com/", "https://bitbucket.org/"}

// An expression may name maxOwners owners of repositories, of at most
// longestOwner characters. One that takes more than maxOwnersWork to count has
// too many.
const (
	maxOwners     = 1000
	longestOwner  = 40
	maxOwnersWork = 300_000
)

// manyOwners tells whether a compiled expression leaves open who owns the
// repository: whether, after the forge's URL, more than maxOwners owners' names
// can begin a text with infix that matches (.*, [a-z-]+, acme.*).
func manyOwners(prog *syntax.Prog, forge, infix string) bool {
	// next is the expression's states after one more character, by the states
	// before it: the names it tells apart, however many there are.
	type place struct {
		states states
		key    string
		owners int
	}
	next := map[string][]place{}
	start := begin(prog, forge).read(prog, forge)
	names := map[string]place{start.key(): {start, start.key(), 1}}
	total, work := 0, 0
	for range longestOwner {
		longer := map[string]place{}
		for key, p := range names {
			if _, known := next[key]; !known {
				next[key] = nil
				for _, c := range "abcdefghijklmnopqrstuvwxyz0123456789-_." {
					if work += len(p.states); work > maxOwnersWork {
						return true
					}
					// ACME and acme are one owner, whose name is written either way.
					s := p.states.read(prog, string(c))
					if upper := unicode.ToUpper(c); upper != c {
						maps.Copy(s, p.states.read(prog, string(upper)))
					}
					if len(s) > 0 {
						next[key] = append(next[key], place{states: s, key: s.key()})
					}
				}
			}
			for _, n := range next[key] {
				n.owners = min(p.owners+longer[n.key].owners, maxOwners+1)
				longer[n.key] = n
			}
		}
		for _, p := range longer {
			after := p.states.read(prog, "/")
			if infix != "" {
				after = after.later(prog).read(prog, infix)
			}
			if after.alive(prog) {
				total += p.owners
			}
		}
		if total > maxOwners {
			return true
		}
		names = longer
	}
	return false
}

// canContinue tells whether some text that begins with prefix and has infix
// later on can match the whole of a compiled expression. An empty infix asks
// for the beginning only.
func canContinue(prog *syntax.Prog, prefix, infix string) bool {
	states := begin(prog, prefix).read(prog, prefix)
	if infix == "" || len(states) == 0 {
		return states.alive(prog)
	}
	return states.later(prog).read(prog, infix).alive(prog)
}

// states are places in a compiled expression at which a match may be.
type states map[uint32]bool

// begin is where a match may be before text.
func begin(prog *syntax.Prog, text string) states {
	s := states{}
	s.follow(prog, uint32(prog.Start), -1, rune(text[0]))
	return s
}

// key is the same for the same places.
func (s states) key() string {
	b := make([]byte, 0, 4*len(s))
	for _, pc := range slices.Sorted(maps.Keys(s)) {
		b = binary.BigEndian.AppendUint32(b, pc)
	}
	return string(b)
}

// follow adds what can be reached from pc without reading, between the runes
// before and after: -1 at an end of the text, 0 for one that is not known.
func (s states) follow(prog *syntax.Prog, pc uint32, before, after rune) {
	if s[pc] {
		return
	}
	s[pc] = true
	switch inst := &prog.Inst[pc]; inst.Op {
	case syntax.InstAlt, syntax.InstAltMatch:
		s.follow(prog, inst.Out, before, after)
		s.follow(prog, inst.Arg, before, after)
	case syntax.InstCapture, syntax.InstNop:
		s.follow(prog, inst.Out, before, after)
	case syntax.InstEmptyWidth:
		want := syntax.EmptyOp(inst.Arg)
		unknown := (before == 0 || after == 0) && want&(syntax.EmptyEndText|syntax.EmptyBeginText) == 0
		if unknown || want&^syntax.EmptyOpContext(before, after) == 0 {
			s.follow(prog, inst.Out, before, after)
		}
	}
}

// read is where a match may be after text.
func (s states) read(prog *syntax.Prog, text string) states {
	for i, r := range text {
		next, after := states{}, rune(0)
		if i+1 < len(text) {
			after = rune(text[i+1])
		}
		for pc := range s {
			if inst := &prog.Inst[pc]; reads(inst) && inst.MatchRune(r) {
				next.follow(prog, inst.Out, r, after)
			}
		}
		s = next
	}
	return s
}

// later is where a match may be after any text at all.
func (s states) later(prog *syntax.Prog) states {
	out := states{}
	todo := make([]uint32, 0, len(s))
	for pc := range s {
		out[pc] = true
		todo = append(todo, pc)
	}
	for len(todo) > 0 {
		pc := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !reads(&prog.Inst[pc]) {
			continue
		}
		next := states{}
		next.follow(prog, prog.Inst[pc].Out, 0, 0)
		for n := range next {
			if !out[n] {
				out[n] = true
				todo = append(todo, n)
			}
		}
	}
	return out
}

// alive tells whether more text could still match.
func (s states) alive(prog *syntax.Prog) bool {
	for pc := range s {
		if reads(&prog.Inst[pc]) {
			return true
		}
	}
	return false
}

func reads(inst *syntax.Inst) bool {
	switch inst.Op {
	case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
		return true
	default:
		return false
	}
}

// check tells why a certificate is not this identity's; nil if it is.
func (id Identity) check(cert certificate.Summary) error {
	if id.match == nil {
		return errors.New("the identity names nobody")
	}
	if !id.match.issuer(cert.Issuer) {
		return fmt.Errorf("the issuer is %s, expected %s", ociart.Quote(cert.Issuer), expected(id.spec.Issuer, id.spec.IssuerRegExp))
	}
	if !id.match.subject(cert.SubjectAlternativeName) {
		return fmt.Errorf("the subject is %s, expected %s", ociart.Quote(cert.SubjectAlternativeName), expected(id.spec.Subject, id.spec.SubjectRegExp))
	}
	c := id.spec.Claims
	for _, claim := range []struct {
		name, want string
		have       []string
	}{
		{"sourceRepository", c.SourceRepository, short(c.SourceRepository, cert.SourceRepositoryURI, cert.GithubWorkflowRepository)},
		{"sourceRef", c.SourceRef, []string{cert.SourceRepositoryRef, cert.GithubWorkflowRef}},
		{"sourceCommit", c.SourceCommit, []string{cert.SourceRepositoryDigest, cert.GithubWorkflowSHA}},
		{"sourceRepositoryOwner", c.SourceRepositoryOwner, short(c.SourceRepositoryOwner, cert.SourceRepositoryOwnerURI, urlPath(cert.SourceRepositoryOwnerURI))},
		{"workflow", c.Workflow, short(c.Workflow, cert.BuildConfigURI, cert.GithubWorkflowName)},
		{"buildSignerURI", c.BuildSignerURI, []string{cert.BuildSignerURI}},
		{"trigger", c.Trigger, []string{cert.BuildTrigger, cert.GithubWorkflowTrigger}},
		{"runnerEnvironment", c.RunnerEnvironment, []string{cert.RunnerEnvironment}},
	} {
		if claim.want == "" {
			continue
		}
		// The newer extension is the one that counts when there is one.
		have := claim.have[0]
		if have == "" && len(claim.have) > 1 {
			have = claim.have[1]
		}
		if have != claim.want {
			return fmt.Errorf("the certificate's %s is %s, expected %s", claim.name, ociart.Quote(have), ociart.Quote(claim.want))
		}
	}
	return nil
}

// oneOf finds the identity that a certificate is of, or says why it is the
// first one's not.
func oneOf(identities []Identity, cert certificate.Summary) (Identity, error) {
	var first error
	for _, id := range identities {
		err := id.check(cert)
		if err == nil {
			return id, nil
		}
		if first == nil {
			first = err
		}
	}
	switch n := len(identities); {
	case n == 0:
		return Identity{}, errors.New("no identity is accepted")
	case n > 1:
		return Identity{}, fmt.Errorf("%w (and it is none of the other %d identities)", first, n-1)
	}
	return Identity{}, first
}

// short picks what a claim is compared with: the URI, or for a value that is
// not one the short name.
func short(want, uri, name string) []string {
	if strings.Contains(want, "://") {
		return []string{uri}
	}
	return []string{name}
}

func urlPath(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return strings.Trim(u.Path, "/")
}

func expected(exact, expr string) string {
	if exact != "" {
		return ociart.Quote(exact)
	}
	return "a match of " + ociart.Quote(expr)
}

// describe is the identity for messages.
func (id Identity) describe() string {
	return expected(id.spec.Subject, id.spec.SubjectRegExp) + " according to " + expected(id.spec.Issuer, id.spec.IssuerRegExp)
}

// oneName refuses certificates whose subject is ambiguous: sigstore-go looks
// at the first URI or e-mail address only, and an authority of one's own may
// issue certificates with several names, of kinds that Go does not know as
// well. The issuer extensions must agree likewise.
func oneName(cert *x509.Certificate) error {
	for _, e := range cert.Extensions {
		if !e.Id.Equal(cryptoutils.SANOID) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return errors.New("the certificate's subject alternative name is malformed")
		}
		if n := len(names); n > 1 {
			return fmt.Errorf("the certificate has %d subject alternative names, expected one", n)
		}
	}
	var old, current string
	for _, e := range cert.Extensions {
		switch {
		case e.Id.Equal(certificate.OIDIssuer): //nolint:staticcheck // still written beside its successor
			old = string(e.Value)
		case e.Id.Equal(certificate.OIDIssuerV2):
			if err := certificate.ParseDERString(e.Value, &current); err != nil {
				return fmt.Errorf("the certificate's issuer extension is malformed: %w", err)
			}
		}
	}
	if old != "" && current != "" && old != current {
		return errors.New("the certificate names two different OIDC issuers")
	}
	return nil
}
