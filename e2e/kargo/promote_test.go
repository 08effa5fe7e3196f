package kargo_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/runner/kargoapi"
)

// TestStepsOfKargoOnly promotes without any step of ours: nothing of stepd is
// in the way.
func TestStepsOfKargoOnly(t *testing.T) {
	p := newProject(t)
	p.stageOf(t, "plain", nil, `
- {uses: file-write, as: write, config: {path: a.txt, contents: "${{ ctx.stage }}"}}
- {uses: copy, as: copy, config: {inPath: a.txt, outPath: b.txt}}
- {uses: compose-output, as: out, config: {tag: "${{ imageFrom('ghcr.io/yourorg/svc').Tag }}"}}
`)
	got := p.succeed(t, p.promote(t, "plain"))
	if diff := cmp.Diff(map[string]any{"tag": sandbox.Version}, output(t, got, "out")); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	if got.Spec.Steps[0].Uses != "file-write" {
		t.Errorf("the step was rewritten to %q", got.Spec.Steps[0].Uses)
	}
}

// TestTwoRegionsAtOnce promotes both production regions at the same time.
func TestTwoRegionsAtOnce(t *testing.T) {
	p := newProject(t)
	stages := map[string]string{"prd-us": sandbox.RegionUS, "prd-ca": sandbox.RegionCA}
	names := map[string]string{}
	for stage, region := range stages {
		p.stage(t, stage, p.deploys(region, nil))
	}
	for stage := range stages {
		names[stage] = p.promote(t, stage)
	}
	var all []string
	for stage, region := range stages {
		got := p.succeed(t, names[stage])
		all = append(all, names[stage])
		commit, _ := output(t, got, "deploy::commit")["commit"].(string)
		if content := p.servers.git.MustGit(t, p.gitops, "show", "main:"+sandbox.ValuesPath(region)) + "\n"; content != string(sandbox.Promoted(region)) {
			t.Errorf("%s on main (-want +got):\n%s", region, cmp.Diff(string(sandbox.Promoted(region)), content))
		}
		digest, _ := output(t, got, "deploy::config")["digest"].(string)
		if note := p.servers.git.MustGit(t, p.gitops, "show", commit+":"+sandbox.ValuesPath(region)+".digest"); note != digest || !strings.HasPrefix(digest, "sha256:") {
			t.Errorf("%s: Kargo's step wrote digest %q, ours said %q", region, note, digest)
		}
		// What the task publishes is a later step's to use.
		if diff := cmp.Diff(map[string]any{"commit": commit}, output(t, got, "deploy")); diff != "" {
			t.Errorf("%s: the task's output (-want +got):\n%s", region, diff)
		}
		message := p.servers.git.MustGit(t, p.gitops, "show", "--no-patch", "--format=%B", commit)
		for _, trailer := range []string{
			"Config-Artifact: " + p.configs + ":" + sandbox.Config(region).Tag() + "@" + digest,
			"Kargo-Promotion: " + p.name + "/" + got.Name, "Kargo-Stage: " + p.name + "/" + stage, "Kargo-Freight: ", "Promoted-By: ",
		} {
			if !strings.Contains(message, "\n"+trailer) {
				t.Errorf("%s: no trailer %q in\n%s", region, trailer, message)
			}
		}
		if diff := cmp.Diff([]string{"CommitPushed", "VerifiedSignature"}, p.events(t, got.Name)); diff != "" {
			t.Errorf("%s: events (-want +got):\n%s", region, diff)
		}
	}
	p.oneCommitEach(t, all...)
}

// TestRefusals promotes what must not be deployed: the Promotion fails with
// stepd's words, everything after is skipped and nothing is pushed.
func TestRefusals(t *testing.T) {
	p := newProject(t)
	elsewhere := func(name, key, region string) string {
		c := sandbox.Config(region)
		c.Region = sandbox.RegionUS // the tag's
		repository, err := p.servers.publish(t.Context(), p.name+"/"+name, c, key)
		if err != nil {
			t.Fatal(err)
		}
		return repository
	}
	for _, tc := range []struct {
		name, reason, message string
		vars                  vars
	}{
		{"unsigned", "nobody signed it", "signature", vars{"configRepo": elsewhere("unsigned", "", sandbox.RegionUS)}},
		{"stranger", "somebody else signed it", "signature", vars{"configRepo": elsewhere("stranger", "stranger", sandbox.RegionUS)}},
		{"absent", "there is no such artifact", "404 Not Found", vars{"version": "v9.9.9"}},
		{"region", "the signed content is another region's", "region", vars{"configRepo": elsewhere("region", "release", sandbox.RegionCA)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p.stage(t, tc.name, p.deploys(sandbox.RegionUS, tc.vars))
			got := p.finish(t, p.promote(t, tc.name))
			if got.Status.Phase != kargoapi.PromotionFailed || !strings.Contains(got.Status.Message, tc.message) {
				t.Errorf("%s: want Failed with %q in the message, got %s", tc.reason, tc.message, describe(got))
			}
			if s := status(got, "deploy::commit"); s != "Skipped" {
				t.Errorf("%s: the commit is %s, want Skipped", tc.reason, s)
			}
			p.nothingPushed(t)
		})
	}
}

// TestArgoCD points an Application at the commit, with Kargo's own step.
func TestArgoCD(t *testing.T) {
	p := newProject(t)
	if p.argocd == "" {
		t.Skip("there is no Argo CD in this cluster")
	}
	p.stageOf(t, "prd-us", p.deploys(sandbox.RegionUS, nil), `
- {task: {name: deploy}, as: deploy}
- uses: argocd-update
  as: sync
  config:
    apps: [{name: "`+p.name+`", sources: [{repoURL: "${{ vars.gitopsRepo }}", desiredRevision: "${{ quote(outputs.deploy.commit) }}"}]}]
`)
	p.application(t, "prd-us")
	got := p.succeed(t, p.promote(t, "prd-us"))
	commit, _ := output(t, got, "deploy")["commit"].(string)
	if synced := p.synced(t); synced != commit || commit == "" {
		t.Errorf("Argo CD synced %q, the commit is %q", synced, commit)
	}
	p.oneCommitEach(t, got.Name)
}
