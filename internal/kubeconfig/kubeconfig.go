// Package kubeconfig reads how to reach a Kubernetes API server, and as whom.
//
// It contacts nothing. What is asked of the server belongs to the callers.
package kubeconfig

import (
	"fmt"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Load reads a kubeconfig file. An empty contextName is the current context.
// Credentials are left out for a server that is not at https.
func Load(path, contextName string) (*rest.Config, error) {
	// clientcmd treats a file that is not there like an empty one.
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("cannot read kubeconfig: %w", err)
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: path},
		&clientcmd.ConfigOverrides{CurrentContext: contextName},
	).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("cannot use kubeconfig %s: %w", path, err)
	}
	return config, nil
}
