package atomiccommit

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/go-git/go-git/v5/plumbing"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/steps"
)

// config is the step's config; the fields are described in the schema.
type config struct {
	Path                  string            `json:"path"`
	RepoURL               string            `json:"repoURL"`
	Branch                string            `json:"branch"`
	CreateBranch          bool              `json:"createBranch"`
	BaseBranch            string            `json:"baseBranch"`
	Remove                []string          `json:"remove"`
	AllowPaths            []string          `json:"allowPaths"`
	Message               string            `json:"message"`
	Author                *person           `json:"author"`
	Committer             *person           `json:"committer"`
	Signing               *signing          `json:"signing"`
	Trailers              map[string]string `json:"trailers"`
	Verified              string            `json:"verified"`
	MaxAttempts           int               `json:"maxAttempts"`
	Deadline              string            `json:"deadline"`
	InsecureSkipTLSVerify bool              `json:"insecureSkipTLSVerify"`
	CABundle              string            `json:"caBundle"`
	Provider              string            `json:"provider"`

	deadline time.Duration
}

type person struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}

type signing struct {
	Format    string `json:"format"`
	SecretRef struct {
		Name string `json:"name"`
		Key  string `json:"key"`
	} `json:"secretRef"`
}

// configErrorf is an error of the config.
func configErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", steps.ErrConfig, fmt.Errorf(format, args...))
}

// decode reads the config, which has passed its schema, and checks what a
// schema cannot.
func decode(sc *steps.Context) (*config, error) {
	text, err := json.Marshal(sc.Config)
	if err != nil {
		return nil, configErrorf("cannot read the step's config: %w", err)
	}
	cfg := &config{MaxAttempts: 10, Deadline: "2m"}
	if err := json.Unmarshal(text, cfg); err != nil {
		return nil, configErrorf("cannot read the step's config: %w", err)
	}
	if cfg.deadline, err = time.ParseDuration(cfg.Deadline); err != nil || cfg.deadline <= 0 {
		return nil, configErrorf("deadline %q is not a positive duration such as 2m", cfg.Deadline)
	}
	for field, branch := range map[string]string{"branch": cfg.Branch, "baseBranch": cfg.BaseBranch} {
		if branch != "" {
			if err := checkBranch(branch); err != nil {
				return nil, configErrorf("%s %q: %w", field, branch, err)
			}
		}
	}
	if cfg.BaseBranch != "" && !cfg.CreateBranch {
		return nil, configErrorf("baseBranch has a meaning only with createBranch: true")
	}
	for _, p := range cfg.AllowPaths {
		if !doublestar.ValidatePattern(p) {
			return nil, configErrorf("allowPaths: %q is not a valid pattern", p)
		}
		if strings.HasPrefix(p, "/") || strings.HasPrefix(p, "./") || strings.HasSuffix(p, "/") {
			return nil, configErrorf("allowPaths: %q matches no path: paths begin at the repository's root, without / or ./, and dir/** is what is below a directory", p)
		}
	}
	if cfg.MaxAttempts < 1 {
		return nil, configErrorf("maxAttempts must be at least 1")
	}
	return cfg, nil
}

// checkBranch applies git-check-ref-format(1).
func checkBranch(branch string) error {
	if strings.HasPrefix(branch, "refs/") {
		return fmt.Errorf("give the branch without %q", "refs/heads/")
	}
	if strings.HasPrefix(branch, "-") || branch == "HEAD" {
		return fmt.Errorf("not a branch name")
	}
	if err := plumbing.NewBranchReferenceName(branch).Validate(); err != nil {
		return fmt.Errorf("not a branch name")
	}
	return nil
}

// checkAllowed refuses changes outside the patterns.
func checkAllowed(patterns []string, changes []gitrepo.Change) error {
	if len(patterns) == 0 {
		return nil
	}
	for _, c := range changes {
		allowed := false
		for _, p := range patterns {
			allowed = allowed || doublestar.MatchUnvalidated(p, c.Path)
		}
		if !allowed {
			return configErrorf("the commit would touch %q, which allowPaths does not allow", c.Path)
		}
	}
	return nil
}
