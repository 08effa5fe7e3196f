package kargo_test

import (
	"context"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

// application makes an Application that a Stage may sync: it deploys one
// ConfigMap of the gitops repository into the project's namespace.
func (p *project) application(t *testing.T, stage string) {
	t.Helper()
	if _, err := p.servers.git.Commit(p.gitops, gittest.Change{Message: "manifest", Files: gittest.Files(map[string]string{
		"deploy/configmap.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: deployed}\n",
	})}); err != nil {
		t.Fatal(err)
	}
	p.base = p.servers.git.MustGit(t, p.gitops, "rev-parse", "main")
	if p.servers.insecure {
		repo := kind("v1", "Secret", p.argocd, p.name)
		repo.SetLabels(map[string]string{"argocd.argoproj.io/secret-type": "repository"})
		repo.Object["stringData"] = map[string]any{"type": "git", "url": p.url, "insecure": "true"}
		p.create(t, repo)
		p.removeLater(t, repo)
	}
	app := kind("argoproj.io/v1alpha1", "Application", p.argocd, p.name)
	app.SetAnnotations(map[string]string{"kargo.akuity.io/authorized-stage": p.name + ":" + stage})
	app.Object["spec"] = map[string]any{
		"project":     "default",
		"source":      map[string]any{"repoURL": p.url, "path": "deploy", "targetRevision": "main"},
		"destination": map[string]any{"server": "https://kubernetes.default.svc", "namespace": p.name},
	}
	p.create(t, app)
	p.removeLater(t, app)
}

// synced is the revision that the Application was last synced to.
func (p *project) synced(t *testing.T) string {
	t.Helper()
	app := kind("argoproj.io/v1alpha1", "Application", p.argocd, p.name)
	if err := p.client.Get(t.Context(), client.ObjectKeyFromObject(app), app); err != nil {
		t.Fatal(err)
	}
	revision, _, _ := unstructured.NestedString(app.Object, "status", "operationState", "syncResult", "revision")
	return revision
}

func (p *project) removeLater(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := p.client.Delete(ctx, u); client.IgnoreNotFound(err) != nil {
			t.Errorf("cannot remove %s: %v", u.GetName(), err)
		}
	})
}
