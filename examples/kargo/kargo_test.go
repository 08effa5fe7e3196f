// Package kargo_test renders what is installed for Kargo and holds it against
// the Kubernetes API, and against what the webhook itself says it needs. That
// the command lines are right is tested in cmd/internal/serving, that the
// project is Kargo's in e2e.
package kargo_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	k8syaml "sigs.k8s.io/yaml"
)

// webhook is what webhook/ installs.
type webhook struct {
	namespace       corev1.Namespace
	secret          corev1.Secret
	configMap       corev1.ConfigMap
	account         corev1.ServiceAccount
	roles           map[string]rbacv1.Role // by namespace
	roleBindings    map[string]rbacv1.RoleBinding
	clusterRole     rbacv1.ClusterRole
	clusterBinding  rbacv1.ClusterRoleBinding
	service         corev1.Service
	deployment      appsv1.Deployment
	disruption      policyv1.PodDisruptionBudget
	network         networkingv1.NetworkPolicy
	mutating        admissionv1.MutatingWebhookConfiguration
	validating      admissionv1.ValidatingWebhookConfiguration
	documentsByKind map[string]int
}

// render builds webhook/ with kustomize and decodes every object strictly.
func render(t *testing.T) webhook {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "webhook")
	if err != nil {
		t.Fatal(err)
	}
	text, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	w := webhook{roles: map[string]rbacv1.Role{}, roleBindings: map[string]rbacv1.RoleBinding{}, documentsByKind: map[string]int{}}
	for _, doc := range documents(t, text) {
		var meta metav1.PartialObjectMetadata
		decode(t, doc, &meta, false)
		w.documentsByKind[meta.Kind]++
		switch meta.Kind {
		case "Namespace":
			decode(t, doc, &w.namespace, true)
		case "Secret":
			decode(t, doc, &w.secret, true)
		case "ConfigMap":
			decode(t, doc, &w.configMap, true)
		case "ServiceAccount":
			decode(t, doc, &w.account, true)
		case "Role":
			var r rbacv1.Role
			decode(t, doc, &r, true)
			w.roles[r.Namespace] = r
		case "RoleBinding":
			var b rbacv1.RoleBinding
			decode(t, doc, &b, true)
			w.roleBindings[b.Namespace] = b
		case "ClusterRole":
			decode(t, doc, &w.clusterRole, true)
		case "ClusterRoleBinding":
			decode(t, doc, &w.clusterBinding, true)
		case "Service":
			decode(t, doc, &w.service, true)
		case "Deployment":
			decode(t, doc, &w.deployment, true)
		case "PodDisruptionBudget":
			decode(t, doc, &w.disruption, true)
		case "NetworkPolicy":
			decode(t, doc, &w.network, true)
		case "MutatingWebhookConfiguration":
			decode(t, doc, &w.mutating, true)
		case "ValidatingWebhookConfiguration":
			decode(t, doc, &w.validating, true)
		default:
			t.Errorf("%s %s is not looked at by any test", meta.Kind, meta.Name)
		}
	}
	return w
}

// TestWebhookObjects checks that everything is there once and fits together.
func TestWebhookObjects(t *testing.T) {
	w := render(t)
	want := map[string]int{
		"Namespace": 1, "Secret": 1, "ConfigMap": 1, "ServiceAccount": 1, "Role": 2, "RoleBinding": 2, "ClusterRole": 1,
		"ClusterRoleBinding": 1, "Service": 1, "Deployment": 1, "PodDisruptionBudget": 1, "NetworkPolicy": 1,
		"MutatingWebhookConfiguration": 1, "ValidatingWebhookConfiguration": 1,
	}
	if diff := cmp.Diff(want, w.documentsByKind); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	own := w.namespace.Name
	for what, namespace := range map[string]string{
		"Secret": w.secret.Namespace, "ServiceAccount": w.account.Namespace, "Service": w.service.Namespace,
		"Deployment": w.deployment.Namespace, "PodDisruptionBudget": w.disruption.Namespace, "NetworkPolicy": w.network.Namespace,
	} {
		if namespace != own {
			t.Errorf("the %s is in %q, want %q", what, namespace, own)
		}
	}
	if len(w.secret.Data)+len(w.secret.StringData)+len(w.configMap.Data)+len(w.configMap.BinaryData) > 0 {
		t.Error("what the webhook fills in has content: a key in a repository is no secret")
	}

	pod := labels.Set(w.deployment.Spec.Template.Labels)
	for what, selector := range map[string]*metav1.LabelSelector{
		"Deployment": w.deployment.Spec.Selector, "PodDisruptionBudget": w.disruption.Spec.Selector, "NetworkPolicy": &w.network.Spec.PodSelector,
		"Service":                   {MatchLabels: w.service.Spec.Selector},
		"topologySpreadConstraints": w.deployment.Spec.Template.Spec.TopologySpreadConstraints[0].LabelSelector,
	} {
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || s.Empty() || !s.Matches(pod) {
			t.Errorf("the selector of the %s does not match the pods %v: %v", what, pod, err)
		}
	}
	if *w.deployment.Spec.Replicas != 2 || w.disruption.Spec.MinAvailable.IntValue() != 1 || w.deployment.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 {
		t.Error("an update or a drained node could take the last replica away")
	}
	ports := map[string]bool{}
	for _, p := range w.deployment.Spec.Template.Spec.Containers[0].Ports {
		ports[p.Name] = true
	}
	if !ports[w.service.Spec.Ports[0].TargetPort.StrVal] {
		t.Errorf("the Service leads to port %s, which no container has", w.service.Spec.Ports[0].TargetPort.StrVal)
	}
	for _, rule := range w.network.Spec.Ingress {
		if !ports[rule.Ports[0].Port.StrVal] {
			t.Errorf("the NetworkPolicy opens port %s, which no container has", rule.Ports[0].Port)
		}
	}
}

// TestWebhookRights spells out everything that the webhook may do.
func TestWebhookRights(t *testing.T) {
	w := render(t)
	rule := func(group, name string, resources ...string) []rbacv1.PolicyRule {
		return []rbacv1.PolicyRule{{APIGroups: []string{group}, Resources: resources, ResourceNames: []string{name}, Verbs: []string{"get", "update"}}}
	}
	for _, tc := range []struct {
		reason    string
		got, want []rbacv1.PolicyRule
	}{
		{"its Secret", w.roles["stepd"].Rules, rule("", w.secret.Name, "secrets")},
		{"the ConfigMap that the sidecar mounts", w.roles["kargo"].Rules, rule("", w.configMap.Name, "configmaps")},
		{"its configurations", w.clusterRole.Rules, rule("admissionregistration.k8s.io", w.mutating.Name, "mutatingwebhookconfigurations", "validatingwebhookconfigurations")},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
		}
	}
	if w.configMap.Namespace != "kargo" || w.validating.Name != w.mutating.Name {
		t.Errorf("the rights above are not for ConfigMap %s/%s and %s", w.configMap.Namespace, w.configMap.Name, w.validating.Name)
	}
	subject := []rbacv1.Subject{{Kind: "ServiceAccount", Name: w.account.Name, Namespace: w.account.Namespace}}
	for _, b := range []struct {
		ref      rbacv1.RoleRef
		subjects []rbacv1.Subject
		kind     string
		name     string
	}{
		{w.roleBindings["stepd"].RoleRef, w.roleBindings["stepd"].Subjects, "Role", w.roles["stepd"].Name},
		{w.roleBindings["kargo"].RoleRef, w.roleBindings["kargo"].Subjects, "Role", w.roles["kargo"].Name},
		{w.clusterBinding.RoleRef, w.clusterBinding.Subjects, "ClusterRole", w.clusterRole.Name},
	} {
		if diff := cmp.Diff(subject, b.subjects); diff != "" || b.ref.Kind != b.kind || b.ref.Name != b.name {
			t.Errorf("a binding of %s %s: %v\n%s", b.kind, b.name, b.ref, diff)
		}
	}
	if w.deployment.Spec.Template.Spec.ServiceAccountName != w.account.Name {
		t.Error("the pods do not run as the service account with these rights")
	}
}

// TestContainersHaveNoPrivilege checks the webhook's and the sidecar's container
// alike, and that both are the same image.
func TestContainersHaveNoPrivilege(t *testing.T) {
	w := render(t)
	pod := w.deployment.Spec.Template.Spec
	sidecar, volumes := sidecar(t)
	for what, c := range map[string]corev1.Container{"webhook": pod.Containers[0], "sidecar": sidecar} {
		s := c.SecurityContext
		if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
			s.Privileged != nil || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 {
			t.Errorf("the %s's security context is %+v", what, s)
		}
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
			t.Errorf("the %s's memory or CPU is not bounded: %+v", what, c.Resources)
		}
		if c.ReadinessProbe == nil || c.LivenessProbe == nil {
			t.Errorf("the %s lacks a probe", what)
		}
		if strings.HasSuffix(c.Image, ":latest") || !strings.Contains(c.Image, ":") {
			t.Errorf("the %s's image %s is whatever it is at that moment", what, c.Image)
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				t.Errorf("the %s has a Secret in its environment: %s", what, e.Name)
			}
		}
	}
	if pod.SecurityContext.RunAsNonRoot == nil || !*pod.SecurityContext.RunAsNonRoot || *pod.SecurityContext.RunAsUser != 65532 ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || pod.HostNetwork || pod.HostPID || len(pod.Volumes) > 0 {
		t.Errorf("the webhook's pod has more than it needs: %+v", pod.SecurityContext)
	}
	if s := sidecar.SecurityContext; s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("the sidecar's security context is %+v", s)
	}
	if pod.Containers[0].Image != sidecar.Image {
		t.Errorf("webhook and sidecar differ: %s and %s", pod.Containers[0].Image, sidecar.Image)
	}

	mounted := map[string]bool{"tmp-data": true} // the chart's
	for _, v := range volumes {
		mounted[v.Name] = true
		if v.ConfigMap == nil || v.ConfigMap.Name != w.configMap.Name || v.ConfigMap.Optional == nil || !*v.ConfigMap.Optional {
			t.Errorf("volume %s is not the optional ConfigMap of public keys: Kargo would not start without it", v.Name)
		}
	}
	for _, m := range sidecar.VolumeMounts {
		if !mounted[m.Name] {
			t.Errorf("there is no volume %s", m.Name)
		}
		if m.Name != "tmp-data" && !m.ReadOnly {
			t.Errorf("volume %s is not read-only", m.Name)
		}
	}
}

// sidecar reads the container and the volumes from the chart's values.
func sidecar(t *testing.T) (corev1.Container, []corev1.Volume) {
	t.Helper()
	text, err := os.ReadFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		Controller struct {
			Volumes    []corev1.Volume    `json:"volumes"`
			Containers []corev1.Container `json:"containers"`
		} `json:"controller"`
	}
	decode(t, text, &values, true)
	if len(values.Controller.Containers) != 1 {
		t.Fatalf("%d sidecars, want 1", len(values.Controller.Containers))
	}
	return values.Controller.Containers[0], values.Controller.Volumes
}

// TestControllerNetworkPolicy checks that the policy names a port that there is.
func TestControllerNetworkPolicy(t *testing.T) {
	text, err := os.ReadFile("controller-networkpolicy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var policy networkingv1.NetworkPolicy
	decode(t, text, &policy, true)
	container, _ := sidecar(t)
	if got, want := policy.Spec.Ingress[0].Ports[0].Port.StrVal, container.Ports[0].Name; got != want || len(policy.Spec.Ingress) != 1 {
		t.Errorf("the policy opens %q, want %q", got, want)
	}
}

func documents(t *testing.T, text []byte) [][]byte {
	t.Helper()
	var out [][]byte
	for r := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, doc)
	}
}

func decode(t *testing.T, doc []byte, to any, strict bool) {
	t.Helper()
	err := k8syaml.Unmarshal(doc, to)
	if strict {
		err = k8syaml.UnmarshalStrict(doc, to)
	}
	if err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
}
