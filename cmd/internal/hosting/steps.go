package hosting

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/stepd/stepd/cmd/internal/cli"
	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/sigverify"
	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/atomiccommit"
	"github.com/stepd/stepd/steps/configapply"
	"github.com/stepd/stepd/steps/ociverified"
)

// StepFlags are the settings of stepd's steps where some other engine runs
// them: over a socket, as a plugin, or as a command. These always act for real.
type StepFlags struct {
	// StateDir holds intents and verification records; empty is StateDir("").
	StateDir string
	// TrustDir is the only directory of keys and trusted roots; empty leaves that
	// to the engine.
	TrustDir string
	// Policy is the file with the operator's policy; empty is none.
	Policy string
	// PushSpacing is the least time between two pushes to a branch.
	PushSpacing time.Duration
}

// Add adds the flags of steps.
func (f *StepFlags) Add(fl *pflag.FlagSet) {
	fl.StringVar(&f.StateDir, "state-dir", "", "where intents and verification records are kept; must survive restarts and lie outside the work dirs (default: $XDG_STATE_HOME/stepd)")
	fl.StringVar(&f.TrustDir, "trust-dir", "", "the only directory that configs may name keys and trusted roots in")
	fl.StringVar(&f.Policy, "policy", "", "the operator's verification policy: what no config may weaken")
	fl.DurationVar(&f.PushSpacing, "push-spacing", 0, "least time between two pushes of atomic-commit to one branch, for Git hosts that limit pushes; commits that wait go together in the next")
}

// ledgerRetention is how long verification records are kept. No promotion
// runs that long.
const ledgerRetention = 30 * 24 * time.Hour

// Steps makes stepd's own steps. Configs may name trust files below the trust
// directory, or where trust says when there is none. Whoever gives secrets has
// them masked. A nil git is the live one.
func (f *StepFlags) Steps(trust ociverified.TrustFiles, secrets steps.SecretSource, git gitrepo.Dialer) ([]steps.Registration, error) {
	if git == nil {
		git = gitrepo.NewLive(gitrepo.LiveOptions{})
	}
	if f.PushSpacing < 0 {
		return nil, fmt.Errorf("--push-spacing has to be 0 or more, not %s", f.PushSpacing)
	}
	state := f.StateDir
	if state == "" {
		var err error
		if state, err = StateDir(""); err != nil {
			return nil, err
		}
	}
	state, err := filepath.Abs(state)
	if err != nil {
		return nil, fmt.Errorf("cannot find the state directory: %w", err)
	}
	ledger := verification.Dir{Path: filepath.Join(state, "verifications")}
	if err := ledger.Prune(time.Now().Add(-ledgerRetention)); err != nil {
		return nil, err
	}
	if f.TrustDir != "" {
		trust = ociverified.Below{Dir: f.TrustDir}
	}
	var policy *ociverified.OperatorPolicy
	if f.Policy != "" {
		text, err := os.ReadFile(f.Policy)
		if err != nil {
			return nil, fmt.Errorf("cannot read the policy: %w", err)
		}
		if policy, err = ociverified.ParseOperatorPolicy(text, ociverified.Below{Dir: filepath.Dir(f.Policy)}); err != nil {
			return nil, fmt.Errorf("cannot use the policy %s: %w", f.Policy, err)
		}
	}
	return []steps.Registration{
		ociverified.New(ociverified.Options{
			Transports: &ociart.Transports{},
			Secrets:    secrets,
			Trust:      trust,
			TUF:        &sigverify.TUF{CacheDir: filepath.Join(state, "tuf")},
			Ledger:     ledger,
			Operator:   policy,
			UserAgent:  "stepd/" + cli.ReadVersion().Version,
		}),
		configapply.New(configapply.Options{Ledger: ledger}),
		atomiccommit.New(atomiccommit.Options{
			Dialer:      git,
			IntentDir:   filepath.Join(state, "intents"),
			Ledger:      ledger,
			Secrets:     secrets,
			PushSpacing: f.PushSpacing,
		}),
	}, nil
}

// StateDir is a directory of stepd's own that outlives the run: below
// $XDG_STATE_HOME, or ~/.local/state (XDG Base Directory Specification).
func StateDir(name string) (string, error) {
	base, err := baseDirectory("XDG_STATE_HOME", "state")
	if err != nil {
		return "", fmt.Errorf("cannot find a place for state: %w; set XDG_STATE_HOME", err)
	}
	return filepath.Join(base, "stepd", name), nil
}

// baseDirectory is the absolute path that a variable has, else a directory of
// ~/.local (XDG Base Directory Specification).
func baseDirectory(variable, local string) (string, error) {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", local), err
}
