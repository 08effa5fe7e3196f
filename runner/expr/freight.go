package expr

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
)

// Artifact is a generic artifact as expressions see it. It has no JSON keys:
// stored in a variable its keys stay ArtifactType and so on, as in Kargo.
type Artifact struct {
	ArtifactType     string
	SubscriptionName string
	Version          string
	Metadata         map[string]any
}

func (e *Evaluator) commitFrom(params ...any) (any, error) {
	repoURL, origin, err := artifactArgs(params)
	if err != nil {
		return nil, err
	}
	normal := repourl.Git(repoURL)
	ref, err := e.freightFrom(origin, wanted{
		what: "a Git commit from repository " + repoURL,
		matches: func(s kargoapi.Subscription) bool {
			return s.Type == "git" && repourl.Git(s.RepoURL) == normal
		},
	})
	if err != nil || ref == nil {
		return (*steps.GitCommit)(nil), err
	}
	for i := range ref.Commits {
		if repourl.Git(ref.Commits[i].RepoURL) == normal {
			return &ref.Commits[i], nil
		}
	}
	return (*steps.GitCommit)(nil), nil
}

// imageFrom compares repositories as they are written; nothing is normalised.
func (e *Evaluator) imageFrom(params ...any) (any, error) {
	repoURL, origin, err := artifactArgs(params)
	if err != nil {
		return nil, err
	}
	ref, err := e.freightFrom(origin, wanted{
		what:    "a container image from repository " + repoURL,
		matches: func(s kargoapi.Subscription) bool { return s.Type == "image" && s.RepoURL == repoURL },
	})
	if err != nil || ref == nil {
		return (*steps.Image)(nil), err
	}
	for i := range ref.Images {
		if ref.Images[i].RepoURL == repoURL {
			return &ref.Images[i], nil
		}
	}
	return (*steps.Image)(nil), nil
}

func (e *Evaluator) chartFrom(params ...any) (any, error) {
	repoURL, name, origin, err := chartArgs(params)
	if err != nil {
		return nil, err
	}
	chart := "chart"
	if name != "" {
		chart = fmt.Sprintf("chart %q", name)
	}
	ref, err := e.freightFrom(origin, wanted{
		what: fmt.Sprintf("%s from repository %s", chart, repoURL),
		matches: func(s kargoapi.Subscription) bool {
			return s.Type == "chart" && s.RepoURL == repoURL && s.Name == name
		},
		// Kargo's documentation promises nil here; its code fails.
		absent: fmt.Errorf("%s from repo %s not found in referenced Freight", chart, repoURL),
	})
	if err != nil || ref == nil {
		return (*steps.Chart)(nil), err
	}
	for i := range ref.Charts {
		if ref.Charts[i].RepoURL == repoURL && ref.Charts[i].Name == name {
			return &ref.Charts[i], nil
		}
	}
	return (*steps.Chart)(nil), nil
}

func (e *Evaluator) artifactFrom(params ...any) (any, error) {
	name, origin, err := artifactArgs(params)
	if err != nil {
		return nil, err
	}
	ref, err := e.freightFrom(origin, wanted{
		what: "an artifact from subscription " + name,
		matches: func(s kargoapi.Subscription) bool {
			return s.Type != "git" && s.Type != "image" && s.Type != "chart" && s.Name == name
		},
	})
	if err != nil || ref == nil {
		return nil, err
	}
	for _, a := range ref.Artifacts {
		if a.SubscriptionName != name {
			continue
		}
		meta := map[string]any{}
		if len(a.Metadata) > 0 {
			if err := json.Unmarshal(a.Metadata, &meta); err != nil {
				return nil, fmt.Errorf("cannot decode metadata of artifact %q: %w", name, err)
			}
		}
		if meta == nil { // it was null
			meta = map[string]any{}
		}
		return &Artifact{a.ArtifactType, a.SubscriptionName, a.Version, meta}, nil
	}
	return nil, nil
}

func artifactArgs(params []any) (name string, origin *steps.FreightOrigin, err error) {
	if len(params) == 0 || len(params) > 2 {
		return "", nil, fmt.Errorf("expected 1-2 arguments, got %d", len(params))
	}
	name, ok := params[0].(string)
	if !ok {
		return "", nil, fmt.Errorf("first argument must be string, got %T", params[0])
	}
	if len(params) == 2 {
		o, ok := params[1].(steps.FreightOrigin)
		if !ok {
			return "", nil, fmt.Errorf("second argument must be FreightOrigin, got %T", params[1])
		}
		origin = &o
	}
	return name, origin, nil
}

func chartArgs(params []any) (repoURL, name string, origin *steps.FreightOrigin, err error) {
	if len(params) == 0 || len(params) > 3 {
		return "", "", nil, fmt.Errorf("expected 1-3 arguments, got %d", len(params))
	}
	repoURL, ok := params[0].(string)
	if !ok {
		return "", "", nil, fmt.Errorf("first argument must be string, got %T", params[0])
	}
	if len(params) == 3 {
		if name, ok = params[1].(string); !ok {
			return "", "", nil, fmt.Errorf("second argument must be string, got %T", params[1])
		}
		if name == "" {
			return "", "", nil, errors.New("second argument must be a non-empty string")
		}
		o, ok := params[2].(steps.FreightOrigin)
		if !ok {
			return "", "", nil, fmt.Errorf("third argument must be FreightOrigin, got %T", params[2])
		}
		return repoURL, name, &o, nil
	}
	if len(params) == 2 {
		switch p := params[1].(type) {
		case string:
			name = p
		case steps.FreightOrigin:
			origin = &p
		default:
			return "", "", nil, fmt.Errorf("second argument must be string or FreightOrigin, got %T", params[1])
		}
	}
	return repoURL, name, origin, nil
}

// wanted describes an artifact to the search for its origin.
type wanted struct {
	what    string
	matches func(kargoapi.Subscription) bool
	// absent is the error for no matching subscription; nil finds nothing.
	absent error
}

// freightFrom returns the piece of Freight from an origin, nil if the promotion
// has none. Without an origin it is the one whose Warehouse subscribes to what
// is wanted, among those the Stage requests; there may be only one
// (pkg/controller/freight/finder.go).
func (e *Evaluator) freightFrom(origin *steps.FreightOrigin, w wanted) (*steps.FreightReference, error) {
	if origin == nil {
		var err error
		if origin, err = e.findOrigin(w); err != nil {
			return nil, err
		}
		if origin == nil {
			return nil, w.absent
		}
	}
	for _, ref := range e.scope.Freight.References() {
		if ref.Origin == *origin {
			return &ref, nil
		}
	}
	return nil, nil
}

func (e *Evaluator) findOrigin(w wanted) (*steps.FreightOrigin, error) {
	var found *steps.FreightOrigin
	for _, req := range e.scope.FreightRequests {
		wh, err := e.data.Warehouse(e.ctx, e.scope.Project, req.Origin.Name)
		if err != nil {
			return nil, err
		}
		if wh == nil {
			return nil, fmt.Errorf("%s not found in namespace %q",
				fmt.Sprintf("Warehouse %q", req.Origin.Name), e.scope.Project)
		}
		subs, err := wh.ParseSubscriptions()
		if err != nil {
			return nil, err
		}
		for _, s := range subs {
			if !w.matches(s) {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("multiple requested Freight could potentially provide %s: "+
					"please provide a Freight origin to disambiguate", w.what)
			}
			found = &req.Origin
		}
	}
	return found, nil
}
