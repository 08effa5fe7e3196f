// Package install_test installs examples/kargo on a real API server and runs
// `stepd webhook` as it is installed: with the rights of its service account
// and no others. Nothing schedules pods there, so the test runs two replicas in
// their place; what happens to Promotions is the business of the suite above.
package install_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/stepd/stepd/e2e/kargo/apiserver"
	"github.com/stepd/stepd/e2e/process"
	"github.com/stepd/stepd/e2e/tools"
	"github.com/stepd/stepd/internal/sharedata"
)

// Who pods are for the API server: the webhook's, and those of Kargo's
// controller with the sidecar.
const (
	webhookAccount = "system:serviceaccount:stepd:stepd-webhook"
	controllerUser = "kargo-controller"
)

const project = "devex-kargo"

func TestInstall(t *testing.T) {
	crds, err := filepath.Glob(filepath.Join(sharedata.Path(t, "kargo", "crds"), "*.yaml"))
	if err != nil || len(crds) == 0 {
		t.Fatalf("no CustomResourceDefinitions: %v", err)
	}
	root, err := tools.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	examples := filepath.Join(root, "examples")
	server, err := apiserver.Start(t.Context(), t.TempDir(), webhookAccount, controllerUser)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	c, err := client.New(server.Config(apiserver.Admin), client.Options{})
	if err != nil {
		t.Fatal(err)
	}

	// A cluster with Kargo, and the project as docs/kargo.md has it made.
	apply(t, c, append(crds, filepath.Join("..", "testdata", "cluster.yaml"))...)
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: project}}); err != nil {
		t.Fatal(err)
	}
	documents := files(t, filepath.Join(examples, "kargo", "project"))
	for _, env := range []string{"dev", "stg", "prd-us", "prd-ca"} {
		documents = append(documents, filepath.Join(examples, "promotiontasks", env+".yaml"))
	}
	apply(t, c, documents...)
	webhook := filepath.Join(examples, "kargo", "webhook")
	installed := append([]string{filepath.Join(webhook, "namespace.yaml")}, slices.DeleteFunc(files(t, webhook), func(file string) bool {
		return filepath.Base(file) == "kustomization.yaml" || filepath.Base(file) == "namespace.yaml"
	})...)
	apply(t, c, append(slices.Clone(installed), filepath.Join(examples, "kargo", "controller-networkpolicy.yaml"))...)

	t.Run("restricted pods", func(t *testing.T) { admitsPods(t, c, examples) })
	t.Run("no webhook answers", func(t *testing.T) { failsClosed(t, c) })
	bin, err := tools.StepdServing(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	sidecar := "127.0.0.1:" + ports[0]
	authorities, webhookAddress := runReplicas(t, server, c, bin, sidecar)
	t.Run("installed again", func(t *testing.T) {
		apply(t, c, installed...)
		if got := caBundle(t, c); got != authorities {
			t.Error("applying the files again took the caBundle away")
		}
		if len(secret(t, c).Data) == 0 || len(publicKeys(t, c)) == 0 {
			t.Error("applying the files again took the keys away")
		}
	})
	t.Run("rights", func(t *testing.T) { mayNothingElse(t, server) })
	t.Run("promotions", func(t *testing.T) { promotes(t, server, c, bin, webhookAddress, sidecar) })
	t.Run("leaked key", func(t *testing.T) { replacesKey(t, c) })
	t.Run("refusals", func(t *testing.T) { refuses(t, server) })
	t.Run("repairs", func(t *testing.T) { mends(t, c) })
}

// admitsPods has the API server judge the webhook's pod, and one with the
// sidecar, by the Pod Security Standard "restricted", which the webhook's
// namespace enforces.
func admitsPods(t *testing.T, c client.Client, examples string) {
	var webhook appsv1.Deployment
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "stepd", Name: "stepd-webhook"}, &webhook); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(examples, "kargo", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		Controller struct {
			Volumes    []corev1.Volume    `json:"volumes"`
			Containers []corev1.Container `json:"containers"`
		} `json:"controller"`
	}
	if err := k8syaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	controller := corev1.PodSpec{
		Containers: values.Controller.Containers, ServiceAccountName: "stepd-webhook",
		Volumes: append(values.Controller.Volumes, corev1.Volume{ // the chart's
			Name: "tmp-data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		}),
	}
	privileged := controller.DeepCopy()
	privileged.Containers[0].SecurityContext.Capabilities = nil
	for _, tc := range []struct {
		reason string
		spec   corev1.PodSpec
		admit  bool
	}{
		{"the webhook", webhook.Spec.Template.Spec, true},
		{"the sidecar", controller, true},
		{"a sidecar that keeps the default capabilities", *privileged, false},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "stepd", Name: "judged"}, Spec: tc.spec}
		if err := c.Create(t.Context(), pod, client.DryRunAll); (err == nil) != tc.admit || err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", tc.reason, err)
		}
	}
}

// failsClosed checks that, with no webhook to ask, a task with a step of stepd's
// is refused and one without is not.
func failsClosed(t *testing.T, c client.Client) {
	for _, tc := range []struct {
		reason, uses string
		refused      bool
	}{
		{"a step that has to be rewritten and checked", "oci-download-verified", true},
		{"Kargo's own step", "git-clone", false},
	} {
		task := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "kargo.akuity.io/v1alpha1", "kind": "PromotionTask",
			"metadata": map[string]any{"name": "uses-" + tc.uses, "namespace": project},
			"spec":     map[string]any{"steps": []any{map[string]any{"uses": tc.uses, "config": map[string]any{}}}},
		}}
		err := c.Create(t.Context(), task)
		if refused := err != nil; refused != tc.refused || refused && !strings.Contains(err.Error(), "failed calling webhook") {
			t.Errorf("%s: %v", tc.reason, err)
		}
	}
}

// runReplicas runs what the Deployment would, twice, until both are ready, and
// returns the caBundle that they agree on, and where one of them listens.
func runReplicas(t *testing.T, server *apiserver.Server, c client.Client, bin, sidecar string) (authorities, address string) {
	t.Helper()
	kubeconfig, err := server.Kubeconfig(webhookAccount)
	if err != nil {
		t.Fatal(err)
	}
	ports, err := process.FreePorts(4)
	if err != nil {
		t.Fatal(err)
	}
	var listening []string
	for i := range 2 {
		listen, metrics := "127.0.0.1:"+ports[2*i], "127.0.0.1:"+ports[2*i+1]
		args := append(webhookArgs(t, c), "--listen="+listen, "--metrics="+metrics, "--kubeconfig="+kubeconfig, "--namespace=stepd",
			"--sidecar-url=http://"+sidecar, "--host=127.0.0.1", "--leave=0s")
		replica, err := process.Start("stepd webhook", exec.CommandContext(context.WithoutCancel(t.Context()), bin, args...))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(replica.Kill)
		if err := replica.Ready(t.Context(), func(ctx context.Context) error { return ready(ctx, "http://"+metrics+"/readyz") }); err != nil {
			t.Fatal(err)
		}
		listening = append(listening, listen)
	}

	authorities = caBundle(t, c)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(authorities)) {
		t.Fatalf("the caBundle holds no certificate: %q", authorities)
	}
	for _, address := range listening {
		conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "stepd-webhook.stepd.svc", MinVersion: tls.VersionTLS13}}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatalf("the API server would not trust the webhook: %v", err)
		}
		_ = conn.Close()
	}
	for name, text := range publicKeys(t, c) {
		block, _ := pem.Decode([]byte(text))
		if block == nil || block.Type != "PUBLIC KEY" || !strings.HasSuffix(name, ".pem") {
			t.Errorf("%s holds no public key: %q", name, text)
		}
	}
	if len(publicKeys(t, c)) != 1 {
		t.Errorf("%d public keys are published, want 1", len(publicKeys(t, c)))
	}
	if len(secret(t, c).Data["tls.key"]) == 0 {
		t.Error("nothing is kept in the Secret")
	}
	return authorities, listening[0]
}

// webhookArgs is the command line in the Deployment, as the API server has it.
func webhookArgs(t *testing.T, c client.Client) []string {
	t.Helper()
	d := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1", "kind": "Deployment"}}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "stepd", Name: "stepd-webhook"}, d); err != nil {
		t.Fatal(err)
	}
	containers, _, err := unstructured.NestedSlice(d.Object, "spec", "template", "spec", "containers")
	if err != nil || len(containers) != 1 {
		t.Fatalf("the Deployment has %d containers: %v", len(containers), err)
	}
	args, _, err := unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
	if err != nil {
		t.Fatal(err)
	}
	return args
}

func ready(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusNoContent {
		return errors.New(resp.Status + ": " + string(text))
	}
	return err
}

// caBundle is the one of all the installed webhooks.
func caBundle(t *testing.T, c client.Client) string {
	t.Helper()
	var mutating admissionv1.MutatingWebhookConfiguration
	var validating admissionv1.ValidatingWebhookConfiguration
	for _, o := range []client.Object{&mutating, &validating} {
		if err := c.Get(t.Context(), client.ObjectKey{Name: "stepd"}, o); err != nil {
			t.Fatal(err)
		}
	}
	var bundles []string
	for _, w := range mutating.Webhooks {
		bundles = append(bundles, string(w.ClientConfig.CABundle))
	}
	for _, w := range validating.Webhooks {
		bundles = append(bundles, string(w.ClientConfig.CABundle))
	}
	if different := slices.Compact(slices.Clone(bundles)); len(bundles) < 3 || len(different) != 1 {
		t.Fatalf("%d webhooks have %d different caBundles", len(bundles), len(different))
	}
	return bundles[0]
}

func secret(t *testing.T, c client.Client) corev1.Secret {
	t.Helper()
	var s corev1.Secret
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "stepd", Name: "stepd-webhook"}, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func publicKeys(t *testing.T, c client.Client) map[string]string {
	t.Helper()
	var m corev1.ConfigMap
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "kargo", Name: "stepd-public-keys"}, &m); err != nil {
		t.Fatal(err)
	}
	return m.Data
}

// replacesKey throws the signing key away as docs/kargo.md says, and waits for
// another in its place.
func replacesKey(t *testing.T, c client.Client) {
	before := publicKeys(t, c)
	s := secret(t, c)
	patch := client.RawPatch(types.JSONPatchType, []byte(`[{"op": "remove", "path": "/data/signing-keys.json"}]`))
	if err := c.Patch(t.Context(), &s, patch); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // they look every 30 s
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		now := publicKeys(t, c)
		if len(now) == 1 && !maps.Equal(now, before) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d public keys are published, and the old one is still among them or alone", len(now))
		}
	}
}

// mayNothingElse asks the API server what the webhook's account may do.
func mayNothingElse(t *testing.T, server *apiserver.Server) {
	c, err := client.New(server.Config(webhookAccount), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const admission = "admissionregistration.k8s.io"
	for _, tc := range []struct {
		reason                                   string
		verb, group, resource, namespace, object string
		may                                      bool
	}{
		{"its own Secret", "update", "", "secrets", "stepd", "stepd-webhook", true},
		{"the ConfigMap of the sidecar", "update", "", "configmaps", "kargo", "stepd-public-keys", true},
		{"its configuration", "update", admission, "mutatingwebhookconfigurations", "", "stepd", true},
		{"Kargo's configuration", "update", admission, "mutatingwebhookconfigurations", "", "kargo", false},
		{"a new configuration", "create", admission, "mutatingwebhookconfigurations", "", "", false},
		{"another Secret beside it", "get", "", "secrets", "stepd", "other", false},
		{"all Secrets beside it", "list", "", "secrets", "stepd", "", false},
		{"a Secret of Kargo's", "get", "", "secrets", "kargo", "stepd-webhook", false},
		{"the key of a project", "get", "", "secrets", project, "stepd-project-key", false},
		{"its Secret's removal", "delete", "", "secrets", "stepd", "stepd-webhook", false},
		{"Promotions", "get", "kargo.akuity.io", "promotions", project, "", false},
		{"a Promotion of its own", "create", "kargo.akuity.io", "promotions", project, "", false},
		{"pods", "create", "", "pods", "stepd", "", false},
		{"more rights", "update", "rbac.authorization.k8s.io", "clusterroles", "", "stepd-webhook", false},
	} {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: tc.verb, Group: tc.group, Resource: tc.resource, Namespace: tc.namespace, Name: tc.object,
			},
		}}
		if err := c.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != tc.may {
			t.Errorf("%s: %s %s is allowed: %v, want %v", tc.reason, tc.verb, tc.resource, review.Status.Allowed, tc.may)
		}
	}
}

// apply does what `kubectl apply --server-side` does, where a field that the
// server does not know is an error. What was defined a moment ago may take a
// while to be served.
func apply(t *testing.T, c client.Client, files ...string) {
	t.Helper()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for dec := yaml.NewYAMLOrJSONDecoder(strings.NewReader(string(text)), 4096); ; {
			u := &unstructured.Unstructured{}
			if err := dec.Decode(&u.Object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if len(u.Object) == 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				err := c.Patch(ctx, u, client.Apply, client.FieldOwner("kubectl"), client.ForceOwnership, client.FieldValidation("Strict"))
				if err == nil {
					break
				}
				if !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err) || ctx.Err() != nil {
					t.Fatalf("cannot apply %s %s of %s: %v", u.GetKind(), u.GetName(), file, err)
				}
				<-tick.C
			}
		}
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	return found
}
