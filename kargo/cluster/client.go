// Package cluster is the one place that speaks to a Kubernetes API server. It
// builds on client-go's rest and dynamic packages and never on its typed
// clientset, whose registrations every stepd command would pay for at start.
//
// What is done with the objects read here belongs in the packages that use
// them: kargo/admission and kargo/sidecar.
package cluster

import (
	"fmt"
	"time"

	"k8s.io/client-go/rest"

	"github.com/stepd/stepd/internal/kubeconfig"
)

// Config says how to reach the API server: by the kubeconfig file given, or,
// with an empty path, as the pod this process runs in. Each request is bounded
// by 30 s unless its context ends earlier.
func Config(path string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if path != "" {
		config, err = kubeconfig.Load(path, "")
	} else if config, err = rest.InClusterConfig(); err != nil {
		err = fmt.Errorf("cannot find the cluster: this is not a pod, so a kubeconfig file has to be given: %w", err)
	}
	if err != nil {
		return nil, err
	}
	config.Timeout = 30 * time.Second
	config.UserAgent = "stepd"
	return config, nil
}
