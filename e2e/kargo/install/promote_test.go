package install_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/e2e/kargo/apiserver"
	"github.com/stepd/stepd/e2e/kargo/standin"
	"github.com/stepd/stepd/e2e/process"
	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/e2e/tools"
)

// promotes promotes a release to both production regions with the project, the
// tasks and the Applications of examples/, unchanged but for where registry, git
// server and trusted root are.
func promotes(t *testing.T, server *apiserver.Server, c client.Client, bin, webhook, sidecarAddress string) {
	s, err := sandbox.Start(t.Context(), t.TempDir(), bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, region := range []string{sandbox.RegionUS, sandbox.RegionCA} {
		if _, err := s.Publish(t.Context(), sandbox.Config(region), sandbox.Release()); err != nil {
			t.Fatal(err)
		}
	}
	workRoot := t.TempDir()
	runKargo(t, server, c, workRoot)
	callAt(t, c, webhook)
	sidecar := runSidecar(t, server, c, bin, sidecarAddress, workRoot, s.Dir)

	key := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: project, Name: "stepd-project-key", Labels: map[string]string{"kargo.akuity.io/cred-type": "generic"}},
		StringData: map[string]string{"key": rand.Text() + rand.Text() + "\n"},
	}
	if err := c.Create(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	root, err := tools.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	applications := rewritten(t, filepath.Join(root, "examples", "kargo", "applications.yaml"), "https://github.com/yourorg/devex-gitops.git", s.RepoURL())
	freight := filepath.Join(root, "examples", "promotiontasks", "prd-us.freight.yaml")
	apply(t, c, applications, freight) // the Freight that Kargo would have found, and what there is already

	base := s.Git.MustGit(t, sandbox.GitOps, "rev-parse", "main")
	regions := map[string]string{"prd-us": sandbox.RegionUS, "prd-ca": sandbox.RegionCA}
	for _, stage := range []string{"prd-us", "prd-ca"} {
		override(t, c, stage, s.Vars())
		status := promote(t, c, stage, sidecar)
		if status["phase"] != "Succeeded" {
			t.Fatalf("%s: %v\n%s", stage, status["message"], sidecar.Output())
		}
		if got, err := s.Git.Git(sandbox.GitOps, "show", "main:"+sandbox.ValuesPath(regions[stage])); err != nil || got+"\n" != string(sandbox.Promoted(regions[stage])) {
			t.Errorf("%s is not what was released (-want +got): %v\n%s", stage, err, cmp.Diff(string(sandbox.Promoted(regions[stage])), got))
		}
	}
	h, err := s.History(base)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Commits) != 2 || !h.Linear {
		t.Fatalf("two commits in a line are wanted, got linear=%v %+v", h.Linear, h.Commits)
	}
	for i, stage := range []string{"prd-us", "prd-ca"} {
		for _, trailer := range []string{"Signed-By: " + sandbox.Release().Subject(), "Kargo-Stage: " + project + "/" + stage} {
			if !strings.Contains(h.Commits[i].Message, "\n"+trailer) {
				t.Errorf("%s: no trailer %q in\n%s", stage, trailer, h.Commits[i].Message)
			}
		}
		app := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "argoproj.io/v1alpha1", "kind": "Application"}}
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "argocd", Name: "svc-" + regions[stage]}, app); err != nil {
			t.Fatal(err)
		}
		if got, _, _ := unstructured.NestedString(app.Object, "status", "sync", "revision"); got != h.Commits[i].ID {
			t.Errorf("%s runs %s, want %s", app.GetName(), got, h.Commits[i].ID)
		}
	}
}

// runKargo runs the stand-ins for Kargo's controller and webhook.
func runKargo(t *testing.T, server *apiserver.Server, c client.Client, workRoot string) {
	t.Helper()
	hook := httptest.NewTLSServer(standin.Admission(c))
	t.Cleanup(hook.Close)
	url, fail, none := hook.URL+"/", admissionv1.Fail, admissionv1.SideEffectClassNone
	if err := c.Create(t.Context(), &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "kargo"},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name: "promotion.kargo.akuity.io", AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &fail,
			ClientConfig: admissionv1.WebhookClientConfig{
				URL: &url, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw}),
			},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule:       admissionv1.Rule{APIGroups: []string{"kargo.akuity.io"}, APIVersions: []string{"v1alpha1"}, Resources: []string{"promotions"}},
			}},
		}},
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() {
		ended <- standin.Run(ctx, server.Config(controllerUser), standin.Options{
			TempDir: workRoot, Requeue: func(*time.Duration) time.Duration { return 100 * time.Millisecond },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the stand-in for Kargo's controller: %v", err)
		}
	})
}

// callAt makes the API server call the webhook at an address: there is no
// network with Services.
func callAt(t *testing.T, c client.Client, address string) {
	t.Helper()
	var mutating admissionv1.MutatingWebhookConfiguration
	var validating admissionv1.ValidatingWebhookConfiguration
	for _, o := range []client.Object{&mutating, &validating} {
		if err := c.Get(t.Context(), client.ObjectKey{Name: "stepd"}, o); err != nil {
			t.Fatal(err)
		}
	}
	at := func(config *admissionv1.WebhookClientConfig) {
		url := "https://" + address + *config.Service.Path
		config.URL, config.Service = &url, nil
	}
	for i := range mutating.Webhooks {
		at(&mutating.Webhooks[i].ClientConfig)
	}
	for i := range validating.Webhooks {
		at(&validating.Webhooks[i].ClientConfig)
	}
	for _, o := range []client.Object{&mutating, &validating} {
		if err := c.Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

// runSidecar runs the sidecar of values.yaml, with the ConfigMap where the
// kubelet would mount it.
func runSidecar(t *testing.T, server *apiserver.Server, c client.Client, bin, address, workRoot, trust string) *process.Process {
	t.Helper()
	root, err := tools.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "examples", "kargo", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		Controller struct{ Containers []struct{ Args []string } }
	}
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	keys := t.TempDir()
	for name, text := range publicKeys(t, c) {
		if err := os.WriteFile(filepath.Join(keys, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kubeconfig, err := server.Kubeconfig(controllerUser)
	if err != nil {
		t.Fatal(err)
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	metrics := "127.0.0.1:" + ports[0]
	home := t.TempDir()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), bin, slices.Concat(values.Controller.Containers[0].Args, []string{
		"--http=" + address, "--metrics=" + metrics, "--work-root=" + workRoot, "--state-dir=" + filepath.Join(workRoot, "stepd"),
		"--public-keys=" + keys, "--kubeconfig=" + kubeconfig, "--trust-dir=" + trust,
	})...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CACHE_HOME=" + home}
	sidecar, err := process.Start("stepd serve --kargo", cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sidecar.Kill)
	if err := sidecar.Ready(t.Context(), func(ctx context.Context) error { return ready(ctx, "http://"+metrics+"/readyz") }); err != nil {
		t.Fatal(err)
	}
	return sidecar
}

// override adds the vars of `stepd run --var NAME=VALUE …` to a Stage, whose
// vars win over a task's defaults.
func override(t *testing.T, c client.Client, name string, flags []string) {
	t.Helper()
	stage := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "Stage"}}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: project, Name: name}, stage); err != nil {
		t.Fatal(err)
	}
	vars, _, err := unstructured.NestedSlice(stage.Object, "spec", "vars")
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range flags {
		if name, value, ok := strings.Cut(flag, "="); ok {
			vars = append(vars, map[string]any{"name": name, "value": value})
		}
	}
	if err := unstructured.SetNestedSlice(stage.Object, vars, "spec", "vars"); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(t.Context(), stage); err != nil {
		t.Fatal(err)
	}
}

// promote promotes the only Freight into a Stage and returns the Promotion's
// status at the end.
func promote(t *testing.T, c client.Client, stage string, sidecar *process.Process) map[string]any {
	t.Helper()
	freights := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "FreightList"}}
	if err := c.List(t.Context(), freights, client.InNamespace(project)); err != nil || len(freights.Items) != 1 {
		t.Fatalf("there are %d pieces of Freight: %v", len(freights.Items), err)
	}
	p := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "Promotion",
		"metadata": map[string]any{"namespace": project, "generateName": stage + "."},
		"spec":     map[string]any{"stage": stage, "freight": freights.Items[0].GetName()},
	}}
	if err := c.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := c.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			t.Fatal(err)
		}
		status, _, _ := unstructured.NestedMap(p.Object, "status")
		if phase, _ := status["phase"].(string); phase != "" && phase != "Pending" && phase != "Running" {
			return status
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			text, _ := json.Marshal(p.Object)
			t.Fatalf("%s is not over: %s\n%s", stage, text, sidecar.Output())
		}
	}
}

// rewritten is a copy of a file with something else in place of old.
func rewritten(t *testing.T, file, old, with string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("%s does not mention %s", file, old)
	}
	name := filepath.Join(t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(name, []byte(strings.ReplaceAll(string(text), old, with)), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
