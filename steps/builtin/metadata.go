package builtin

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/steps"
)

// Resources is the edge to a project's Stages, Freight and Warehouses. What is set is seen
// by the metadata functions of later steps. A resource that does not exist is
// an error.
type Resources interface {
	Subscriptions
	// SetStageMetadata lays values over a Stage's status.metadata.
	SetStageMetadata(ctx context.Context, project, stage string, values map[string]json.RawMessage) error
	// SetFreightMetadata lays values over a piece of Freight's status.metadata.
	SetFreightMetadata(ctx context.Context, project, freight string, values map[string]json.RawMessage) error
	// SetFreightAlias gives a piece of Freight another alias, which no other
	// of the project may have.
	SetFreightAlias(ctx context.Context, project, freight, alias string) error
}

// SetMetadata is `set-metadata`: keys of Stages' and Freight's status.metadata.
// Updates before one that fails stay.
func SetMetadata(resources Resources) steps.Registration {
	return registration("set-metadata", func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			return runSetMetadata(ctx, sc, resources)
		})
	}, steps.AccessControlPlane)
}

func runSetMetadata(ctx context.Context, sc *steps.Context, resources Resources) (steps.Result, error) {
	cfg, err := decodeConfig[struct {
		Updates []struct {
			Kind   string                     `json:"kind"`
			Name   string                     `json:"name"`
			Values map[string]json.RawMessage `json:"values"`
		} `json:"updates"`
	}](sc)
	if err != nil {
		return failed(err)
	}
	for _, u := range cfg.Updates {
		set := resources.SetFreightMetadata
		if u.Kind == "Stage" {
			set = resources.SetStageMetadata
		}
		if err := set(ctx, sc.Project, u.Name, u.Values); err != nil {
			return errored(fmt.Errorf("error getting %s: %w", u.Kind, err))
		}
	}
	return succeeded(nil)
}

// SetFreightAlias is `set-freight-alias`.
func SetFreightAlias(resources Resources) steps.Registration {
	return registration("set-freight-alias", func(steps.Capabilities) steps.Runner {
		return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
			cfg, err := decodeConfig[struct {
				Name  string `json:"name"`
				Alias string `json:"alias"`
			}](sc)
			if err != nil {
				return failed(err)
			}
			if err := resources.SetFreightAlias(ctx, sc.Project, cfg.Name, cfg.Alias); err != nil {
				return errored(fmt.Errorf("error setting the alias of Freight %q: %w", cfg.Name, err))
			}
			return succeeded(nil)
		})
	}, steps.AccessControlPlane)
}

// Logged writes what is set to the effects log; done tells whether next sets
// it in Kargo or keeps it to the run.
func Logged(next Resources, log *effects.Log, done bool) Resources {
	return loggedResources{next, log, done}
}

type loggedResources struct {
	next Resources
	log  *effects.Log
	done bool
}

func (l loggedResources) SubscribedImages(ctx context.Context, project, warehouse string) ([]string, error) {
	return l.next.SubscribedImages(ctx, project, warehouse)
}

func (l loggedResources) SetStageMetadata(ctx context.Context, project, stage string, values map[string]json.RawMessage) error {
	return l.metadata("Stage/"+stage, values, l.next.SetStageMetadata(ctx, project, stage, values))
}

func (l loggedResources) SetFreightMetadata(ctx context.Context, project, freight string, values map[string]json.RawMessage) error {
	return l.metadata("Freight/"+freight, values, l.next.SetFreightMetadata(ctx, project, freight, values))
}

func (l loggedResources) metadata(target string, values map[string]json.RawMessage, err error) error {
	if err == nil {
		detail := map[string]any{}
		for k, v := range values {
			detail[k] = v
		}
		l.log.Request(effects.Request{Kind: "metadata", Target: target, Detail: detail, Done: l.done})
	}
	return err
}

func (l loggedResources) SetFreightAlias(ctx context.Context, project, freight, alias string) error {
	err := l.next.SetFreightAlias(ctx, project, freight, alias)
	if err == nil {
		l.log.Request(effects.Request{Kind: "freight-alias", Target: "Freight/" + freight, Detail: map[string]any{"alias": alias}, Done: l.done})
	}
	return err
}
