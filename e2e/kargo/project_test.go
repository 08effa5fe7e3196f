package kargo_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/runner/kargoapi"
)

const (
	kargoVersion = "kargo.akuity.io/v1alpha1"
	imageRepo    = "ghcr.io/yourorg/svc"
)

// project is a Kargo project with a gitops repository and a repository of
// configuration artifacts of its own.
type project struct {
	*cluster
	name    string
	freight string
	// gitops is the name of the gitops repository on the git server, url where
	// the cluster finds it, base its main when the project was made.
	gitops, url, base string
	// configs is the repository of signed artifacts, as steps name it.
	configs string
	// key is the project's key.
	key string
}

// newProject makes a project with Freight, the task deploy (testdata/task.yaml)
// and both regions' configuration, signed.
func newProject(t *testing.T) *project {
	t.Helper()
	c := theCluster(t)
	name := "stepd-e2e-" + strings.ToLower(rand.Text()[:8])
	p := &project{cluster: c, name: name, gitops: name + ".git"}
	var err error
	if p.url, err = c.servers.repository(p.gitops); err != nil {
		t.Fatal(err)
	}
	p.base = c.servers.git.MustGit(t, p.gitops, "rev-parse", "main")
	for _, region := range []string{sandbox.RegionUS, sandbox.RegionCA} {
		if p.configs, err = c.servers.publish(t.Context(), name, sandbox.Config(region), "release"); err != nil {
			t.Fatal(err)
		}
	}

	namespace := kind("v1", "Namespace", "", name)
	namespace.SetLabels(map[string]string{"kargo.akuity.io/project": "true"}) // for Kargo to adopt
	p.create(t, namespace)
	object := kind(kargoVersion, "Project", "", name)
	p.create(t, object)
	t.Cleanup(func() {
		if t.Failed() {
			p.explain(t)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for _, o := range []client.Object{object, namespace} {
			if err := c.client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
				t.Errorf("cannot remove %s: %v", o.GetName(), err)
			}
		}
	})
	secret := kind("v1", "Secret", name, "stepd-project-key")
	secret.SetLabels(map[string]string{"kargo.akuity.io/cred-type": "generic"})
	p.awaitReady(t, object)
	p.key = rand.Text() + rand.Text()
	secret.Object["stringData"] = map[string]any{"key": p.key}
	p.create(t, secret)
	p.createYAML(t, fmt.Sprintf(`
apiVersion: kargo.akuity.io/v1alpha1
kind: Warehouse
metadata: {name: svc}
spec:
  freightCreationPolicy: Manual
  subscriptions: [{image: {repoURL: %s, imageSelectionStrategy: SemVer, discoveryLimit: 20}}]
`, imageRepo))
	task, err := os.ReadFile("testdata/task.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p.createYAML(t, string(task))
	p.freight = p.createYAML(t, fmt.Sprintf(`
apiVersion: kargo.akuity.io/v1alpha1
kind: Freight
metadata: {name: 3b0f261f3cbfd3db7f53f8126cb538e5da0da041, labels: {kargo.akuity.io/alias: svc-v1-2-0}}
alias: svc-v1-2-0
origin: {kind: Warehouse, name: svc}
images: [{repoURL: %s, tag: %s, digest: "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b"}]
`, imageRepo, sandbox.Version)).GetName()
	return p
}

// awaitReady waits until Kargo has set up a Project: before, its controller may
// not read the Secrets there.
func (p *project) awaitReady(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	eventually(t, "Project that is ready", func() bool {
		if err := p.client.Get(t.Context(), clientKey(u), u); err != nil {
			t.Fatal(err)
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		return slices.ContainsFunc(conditions, func(c any) bool {
			m, _ := c.(map[string]any)
			return m["type"] == "Ready" && m["status"] == "True"
		})
	}, func() string { return fmt.Sprint(u.Object["status"]) })
}

func (p *project) create(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	if err := p.client.Create(t.Context(), u); err != nil {
		t.Fatalf("cannot create %s %s: %v", u.GetKind(), u.GetName(), err)
	}
}

// createYAML creates an object in the project's namespace and returns it as it
// then is.
func (p *project) createYAML(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatal(err)
	}
	u.SetNamespace(p.name)
	p.create(t, u)
	return u
}

// vars are a Stage's vars.
type vars map[string]string

// deploys are the vars with which a Stage deploys a region by the task deploy.
func (p *project) deploys(region string, more vars) vars {
	v := vars{
		"region": region, "path": sandbox.ValuesPath(region), "configRepo": p.configs, "gitopsRepo": p.url,
		"publicKey": p.servers.publicKey, "insecure": fmt.Sprint(p.servers.insecure),
	}
	for name, value := range more {
		v[name] = value
	}
	return v
}

// stage makes a Stage whose template is one reference to the task deploy.
func (p *project) stage(t *testing.T, name string, v vars) {
	t.Helper()
	p.stageOf(t, name, v, `[{task: {name: deploy}, as: deploy}]`)
}

// stageOf makes a Stage with these steps, YAML.
func (p *project) stageOf(t *testing.T, name string, v vars, steps string) {
	t.Helper()
	p.create(t, p.stageObject(t, name, v, steps))
}

func (p *project) stageObject(t *testing.T, name string, v vars, steps string) *unstructured.Unstructured {
	t.Helper()
	var list []any
	if err := yaml.Unmarshal([]byte(steps), &list); err != nil {
		t.Fatal(err)
	}
	u := kind(kargoVersion, "Stage", p.name, name)
	var variables []any
	for _, n := range slices.Sorted(mapKeys(v)) {
		variables = append(variables, map[string]any{"name": n, "value": v[n]})
	}
	spec := map[string]any{
		"requestedFreight": []any{map[string]any{
			"origin":  map[string]any{"kind": "Warehouse", "name": "svc"},
			"sources": map[string]any{"direct": true},
		}},
		"promotionTemplate": map[string]any{"spec": map[string]any{"steps": list}},
	}
	if len(variables) > 0 {
		spec["vars"] = variables
	}
	u.Object["spec"] = spec
	return u
}

func mapKeys(v vars) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range v {
			if !yield(k) {
				return
			}
		}
	}
}

// promotion is a new Promotion of the Freight into a Stage; Kargo names it.
func (p *project) promotion(stage string) *unstructured.Unstructured {
	u := kind(kargoVersion, "Promotion", p.name, "")
	u.SetGenerateName(stage + ".")
	u.Object["spec"] = map[string]any{"stage": stage, "freight": p.freight}
	return u
}

// promote promotes into a Stage and returns the Promotion's name.
func (p *project) promote(t *testing.T, stage string) string {
	t.Helper()
	u := p.promotion(stage)
	p.create(t, u)
	return u.GetName()
}

// get reads a Promotion.
func (p *project) get(t *testing.T, name string) *kargoapi.Promotion {
	t.Helper()
	u := kind(kargoVersion, "Promotion", p.name, name)
	if err := p.client.Get(t.Context(), client.ObjectKeyFromObject(u), u); err != nil {
		t.Fatal(err)
	}
	return promotionOf(t, u)
}

func promotionOf(t *testing.T, u *unstructured.Unstructured) *kargoapi.Promotion {
	t.Helper()
	b, err := u.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	promotion := &kargoapi.Promotion{}
	if err := json.Unmarshal(b, promotion); err != nil {
		t.Fatal(err)
	}
	return promotion
}

// finish waits until a Promotion is over and returns it.
func (p *project) finish(t *testing.T, name string) *kargoapi.Promotion {
	t.Helper()
	var got *kargoapi.Promotion
	eventually(t, "end of Promotion "+name, func() bool {
		got = p.get(t, name)
		return got.Status.Phase.Terminal()
	}, func() string { return describe(got) })
	return got
}

// succeed waits until a Promotion is over and fails the test unless it succeeded.
func (p *project) succeed(t *testing.T, name string) *kargoapi.Promotion {
	t.Helper()
	got := p.finish(t, name)
	if got.Status.Phase != kargoapi.PromotionSucceeded {
		t.Fatalf("Promotion %s: %s", name, describe(got))
	}
	return got
}

// status is the status of a step.
func status(p *kargoapi.Promotion, alias string) string {
	for _, m := range p.Status.StepExecutionMetadata {
		if m.Alias == alias {
			return string(m.Status)
		}
	}
	return ""
}

// output is the output of a step.
func output(t *testing.T, p *kargoapi.Promotion, alias string) map[string]any {
	t.Helper()
	var state map[string]map[string]any
	if err := json.Unmarshal(p.Status.State, &state); err != nil {
		t.Fatalf("the state of %s: %v", p.Name, err)
	}
	return state[alias]
}

// describe is a Promotion's status for people.
func describe(p *kargoapi.Promotion) string {
	s := fmt.Sprintf("%s: %s", p.Status.Phase, p.Status.Message)
	for _, m := range p.Status.StepExecutionMetadata {
		s += fmt.Sprintf("\n  %-16s %-9s %d errors  %s", m.Alias, m.Status, m.ErrorCount, m.Message)
	}
	return s
}

// explain logs what stepd said, after a failure.
func (p *project) explain(t *testing.T) {
	t.Helper()
	if p.stepd != nil {
		t.Logf("webhook:\n%s", p.stepd.webhook.Output())
		t.Logf("sidecar:\n%s", p.stepd.sidecar.Output())
	}
}

// pushed are the commits on the gitops repository's main since the project was
// made, oldest first.
func (p *project) pushed(t *testing.T) []string {
	t.Helper()
	return strings.Fields(p.servers.git.MustGit(t, p.gitops, "rev-list", "--reverse", p.base+"..main"))
}

// oneCommitEach fails the test unless main has one commit of each Promotion, in
// a line, and nothing else.
func (p *project) oneCommitEach(t *testing.T, promotions ...string) {
	t.Helper()
	commits := p.pushed(t)
	counts := map[string]int{}
	log := p.servers.git.MustGit(t, p.gitops, "log", "--format=%(trailers:key=Kargo-Promotion,valueonly,separator=%x2C)|%P", p.base+"..main")
	for line := range strings.Lines(log) {
		promotion, parents, _ := strings.Cut(strings.TrimSpace(line), "|")
		if len(strings.Fields(parents)) != 1 {
			t.Errorf("a commit of %s has parents %q, want one", promotion, parents)
		}
		counts[promotion]++
	}
	for _, name := range promotions {
		if n := counts[p.name+"/"+name]; n != 1 {
			t.Errorf("%d commits of Promotion %s, want 1", n, name)
		}
	}
	if len(commits) != len(promotions) {
		t.Errorf("%d commits were pushed, want %d", len(commits), len(promotions))
	}
	p.servers.git.Fsck(t, p.gitops)
}

// nothingPushed fails the test if anything was.
func (p *project) nothingPushed(t *testing.T) {
	t.Helper()
	if commits := p.pushed(t); len(commits) != 0 {
		t.Errorf("%d commits were pushed, want none", len(commits))
	}
}

// events are the reasons of the Events on a Promotion, sorted.
func (p *project) events(t *testing.T, promotion string) []string {
	t.Helper()
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "EventList"}}
	if err := p.client.List(t.Context(), list, client.InNamespace(p.name)); err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, e := range list.Items {
		name, _, _ := unstructured.NestedString(e.Object, "involvedObject", "name")
		reason, _, _ := unstructured.NestedString(e.Object, "reason")
		if name == promotion {
			reasons = append(reasons, reason)
		}
	}
	slices.Sort(reasons)
	return slices.Compact(reasons)
}

// needsStepd skips a test that stops stepd, or stands between it and Kargo,
// where stepd is installed in the cluster.
func (p *project) needsStepd(t *testing.T) {
	t.Helper()
	if p.stepd == nil {
		t.Skip("stepd is installed in this cluster; the suite has to run it itself (STEPD_E2E_WORKDIR_ROOT) for this")
	}
}

func clientKey(u *unstructured.Unstructured) client.ObjectKey { return client.ObjectKeyFromObject(u) }

// refused tells whether the API server refused something, rather than failed.
func refused(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsInternalError(err)
}
