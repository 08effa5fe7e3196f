package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"

	"github.com/stepd/stepd/internal/credentials"
	"github.com/stepd/stepd/runner/kargoapi"
)

// Promotion reads a Promotion. The error is ErrNotFound if there is none.
func (c *Client) Promotion(ctx context.Context, namespace, name string) (*kargoapi.Promotion, error) {
	var p kargoapi.Promotion
	if err := c.get(ctx, kargoPath(namespace, "promotions", name), nil, &p); err != nil {
		return nil, fmt.Errorf("cannot read Promotion %q in namespace %q: %w", name, namespace, err)
	}
	return &p, nil
}

// Stage reads a Stage. The error is ErrNotFound if there is none.
func (c *Client) Stage(ctx context.Context, namespace, name string) (*kargoapi.Stage, error) {
	var s kargoapi.Stage
	if err := c.get(ctx, kargoPath(namespace, "stages", name), nil, &s); err != nil {
		return nil, fmt.Errorf("cannot read Stage %q in namespace %q: %w", name, namespace, err)
	}
	return &s, nil
}

// Freight reads a piece of Freight. The error is ErrNotFound if there is none.
func (c *Client) Freight(ctx context.Context, namespace, name string) (*kargoapi.Freight, error) {
	var f kargoapi.Freight
	if err := c.get(ctx, kargoPath(namespace, "freights", name), nil, &f); err != nil {
		return nil, fmt.Errorf("cannot read Freight %q in namespace %q: %w", name, namespace, err)
	}
	return &f, nil
}

// ClusterConfig reads the one ClusterConfig, which Kargo names "cluster"; nil if
// there is none.
func (c *Client) ClusterConfig(ctx context.Context) (*kargoapi.ClusterConfig, error) {
	var config kargoapi.ClusterConfig
	err := c.get(ctx, path{"apis", kargoapi.Group, "v1alpha1", "clusterconfigs", "cluster"}, nil, &config)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the ClusterConfig: %w", err)
	}
	return &config, nil
}

// Secret reads the data of a Secret and its labels. The error is ErrNotFound if
// there is none.
func (c *Client) Secret(ctx context.Context, namespace, name string) (*kargoapi.Secret, error) {
	var s kargoapi.Secret
	if err := c.get(ctx, path{"api", "v1", "namespaces", namespace, "secrets", name}, nil, &s); err != nil {
		return nil, fmt.Errorf("cannot read Secret %q in namespace %q: %w", name, namespace, err)
	}
	return &s, nil
}

// pageSize is how many Secrets are asked for at a time, maxPages how often.
const (
	pageSize = 200
	maxPages = 50
)

// CredentialSecrets reads the Secrets of a namespace that hold repository
// credentials: those with the label kargo.akuity.io/cred-type.
func (c *Client) CredentialSecrets(ctx context.Context, namespace string) ([]credentials.Secret, error) {
	query := url.Values{"labelSelector": {kargoapi.LabelCredentialType}, "limit": {strconv.Itoa(pageSize)}}
	var all []credentials.Secret
	for range maxPages {
		var list struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []kargoapi.Secret `json:"items"`
		}
		if err := c.get(ctx, path{"api", "v1", "namespaces", namespace, "secrets"}, query, &list); err != nil {
			return nil, err
		}
		for _, s := range list.Items {
			all = append(all, credentials.Secret{Name: s.Name, Labels: s.Labels, Annotations: s.Annotations, Data: s.Data})
		}
		if list.Metadata.Continue == "" {
			return all, nil
		}
		query.Set("continue", list.Metadata.Continue)
	}
	return nil, fmt.Errorf("there are more than %d", pageSize*maxPages)
}

func kargoPath(namespace, resource, name string) path {
	return path{"apis", kargoapi.Group, "v1alpha1", "namespaces", namespace, resource, name}
}
