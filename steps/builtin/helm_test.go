package builtin

import (
	"context"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/steps"
)

// needHelm skips where there is no helm; the steps say so, too.
func needHelm(t *testing.T) {
	t.Helper()
	if _, err := osexec.LookPath("helm"); err != nil {
		t.Skip("there is no helm binary")
	}
}

func writeChart(p *promotion, dir, name string, more ...string) {
	p.write(dir+"/Chart.yaml", "apiVersion: v2\nname: "+name+" # the name\nversion: 0.1.0\n"+strings.Join(more, ""))
	p.write(dir+"/values.yaml", "tag: none\n")
	p.write(dir+"/templates/d.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {{ .Release.Name }}-web\n  namespace: {{ .Release.Namespace }}\n  labels: {tag: {{ .Values.tag | quote }}, kube: {{ .Capabilities.KubeVersion.Version }}}\n")
	p.write(dir+"/templates/c.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\n")
}

func tree(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestHelmTemplate(t *testing.T) {
	needHelm(t)
	p := newPromotion(t)
	writeChart(p, "chart", "web")
	p.write("v.yaml", "tag: file\n")
	base := config{"path": "chart", "releaseName": "r", "kubeVersion": "1.30.0"}
	with := func(more config) config {
		cfg := config{}
		for _, m := range []config{base, more} {
			for k, v := range m {
				cfg[k] = v
			}
		}
		return cfg
	}
	p.must(HelmTemplate(), with(config{"outPath": "o/all.yaml", "valuesFiles": []any{"v.yaml", "none.yaml"}, "ignoreMissingValueFiles": true}))
	for _, want := range []string{"name: r-web", "namespace: demo", `tag: "file"`, "kube: v1.30.0", "kind: ConfigMap"} {
		if !strings.Contains(p.read("o/all.yaml"), want) {
			t.Errorf("%q is not in\n%s", want, p.read("o/all.yaml"))
		}
	}
	p.must(HelmTemplate(), with(config{"outPath": "o/set.yaml", "valuesFiles": []any{"v.yaml"}, "namespace": "ns", "setValues": []any{map[string]any{"key": "tag", "value": "a,b=c", "literal": true}}}))
	for _, want := range []string{"namespace: ns", `tag: "a,b=c"`} {
		if !strings.Contains(p.read("o/set.yaml"), want) {
			t.Errorf("%q is not in\n%s", want, p.read("o/set.yaml"))
		}
	}
	for name, tc := range map[string]struct {
		config config
		want   []string
	}{
		"helm":    {config{}, []string{"web/templates/c.yaml", "web/templates/d.yaml"}},
		"release": {config{"useReleaseName": true}, []string{"r/templates/c.yaml", "r/templates/d.yaml"}},
		"flat":    {config{"outLayout": "flat"}, []string{"apps-deployment-demo-r-web.yaml", "configmap-c.yaml"}},
	} {
		tc.config["outPath"] = "dir-" + name
		p.must(HelmTemplate(), with(tc.config))
		if diff := cmp.Diff(tc.want, tree(t, filepath.Join(p.dir, "dir-"+name))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}

	r, err := p.run(HelmTemplate(), with(config{"outPath": "x.yaml", "valuesFiles": []any{"none.yaml"}}))
	outcome{steps.Errored, false, `values file "none.yaml" does not exist`}.check(t, "missing values", r, err)
	p.write("chart/templates/bad.yaml", "{{ fail \"no\" }}")
	r, err = p.run(HelmTemplate(), with(config{"outPath": "x.yaml"}))
	outcome{steps.Errored, false, "failed to render chart"}.check(t, "template error", r, err)
	if err := os.Symlink("/etc/hostname", filepath.Join(p.dir, "chart/leak")); err != nil {
		t.Fatal(err)
	}
	r, err = p.run(HelmTemplate(), with(config{"outPath": "x.yaml"}))
	outcome{steps.Errored, false, "leads out of the work dir"}.check(t, "symlink", r, err)
	if p.exists("x.yaml") {
		t.Error("something was written")
	}
}

func TestHelmUpdateChart(t *testing.T) {
	needHelm(t)
	// A real chart repository with a password.
	repo := t.TempDir()
	for _, version := range []string{"1.0.0", "1.1.0"} {
		p := &promotion{t: t, dir: t.TempDir()}
		writeChart(p, "dep", "dep")
		if out, err := osexec.CommandContext(t.Context(), "helm", "package", filepath.Join(p.dir, "dep"), "--version", version, "-d", repo).CombinedOutput(); err != nil {
			t.Fatalf("helm package: %v\n%s", err, out)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.FileServer(http.Dir(repo)).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	if out, err := osexec.CommandContext(t.Context(), "helm", "repo", "index", repo, "--url", server.URL).CombinedOutput(); err != nil {
		t.Fatalf("helm repo index: %v\n%s", err, out)
	}

	p := newPromotion(t)
	p.caps.Credentials = helmCredentials{}
	writeChart(p, "libs/local", "local")
	writeChart(p, "umbrella", "umbrella", "dependencies:\n- name: dep\n  repository: "+server.URL+"\n  version: 1.0.0\n- name: local\n  repository: file://../libs/local\n  version: '>=0.0.1'\n")
	out := p.must(HelmUpdateChart(), config{"path": "umbrella"})
	if diff := cmp.Diff("Updated chart dependencies for umbrella\n\n- dep: 1.0.0\n- local: 0.1.0", out["commitMessage"]); diff != "" {
		t.Errorf("first (-want +got):\n%s", diff)
	}
	lock := p.read("umbrella/Chart.lock")
	if out := p.must(HelmUpdateChart(), config{"path": "umbrella"}); out != nil || p.read("umbrella/Chart.lock") != lock {
		t.Errorf("nothing to do: %v, and Chart.lock is\n%s", out, p.read("umbrella/Chart.lock"))
	}
	out = p.must(HelmUpdateChart(), config{"path": "umbrella", "charts": []any{map[string]any{"repository": server.URL, "name": "dep", "version": "1.1.0"}}})
	if diff := cmp.Diff("Updated chart dependencies for umbrella\n\n- dep: 1.0.0 -> 1.1.0", out["commitMessage"]); diff != "" {
		t.Errorf("update (-want +got):\n%s", diff)
	}
	if !p.exists("umbrella/charts/dep-1.1.0.tgz") || !strings.Contains(p.read("umbrella/Chart.yaml"), "version: 1.1.0\n") || !strings.Contains(p.read("umbrella/Chart.yaml"), "# the name") {
		t.Errorf("Chart.yaml:\n%s", p.read("umbrella/Chart.yaml"))
	}

	p.caps.Credentials = nil
	r, err := p.run(HelmUpdateChart(), config{"path": "umbrella"})
	outcome{steps.Errored, false, "failed to update chart dependencies"}.check(t, "no credentials", r, err)
}

func TestHelmUpdateChartStaysInside(t *testing.T) {
	for path, text := range map[string]string{"/etc": "must be relative", "../../x": "leads out of the work dir", "../link": "leads out of the work dir"} {
		p := newPromotion(t)
		writeChart(p, "umbrella", "umbrella", "dependencies:\n- name: local\n  repository: file://"+path+"\n  version: '1'\n")
		if err := os.Symlink(t.TempDir(), filepath.Join(p.dir, "link")); err != nil {
			t.Fatal(err)
		}
		r, err := p.run(HelmUpdateChart(), config{"path": "umbrella"})
		outcome{steps.Errored, false, text}.check(t, path, r, err)
	}
}

func TestHelmMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	p := newPromotion(t)
	writeChart(p, "c", "c")
	r, err := p.run(HelmTemplate(), config{"path": "c", "releaseName": "r", "outPath": "o.yaml"})
	outcome{steps.Errored, false, "needs the helm binary"}.check(t, "no helm", r, err)
}

type helmCredentials struct{}

func (helmCredentials) Get(_ context.Context, _ string, typ steps.CredentialType, _ string) (*steps.Credentials, error) {
	if typ != steps.CredentialsHelm {
		return nil, nil
	}
	return &steps.Credentials{Username: "u", Password: "secret"}, nil
}
