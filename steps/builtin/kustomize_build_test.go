package builtin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/steps"
)

func TestKustomizeBuild(t *testing.T) {
	p := newPromotion(t)
	p.write("base/kustomization.yaml", "resources: [d.yaml, c.yaml]\n")
	p.write("base/d.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: Web, namespace: n1}\n")
	p.write("base/c.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: n1}\n")
	p.write("env/prod/kustomization.yaml", "resources: [../../base]\nnameSuffix: -x\n")
	if out := p.must(KustomizeBuild(), config{"path": "env/prod", "outPath": "out/all.yml"}); out != nil {
		t.Errorf("output %v", out)
	}
	want := "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: Web-x\n  namespace: n1\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: n1\n"
	if diff := cmp.Diff(want, p.read("out/all.yml")); diff != "" {
		t.Errorf("one file (-want +got):\n%s", diff)
	}
	for format, names := range map[string][]string{
		"":          {"n1-deployment-web-x.yaml", "namespace-n1.yaml"},
		"kargo":     {"n1-deployment-web-x.yaml", "namespace-n1.yaml"},
		"kustomize": {"apps_v1_deployment_web-x.yaml", "v1_namespace_n1.yaml"},
	} {
		cfg := config{"path": "env/prod", "outPath": "dir-" + format}
		if format != "" {
			cfg["outputFormat"] = format
		}
		p.must(KustomizeBuild(), cfg)
		entries, err := os.ReadDir(filepath.Join(p.dir, "dir-"+format))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		if diff := cmp.Diff(names, got); diff != "" {
			t.Errorf("format %q (-want +got):\n%s", format, diff)
		}
	}
}

func TestKustomizeBuildStaysInside(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret.yaml")
	if err := os.WriteFile(secret, []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "kustomization.yaml"), []byte("resources: [secret.yaml]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, resource := range map[string]string{"absolute": secret, "directory": outside, "link": "link.yaml", "linked directory": "linkdir", "climbing": "../../../../../../../../.." + secret} {
		p := newPromotion(t)
		p.write("k/kustomization.yaml", "resources: ['"+resource+"']\n")
		for link, to := range map[string]string{"link.yaml": secret, "linkdir": outside} {
			if err := os.Symlink(to, filepath.Join(p.dir, "k", link)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := p.run(KustomizeBuild(), config{"path": "k", "outPath": "o.yaml"})
		outcome{steps.Errored, false, "cannot build the Kustomization"}.check(t, name, r, err)
		if p.exists("o.yaml") {
			t.Errorf("%s: something was written", name)
		}
	}
	r, err := newPromotion(t).run(KustomizeBuild(), config{"path": "none", "outPath": "o.yaml"})
	outcome{steps.Errored, false, "cannot build the Kustomization"}.check(t, "no directory", r, err)
}

func TestKustomizeBuildWithoutHelm(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	p := newPromotion(t)
	p.write("k/kustomization.yaml", "helmCharts:\n- name: c\n  releaseName: r\n")
	p.write("k/charts/c/Chart.yaml", "apiVersion: v2\nname: c\nversion: 0.1.0\n")
	r, err := p.run(KustomizeBuild(), config{"path": "k", "outPath": "o.yaml"})
	outcome{steps.Errored, false, "install helm, or render the charts with helm-template"}.check(t, "no helm", r, err)
}
