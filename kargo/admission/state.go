package admission

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/stepd/stepd/kargo/wire"
)

// Lifetimes of certificates. What is renewed is renewed after two thirds.
const (
	authorityLife   = 2 * 365 * 24 * time.Hour
	certificateLife = 90 * 24 * time.Hour
	// backdated is how far certificates start in the past, for clocks that are late.
	backdated = time.Hour
	// authorityOverlap is how long an authority is still trusted after the
	// certificate of a newer one took over: far longer than a replica needs to
	// notice.
	authorityOverlap = 24 * time.Hour
)

// Keys of the Secret's data.
const (
	dataAuthorities   = "ca.crt"
	dataAuthorityKeys = "ca.key"
	dataCertificate   = "tls.crt"
	dataKey           = "tls.key"
	dataSigningKeys   = "signing-keys.json"
)

// state is what the replicas share, and all of what has to be kept secret: the
// content of the Secret. Changing it is a matter of values and times only; that
// several replicas agree is the Secret's resource version's doing.
type state struct {
	// authorities issue serving certificates; newest first. Those that no longer
	// issue have no key.
	authorities []authority
	serving     *tls.Certificate // with Leaf; nil for none
	// signing are the signing keys, oldest first.
	signing []signingKey
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// signingKey is a key that signs tokens, or did. It is made, then published,
// and signs from a while after that until the next one does.
type signingKey struct {
	Created time.Time `json:"created"`
	// Published is when the public key was first seen in the ConfigMap.
	Published time.Time `json:"published,omitzero"`
	// Public is PKIX in PEM.
	Public string `json:"public"`
	// Private is PKCS #8 in PEM; empty once the key has stopped signing.
	Private string `json:"private,omitempty"`
}

// seen is what was observed in the cluster beside the Secret.
type seen struct {
	// trusts tells whether every webhook has the authority in its caBundle.
	trusts func(*x509.Certificate) bool
	// published tells whether the ConfigMap has the public key.
	published func(signingKey) bool
}

// renewServing returns the state with a serving certificate for all the names
// that will last a while. It changes nothing that need not change.
func (s state) renewServing(now time.Time, names []string, propagation time.Duration, what seen) (state, error) {
	if len(s.authorities) == 0 || s.authorities[0].key == nil || aged(s.authorities[0].cert, now) {
		a, err := newAuthority(now)
		if err != nil {
			return s, err
		}
		s.authorities = append([]authority{a}, s.authorities...)
	}
	issuer := s.issuer(now, propagation, what)
	current := s.servingIssuer()
	switch {
	case s.serving == nil, current < 0, aged(s.serving.Leaf, now), issuer < current:
		return s.issue(now, issuer, names)
	case !covers(s.serving.Leaf, names):
		// Another replica may be of another version and want other names: neither
		// takes the other's away before the certificate is renewed.
		return s.issue(now, issuer, union(names, certificateNames(s.serving.Leaf)))
	}
	kept := s.authorities[:0:0]
	for i, a := range s.authorities {
		replaced := s.serving.Leaf.NotBefore.Add(backdated)
		if i > current && (!now.Before(a.cert.NotAfter) || !now.Before(replaced.Add(authorityOverlap))) {
			continue
		}
		if i > current {
			a.key = nil
		}
		kept = append(kept, a)
	}
	s.authorities = kept
	return s, nil
}

// issuer chooses the authority to issue with: the newest that everybody trusts
// and that can issue. A first one has no predecessor to wait for.
func (s state) issuer(now time.Time, propagation time.Duration, what seen) int {
	for i, a := range s.authorities {
		usable := a.key != nil && now.Before(a.cert.NotAfter)
		settled := !now.Before(a.cert.NotBefore.Add(backdated + propagation))
		if usable && settled && what.trusts(a.cert) {
			return i
		}
	}
	for i, a := range slices.Backward(s.authorities) {
		if a.key != nil && now.Before(a.cert.NotAfter) {
			return i
		}
	}
	return 0
}

// servingIssuer returns which authority issued the serving certificate, or -1.
func (s state) servingIssuer() int {
	return slices.IndexFunc(s.authorities, func(a authority) bool {
		return s.serving != nil && s.serving.Leaf.CheckSignatureFrom(a.cert) == nil
	})
}

// bundle is the caBundle: the certificates of all authorities, in PEM.
func (s state) bundle() []byte {
	var out []byte
	for _, a := range s.authorities {
		out = append(out, encodePEM("CERTIFICATE", a.cert.Raw)...)
	}
	return out
}

// renewSigning returns the state with a signing key that is not too old, and
// without those that no Promotion can need any more.
func (s state) renewSigning(now time.Time, p SigningPolicy, what seen) (state, error) {
	s.signing = slices.Clone(s.signing)
	if n := len(s.signing); n == 0 || !now.Before(s.signing[n-1].Created.Add(p.Rotation)) {
		k, err := newSigningKey(now)
		if err != nil {
			return s, err
		}
		s.signing = append(s.signing, k)
	}
	for i := range s.signing {
		if k := &s.signing[i]; k.Published.IsZero() && what.published(*k) {
			k.Published = now.UTC().Truncate(time.Second)
		}
	}
	current := s.signs(now, p)
	kept := s.signing[:0:0]
	for i, k := range s.signing {
		if i < current {
			if !now.Before(s.retired(i, p).Add(p.Retention)) {
				continue
			}
			k.Private = ""
		}
		kept = append(kept, k)
	}
	s.signing = kept
	return s, nil
}

// from is when a key starts to sign.
func (k signingKey) from(p SigningPolicy) time.Time { return k.Published.Add(p.Propagation) }

// retired is when a key stopped to sign: when the first of those after it
// started to. There has to be one that did.
func (s state) retired(i int, p SigningPolicy) time.Time {
	var first time.Time
	for _, k := range s.signing[i+1:] {
		if !k.Published.IsZero() && (first.IsZero() || k.from(p).Before(first)) {
			first = k.from(p)
		}
	}
	return first
}

// signs returns which key signs now: the newest that has been published for
// long enough, else the first that is published at all, else -1.
func (s state) signs(now time.Time, p SigningPolicy) int {
	can := func(k signingKey) bool { return k.Private != "" && !k.Published.IsZero() }
	for i, k := range slices.Backward(s.signing) {
		if can(k) && !now.Before(k.from(p)) {
			return i
		}
	}
	return slices.IndexFunc(s.signing, can)
}

// file is the name of the public key's file in the ConfigMap: the kid of its
// tokens.
func (k signingKey) file() string {
	public, err := k.public()
	if err != nil {
		return "" // decodeState has checked it
	}
	return wire.KeyID(public) + ".pem"
}

// aged tells whether two thirds of a certificate's life are over.
func aged(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2))
}

func covers(c *x509.Certificate, names []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool { return c.VerifyHostname(n) != nil })
}

func certificateNames(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

func newAuthority(now time.Time) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, fmt.Errorf("cannot make a CA: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return authority{}, err
	}
	cert, err := sign(&x509.Certificate{
		SerialNumber: serial,
		// A name of its own: a verifier that chooses by name finds the right one.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("stepd webhook CA %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, nil, key.Public(), key)
	return authority{cert, key}, err
}

// issue replaces the serving certificate.
func (s state) issue(now time.Time, issuer int, names []string) (state, error) {
	a := s.authorities[issuer]
	if a.key == nil {
		return s, errors.New("cannot issue a serving certificate: the CA's key is missing")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return s, fmt.Errorf("cannot make a key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return s, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "stepd webhook"},
		NotBefore:    now.Add(-backdated),
		NotAfter:     now.Add(certificateLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	leaf, err := sign(template, a.cert, key.Public(), a.key)
	if err != nil {
		return s, err
	}
	s.serving = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	return s, nil
}

func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("cannot make a serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and of full length
	return new(big.Int).SetBytes(b), nil
}

// sign makes a certificate; a nil parent is the certificate itself.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("cannot make a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func newSigningKey(now time.Time) (signingKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return signingKey{}, fmt.Errorf("cannot make a signing key: %w", err)
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return signingKey{}, fmt.Errorf("cannot make a signing key: %w", err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return signingKey{}, fmt.Errorf("cannot make a signing key: %w", err)
	}
	return signingKey{
		Created: now.UTC().Truncate(time.Second),
		Public:  string(encodePEM("PUBLIC KEY", publicDER)),
		Private: string(encodePEM("PRIVATE KEY", privateDER)),
	}, nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// decodeState reads the Secret's data. Absent keys are empty parts; a part that
// cannot be read is an error, because starting anew would cut off what is in use.
func decodeState(data map[string][]byte) (state, error) {
	var s state
	unusable := func(key string, err error) error {
		return fmt.Errorf("cannot use its %s: %w; restore it, or remove the key and so start anew", key, err)
	}
	keys, err := decodeKeys(data[dataAuthorityKeys])
	if err != nil {
		return s, unusable(dataAuthorityKeys, err)
	}
	certs, err := decodeCertificates(data[dataAuthorities])
	if err != nil {
		return s, unusable(dataAuthorities, err)
	}
	for _, c := range certs {
		a := authority{cert: c}
		if i := slices.IndexFunc(keys, func(k crypto.Signer) bool { return isKeyOf(k, c) }); i >= 0 {
			a.key = keys[i]
		}
		s.authorities = append(s.authorities, a)
	}
	if len(data[dataCertificate]) > 0 || len(data[dataKey]) > 0 {
		pair, err := tls.X509KeyPair(data[dataCertificate], data[dataKey])
		if err != nil {
			return s, unusable(dataCertificate+" and "+dataKey, err)
		}
		s.serving = &pair
	}
	if text := data[dataSigningKeys]; len(text) > 0 {
		if err := json.Unmarshal(text, &s.signing); err != nil {
			return s, unusable(dataSigningKeys, err)
		}
		for _, k := range s.signing {
			if err := k.check(); err != nil {
				return s, unusable(dataSigningKeys, err)
			}
		}
	}
	return s, nil
}

// data is the reverse of decodeState. Equal states have equal data.
func (s state) data() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, a := range s.authorities {
		out[dataAuthorities] = append(out[dataAuthorities], encodePEM("CERTIFICATE", a.cert.Raw)...)
		if a.key == nil {
			continue
		}
		der, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the CA's key: %w", err)
		}
		out[dataAuthorityKeys] = append(out[dataAuthorityKeys], encodePEM("PRIVATE KEY", der)...)
	}
	if s.serving != nil {
		der, err := x509.MarshalPKCS8PrivateKey(s.serving.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the serving key: %w", err)
		}
		for _, c := range s.serving.Certificate {
			out[dataCertificate] = append(out[dataCertificate], encodePEM("CERTIFICATE", c)...)
		}
		out[dataKey] = encodePEM("PRIVATE KEY", der)
	}
	if len(s.signing) > 0 {
		text, err := json.MarshalIndent(s.signing, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("cannot encode the signing keys: %w", err)
		}
		out[dataSigningKeys] = text
	}
	return out, nil
}

func decodeCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return out, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out, text = append(out, c), rest
	}
}

func decodeKeys(text []byte) ([]crypto.Signer, error) {
	var out []crypto.Signer
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return out, nil
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		signer, ok := k.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("it holds a %T", k)
		}
		out, text = append(out, signer), rest
	}
}

func isKeyOf(k crypto.Signer, c *x509.Certificate) bool {
	public, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(c.PublicKey)
}

func (k signingKey) public() (ed25519.PublicKey, error) {
	block, _ := pem.Decode([]byte(k.Public))
	if block == nil {
		return nil, errors.New("a public key is no PEM")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	public, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("a public key is a %T, not Ed25519", key)
	}
	return public, nil
}

// check tells whether a key is what it says.
func (k signingKey) check() error {
	public, err := k.public()
	if err != nil || k.Private == "" {
		return err
	}
	private, err := parsePrivateKey([]byte(k.Private))
	if err != nil {
		return err
	}
	if !public.Equal(private.Public()) {
		return errors.New("a public key is not that of its private key")
	}
	return nil
}
