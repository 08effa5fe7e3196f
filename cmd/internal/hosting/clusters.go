package hosting

import (
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"github.com/stepd/stepd/internal/clusteraccess"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/kubeconfig"
	"github.com/stepd/stepd/steps"
)

// ClusterFlags name the clusters that steps may be given access to.
type ClusterFlags struct {
	// ArgoCD and ControlPlane are kubeconfig files; empty is no access.
	ArgoCD, ControlPlane string
	// ArgoCDContext is a context of ArgoCD; empty is its current one. No flag of
	// these sets it.
	ArgoCDContext string
}

// Add adds the flags of both clusters.
func (f *ClusterFlags) Add(fl *pflag.FlagSet) {
	fl.StringVar(&f.ArgoCD, "argocd-kubeconfig", "", "kubeconfig of the cluster with Argo CD's resources, for steps that were granted access-argocd (default: no access)")
	f.AddControlPlane(fl)
}

// AddControlPlane adds the flag of the control plane alone.
func (f *ClusterFlags) AddControlPlane(fl *pflag.FlagSet) {
	fl.StringVar(&f.ControlPlane, "control-plane-kubeconfig", "", "kubeconfig of the cluster with Kargo's resources, for steps that were granted access-control-plane (default: no access)")
}

// sources fills in the clusters of caps. A dry run can read them.
func (f *ClusterFlags) sources(caps *steps.Capabilities, live bool, log *effects.Log) error {
	for _, c := range []struct {
		kubeconfig, context string

		make func(clusteraccess.Options) (steps.ClusterSource, error)
		to   *steps.ClusterSource
	}{
		{f.ArgoCD, f.ArgoCDContext, clusteraccess.ArgoCD, &caps.ArgoCD},
		{f.ControlPlane, "", clusteraccess.ControlPlane, &caps.ControlPlane},
	} {
		if c.kubeconfig == "" {
			continue
		}
		config, err := kubeconfig.Load(c.kubeconfig, c.context)
		if err != nil {
			return err
		}
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			return fmt.Errorf("cannot use kubeconfig %s: %w", c.kubeconfig, err)
		}
		if *c.to, err = c.make(clusteraccess.Options{Client: client, Server: config.Host, ReadOnly: !live, Effects: log}); err != nil {
			return err
		}
	}
	return nil
}
