package gitcli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/stepd/stepd/steps"
)

// keyTimeout bounds what gpg and ssh-keygen do with a key.
const keyTimeout = 30 * time.Second

// InstallSigningKey puts user's signing key into a private HOME and returns the
// settings that make git sign commits and tags with it. An OpenPGP key needs
// the gpg program, an OpenSSH key ssh-keygen.
func InstallSigningKey(ctx context.Context, home string, user steps.GitUser) ([]Setting, error) {
	settings := []Setting{{"commit.gpgSign", "true"}, {"tag.gpgSign", "true"}}
	key := []byte(strings.TrimSpace(user.SigningKey) + "\n")
	if user.SigningKeyType == "ssh" {
		file := filepath.Join(home, "signing-key")
		if err := os.WriteFile(file, key, 0o600); err != nil {
			return nil, fmt.Errorf("cannot store the signing key: %w", err)
		}
		// So that git can tell own commits by their signature.
		public, err := run(ctx, home, nil, "ssh-keygen", "-y", "-P", "", "-f", file)
		if err != nil {
			return nil, err
		}
		signers := filepath.Join(home, "allowed-signers")
		if err := os.WriteFile(signers, []byte(user.Email+` namespaces="git" `+public), 0o600); err != nil {
			return nil, fmt.Errorf("cannot store the allowed signers: %w", err)
		}
		return append(settings, Setting{"gpg.format", "ssh"}, Setting{"user.signingKey", file},
			Setting{"gpg.ssh.allowedSignersFile", signers}), nil
	}
	if _, err := gpg(ctx, home, key, "--import"); err != nil {
		return nil, err
	}
	listing, err := gpg(ctx, home, nil, "--with-colons", "--list-secret-keys")
	if err != nil {
		return nil, err
	}
	fingerprint := firstFingerprint(listing)
	if fingerprint == "" {
		return nil, fmt.Errorf("the signing key is not a private OpenPGP key")
	}
	// Trusted ultimately, so that git can tell own commits by their signature.
	if _, err := gpg(ctx, home, []byte(fingerprint+":6:\n"), "--import-ownertrust"); err != nil {
		return nil, err
	}
	return append(settings, Setting{"user.signingKey", fingerprint}), nil
}

// firstFingerprint reads gpg's colon listing (doc/DETAILS): record type in the
// first field, fingerprint in the tenth.
func firstFingerprint(listing string) string {
	for line := range strings.Lines(listing) {
		if fields := strings.Split(line, ":"); fields[0] == "fpr" && len(fields) > 9 {
			return fields[9]
		}
	}
	return ""
}

func gpg(ctx context.Context, home string, stdin []byte, args ...string) (string, error) {
	return run(ctx, home, stdin, "gpg", append([]string{"--batch", "--quiet", "--no-tty"}, args...)...)
}

// run runs one of the programs that keep keys.
func run(ctx context.Context, home string, stdin []byte, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"HOME=" + home, "LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.WaitDelay = waitDelay
	ownProcessGroup(cmd)
	stdout, stderr := limited{}, limited{}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %.400s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// StopAgent ends the agent that gpg started for a HOME, if it did.
func StopAgent(ctx context.Context, home string) error {
	if _, err := os.Stat(filepath.Join(home, ".gnupg")); err != nil {
		return nil //nolint:nilerr // no OpenPGP key was installed
	}
	_, err := run(ctx, home, nil, "gpgconf", "--kill", "gpg-agent")
	return err
}
