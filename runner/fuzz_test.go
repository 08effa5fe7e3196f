package runner_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/load"
)

// FuzzResolve checks that no set of documents crashes what makes a promotion
// of them, or the run of what it made, and that a promotion that was made has
// steps with aliases, none of which refers to a task.
func FuzzResolve(f *testing.F) {
	task := taskDoc("PromotionTask", anyTask, "{vars: [{name: v, value: a}], steps: [{uses: ok, vars: [{name: own, value: '${{ vars.v }}'}]}]}")
	for _, seed := range []string{
		goodsWarehouse + goodsFreight + oneStep("{tag: \"${{ imageFrom('reg.io/app').Tag }}\"}"),
		task + stage("[{name: a, value: '1'}]", "[{task: {name: t}, as: x}, {uses: compose, config: {a: '${{ outputs }}'}}]"),
		bareTask + goodsFreight,
		stage("null", "[null]"),
		strings.ReplaceAll(stage("[]", "[{uses: ok}]"), "promotionTemplate:", "vars: null\n  promotionTemplate:"),
		"apiVersion: kargo.akuity.io/v1alpha1\nkind: Stage\nmetadata: null\nspec: null\nstatus: null\n",
		goodsFreight + "artifacts: [null, {subscriptionName: s, version: v, metadata: null}]\n" + oneStep("{a: \"${{ artifactFrom('s') }}\"}"),
		strings.ReplaceAll(goodsWarehouse, "[{image: {repoURL: reg.io/app}}]", "[null]") + oneStep("{a: \"${{ imageFrom('s') }}\"}"),
	} {
		f.Add(seed)
	}
	reg, err := runner.NewRegistry(testKinds()...)
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, docs string) {
		set, _ := load.Bytes("f", []byte(docs)) // the good documents of a bad text count, too
		for _, d := range set.Documents {
			runner.Admit(d)
		}
		r, err := runner.Resolve(set, runner.Options{PromotionName: "p-1"})
		if err != nil {
			return
		}
		for _, s := range r.Promotion.Steps {
			if s.As == "" || s.Task != nil {
				t.Fatalf("step %+v is not inflated", s)
			}
			s.Position("/config/a")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r.Promotion.WorkDir = dir
		e := &runner.Engine{Registry: reg, Data: r.Data, Clock: &fakeClock{}}
		out, err := e.Run(ctx, r.Promotion)
		if err != nil && out.Phase == "" {
			t.Fatalf("a promotion that was made cannot run: %v", err)
		}
	})
}
