package builtin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/internal/helmrun"
	"github.com/stepd/stepd/steps"
)

// stepdHelm builds stepd-helm as make does.
func stepdHelm(t *testing.T) helmrun.Command {
	t.Helper()
	path := filepath.Join(t.TempDir(), helmrun.Program)
	cmd := osexec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", path, "../../cmd/stepd-helm")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build stepd-helm: %v\n%s", err, out)
	}
	return helmrun.Command{Path: path}
}

func writeChart(p *promotion, dir, name string, more ...string) {
	p.write(dir+"/Chart.yaml", "apiVersion: v2\nname: "+name+" # the name\nversion: 0.1.0\n"+strings.Join(more, ""))
	p.write(dir+"/values.yaml", "tag: none\n")
	p.write(dir+"/templates/d.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {{ .Release.Name }}-web\n  namespace: {{ .Release.Namespace }}\n  labels: {tag: {{ .Values.tag | quote }}, kube: {{ .Capabilities.KubeVersion.Version }}, extra: {{ .Capabilities.APIVersions.Has \"example.com/v1\" }}}\n")
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
	helm := HelmTemplate(stepdHelm(t))
	for _, tc := range []struct {
		reason string
		config config
		files  map[string]string
		// want and wantNot are parts of what is rendered, all files together.
		want, wantNot []string
		// tree has the names of the files; nil is the single o.yaml.
		tree []string
	}{
		{reason: "values of the chart, the project as namespace", want: []string{"name: r-web", "namespace: demo", `tag: "none"`, "# Source: web/templates/d.yaml", "kind: ConfigMap"}, wantNot: []string{"NOTES", "kind: CustomResourceDefinition"}},
		{reason: "the namespace given", config: config{"namespace": "ns"}, want: []string{"namespace: ns"}},
		{reason: "later files win, missing ones are ignored", config: config{"valuesFiles": []any{"v1.yaml", "none.yaml", "v2.yaml"}, "ignoreMissingValueFiles": true}, want: []string{`tag: "two"`}},
		{reason: "set wins over files", config: config{"valuesFiles": []any{"v1.yaml"}, "setValues": []any{map[string]any{"key": "tag", "value": "set"}}}, want: []string{`tag: "set"`}},
		{reason: "literal values are not parsed", config: config{"setValues": []any{map[string]any{"key": "tag", "value": "a,b=c", "literal": true}}}, want: []string{`tag: "a,b=c"`}},
		{reason: "--set syntax has lists", config: config{"setValues": []any{map[string]any{"key": "tag", "value": "{a,b}"}}}, want: []string{`tag: "[a b]"`}},
		{reason: "the Kubernetes version given", config: config{"kubeVersion": "1.30.4"}, want: []string{"kube: v1.30.4"}},
		{reason: "API versions given", config: config{"apiVersions": []any{"example.com/v1"}}, want: []string{"extra: true"}},
		{reason: "API versions not given", want: []string{"extra: false"}},
		{reason: "custom resource definitions", config: config{"includeCRDs": true}, want: []string{"kind: CustomResourceDefinition"}},
		{reason: "hooks and tests are rendered", want: []string{"name: hook", "name: test"}},
		{reason: "without hooks there are no tests either", config: config{"disableHooks": true}, wantNot: []string{"name: hook", "name: test"}},
		{reason: "without tests", config: config{"skipTests": true}, want: []string{"name: hook"}, wantNot: []string{"name: test"}},
		{reason: "no cluster is asked", files: map[string]string{"chart/templates/l.yaml": "kind: L\nfound: {{ lookup \"v1\" \"Secret\" \"\" \"\" | len }}\n"}, want: []string{"found: 0"}},
		{reason: "no name is resolved", files: map[string]string{"chart/templates/l.yaml": "kind: L\nip: {{ getHostByName \"localhost\" | quote }}\n"}, want: []string{`ip: ""`}},
		{reason: "a schema that holds", files: map[string]string{"chart/values.schema.json": `{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"tag":{"$ref":"#/definitions/t"}},"definitions":{"t":{"type":"string"}}}`}, want: []string{`tag: "none"`}},
		{reason: "helm's layout", config: config{"outPath": "o"}, tree: []string{"web/templates/c.yaml", "web/templates/d.yaml", "web/templates/h.yaml", "web/templates/t.yaml"}, want: []string{"---\n# Source: web/templates/d.yaml\n"}},
		{reason: "helm's layout, release", config: config{"outPath": "o", "useReleaseName": true, "includeCRDs": true}, tree: []string{"r/crds/c.yaml", "r/templates/c.yaml", "r/templates/d.yaml", "r/templates/h.yaml", "r/templates/t.yaml"}},
		{reason: "flat layout", config: config{"outPath": "o", "outLayout": "flat"}, tree: []string{"apps-deployment-demo-r-web.yaml", "configmap-c.yaml", "pod-hook.yaml", "pod-test.yaml"}},
		{reason: "flat layout, a group with dots", config: config{"outPath": "o", "outLayout": "flat", "includeCRDs": true, "disableHooks": true}, tree: []string{"apiextensions_k8s_io-customresourcedefinition-crd.yaml", "apps-deployment-demo-r-web.yaml", "configmap-c.yaml"}},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			p := newPromotion(t)
			writeChart(p, "chart", "web")
			p.write("chart/templates/NOTES.txt", "NOTES")
			p.write("chart/templates/h.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: hook\n  annotations: {helm.sh/hook: pre-install}\n")
			p.write("chart/templates/t.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: test\n  annotations: {helm.sh/hook: test}\n")
			p.write("chart/crds/c.yaml", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: crd\n")
			p.write("v1.yaml", "tag: one\n")
			p.write("v2.yaml", "tag: two\n")
			for name, text := range tc.files {
				p.write(name, text)
			}
			cfg := config{"path": "chart", "releaseName": "r", "outPath": "o.yaml"}
			maps.Copy(cfg, tc.config)
			p.must(helm, cfg)
			text := ""
			if tc.tree == nil {
				info, err := os.Stat(filepath.Join(p.dir, "o.yaml"))
				if err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%v, %v", info.Mode(), err)
				}
				text = p.read("o.yaml")
			} else {
				names := tree(t, filepath.Join(p.dir, "o"))
				if diff := cmp.Diff(tc.tree, names); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
				for _, name := range names {
					text += p.read("o/" + name)
				}
			}
			for _, want := range tc.want {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in\n%s", want, text)
				}
			}
			for _, not := range tc.wantNot {
				if strings.Contains(text, not) {
					t.Errorf("%q is in\n%s", not, text)
				}
			}
		})
	}
}

func TestHelmTemplateRefuses(t *testing.T) {
	helm := HelmTemplate(stepdHelm(t))
	asked := false
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	t.Cleanup(server.Close)
	for _, tc := range []struct {
		reason string
		config config
		files  map[string]string
		text   string
	}{
		{"values that do not exist", config{"valuesFiles": []any{"none.yaml"}}, nil, `values file "none.yaml" does not exist`},
		{"a template that fails", nil, map[string]string{"chart/templates/b.yaml": `{{ fail "no" }}`}, "failed to render chart"},
		{"no chart", config{"path": "none"}, nil, "failed to load chart"},
		{"a version that is none", config{"kubeVersion": "x"}, nil, "invalid kubeVersion"},
		{"a library", nil, map[string]string{"chart/Chart.yaml": "apiVersion: v2\nname: web\nversion: 0.1.0\ntype: library\n"}, "library charts are not installable"},
		{"a cluster that is too old", config{"kubeVersion": "1.30.0"}, map[string]string{"chart/Chart.yaml": "apiVersion: v2\nname: web\nversion: 0.1.0\nkubeVersion: '>=1.31'\n"}, "incompatible with Kubernetes"},
		{"dependencies that are not there", nil, map[string]string{"chart/Chart.yaml": "apiVersion: v2\nname: web\nversion: 0.1.0\ndependencies: [{name: dep, version: '1', repository: 'https://example.com'}]\n"}, `dependency "dep" is in Chart.yaml`},
		{"values against the schema", nil, map[string]string{"chart/values.schema.json": `{"properties":{"tag":{"type":"number"}}}`}, "tag"},
		{"a schema that reads files", nil, map[string]string{"chart/values.schema.json": `{"allOf":[{"$ref":"file:///etc/hostname"}]}`}, `refers to "file:///etc/hostname"`},
		{"a schema that asks servers", nil, map[string]string{"chart/values.schema.json": `{"properties":{"tag":{"$ref":"` + server.URL + `"}}}`}, "only references inside"},
		{"a schema of a draft elsewhere", nil, map[string]string{"chart/values.schema.json": `{"$schema":"` + server.URL + `"}`}, "only references inside"},
		{"a chart that wants all the memory", nil, map[string]string{"chart/templates/b.yaml": `{{ range until 2147483647 }}{{ end }}`}, "out of memory"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			p := newPromotion(t)
			writeChart(p, "chart", "web")
			for name, text := range tc.files {
				p.write(name, text)
			}
			cfg := config{"path": "chart", "releaseName": "r", "outPath": "o.yaml"}
			maps.Copy(cfg, tc.config)
			r, err := p.run(helm, cfg)
			outcome{steps.Errored, false, tc.text}.check(t, tc.reason, r, err)
			if p.exists("o.yaml") || asked {
				t.Errorf("something was written, or a server asked (%v)", asked)
			}
		})
	}

	p := newPromotion(t)
	writeChart(p, "chart", "web")
	if err := os.Symlink("/etc/hostname", filepath.Join(p.dir, "chart/leak")); err != nil {
		t.Fatal(err)
	}
	r, err := p.run(helm, config{"path": "chart", "releaseName": "r", "outPath": "o.yaml"})
	outcome{steps.Errored, false, "leads out of the work dir"}.check(t, "a symlink", r, err)
}

// A template cannot be interrupted; its process can.
func TestHelmTemplateEnds(t *testing.T) {
	p := newPromotion(t)
	writeChart(p, "chart", "web")
	p.write("chart/templates/b.yaml", `{{ range until 100000 }}{{ range until 100000 }}{{ end }}{{ end }}`)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := HelmTemplate(stepdHelm(t)).New(p.caps).Run(ctx, &steps.Context{
		WorkDir: p.dir, Config: config{"path": "chart", "releaseName": "r", "outPath": "o.yaml"}, Project: "demo", Log: slog.New(slog.DiscardHandler),
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// chartRepository is a chart repository with versions 1.0.0 and 1.1.0 of dep,
// and with a password.
func chartRepository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.FileServer(http.Dir(dir)).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	index := "apiVersion: v1\nentries:\n  dep:\n"
	for _, version := range []string{"1.1.0", "1.0.0"} {
		file := "dep-" + version + ".tgz"
		archive := chartArchive(t, version)
		if err := os.WriteFile(filepath.Join(dir, file), archive, 0o600); err != nil {
			t.Fatal(err)
		}
		index += fmt.Sprintf("  - {apiVersion: v2, name: dep, version: %s, digest: %x, urls: [%s/%s]}\n", version, sha256.Sum256(archive), server.URL, file)
	}
	if err := os.WriteFile(filepath.Join(dir, "index.yaml"), []byte(index), 0o600); err != nil {
		t.Fatal(err)
	}
	return server.URL
}

func chartArchive(t *testing.T, version string) []byte {
	t.Helper()
	p := &promotion{t: t, dir: t.TempDir()}
	writeChart(p, "dep", "dep")
	p.write("dep/Chart.yaml", "apiVersion: v2\nname: dep\nversion: "+version+"\n")
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	tarred := tar.NewWriter(zipped)
	if err := errors.Join(tarred.AddFS(os.DirFS(p.dir)), tarred.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func TestHelmUpdateChart(t *testing.T) {
	url, command := chartRepository(t), stepdHelm(t)
	helm := HelmUpdateChart(command)
	p := newPromotion(t)
	p.caps.Credentials = helmCredentials{}
	writeChart(p, "libs/local", "local")
	writeChart(p, "umbrella", "umbrella", "dependencies:\n- name: dep\n  repository: "+url+"\n  version: 1.0.0\n- name: local\n  repository: file://../libs/local\n  version: '>=0.0.1'\n")
	out := p.must(helm, config{"path": "umbrella"})
	if diff := cmp.Diff("Updated chart dependencies for umbrella\n\n- dep: 1.0.0\n- local: 0.1.0", out["commitMessage"]); diff != "" {
		t.Errorf("first (-want +got):\n%s", diff)
	}
	lock := p.read("umbrella/Chart.lock")
	if out := p.must(helm, config{"path": "umbrella"}); out != nil || p.read("umbrella/Chart.lock") != lock {
		t.Errorf("nothing to do: %v, and Chart.lock is\n%s", out, p.read("umbrella/Chart.lock"))
	}
	out = p.must(helm, config{"path": "umbrella", "charts": []any{map[string]any{"repository": url, "name": "dep", "version": "1.1.0"}}})
	if diff := cmp.Diff("Updated chart dependencies for umbrella\n\n- dep: 1.0.0 -> 1.1.0", out["commitMessage"]); diff != "" {
		t.Errorf("update (-want +got):\n%s", diff)
	}
	if !p.exists("umbrella/charts/dep-1.1.0.tgz") || !strings.Contains(p.read("umbrella/Chart.yaml"), "version: 1.1.0\n") || !strings.Contains(p.read("umbrella/Chart.yaml"), "# the name") {
		t.Errorf("Chart.yaml:\n%s", p.read("umbrella/Chart.yaml"))
	}

	// Another promotion fetches what Chart.lock says, and renders it.
	if err := os.RemoveAll(filepath.Join(p.dir, "umbrella/charts")); err != nil {
		t.Fatal(err)
	}
	p.must(HelmTemplate(command), config{"path": "umbrella", "releaseName": "r", "outPath": "o.yaml", "buildDependencies": true})
	if !strings.Contains(p.read("o.yaml"), "# Source: umbrella/charts/dep/templates/d.yaml") {
		t.Errorf("the dependency is not in\n%s", p.read("o.yaml"))
	}

	p.caps.Credentials = nil
	r, err := p.run(helm, config{"path": "umbrella"})
	outcome{steps.Errored, false, "failed to update chart dependencies"}.check(t, "no credentials", r, err)
}

func TestHelmUpdateChartStaysInside(t *testing.T) {
	for path, text := range map[string]string{"/etc": "must be relative", "../../x": "leads out of the work dir", "../link": "leads out of the work dir"} {
		p := newPromotion(t)
		writeChart(p, "umbrella", "umbrella", "dependencies:\n- name: local\n  repository: file://"+path+"\n  version: '1'\n")
		if err := os.Symlink(t.TempDir(), filepath.Join(p.dir, "link")); err != nil {
			t.Fatal(err)
		}
		r, err := p.run(HelmUpdateChart(helmrun.Command{}), config{"path": "umbrella"})
		outcome{steps.Errored, false, text}.check(t, path, r, err)
	}
}

func TestHelmMissing(t *testing.T) {
	p := newPromotion(t)
	writeChart(p, "c", "c")
	r, err := p.run(HelmTemplate(helmrun.Command{}), config{"path": "c", "releaseName": "r", "outPath": "o.yaml"})
	outcome{steps.Errored, false, "needs stepd-helm"}.check(t, "no stepd-helm beside the test", r, err)
}

type helmCredentials struct{}

func (helmCredentials) Get(_ context.Context, _ string, typ steps.CredentialType, _ string) (*steps.Credentials, error) {
	if typ != steps.CredentialsHelm {
		return nil, nil
	}
	return &steps.Credentials{Username: "u", Password: "secret"}, nil
}
