package admission

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair makes a certificate and its key, in PEM.
func pair(t *testing.T, names ...string) (cert, key []byte) {
	t.Helper()
	a, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := state{authorities: []authority{a}}.issue(time.Now(), 0, names)
	if err != nil {
		t.Fatal(err)
	}
	data, err := s.data()
	if err != nil {
		t.Fatal(err)
	}
	return data[dataCertificate], data[dataKey]
}

func keyPEM(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encodePEM("PRIVATE KEY", der)
}

// write replaces a file as careful tools do.
func write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

func TestCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	var log bytes.Buffer
	if _, err := NewCertificateFiles(certFile, keyFile, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "tls.crt") {
		t.Errorf("without files: %v", err)
	}
	cert1, key1 := pair(t, "one")
	cert2, key2 := pair(t, "two")
	write(t, certFile, cert1)
	write(t, keyFile, key2)
	if _, err := NewCertificateFiles(certFile, keyFile, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a certificate and another's key were accepted")
	}
	write(t, keyFile, key1)
	files, err := NewCertificateFiles(certFile, keyFile, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	serves := func(want string) {
		t.Helper()
		c, err := files.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		if c.Leaf.DNSNames[0] != want {
			t.Errorf("serves %s, want %s", c.Leaf.DNSNames[0], want)
		}
	}
	serves("one")
	write(t, certFile, cert2)
	serves("one") // half a rotation
	complaints := strings.Count(log.String(), "WARN")
	serves("one")
	if again := strings.Count(log.String(), "WARN"); complaints != 1 || again != 1 {
		t.Errorf("%d complaints, then %d", complaints, again)
	}
	write(t, keyFile, key2)
	serves("two")
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	serves("two")
	write(t, certFile, cert1)
	write(t, keyFile, key1)
	serves("one")
	if strings.Contains(log.String(), "PRIVATE") {
		t.Errorf("the log has keys: %s", &log)
	}
}

func TestKeyFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key.pem")
	_, first, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for reason, text := range map[string][]byte{
		"a key of another kind": keyPEM(t, other), "no PEM": []byte("x"), "too long": bytes.Repeat([]byte{'x'}, maxFileBytes+1),
		"another block": encodePEM("PUBLIC KEY", []byte("x")), "nothing": nil,
	} {
		write(t, name, text)
		if _, err := NewKeyFile(name, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s was accepted", reason)
		}
	}
	write(t, name, keyPEM(t, first))
	file, err := NewKeyFile(name, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		text []byte
		want ed25519.PrivateKey
	}{{nil, first}, {keyPEM(t, other), first}, {keyPEM(t, second), second}} {
		if step.text != nil {
			write(t, name, step.text)
		}
		if got, err := file.SigningKey(); err != nil || !got.Equal(step.want) {
			t.Errorf("another key signs: %v", err)
		}
	}
}

// TestStateIsWhatItWas decodes what was encoded and encodes it again.
func TestStateIsWhatItWas(t *testing.T) {
	never := seen{trusts: func(*x509.Certificate) bool { return false }, published: func(signingKey) bool { return true }}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s, err := state{}.renewServing(now, []string{"a.example", "::1"}, time.Minute, never)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if s, err = s.renewSigning(now, testPolicy, never); err != nil {
			t.Fatal(err)
		}
		now = now.Add(testPolicy.Rotation)
	}
	data, err := s.data()
	if err != nil {
		t.Fatal(err)
	}
	back, err := decodeState(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := back.data()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) != 5 || len(again) != 5 {
		t.Errorf("%d and %d keys", len(data), len(again))
	}
	for k := range data {
		if !bytes.Equal(data[k], again[k]) {
			t.Errorf("%s changed", k)
		}
	}
	if _, err := tls.X509KeyPair(data[dataCertificate], data[dataKey]); err != nil {
		t.Error(err)
	}
}

func TestSigningPolicy(t *testing.T) {
	for _, tc := range []struct {
		reason string
		policy SigningPolicy
		ok     bool
	}{
		{"the tests' own", testPolicy, true},
		{"a key would be gone while its Promotions wait", SigningPolicy{Rotation: time.Hour, Propagation: time.Minute}, false},
		{"no key would ever sign", SigningPolicy{Rotation: time.Minute, Propagation: time.Hour, Retention: time.Hour}, false},
		{"a time that is none", SigningPolicy{Rotation: time.Hour, Propagation: -1, Retention: time.Hour}, false},
	} {
		if err := tc.policy.Check(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.reason, err)
		}
	}
}
