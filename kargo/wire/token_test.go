package wire_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/kargo/wire"
)

// key returns a private key made of one byte.
func key(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

func public(b byte) ed25519.PublicKey {
	k, _ := key(b).Public().(ed25519.PublicKey)
	return k
}

var claims = wire.Claims{
	Namespace: "demo", Promotion: "prd-us.01jd.abcdefg", Alias: "deploy::config", Kind: "oci-download-verified",
	Skeleton: "ab", Retry: wire.Retry{Timeout: 90 * time.Second, ErrorThreshold: 3},
	IssuedAt: time.Date(2026, 11, 22, 3, 4, 5, 0, time.UTC),
}

func TestToken(t *testing.T) {
	token, err := wire.Sign(key(1), claims)
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(token, "${}%\"\\ \n:") {
		t.Errorf("the token has a character with a meaning elsewhere: %s", token)
	}
	head, payload, _ := strings.Cut(token, ".")
	payload, signature, _ := strings.Cut(payload, ".")
	other, err := wire.Sign(key(2), claims)
	if err != nil {
		t.Fatal(err)
	}
	foreign := func(typ string, alg jose.SignatureAlgorithm, k any) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: k, KeyID: wire.KeyID(public(1))}},
			(&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign([]byte(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		text, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	both := []ed25519.PublicKey{public(2), public(1)}
	for _, tc := range []struct {
		reason, token string
		keys          []ed25519.PublicKey
		want          error
	}{
		{"signed with the current key", token, []ed25519.PublicKey{public(1)}, nil},
		{"signed with the previous key", token, both, nil},
		{"no keys", token, nil, wire.ErrUnknownKey},
		{"a key that is none", token, []ed25519.PublicKey{nil, {1}}, wire.ErrUnknownKey},
		{"signed with a key that was removed", token, []ed25519.PublicKey{public(2)}, wire.ErrUnknownKey},
		{"empty", "", both, wire.ErrToken},
		{"two parts", head + "." + payload, both, wire.ErrToken},
		{"no signature", head + "." + payload + ".", both, wire.ErrToken},
		{"another token's signature", head + "." + payload + other[strings.LastIndexByte(other, '.'):], both, wire.ErrToken},
		{"another payload", head + ".e30." + signature, both, wire.ErrToken},
		{"JSON serialisation", `{"protected":"` + head + `","payload":"` + payload + `","signature":"` + signature + `"}`, both, wire.ErrToken},
		{"alg none", "eyJhbGciOiJub25lIn0." + payload + ".", both, wire.ErrToken},
		{"HMAC with the public key as secret", foreign("stepd-step", jose.HS256, []byte(public(1))), both, wire.ErrToken},
		{"of another type, by the right key", foreign("JWT", jose.EdDSA, key(1)), both, wire.ErrToken},
		{"by another key under the right name", foreign("stepd-step", jose.EdDSA, key(3)), both, wire.ErrToken},
		{"very long", token + strings.Repeat("A", 10_000), both, wire.ErrToken},
	} {
		got, err := wire.Verify(tc.keys, tc.token)
		if tc.want != nil {
			if !errors.Is(err, tc.want) || !cmp.Equal(got, wire.Claims{}) {
				t.Errorf("%s: got %+v, %v; want %v", tc.reason, got, err, tc.want)
			}
			continue
		}
		if d := cmp.Diff(claims, got); err != nil || d != "" {
			t.Errorf("%s: %v, (-want +got):\n%s", tc.reason, err, d)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	if _, err := wire.Sign(nil, claims); err == nil {
		t.Error("a token was signed without a key")
	}
	long := claims
	long.Alias = strings.Repeat("a", 10_000)
	if _, err := wire.Sign(key(1), long); err == nil {
		t.Error("a token was signed that Verify refuses for its length")
	}
}

func FuzzVerify(f *testing.F) {
	token, err := wire.Sign(key(1), claims)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJFZERTQSJ9.e30.AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := wire.Verify([]ed25519.PublicKey{public(1)}, text)
		switch {
		case err == nil && !cmp.Equal(got, claims):
			t.Errorf("forged: %q gives %+v", text, got)
		case err != nil && !errors.Is(err, wire.ErrToken) && !errors.Is(err, wire.ErrUnknownKey):
			t.Errorf("%q: untyped error %v", text, err)
		}
	})
}
