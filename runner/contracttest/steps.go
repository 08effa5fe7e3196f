package contracttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stepd/stepd/steps"
)

// Steps returns the steps that Run exercises. What is under test has to serve
// exactly these.
func Steps() []steps.Registration {
	step := func(name string, run steps.RunnerFunc) steps.Registration {
		return steps.Registration{
			Name: name,
			New:  func(steps.Capabilities) steps.Runner { return run },
		}
	}
	succeed := step("contract-succeed", succeed)
	succeed.Metadata = steps.Metadata{
		DefaultTimeout:        90 * time.Second,
		DefaultErrorThreshold: 3,
	}
	succeed.OutputSchema = []byte(`{"type": "object"}`)

	config := step("contract-config", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
		return steps.Result{Status: steps.Succeeded, Output: map[string]any{"name": sc.Config["name"]}}, nil
	})
	config.ConfigSchema = []byte(`{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"type": "object",
		"additionalProperties": false,
		"required": ["name"],
		"properties": {"name": {"type": "string", "minLength": 1}, "count": {"type": "integer"}}
	}`)

	credentials := steps.Registration{
		Name:     "contract-credentials",
		New:      probe,
		Metadata: steps.Metadata{RequiredCapabilities: []steps.Capability{steps.AccessCredentials, steps.AccessGitUser}},
	}
	cluster := steps.Registration{
		Name:     "contract-cluster",
		New:      callCluster,
		Metadata: steps.Metadata{RequiredCapabilities: []steps.Capability{steps.AccessArgoCD}},
	}
	undeclared := steps.Registration{
		Name: "contract-undeclared",
		New:  probe,
	}
	return []steps.Registration{
		succeed,
		config,
		credentials,
		cluster,
		undeclared,
		step("contract-fail", func(context.Context, *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Failed, Message: "not today", Output: map[string]any{"partial": true}}, nil
		}),
		step("contract-refuse", func(context.Context, *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Failed}, &refusal{}
		}),
		step("contract-error", func(context.Context, *steps.Context) (steps.Result, error) {
			return steps.Result{}, errors.New("the network is down")
		}),
		step("contract-terminal", func(context.Context, *steps.Context) (steps.Result, error) {
			return steps.Result{Status: steps.Errored}, fmt.Errorf("cannot go on: %w", steps.Terminal(fmt.Errorf("gone for good: %w", steps.ErrConflict)))
		}),
		step("contract-running", func(context.Context, *steps.Context) (steps.Result, error) {
			after := 7 * time.Second
			return steps.Result{Status: steps.Running, Message: "waiting", RetryAfter: &after}, nil
		}),
		step("contract-status", func(context.Context, *steps.Context) (steps.Result, error) {
			return steps.Result{Status: "Splendid"}, nil
		}),
		step("contract-panic", func(context.Context, *steps.Context) (steps.Result, error) {
			panic("out of cheese")
		}),
		step("contract-wait", wait),
		step("contract-large", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			n, ok := sc.Config["bytes"].(int)
			if !ok {
				return steps.Result{}, fmt.Errorf("bytes is a %T, not an int", sc.Config["bytes"])
			}
			return steps.Result{Status: steps.Succeeded, Output: map[string]any{"blob": strings.Repeat("x", n)}}, nil
		}),
		step("contract-log", func(_ context.Context, sc *steps.Context) (steps.Result, error) {
			sc.Log.With("a", 1).WithGroup("g").Warn("look", "b", "two", "err", errors.New("bad"))
			return steps.Result{Status: steps.Succeeded}, nil
		}),
	}
}

// succeed reports all that it was told, and touches the work dir.
func succeed(_ context.Context, sc *steps.Context) (steps.Result, error) {
	if err := os.WriteFile(filepath.Join(sc.WorkDir, "touched"), []byte(sc.Alias), 0o600); err != nil {
		return steps.Result{}, err
	}
	if _, ok := sc.Config["whole"].(int); !ok {
		return steps.Result{}, fmt.Errorf("whole is a %T, not an int", sc.Config["whole"])
	}
	return steps.Result{
		Status:  steps.Succeeded,
		Message: "done",
		Output: map[string]any{
			"config":      sc.Config,
			"state":       sc.SharedState,
			"alias":       sc.Alias,
			"ids":         []any{sc.Project, sc.Stage, sc.Promotion, sc.PromotionActor, sc.UIBaseURL},
			"rollback":    sc.Rollback,
			"freight":     sc.Freight,
			"target":      sc.TargetFreightRef,
			"targetAlias": sc.TargetFreightAlias,
			"requests":    sc.FreightRequests,
		},
		HealthCheck: &steps.HealthCheck{Kind: "contract", Input: map[string]any{"port": int64(8080)}},
	}, nil
}

// wait blocks until its context is done. It reports both through the named
// pipes that the suite makes in the work dir, so that nobody has to guess.
func wait(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	if err := os.WriteFile(filepath.Join(sc.WorkDir, "started"), []byte("started"), 0); err != nil {
		return steps.Result{}, err
	}
	<-ctx.Done()
	if err := os.WriteFile(filepath.Join(sc.WorkDir, "stopped"), []byte(ctx.Err().Error()), 0); err != nil {
		return steps.Result{}, err
	}
	return steps.Result{}, ctx.Err()
}

// probe reports what it was granted.
func probe(c steps.Capabilities) steps.Runner {
	return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		out := map[string]any{
			"credentials": c.Credentials != nil,
			"gitUser":     c.GitUser != nil,
			"environment": os.Getenv(EnvSecret) != "",
		}
		if c.Credentials != nil {
			creds, err := c.Credentials.Get(ctx, sc.Project, steps.CredentialsGit, RepoURL)
			if err != nil {
				return steps.Result{}, err
			}
			out["username"] = creds.Username
			out["rightPassword"] = creds.Password == Password
			sc.Log.Info("got " + creds.Password)
			if _, err := c.Credentials.Get(ctx, "another-project", steps.CredentialsGit, RepoURL); err == nil {
				return steps.Result{}, errors.New("got another project's credentials")
			}
		}
		return steps.Result{Status: steps.Succeeded, Output: out}, nil
	})
}

// callCluster reports what Argo CD's API server answered.
func callCluster(c steps.Capabilities) steps.Runner {
	return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		out := map[string]any{}
		if c.ControlPlane != nil {
			out["controlPlane"] = true // which this step never declared
		}
		if c.ArgoCD == nil {
			return steps.Result{Status: steps.Succeeded, Output: out}, nil
		}
		client := c.ArgoCD.Client(sc.Project)
		req, err := http.NewRequestWithContext(ctx, http.MethodPatch,
			"https://cluster/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/shop?fieldManager=a%20b", strings.NewReader("{}"))
		if err != nil {
			return steps.Result{}, err
		}
		req.Header.Set("Content-Type", "application/merge-patch+json")
		resp, err := client.Do(req)
		if err != nil {
			return steps.Result{}, err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return steps.Result{}, err
		}
		out["argocd"] = fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Content-Type"), " ", string(body))
		beyond, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://cluster/forbidden", nil)
		if err != nil {
			return steps.Result{}, err
		}
		refused, err := client.Do(beyond)
		if err == nil {
			return steps.Result{}, errors.Join(errors.New("a request beyond the capability was sent"), refused.Body.Close())
		}
		if !errors.Is(err, fs.ErrPermission) {
			return steps.Result{}, fmt.Errorf("a request beyond the capability: %w", err)
		}
		return steps.Result{Status: steps.Succeeded, Output: out}, nil
	})
}

// refusal is a step's own error type with structured detail.
type refusal struct{}

func (*refusal) Error() string          { return "no acceptable signature" }
func (*refusal) Unwrap() error          { return steps.ErrRefused }
func (*refusal) Detail() map[string]any { return map[string]any{"rejected": []any{"one", "two"}} }
