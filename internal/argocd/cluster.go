package argocd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/jsonapi"
)

const (
	requestTimeout = 30 * time.Second
	// maxBody bounds an answer of the API server, in bytes.
	maxBody = 32 << 20
	// maxPages bounds a listing, of 500 Applications a page.
	maxPages = 40
)

// Cluster reaches Applications through the Kubernetes API.
type Cluster struct {
	client *http.Client
	server string
	log    *effects.Log
}

// Connect returns a Cluster at the API server of a client configuration.
// Nothing is contacted yet.
func Connect(config *rest.Config, log *effects.Log) (*Cluster, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to Argo CD's cluster: %w", err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error {
		return errors.New("the Kubernetes API redirects")
	}
	return NewCluster(client, config.Host, log), nil
}

// NewCluster returns a Cluster at an API server. client authenticates.
func NewCluster(client *http.Client, server string, log *effects.Log) *Cluster {
	return &Cluster{client: client, server: strings.TrimSuffix(server, "/"), log: log}
}

// Find implements Applications.
func (c *Cluster) Find(ctx context.Context, q Query) ([]*Application, error) {
	if q.Name != "" {
		var app Application
		if err := c.do(ctx, http.MethodGet, resource(q.Namespace, q.Name), nil, &app); err != nil {
			return nil, err
		}
		return []*Application{&app}, nil
	}
	var found []*Application
	query := url.Values{"labelSelector": {q.Selector.String()}, "limit": {"500"}}
	for range maxPages {
		var list struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []*Application `json:"items"`
		}
		if err := c.do(ctx, http.MethodGet, resource(q.Namespace, "")+"?"+query.Encode(), nil, &list); err != nil {
			return nil, err
		}
		found = append(found, list.Items...)
		if list.Metadata.Continue == "" {
			slices.SortFunc(found, func(a, b *Application) int { return strings.Compare(a.Metadata.Name, b.Metadata.Name) })
			return found, nil
		}
		query.Set("continue", list.Metadata.Continue)
	}
	return nil, fmt.Errorf("the selector matches more than %d Applications", maxPages*500)
}

// Apply implements Applications with one merge patch (RFC 7386).
func (c *Cluster) Apply(ctx context.Context, app *Application, change Change) (*Application, error) {
	patch := map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{refreshAnnotation: "hard"}},
	}
	if change.Operation != nil {
		patch["operation"] = change.Operation
		patch["status"] = map[string]any{"operationState": nil}
	}
	switch {
	case change.Sources == nil:
	case len(app.Spec.Sources) > 0:
		patch["spec"] = map[string]any{"sources": change.Sources}
	default:
		patch["spec"] = map[string]any{"source": change.Sources[0]}
	}
	var after Application
	if err := c.do(ctx, http.MethodPatch, resource(app.Metadata.Namespace, app.Metadata.Name), patch, &after); err != nil {
		return nil, err
	}
	logChange(c.log, app, change, true)
	return &after, nil
}

func resource(namespace, name string) string {
	path := "/apis/argoproj.io/v1alpha1/namespaces/" + url.PathEscape(namespace) + "/applications"
	if name != "" {
		path += "/" + url.PathEscape(name)
	}
	return path
}

func (c *Cluster) do(ctx context.Context, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := jsonapi.NewRequest(ctx, method, c.server+path, "application/merge-patch+json", body)
	if err != nil {
		return err
	}
	code, text, err := jsonapi.Do(c.client, req, "the Kubernetes API", maxBody)
	switch {
	case err != nil:
		return err
	case code == http.StatusNotFound:
		return ErrNotFound
	case code/100 != 2:
		return fmt.Errorf("the Kubernetes API answered %d %s: %s", code, http.StatusText(code), jsonapi.StatusMessage(text))
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("cannot decode the Kubernetes API's answer: %w", err)
	}
	return nil
}

// convert turns from into into by way of JSON.
func convert(from, into any) error {
	text, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
