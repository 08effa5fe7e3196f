package gitsign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/crypto/ssh"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

// pushSigned makes a signed commit on a server and clones it, so that git can
// verify it with a home directory of the test's own.
func pushSigned(t *testing.T, signer gitrepo.Signer) (git func(args ...string) (string, error), home string) {
	t.Helper()
	s := gittest.New(t)
	url := s.MustCreate(t, "r.git")
	r, err := gitrepo.NewLive(gitrepo.LiveOptions{}).Dial(t.Context(), gitrepo.Target{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	who := gitrepo.Signature{Name: "Bot", Email: "bot@example.com", When: time.Now()}
	data := []byte("x\n")
	c, _, err := gitrepo.NewCommitOn(gitrepo.EmptyTrees(), []gitrepo.Change{{Path: "a", Mode: gitrepo.ModeFile, ID: gitrepo.BlobID(data), Data: data}},
		gitrepo.CommitSpec{Author: who, Committer: who, Message: "signed\n\nStepd-Change: sha256:00\n", Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), gitrepo.Push{Branch: "main", New: c.Commit.ID, Commits: []gitrepo.NewCommit{c}}); err != nil {
		t.Fatal(err)
	}
	s.Fsck(t, "r.git")
	home, err = os.MkdirTemp("", "gpg") // gpg's socket path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	return func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", s.Dir("r.git")}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GNUPGHOME=" + home, "GIT_CONFIG_NOSYSTEM=1"}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}, home
}

// needs skips a test without the program that is to judge the signature; CI has
// it.
func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func TestSSHSignaturesThatGitVerifies(t *testing.T) {
	needs(t, "ssh-keygen")
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ed25519": ed, "rsa": rsaKey, "ecdsa": ec} {
		t.Run(name, func(t *testing.T) {
			block, err := ssh.MarshalPrivateKey(key, "")
			if err != nil {
				t.Fatal(err)
			}
			signer, err := SSH(pem.EncodeToMemory(block))
			if err != nil {
				t.Fatal(err)
			}
			git, home := pushSigned(t, signer)
			pub, err := ssh.NewPublicKey(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			allowed := filepath.Join(home, "allowed")
			if err := os.WriteFile(allowed, []byte("bot@example.com "+string(ssh.MarshalAuthorizedKey(pub))), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := git("-c", "gpg.ssh.allowedSignersFile="+allowed, "verify-commit", "main")
			if err != nil || !strings.Contains(out, "Good \"git\" signature for bot@example.com") {
				t.Errorf("git verify-commit: %v\n%s", err, out)
			}
		})
	}
}

func TestOpenPGPSignaturesThatGitVerifies(t *testing.T) {
	needs(t, "gpg")
	for name, cfg := range map[string]*packet.Config{
		"rsa":   {Algorithm: packet.PubKeyAlgoRSA, RSABits: 2048},
		"eddsa": {Algorithm: packet.PubKeyAlgoEdDSA},
	} {
		t.Run(name, func(t *testing.T) {
			private, public := openPGPKey(t, cfg)
			signer, err := OpenPGP(private)
			if err != nil {
				t.Fatal(err)
			}
			git, home := pushSigned(t, signer)
			gpg := exec.CommandContext(t.Context(), "gpg", "--batch", "--quiet", "--import")
			gpg.Env = []string{"PATH=" + os.Getenv("PATH"), "GNUPGHOME=" + home}
			gpg.Stdin = bytes.NewReader(public)
			if out, err := gpg.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			out, err := git("verify-commit", "main")
			if err != nil || !strings.Contains(out, "Good signature from") {
				t.Errorf("git verify-commit: %v\n%s", err, out)
			}
			at := time.Now()
			if a, b := mustSign(t, signer, at), mustSign(t, signer, at); a != b {
				t.Error("the same commit gets two signatures, so a retry would make another commit")
			}
		})
	}
}

func mustSign(t *testing.T, s Signer, at time.Time) string {
	t.Helper()
	sig, err := s.Sign([]byte("message"), at)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func openPGPKey(t *testing.T, cfg *packet.Config) (private, public []byte) {
	t.Helper()
	e, err := openpgp.NewEntity("Bot", "", "bot@example.com", cfg)
	if err != nil {
		t.Fatal(err)
	}
	write := func(kind string, serialize func(w *bytes.Buffer) error) []byte {
		var raw, out bytes.Buffer
		if err := serialize(&raw); err != nil {
			t.Fatal(err)
		}
		w, err := armor.Encode(&out, kind, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(raw.Bytes()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	return write(openpgp.PrivateKeyType, func(w *bytes.Buffer) error { return e.SerializePrivate(w, cfg) }),
		write(openpgp.PublicKeyType, func(w *bytes.Buffer) error { return e.Serialize(w) })
}

func TestKeysThatAreRefused(t *testing.T) {
	past := func() time.Time { return time.Now().Add(-48 * time.Hour) }
	expired, _ := openPGPKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: past, KeyLifetimeSecs: 3600})
	v6, _ := openPGPKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEd25519, V6Keys: true})
	_, public := openPGPKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(ed, "", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		make   func([]byte) (Signer, error)
		key    []byte
		reason string
	}{
		"expired":        {OpenPGP, expired, "expired"},
		"version 6":      {OpenPGP, v6, "version 6"},
		"public only":    {OpenPGP, public, "no private"},
		"not a key":      {OpenPGP, []byte("hello"), "not an armored"},
		"SSH passphrase": {SSH, pem.EncodeToMemory(locked), "passphrase"},
		"SSH nonsense":   {SSH, []byte("hello"), "not an OpenSSH"},
		"empty":          {SSH, nil, "not an OpenSSH"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := tc.make(tc.key); err == nil || !strings.Contains(fmt.Sprint(err), tc.reason) {
				t.Errorf("err = %v, want %q", err, tc.reason)
			}
		})
	}
}
