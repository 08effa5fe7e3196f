package kargo_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/stepd/stepd/e2e/sandbox"
)

// maxMemory is what the sidecar may have resident, in bytes, however many
// Promotions there are.
const maxMemory = 160 << 20

// TestFiftyAtOnce promotes into fifty Stages at the same moment.
func TestFiftyAtOnce(t *testing.T) { loadTest(t, 50, 1) }

// TestTwoHundredQueued queues five Promotions in each of forty Stages, which
// Kargo works on one at a time. None is lost, none is doubled, and the sidecar
// needs no more memory than for a few.
func TestTwoHundredQueued(t *testing.T) { loadTest(t, 40, 5) }

func loadTest(t *testing.T, stages, each int) {
	p := newProject(t)
	for i := range stages {
		name := fmt.Sprintf("s%02d", i)
		p.stage(t, name, p.deploys(sandbox.RegionUS, vars{
			"path": "services/" + name + "/values.yaml", "tag": "${{ quote(ctx.promotion) }}",
		}))
	}
	began := time.Now()
	var creating errgroup.Group
	creating.SetLimit(16)
	names := make([][]string, stages)
	for i := range stages {
		creating.Go(func() error {
			for range each { // in order: the names have to sort by age
				u := p.promotion(fmt.Sprintf("s%02d", i))
				if err := p.client.Create(t.Context(), u); err != nil {
					return err
				}
				names[i] = append(names[i], u.GetName())
			}
			return nil
		})
	}
	if err := creating.Wait(); err != nil {
		t.Fatal(err)
	}
	p.allSucceed(t, stages*each, began)
	took := time.Since(began)
	p.oneCommitEach(t, slices.Concat(names...)...)
	if p.stepd == nil {
		t.Logf("%d Promotions in %s", stages*each, took)
		return
	}
	peak, err := p.stepd.peakMemory()
	if err != nil {
		t.Skipf("cannot tell the sidecar's memory: %v", err)
	}
	t.Logf("%d Promotions in %s; the sidecar's peak is %d MiB", stages*each, took, peak>>20)
	if peak > maxMemory {
		t.Errorf("the sidecar had %d MiB resident, more than %d", peak>>20, int64(maxMemory)>>20)
	}
}

// allSucceed waits until all Promotions of the project have succeeded. They have
// time for each.
func (p *project) allSucceed(t *testing.T, promotions int, began time.Time) {
	t.Helper()
	deadline := time.NewTimer(within + time.Duration(promotions)*3*time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(500 * time.Millisecond) // a listing is megabytes
	defer tick.Stop()
	for {
		phases := p.phases(t)
		switch {
		case phases["Succeeded"] == promotions:
			return
		case phases["Failed"]+phases["Errored"]+phases["Aborted"] > 0:
			t.Fatalf("after %s: %v\n%s", time.Since(began), phases, p.failures(t))
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("still, after %s: %v", time.Since(began), phases)
		}
	}
}

// phases counts the project's Promotions by phase.
func (p *project) phases(t *testing.T) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, u := range p.promotions(t) {
		phase, _, _ := unstructured.NestedString(u.Object, "status", "phase")
		counts[phase]++
	}
	return counts
}

func (p *project) promotions(t *testing.T) []unstructured.Unstructured {
	t.Helper()
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": kargoVersion, "kind": "PromotionList"}}
	if err := p.client.List(t.Context(), list, client.InNamespace(p.name)); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// failures describes the Promotions that did not succeed.
func (p *project) failures(t *testing.T) string {
	t.Helper()
	var s string
	for _, u := range p.promotions(t) {
		phase, _, _ := unstructured.NestedString(u.Object, "status", "phase")
		if phase == "Failed" || phase == "Errored" {
			s += u.GetName() + " " + describe(promotionOf(t, &u)) + "\n"
		}
	}
	return s
}
