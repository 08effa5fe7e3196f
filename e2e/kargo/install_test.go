package kargo_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/stepd/stepd/e2e/process"
)

// TestReplicasStartTogether starts two webhooks at the same moment, as a
// Deployment does, that manage certificate and key in the same empty objects.
// Package install has them used.
func TestReplicasStartTogether(t *testing.T) {
	p := newProject(t)
	if p.restartKargo == nil {
		t.Skip("only where the API server is the suite's own: this replaces what is installed")
	}
	s := p.stepd
	// No controller empties a namespace that is deleted here, so the next run needs
	// another.
	namespace := p.name + "-webhook"
	for _, name := range []string{"namespace.yaml", "managed.yaml", "rbac.yaml"} {
		file, err := example("kargo", "webhook", name)
		if err != nil {
			t.Fatal(err)
		}
		list, err := objects(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list {
			if _, ok := u.Object["subjects"]; ok { // not a pod's service account here
				u.Object["subjects"] = []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": webhookUser}}
			}
			if u.GetKind() == "Namespace" {
				u.SetName(namespace)
			} else if u.GetNamespace() == "stepd" {
				u.SetNamespace(namespace)
			}
			p.create(t, u)
			p.removeLater(t, u)
		}
	}
	ports, err := process.FreePorts(4)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(s.unregister(ctx), s.register(ctx)); err != nil {
			t.Errorf("the webhook for other tests is not back: %v", err)
		}
	})
	configurations, err := s.configurations("https://127.0.0.1:" + ports[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range configurations {
		p.create(t, u)
	}
	var replicas []*process.Process
	for i := range 2 {
		replica, err := process.Start("stepd webhook", s.command(t.Context(), "webhook",
			"--listen", "127.0.0.1:"+ports[i], "--metrics", "127.0.0.1:"+ports[2+i], "--kubeconfig", s.webhookConfig,
			"--namespace", namespace, "--public-keys", "kargo/stepd-public-keys", "--host", "127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(replica.Kill)
		replicas = append(replicas, replica)
	}
	for i, replica := range replicas {
		if err := replica.Ready(t.Context(), process.OK(nil, "http://127.0.0.1:"+ports[2+i]+"/readyz")); err != nil {
			t.Fatalf("replica %d: %v", i, err)
		}
	}
	keys := kind("v1", "ConfigMap", "kargo", "stepd-public-keys")
	if err := p.client.Get(t.Context(), clientKey(keys), keys); err != nil {
		t.Fatal(err)
	}
	if data, _, _ := unstructured.NestedStringMap(keys.Object, "data"); len(data) != 1 {
		t.Errorf("%d public keys are published, want one that both sign with", len(data))
	}
}

// TestStagesAndTasksAreChecked applies a Stage and a task whose steps of ours
// could not run.
func TestStagesAndTasksAreChecked(t *testing.T) {
	p := newProject(t)
	const misspelt = `[{uses: atomic-commit, as: commit, config: {path: gitops, repoUrl: "https://example.com/x.git", branch: main}}]`
	const kargos = `[{uses: git-clone, as: clone, config: {repoUrl: "https://example.com/x.git"}}]`
	if err := p.client.Create(t.Context(), p.stageObject(t, "misspelt", nil, misspelt)); !refused(err) || !strings.Contains(err.Error(), "repoUrl") {
		t.Errorf("a Stage with a misspelt field of ours: want a refusal that names it, got %v", err)
	}
	task := kind(kargoVersion, "PromotionTask", p.name, "misspelt")
	task.Object["spec"] = p.stageObject(t, "x", nil, misspelt).Object["spec"].(map[string]any)["promotionTemplate"].(map[string]any)["spec"]
	if err := p.client.Create(t.Context(), task); !refused(err) || !strings.Contains(err.Error(), "repoUrl") {
		t.Errorf("a task likewise: want a refusal that names it, got %v", err)
	}
	if err := p.client.Create(t.Context(), p.stageObject(t, "kargos", nil, kargos)); err != nil {
		t.Errorf("steps of Kargo's are Kargo's to judge: %v", err)
	}
}
