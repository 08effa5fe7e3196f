package kargo_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/runner/kargoapi"
)

// download is a template whose only step is one of ours.
const download = `
- uses: oci-download-verified
  as: config
  retry: %s
  config:
    imageRef: ${{ vars.configRepo }}:svc-v1.2.0-${{ vars.region }}
    outPath: config/values.yaml
    insecureSkipTLSVerify: ${{ vars.insecure }}
    verify: {keys: [{pem: "${{ vars.publicKey }}"}], requireTransparencyLog: false}
`

// TestRetry has the registry fail: the user's own retry policy holds, as it
// would for a step of Kargo's.
func TestRetry(t *testing.T) {
	for _, tc := range []struct {
		name, reason, retry string
		failing             int32 // requests that the registry answers with 500
		phase               kargoapi.PromotionPhase
		message             string
	}{
		{"recovers", "the registry recovers in time", `{errorThreshold: 50}`, 12, kargoapi.PromotionSucceeded, ""},
		{"threshold", "it does not", `{errorThreshold: 2}`, 1 << 30, kargoapi.PromotionFailed, "met error threshold of 2"},
		{"timeout", "nor before the time is up", `{errorThreshold: 1000, timeout: 2s}`, 1 << 30, kargoapi.PromotionFailed, "timed out after 2s"},
		{"none", "without a policy the first error counts", `{}`, 1 << 30, kargoapi.PromotionFailed, "met error threshold of 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProject(t)
			p.stageOf(t, tc.name, p.deploys(sandbox.RegionUS, nil), fmt.Sprintf(download, tc.retry))
			var failed atomic.Int32
			p.servers.registry.Inject(func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
				if strings.Contains(r.URL.Path, p.name) && failed.Add(1) <= tc.failing {
					http.Error(w, "out of order", http.StatusInternalServerError)
					return
				}
				registry.ServeHTTP(w, r)
			})
			t.Cleanup(func() { p.servers.registry.Inject(nil) })
			got := p.finish(t, p.promote(t, tc.name))
			if got.Status.Phase != tc.phase || !strings.Contains(got.Status.Message, tc.message) {
				t.Errorf("%s: want %s with %q, got %s", tc.reason, tc.phase, tc.message, describe(got))
			}
		})
	}
}

// TestAbort aborts, or deletes, a Promotion while it pushes: nothing is pushed
// any more.
func TestAbort(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, p *project, promotion string)
		over func(t *testing.T, p *project, promotion string)
	}{
		{"abort", func(t *testing.T, p *project, promotion string) {
			p.annotate(t, promotion, "kargo.akuity.io/abort", `{"action":"terminate","actor":"alice"}`)
		}, func(t *testing.T, p *project, promotion string) {
			got := p.finish(t, promotion)
			if got.Status.Phase != kargoapi.PromotionAborted || !strings.Contains(got.Status.Message, "alice") {
				t.Errorf("want Aborted by alice, got %s", describe(got))
			}
		}},
		{"delete", func(t *testing.T, p *project, promotion string) {
			if err := p.client.Delete(t.Context(), kind(kargoVersion, "Promotion", p.name, promotion)); err != nil {
				t.Fatal(err)
			}
		}, func(t *testing.T, p *project, promotion string) {
			eventually(t, "end of the Promotion", func() bool {
				u := kind(kargoVersion, "Promotion", p.name, promotion)
				err := p.client.Get(t.Context(), client.ObjectKeyFromObject(u), u)
				return client.IgnoreNotFound(err) == nil && err != nil
			}, func() string { return "it is still there" })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProject(t)
			p.stage(t, "prd-us", p.deploys(sandbox.RegionUS, nil))
			held := p.holdPush(t, beforePush)
			promotion := p.promote(t, "prd-us")
			held.wait(t, p, promotion)
			tc.do(t, p, promotion)
			tc.over(t, p, promotion)
			eventually(t, "end of the push", held.isLeft, func() string { return "it goes on" })
			p.nothingPushed(t)
		})
	}
}

func (p *project) annotate(t *testing.T, promotion, name, value string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, name, value)
	u := kind(kargoVersion, "Promotion", p.name, promotion)
	if err := p.client.Patch(t.Context(), u, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		t.Fatalf("cannot annotate the Promotion: %v", err)
	}
}

// TestSidecarKilled kills the sidecar while it pushes, and starts it again:
// there is one commit, whether the push had arrived or not.
func TestSidecarKilled(t *testing.T) {
	for name, at := range map[string]when{"before the push": beforePush, "after the push": afterPush} {
		t.Run(name, func(t *testing.T) {
			p := newProject(t)
			p.needsStepd(t)
			p.stage(t, "prd-us", p.deploys(sandbox.RegionUS, nil))
			held := p.holdPush(t, at)
			promotion := p.promote(t, "prd-us")
			held.wait(t, p, promotion)
			p.stepd.sidecar.Kill()
			eventually(t, "end of the push", held.isLeft, func() string { return "it goes on" })
			if err := p.stepd.startSidecar(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := p.succeed(t, promotion)
			p.oneCommitEach(t, promotion)
			commit, _ := output(t, got, "deploy::commit")["commit"].(string)
			if commits := p.pushed(t); len(commits) == 1 && commits[0] != commit {
				t.Errorf("the step says it made %s, there is %s", commit, commits[0])
			}
		})
	}
}

// TestWebhookDown stops the webhook: Promotions, Stages and tasks with our
// steps cannot be made, all others can, and those that run go on.
func TestWebhookDown(t *testing.T) {
	p := newProject(t)
	p.needsStepd(t)
	p.stage(t, "prd-us", p.deploys(sandbox.RegionUS, nil))
	p.stageOf(t, "plain", nil, `[{uses: compose-output, as: out, config: {a: b}}]`)
	held := p.holdStep(t, "deploy::commit")
	running := p.promote(t, "prd-us")
	p.heldAt(t, running, "deploy::commit")

	p.stepd.webhook.Stop(10 * time.Second)
	ours := p.stageObject(t, "ours", p.deploys(sandbox.RegionUS, nil), fmt.Sprintf(download, "{}"))
	for what, err := range map[string]error{
		"a Promotion": p.client.Create(t.Context(), p.promotion("prd-us")),
		"a Stage":     p.client.Create(t.Context(), ours),
	} {
		if !refused(err) || !strings.Contains(err.Error(), "stepd") {
			t.Errorf("%s with our steps while the webhook is down: want a refusal that names it, got %v", what, err)
		}
	}
	p.succeed(t, p.promote(t, "plain"))
	p.annotate(t, running, "example.com/touched", "yes")
	held.open()
	p.succeed(t, running)

	if err := p.stepd.startWebhook(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.create(t, ours)
	p.succeed(t, p.promote(t, "ours"))
	p.oneCommitEach(t, running)
}

// TestStrangeAnswers has something else than the sidecar answer: whatever it
// says, the step ends at once.
func TestStrangeAnswers(t *testing.T) {
	p := newProject(t)
	p.needsStepd(t)
	const html = "<!DOCTYPE html><html><body>It works!</body></html>"
	for _, tc := range []struct {
		name, contentType, body string
		code                    int
	}{
		{"401", "application/json", `{"status":"Failed","message":"no","output":null}`, 401},
		{"404", "text/html", html, 404},
		{"429", "text/plain", "slow down", 429},
		{"500", "text/html", html, 500},
		{"503-running", "application/json", `{"status":"Running","message":"","output":null}`, 503},
		{"500-succeeded", "application/json", `{"status":"Succeeded","message":"","output":{}}`, 500},
		{"html", "text/html", html, 200},
		{"html-as-json", "application/json", html, 200},
		{"empty", "application/json", "", 200},
		{"no-content", "", "", 204},
		{"null", "application/json", "null", 200},
		{"list", "application/json", `["Running"]`, 200},
		{"cut", "application/json", `{"status":"Runni`, 200},
		{"unknown-status", "application/json", `{"status":"Fine","message":"","output":null}`, 200},
		{"errored", "application/json", `{"status":"Errored","message":"broken","output":null}`, 200},
		{"yaml", "application/yaml", "status: Running\n", 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p.stageOf(t, tc.name, p.deploys(sandbox.RegionUS, nil), fmt.Sprintf(download, `{errorThreshold: 5, timeout: 10m}`))
			var answers atomic.Int32
			p.stepd.front.intercept(p.name, func(w http.ResponseWriter, _ call) bool {
				answers.Add(1)
				w.Header().Set("Content-Type", tc.contentType)
				w.WriteHeader(tc.code)
				_, _ = w.Write([]byte(tc.body))
				return true
			})
			t.Cleanup(func() { p.stepd.front.intercept(p.name, nil) })
			got := p.finish(t, p.promote(t, tc.name))
			if got.Status.Phase != kargoapi.PromotionFailed {
				t.Errorf("want Failed, got %s", describe(got))
			}
			if n := answers.Load(); n != 1 {
				t.Errorf("the step asked %d times, want once", n)
			}
		})
	}
}

// TestLostWorkDir takes the work dir away between two passes, as a restart of
// Kargo's controller does: everything is done again, and committed once.
func TestLostWorkDir(t *testing.T) {
	p := newProject(t)
	p.needsStepd(t)
	p.stage(t, "prd-us", p.deploys(sandbox.RegionUS, nil))
	held := p.holdStep(t, "deploy::commit")
	promotion := p.promote(t, "prd-us")
	dir := filepath.Join(p.workRoot, "promotion-"+p.heldAt(t, promotion, "deploy::commit").UID)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	downloads := func() (n int) {
		for _, c := range p.stepd.front.received(p.name) {
			if c.Alias == "deploy::config" {
				n++
			}
		}
		return n
	}
	eventually(t, "second download", func() bool { return downloads() > 1 }, func() string { return describe(p.get(t, promotion)) })
	held.open()
	p.succeed(t, promotion)
	p.oneCommitEach(t, promotion)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the work dir is left behind: %v", err)
	}
}

// TestUpgradeAndKeyRotation upgrades webhook and sidecar and gives the webhook
// a new key while Promotions run: they go on. Without the old public key, those
// made with it fail.
func TestUpgradeAndKeyRotation(t *testing.T) {
	p := newProject(t)
	p.needsStepd(t)
	for _, stage := range []string{"before", "late", "after"} {
		p.stage(t, stage, p.deploys(sandbox.RegionUS, vars{"path": stage + "/values.yaml"}))
	}
	held := p.holdStep(t, "deploy::commit")
	before, late := p.promote(t, "before"), p.promote(t, "late")
	p.heldAt(t, before, "deploy::commit")
	p.heldAt(t, late, "deploy::commit")

	old, next := p.stepd.signingKey, "key-"+p.name
	if err := p.stepd.newSigningKey(next); err != nil {
		t.Fatal(err)
	}
	p.stepd.webhook.Stop(10 * time.Second)
	if err := p.stepd.startWebhook(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.stepd.sidecar.Stop(10 * time.Second)
	if err := p.stepd.startSidecar(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := p.promote(t, "after")
	p.heldAt(t, after, "deploy::commit")
	// One of the old ones stays behind until the old key is gone.
	p.stepd.front.intercept(p.name, func(w http.ResponseWriter, c call) bool {
		select {
		case <-held.opened:
			return false
		default:
		}
		if c.Promotion != late {
			return false
		}
		answer(w, http.StatusOK, `{"status":"Running","message":"held","output":null}`)
		return true
	})
	p.succeed(t, before)
	p.succeed(t, after)
	if err := p.stepd.retireSigningKey(old); err != nil {
		t.Fatal(err)
	}
	p.stepd.sidecar.Stop(10 * time.Second)
	if err := p.stepd.startSidecar(t.Context()); err != nil {
		t.Fatal(err)
	}
	held.open()
	got := p.finish(t, late)
	if got.Status.Phase != kargoapi.PromotionFailed || !strings.Contains(got.Status.Message, "unknown key") {
		t.Errorf("the key is gone: want Failed for an unknown key, got %s", describe(got))
	}
	p.oneCommitEach(t, before, after)
}

// TestControllerRestarted ends Kargo's controller while a step pushes. It stored
// nothing of the pass, so it starts at the step that it stored last: here the
// first, in a work dir where everything has been done before.
func TestControllerRestarted(t *testing.T) {
	p := newProject(t)
	if p.restartKargo == nil {
		t.Skip("Kargo's controller is not the suite's to restart")
	}
	p.stage(t, "prd-us", p.deploys(sandbox.RegionUS, nil))
	held := p.holdPush(t, afterPush)
	promotion := p.promote(t, "prd-us")
	held.wait(t, p, promotion)
	p.restartKargo()
	held.open()
	p.succeed(t, promotion)
	p.oneCommitEach(t, promotion)
}
