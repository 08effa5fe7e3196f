package builtin

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/steps"
)

func TestKustomizeSetImage(t *testing.T) {
	freight := func(images ...steps.Image) map[string]steps.FreightReference {
		return map[string]steps.FreightReference{"Warehouse/a": {Origin: steps.FreightOrigin{Kind: "Warehouse", Name: "a"}, Images: images}}
	}
	for name, tc := range map[string]struct {
		reason  string
		in      string
		config  config
		freight map[string]steps.FreightReference
		want    string
		message string
	}{
		"F39": {"other images stay, sorted by name; comments stay", "# head\nimages: # why\n  - name: z\n    newTag: old\n  - name: b\n    newName: bb\n    digest: sha256:0\nnamePrefix: p-\n",
			config{"images": []any{map[string]any{"image": "z", "tag": "1.10"}, map[string]any{"image": "reg/a", "name": "a", "newName": "aa", "digest": "sha256:1"}}}, nil,
			"# head\nimages: # why\n- name: a\n  newName: aa\n  digest: sha256:1\n- name: b\n  newName: bb\n  digest: sha256:0\n- name: z\n  newTag: \"1.10\"\nnamePrefix: p-\n",
			"Updated k to use new images\n\n- aa@sha256:1\n- bb@sha256:0\n- z:1.10"},
		"absent": {"the field is added", "resources: [a.yaml]\n", config{"images": []any{map[string]any{"image": "a", "tag": "v1"}}}, nil,
			"resources: [a.yaml]\nimages:\n- name: a\n  newTag: v1\n", "Updated k to use new image\n\n- a:v1"},
		"star": {"a star keeps what is there, or nothing", "images:\n- name: a\n  newName: keep\n  newTag: old\n", config{"images": []any{map[string]any{"image": "a", "newName": "*", "tag": "v2"}, map[string]any{"image": "b", "newName": "*", "tag": "*"}}}, nil,
			"images:\n- name: a\n  newName: keep\n  newTag: v2\n- name: b\n", "Updated k to use new images\n\n- b\n- keep:v2"},
		"whole entry": {"a target replaces the whole entry", "images:\n- name: a\n  newName: gone\n  digest: sha256:0\n", config{"images": []any{map[string]any{"image": "a", "tag": "v2"}}}, nil,
			"images:\n- name: a\n  newTag: v2\n", "Updated k to use new image\n\n- a:v2"},
		"freight": {"without images, those of the Freight", "images: []\n", config{}, freight(steps.Image{RepoURL: "r/a", Tag: "v1", Digest: "sha256:1"}),
			"images: [{name: r/a, newTag: v1, digest: 'sha256:1'}]\n", "Updated k to use new image\n\n- r/a:v1@sha256:1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPromotion(t)
			p.freight.Freight = tc.freight
			p.write("k/Kustomization", tc.in)
			tc.config["path"] = "k"
			out := p.must(KustomizeSetImage(memory{}), tc.config)
			if diff := cmp.Diff(tc.want, p.read("k/Kustomization")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			if diff := cmp.Diff(map[string]any{"commitMessage": tc.message}, out); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}

	p := newPromotion(t)
	p.write("k/kustomization.yml", "- not a mapping\n")
	r, err := p.run(KustomizeSetImage(memory{}), config{"path": "k", "images": []any{map[string]any{"image": "a", "tag": "v1"}}})
	outcome{steps.Errored, false, "not a mapping"}.check(t, "a list", r, err)
	p.freight.Freight = freight(steps.Image{RepoURL: "r/a"}, steps.Image{RepoURL: "r/a"})
	r, err = p.run(KustomizeSetImage(memory{}), config{"path": "k"})
	outcome{steps.Errored, false, "manual configuration required due to ambiguous result"}.check(t, "two images of one name", r, err)

	p = newPromotion(t)
	p.write("k/kustomization.yml", "{}\n")
	p.freight.Freight = freight(steps.Image{RepoURL: "r/a", Tag: "v1"})
	for _, warehouse := range []string{"a", "b"} {
		p.requests = append(p.requests, steps.FreightRequest{Origin: steps.FreightOrigin{Kind: "Warehouse", Name: warehouse}})
	}
	for reason, store := range map[string]memory{
		"two subscriptions of one Warehouse name the image": {"a": "r/a r/b r/a"},
		"two Warehouses subscribe to the image":             {"a": "r/a", "b": "r/b r/a"},
		"the image need not be in the Freight":              {"a": "r/a r/b", "b": "r/b"},
	} {
		r, err = p.run(KustomizeSetImage(store), config{"path": "k"})
		outcome{steps.Errored, false, "manual configuration required due to ambiguous result"}.check(t, reason, r, err)
	}
	p.must(KustomizeSetImage(memory{"a": "r/a", "b": "r/b"}), config{"path": "k"})
	p.must(KustomizeSetImage(memory{"a": "r/a", "b": "r/a"}), config{"path": "k", "images": []any{map[string]any{"image": "r/a", "tag": "v1"}}})

	p.write("k/Kustomization", "{}")
	r, err = p.run(KustomizeSetImage(memory{}), config{"path": "k"})
	outcome{steps.Errored, false, "ambiguous result"}.check(t, "F42", r, err)
	r, err = p.run(KustomizeSetImage(memory{}), config{"path": "k", "images": []any{map[string]any{"image": "a"}}})
	outcome{steps.Failed, true, "images.0: Must validate one and only one schema (oneOf)"}.check(t, "F41", r, err)
}
