package atomiccommit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sort"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/stepd/stepd/internal/gitrepo"
	"github.com/stepd/stepd/internal/repourl"
	"github.com/stepd/stepd/steps"
)

// change is what a step wants to be on a branch, and on whose behalf.
type change struct {
	project, stage, promotion, alias string
	repoURL, branch                  string
	// files are sorted by path.
	files []gitrepo.Change
	// id is "sha256:…", the value of the trailer Stepd-Change.
	id string
}

func newChange(sc *steps.Context, in *input) *change {
	c := &change{
		project: sc.Project, stage: sc.Stage, promotion: sc.Promotion, alias: sc.Alias,
		repoURL: in.repoURL, branch: in.branch, files: in.changes,
	}
	c.sort()
	c.id = c.hash()
	return c
}

func (c *change) sort() {
	sort.Slice(c.files, func(i, j int) bool { return c.files[i].Path < c.files[j].Path })
}

// hash is the change's identity. Every field is preceded by its length, so that
// no two changes have the same input.
func (c *change) hash() string {
	h := sha256.New()
	field := func(s string) { _, _ = fmt.Fprintf(h, "%d:%s,", len(s), s) }
	for _, s := range []string{"stepd-change-v1", c.project, c.promotion, c.alias, repourl.Git(c.repoURL), c.branch} {
		field(s)
	}
	for _, f := range c.files {
		field(f.Path)
		field(f.Mode.String())
		field(f.ID.String())
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// includes tells whether everything that other changes, c changes to the same.
func (c *change) includes(other *change) bool {
	files := map[string]gitrepo.Change{}
	for _, f := range c.files {
		files[f.Path] = f
	}
	for _, f := range other.files {
		if mine, ok := files[f.Path]; !ok || mine.Mode != f.Mode || mine.ID != f.ID {
			return false
		}
	}
	return true
}

func (c *change) paths() []string {
	paths := make([]string, len(c.files))
	for i, f := range c.files {
		paths[i] = f.Path
	}
	return paths
}

// promotionULID returns the ULID in a promotion's name,
// "<stage>.<ulid>.<freight>"; the freight may be missing.
func promotionULID(name string) (ulid.ULID, bool) {
	parts := strings.Split(name, ".")
	for _, i := range []int{len(parts) - 2, len(parts) - 1} {
		if i < 1 {
			continue
		}
		if id, err := ulid.ParseStrict(strings.ToUpper(parts[i])); err == nil {
			return id, true
		}
	}
	return ulid.ULID{}, false
}

// claim is what a commit's trailers say about where it came from. Anybody can
// write them.
type claim struct {
	changes          []string
	project, stage   string
	promotion        string
	hasStage, hasPro bool
}

func readClaim(message string) claim {
	var c claim
	for _, t := range parseTrailers(message) {
		switch {
		case strings.EqualFold(t.key, trailerChange):
			c.changes = append(c.changes, t.value)
		case strings.EqualFold(t.key, trailerStage):
			c.project, c.stage, c.hasStage = strings.Cut(t.value, "/")
		case strings.EqualFold(t.key, trailerPromotion):
			_, c.promotion, c.hasPro = strings.Cut(t.value, "/")
		}
	}
	return c
}

func (c claim) is(id string) bool {
	for _, s := range c.changes {
		if s == id {
			return true
		}
	}
	return false
}

// otherOfStage tells whether the claim is of another promotion of the same
// stage that came through this step.
func (c claim) otherOfStage(ch *change) bool {
	return len(c.changes) > 0 && c.hasStage && c.hasPro &&
		c.project == ch.project && c.stage == ch.stage && c.promotion != ch.promotion
}

// ofPromotion tells whether the claim is of a step of the same promotion.
func (c claim) ofPromotion(ch *change) bool {
	return len(c.changes) > 0 && c.hasStage && c.hasPro && c.project == ch.project && c.promotion == ch.promotion
}
