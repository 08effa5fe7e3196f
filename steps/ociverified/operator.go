package ociverified

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/sigverify"
	"github.com/stepd/stepd/internal/strictyaml"
	"github.com/stepd/stepd/steps"
)

// OperatorPolicy is what an operator demands beyond every config
// (`stepd serve --policy`). It only ever narrows: a config is held to both. A
// nil policy demands nothing. Make one with ParseOperatorPolicy.
type OperatorPolicy struct {
	forbid       []string
	denyOthers   bool
	repositories []pinned
}

// pinned is what is demanded of repositories with a prefix.
type pinned struct {
	prefix      string
	pin         sigverify.Pin
	trustedRoot *trustedRootConfig
}

// operatorFile is the policy file, YAML or JSON.
type operatorFile struct {
	// Forbid lists settings that configs may not weaken.
	Forbid []string `json:"forbid"`
	// OtherRepositories is allow (the default) or deny, for repositories that
	// no prefix matches.
	OtherRepositories string           `json:"otherRepositories"`
	Repositories      []operatorPinned `json:"repositories"`
}

type operatorPinned struct {
	// Prefix is a registry, or a registry and the first parts of a path.
	Prefix     string           `json:"prefix"`
	Identities []identityConfig `json:"identities"`
	Keys       []keyConfig      `json:"keys"`
	// TrustedRoot takes the place of the configs'. The default is publicGood,
	// where anything has to be proven by a root.
	TrustedRoot *trustedRootConfig `json:"trustedRoot"`
}

// weakenable are the settings that can give up a check.
func weakenable() []string {
	return []string{"requireTransparencyLog", "requireSCT", "requireSignature", "insecureSkipTLSVerify", "insecurePlainHTTP"}
}

// ParseOperatorPolicy reads a policy file. Files that it names are read by
// trust, now.
func ParseOperatorPolicy(data []byte, trust TrustFiles) (*OperatorPolicy, error) {
	var file operatorFile
	if err := strictyaml.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("cannot parse the operator's policy: %w", err)
	}
	if len(file.Forbid) == 0 && len(file.Repositories) == 0 && file.OtherRepositories != "deny" {
		// Nobody writes that; it is a file that was left empty, or a key that was
		// not filled in.
		return nil, errors.New("the operator's policy asks for nothing: give it forbid, repositories or otherRepositories: deny")
	}
	p := &OperatorPolicy{forbid: file.Forbid}
	for _, f := range file.Forbid {
		if !slices.Contains(weakenable(), f) {
			return nil, fmt.Errorf("the operator's policy: forbid %q is none of %s", f, strings.Join(weakenable(), ", "))
		}
	}
	switch file.OtherRepositories {
	case "", "allow":
	case "deny":
		p.denyOthers = true
	default:
		return nil, fmt.Errorf("the operator's policy: otherRepositories is %q, expected allow or deny", file.OtherRepositories)
	}
	for i, r := range file.Repositories {
		one, err := newPinned(r, trust)
		if err != nil {
			return nil, fmt.Errorf("the operator's policy: repositories[%d]: %w", i, err)
		}
		p.repositories = append(p.repositories, one)
	}
	// The longest prefix comes last, so that its trusted root counts.
	slices.SortStableFunc(p.repositories, func(a, b pinned) int { return len(a.prefix) - len(b.prefix) })
	return p, nil
}

func newPinned(r operatorPinned, trust TrustFiles) (pinned, error) {
	out := pinned{trustedRoot: r.TrustedRoot}
	switch {
	case r.Prefix == "":
		return pinned{}, errors.New("it needs a prefix")
	case len(r.Identities) == 0 && len(r.Keys) == 0:
		return pinned{}, errors.New("it needs identities or keys")
	}
	prefix, err := parsePrefix(r.Prefix)
	if err != nil {
		return pinned{}, err
	}
	out.prefix = prefix
	o := &Options{Trust: trust}
	for i, c := range r.Identities {
		id, err := newIdentity(c)
		if err != nil {
			return pinned{}, fmt.Errorf("identities[%d]: %w", i, err)
		}
		out.pin.Identities = append(out.pin.Identities, id)
	}
	for i, c := range r.Keys {
		var data []byte
		var err error
		switch {
		case c.SecretRef != nil:
			return pinned{}, fmt.Errorf("keys[%d]: an operator's key is given by pem or path", i)
		case c.Path != "":
			data, err = o.readTrust(&steps.Context{}, c.Path)
		default:
			data = []byte(c.PEM)
		}
		if err != nil {
			return pinned{}, fmt.Errorf("keys[%d]: %w", i, err)
		}
		k, err := sigverify.ParseKey(data)
		if err != nil {
			return pinned{}, fmt.Errorf("keys[%d]: %w", i, err)
		}
		out.pin.KeyIDs = append(out.pin.KeyIDs, k.ID)
	}
	if out.trustedRoot == nil {
		return out, nil
	}
	if p := out.trustedRoot.Path; p != "" {
		data, err := o.readTrust(&steps.Context{}, p)
		if err != nil {
			return pinned{}, fmt.Errorf("trustedRoot: %w", err)
		}
		if _, err := sigverify.ParseTrustedRoot(data); err != nil {
			return pinned{}, fmt.Errorf("trustedRoot: %q: %w", p, err)
		}
		out.trustedRoot = &trustedRootConfig{Inline: data}
	}
	if m := out.trustedRoot.TUFMirror; m != nil {
		data, err := o.readTrust(&steps.Context{}, m.Root)
		if err != nil {
			return pinned{}, fmt.Errorf("trustedRoot.tufMirror.root: %w", err)
		}
		out.trustedRoot = &trustedRootConfig{TUFMirror: &mirrorConfig{URL: m.URL, rootJSON: data}}
	}
	return out, nil
}

// parsePrefix reads a prefix as the imageRefs that begin with it are read, so
// that one that could never match is an error.
func parsePrefix(prefix string) (string, error) {
	const rest = "/x/x"
	ref, err := ociart.ParseRepository(strings.TrimSuffix(prefix, "/") + rest)
	if err != nil {
		return "", fmt.Errorf("the prefix %q is neither a registry nor a registry and the first parts of a repository's path", prefix)
	}
	return canonical(strings.TrimSuffix(ref.Name(), rest)), nil
}

func (p pinned) matches(name string) bool {
	name = canonical(name)
	return name == p.prefix || strings.HasPrefix(name, p.prefix+"/")
}

// canonical writes a repository's name, or the beginning of one, with one
// spelling of the registry: GHCR.io:443/x and ghcr.io/x are one repository, and
// a pin that holds for one of them only would be none.
func canonical(name string) string {
	host, path, found := strings.Cut(name, "/")
	host = strings.ToLower(host)
	for _, port := range []string{":443", ":80"} {
		host = strings.TrimSuffix(host, port)
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		host = "docker.io"
	}
	if !found {
		return host
	}
	return host + "/" + path
}

// restrict adds the operator's demands to a policy, and says which trusted
// root counts: where signers are pinned it is the operator's, since whoever
// chooses the root can certify any identity. A weakened setting that is
// forbidden is an error.
func (o *OperatorPolicy) restrict(ref ociart.Reference, cfg *config, p *sigverify.Policy) (*trustedRootConfig, error) {
	trustedRoot := cfg.Verify.TrustedRoot
	if o == nil {
		return trustedRoot, nil
	}
	for _, w := range cfg.weakened(p) {
		if setting, _, _ := strings.Cut(w, ":"); slices.Contains(o.forbid, setting) {
			return nil, fmt.Errorf("the operator's policy forbids %s", w)
		}
	}
	listed := false
	for _, r := range o.repositories {
		if !r.matches(ref.Name()) {
			continue
		}
		listed = true
		p.Pins = append(p.Pins, r.pin)
		trustedRoot = r.trustedRoot
	}
	if !listed && o.denyOthers {
		return nil, fmt.Errorf("the operator's policy lists no prefix for %s and denies other repositories", ref.Name())
	}
	return trustedRoot, nil
}
