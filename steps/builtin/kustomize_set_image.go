package builtin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	kyaml "sigs.k8s.io/kustomize/kyaml/yaml"

	"github.com/stepd/stepd/steps"
)

// kustomizationFiles are the names kustomize recognises.
func kustomizationFiles() []string {
	return []string{"kustomization.yaml", "kustomization.yml", "Kustomization"}
}

// kustomizeImage is an entry of a Kustomization's images.
type kustomizeImage struct {
	Name      string `yaml:"name,omitempty"`
	NewName   string `yaml:"newName,omitempty"`
	TagSuffix string `yaml:"tagSuffix,omitempty"`
	NewTag    string `yaml:"newTag,omitempty"`
	Digest    string `yaml:"digest,omitempty"`
}

type imageSetting struct {
	Image   string `json:"image"`
	Name    string `json:"name"`
	NewName string `json:"newName"`
	Tag     string `json:"tag"`
	Digest  string `json:"digest"`
}

// Subscriptions is the edge to what a project's Warehouses subscribe to.
type Subscriptions interface {
	// SubscribedImages returns the repository of every image subscription of a
	// Warehouse, one that has several as often. Of a Warehouse that is not
	// known there are none.
	SubscribedImages(ctx context.Context, project, warehouse string) ([]string, error)
}

// KustomizeSetImage is `kustomize-set-image`: it sets images in a Kustomization
// file, those configured or else all of the Freight. Entries for other images
// stay; the file is written as kyaml formats it.
func KustomizeSetImage(subscriptions Subscriptions) steps.Registration {
	return stateless("kustomize-set-image", func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		return runKustomizeSetImage(ctx, sc, subscriptions)
	})
}

func runKustomizeSetImage(ctx context.Context, sc *steps.Context, subscriptions Subscriptions) (steps.Result, error) {
	cfg, err := decodeConfig[struct {
		Path   string         `json:"path"`
		Images []imageSetting `json:"images"`
	}](sc)
	if err != nil {
		return failed(err)
	}
	file, err := findKustomization(sc, cfg.Path)
	if err != nil {
		return errored(fmt.Errorf("could not discover kustomization file: %w", err))
	}
	var targets map[string]kustomizeImage
	if len(cfg.Images) > 0 {
		targets = configuredImages(cfg.Images)
	} else {
		targets, err = freightImages(ctx, sc, subscriptions)
	}
	if err != nil {
		return errored(fmt.Errorf("could not generate image targets: %w", err))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return errored(fmt.Errorf("could not read Kustomization file: %w", relativeTo(sc.WorkDir, err)))
	}
	node, err := kyaml.Parse(string(text))
	if err != nil {
		return errored(fmt.Errorf("could not unmarshal Kustomization file: %w", err))
	}
	images, err := setImages(node, targets)
	if err != nil {
		return errored(fmt.Errorf("could not update images of the Kustomization file: %w", err))
	}
	edited, err := node.String()
	if err == nil {
		err = os.WriteFile(file, []byte(edited), 0o644) //nolint:gosec // the mode applies to no file: it exists
	}
	if err != nil {
		return errored(fmt.Errorf("could not write Kustomization file: %w", relativeTo(sc.WorkDir, err)))
	}
	return succeeded(map[string]any{"commitMessage": imagesMessage(cfg.Path, images)})
}

// findKustomization returns the one Kustomization file in a directory.
func findKustomization(sc *steps.Context, dir string) (string, error) {
	var files, names []string
	for _, name := range kustomizationFiles() {
		rel := filepath.Join(dir, name)
		file, err := within(sc, rel)
		if err != nil {
			return "", err
		}
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			files, names = append(files, file), append(names, rel)
		}
	}
	switch len(files) {
	case 0:
		return "", fmt.Errorf("could not find any Kustomization files in %q", dir)
	case 1:
		return files[0], nil
	}
	return "", fmt.Errorf("ambiguous result: found multiple Kustomization files in %q: %v", dir, names)
}

// configuredImages are the entries a config asks for, by name.
func configuredImages(settings []imageSetting) map[string]kustomizeImage {
	targets := map[string]kustomizeImage{}
	for _, s := range settings {
		name := cmp.Or(s.Name, s.Image)
		targets[name] = kustomizeImage{Name: name, NewName: s.NewName, NewTag: s.Tag, Digest: s.Digest}
	}
	return targets
}

// freightImages are the entries for all images of the Freight, by name. Like
// Kargo it goes by what the requested Warehouses subscribe to when it refuses
// two of one name: Freight need not have both today.
func freightImages(ctx context.Context, sc *steps.Context, subscriptions Subscriptions) (map[string]kustomizeImage, error) {
	ambiguous := func(repo string) error {
		return fmt.Errorf("manual configuration required due to ambiguous result: the Freight can have more than one image %q; list `images`", repo)
	}
	subscribed := map[string]bool{}
	for _, q := range sc.FreightRequests {
		repos, err := subscriptions.SubscribedImages(ctx, sc.Project, q.Origin.Name)
		if err != nil {
			return nil, err
		}
		for _, repo := range repos {
			if subscribed[repo] {
				return nil, ambiguous(repo)
			}
			subscribed[repo] = true
		}
	}
	targets := map[string]kustomizeImage{}
	for _, f := range sc.Freight.References() {
		for _, i := range f.Images {
			if _, twice := targets[i.RepoURL]; twice {
				return nil, ambiguous(i.RepoURL)
			}
			targets[i.RepoURL] = kustomizeImage{Name: i.RepoURL, NewTag: i.Tag, Digest: i.Digest}
		}
	}
	return targets, nil
}

// setImages merges targets into the images of a Kustomization and returns the
// result, sorted by name.
func setImages(kustomization *kyaml.RNode, targets map[string]kustomizeImage) ([]kustomizeImage, error) {
	if kustomization.YNode().Kind != kyaml.MappingNode {
		return nil, errors.New("it is not a mapping")
	}
	merged := map[string]kustomizeImage{}
	if field := kustomization.Field("images"); !field.IsNilOrEmpty() {
		var current []kustomizeImage
		if err := field.Value.YNode().Decode(&current); err != nil {
			return nil, err
		}
		for _, i := range current {
			merged[i.Name] = i
		}
	}
	for name, target := range targets {
		old := merged[name]
		target.NewName = keepStar(target.NewName, old.NewName)
		target.NewTag = keepStar(target.NewTag, old.NewTag)
		target.Digest = keepStar(target.Digest, old.Digest)
		merged[name] = target
	}
	images := make([]kustomizeImage, 0, len(merged))
	for _, i := range merged {
		images = append(images, i)
	}
	slices.SortFunc(images, func(a, b kustomizeImage) int { return strings.Compare(a.Name, b.Name) })
	var list kyaml.Node
	if err := list.Encode(images); err != nil {
		return nil, err
	}
	return images, kustomization.PipeE(kyaml.SetField("images", kyaml.NewRNode(&list)))
}

// keepStar lets "*" stand for the value that is there.
func keepStar(value, old string) string {
	if value == "*" {
		return old
	}
	return value
}

func imagesMessage(path string, images []kustomizeImage) string {
	lines := make([]string, len(images))
	for i, image := range images {
		lines[i] = "\n- " + cmp.Or(image.NewName, image.Name)
		if image.NewTag != "" {
			lines[i] += ":" + image.NewTag
		}
		if image.Digest != "" {
			lines[i] += "@" + image.Digest
		}
	}
	slices.Sort(lines)
	noun := "images"
	if len(images) == 1 {
		noun = "image"
	}
	return fmt.Sprintf("Updated %s to use new %s\n%s", path, noun, strings.Join(lines, ""))
}
